"""Find the model among what a file holds: within dictionaries, behind prefixes, and wrapped by what trained it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sum_factory.shared.errors import CheckpointError

ANCHOR = "prompt_encoder.no_mask_embed.weight"
"""A tensor that every SAM has once, under this name in the official files and in those of Hugging Face."""
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that data parallelism, ``torch.compile`` and sharding put in; no name of SAM has any of them."""
DEEPEST = 6
"""Dictionaries within dictionaries, at most."""

Path = tuple[str, ...]


def flatten(content: Any) -> dict[Path, Tensor]:
    """Return every tensor in dictionaries within dictionaries, by the keys that lead to it; all else is left out."""
    return dict(_tensors(content, ())) if isinstance(content, Mapping) else {}


def _tensors(content: Mapping[Any, Any], above: Path) -> Iterator[tuple[Path, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield (*above, str(key)), value
        elif isinstance(value, Mapping) and len(above) < DEEPEST:
            yield from _tensors(value, (*above, str(key)))


def plain(path: Path) -> str:
    """Return the name of a tensor, without what wraps it."""
    return ".".join(word for key in path for word in key.split(".") if word not in WRAPPERS)


def find_model(tensors: Mapping[Path, Tensor], where: str) -> dict[str, Tensor] | None:
    """Return the tensors of the one model that is among these, by their names in it; None if there is no SAM.

    What else lies in the same dictionary as the model keeps its name, and so will not fit; what lies elsewhere, such as
    an optimizer's state, is left out. Raises ``CheckpointError`` if there are several models.
    """
    names = {path: plain(path) for path in tensors}
    anchors = [path for path, name in names.items() if name == ANCHOR or name.endswith(f".{ANCHOR}")]
    if not anchors:
        return None
    if len(anchors) > 1:
        found = ", ".join(".".join(path).removesuffix(ANCHOR).rstrip(".") or "(no prefix)" for path in sorted(anchors))
        raise CheckpointError(
            f"{where}: holds {len(anchors)} models, under {found}; save the one that you mean into a file of its own"
        )
    prefix = names[anchors[0]].removesuffix(ANCHOR)
    around = _around(anchors[0], prefix)
    model: dict[str, Tensor] = {}
    for path, name in names.items():
        if name.startswith(prefix) or path[: len(around)] == around:
            own = name.removeprefix(prefix)
            if own in model and not torch.equal(model[own], tensors[path]):
                raise CheckpointError(
                    f"{where}: holds two different tensors that stand for {own}, the second is {'.'.join(path)}; save "
                    "the model that you mean into a file of its own"
                )
            model[own] = tensors[path]
    return model


def _around(anchor: Path, prefix: str) -> Path:
    """Return the keys that lead to the dictionary of the model whose names begin with ``prefix``."""
    depths = range(len(anchor) - 1, 0, -1)
    deepest = next((k for k in depths if prefix.startswith(f"{plain(anchor[:k])}.")), 0)
    return anchor[:deepest]
