"""What a variant says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.run.settings import NoSettings


@dataclass(frozen=True)
class Variant:
    """Which weights are trained, and how they are saved. Each module of this package with a ``VARIANT`` is one.

    ``prepare(sam, settings)`` puts in what the variant adds, and lets gradients reach what is trained and nothing
    else; new weights are drawn from torch's generator. ``merge(sam)`` makes a plain SAM of it again, with the same
    numbers but for rounding; where that is impossible it is None, and ``not_plain`` says why, unless there is another
    ``public_form``.
    """

    name: str
    about: str
    """What is trained, in words."""
    prepare: Callable[[Sam, Any], None]
    settings: type[Any] = NoSettings
    saves_all_of_sam: bool = False
    """Whether the file of weights holds all of SAM. Otherwise it holds what was trained, and names the SAM below it."""
    merge: Callable[[Sam], None] | None = None
    not_plain: str = ""
    public_form: str = ""
    """The layout, in words, in which others read the weights, where that is not plain SAM's."""
