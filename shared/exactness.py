"""How near the masks of a SAM are to upstream's: one of three levels, by what its parts compute in.

    exact           encoder and decoder in fp32, without TF32: upstream's masks, on a GPU as on a CPU
    encoder-bf16    the encoder in bf16; the decoder in fp32, from the embedding that this gives
    fast            encoder and decoder in bf16, and TF32 in what stays fp32

Whoever runs a SAM that is not trained chooses one of these; training has a ``precision`` (``shared.precision``).
Records say what each part computed in: ``precision`` is the encoder's, and ``decoder_precision`` is there if the
decoder's is not fp32. So what was recorded before there were levels still says which one it was.

Nothing here needs torch before a device is asked, so that options and settings can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.precision import Precision, PrecisionSetting, precision_option, resolve, tell_if_emulated

if TYPE_CHECKING:
    import torch

Exactness = Literal["exact", "encoder-bf16", "fast"]
PROMPTED: tuple[Exactness, ...] = ("exact", "encoder-bf16")
"""The levels of commands that prompt for single masks: these gain nothing by a decoder in bf16."""
ENCODER, DECODER = "precision", "decoder_precision"
"""What records call the precision of the two parts."""


@dataclass(frozen=True)
class Level:
    """What the encoder and the decoder compute in, and whether products in fp32 may be rounded to TF32."""

    encoder: Precision
    decoder: Precision
    tf32: bool

    def settings(self) -> dict[str, Any]:
        """Return what a record says of the level."""
        return {ENCODER: self.encoder, **({} if self.decoder == "fp32" else {DECODER: self.decoder})}


LEVELS: Mapping[Exactness, Level] = {
    "exact": Level("fp32", "fp32", tf32=False),
    "encoder-bf16": Level("bf16", "fp32", tf32=False),
    "fast": Level("bf16", "bf16", tf32=True),
}


def exactness_option(
    help_: str, default: Exactness | None = "exact", levels: tuple[Exactness, ...] = get_args(Exactness)
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--exactness`` of a command, and ``--precision``, which names a level by its encoder.

    The command gets ``exactness``; without a default it is None if neither is given.
    """

    def add_options(command: Callable[..., Any]) -> Callable[..., Any]:
        @precision_option(
            None,
            "The level by what the image encoder computes in: fp32 is exact, bf16 is encoder-bf16. auto is the latter "
            "where the device has instructions for bfloat16.",
        )
        @click.option("--exactness", type=click.Choice(levels), default=default, show_default=bool(default), help=help_)
        @wraps(command)
        def with_level(
            *arguments: Any, precision: PrecisionSetting | None, exactness: Exactness | None, **options: Any
        ) -> Any:
            if precision is not None:
                exactness = _level_asked_for(precision, options.get("device", "auto"))
            return command(*arguments, exactness=exactness, **options)

        return with_level

    return add_options


def _level_asked_for(precision: PrecisionSetting, device: str) -> Exactness:
    """Return the level that ``--precision`` asks for. Raises ``click.UsageError`` if ``--exactness`` is given, too."""
    from sum_factory.shared.sam.runtime import pick_device

    source = click.get_current_context().get_parameter_source("exactness")
    if source not in (None, click.core.ParameterSource.DEFAULT):
        raise click.UsageError("--precision and --exactness both name the level: give one of them")
    return with_encoder(resolve(precision, pick_device(device)).name)


def exactness_of(settings: Mapping[str, Any]) -> Exactness | None:
    """Return the level that a record's ``settings`` tell of; None if they tell of none."""
    told = parts_in(settings)
    return next((name for name, level in LEVELS.items() if level.settings() == told), None)


def parts_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record's ``settings`` say of the precision of the parts."""
    return {name: settings[name] for name in (ENCODER, DECODER) if name in settings}


def with_encoder(precision: Precision) -> Exactness:
    """Return the level of an encoder in ``precision`` and a decoder in fp32."""
    return "exact" if precision == "fp32" else "encoder-bf16"


def require_level(place: str, settings: Mapping[str, Any], exactness: Exactness) -> None:
    """Refuse to go on with what was begun at another level, as ``place`` records it. Raises ``SettingsDifferError``."""
    there = exactness_of(settings)
    if there is not None and there != exactness:
        raise SettingsDifferError(
            f"{place}: exactness: there {there}, here it would be {exactness}. "
            f"Give --exactness {there} to go on with it, or another folder for another level."
        )


def settle(exactness: Exactness, device: torch.device) -> None:
    """At the start of a run on ``device``, say what the level costs if bf16 has to be emulated there."""
    if LEVELS[exactness].encoder == "bf16":
        tell_if_emulated(f"exactness {exactness}", device, "exactness exact")


def allow_tf32(allowed: bool) -> None:
    """Have this process round factors of products and convolutions in fp32 to TF32 on a GPU, or not.

    PyTorch by itself would do so in convolutions: an embedding would differ from a CPU's in the fourth digit.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
