"""``labelgen merge``: a selection of shard sets that were made apart, as if they were one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import click
import numpy as np
import numpy.typing as npt

from sum_factory.labelgen.sets.write_selection import (
    Choice,
    SelectionSummary,
    committed_layers,
    selectable,
    write_selection,
)
from sum_factory.shared.errors import SettingsError, ShardError
from sum_factory.shared.progress import track
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.shards.dataset import OUTPUTS
from sum_factory.shared.shards.kinds import comparable
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.selection.plan import stored_url
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

Keep = Literal["first"]

EXAMPLES = 3
"""Photos that are named of those that two shard sets share."""
REMEDY_FOR_LAYERS = (
    "Only what was made alike can be merged: choose other layers with --layer, or make this layer alike in both."
)
REMEDY_FOR_PHOTOS = "give --keep first, which leaves a photo out of all but the first that has it"


def merge(
    urls: Sequence[str],
    out: str,
    keep: Keep | None = None,
    layers: Sequence[str] = (),
    say: Callable[[str], None] = click.echo,
) -> SelectionSummary:
    """Write a selection at ``out`` of all that is committed at ``urls``, shard sets or selections, in this order.

    It offers ``layers``, by default those that all of these have. A photo, told by its digest, that several have
    is refused, or with ``keep`` "first" taken of the first one alone. Raises ``SettingsDifferError`` if a layer was
    made with other settings or weights in one than in another, ``ShardError`` for a photo in several, and if a
    shard set lacks a layer or has no unit yet; then nothing is written.
    """
    if len(urls) < 2:
        raise SettingsError("give two shard sets or more to merge")
    if selectable(layers) != tuple(layers):
        raise SettingsError(f"a selection cannot offer {' or '.join(OUTPUTS)}: leave that --layer out")
    opened = [open_shards(url) for url in urls]
    offered = tuple(dict.fromkeys([MASKS, *layers])) if layers else _layers_of_all(opened)
    _require_alike(opened, offered)
    described = {"merged": [stored_url(url, out) for url in urls], "keep": keep}
    return write_selection(out, _choices(opened, offered, keep, say), offered, described)


def _layers_of_all(opened: Sequence[ShardSet]) -> tuple[str, ...]:
    """Return the layers that all have, the masks first."""
    common = set.intersection(*(set(shards.dataset.layers) for shards in opened))
    return (MASKS, *sorted(selectable(common - {MASKS})))


def _require_alike(opened: Sequence[ShardSet], layers: Sequence[str]) -> None:
    """Raise ``SettingsDifferError`` if a layer is not the same kind of data in all; its encoding does not count."""
    first = opened[0]
    for name in layers:
        wanted = first.layer(name)
        for shards in opened[1:]:
            layer, where = shards.layer(name), f"{shards.storage.url}, layer {name}"
            for kind, there, here in (
                ("settings", comparable(layer), comparable(wanted)),
                ("weights", layer.weights, wanted.weights),
            ):
                require_same(kind, where, there, here, REMEDY_FOR_LAYERS, f"in {first.storage.url}")


def _choices(
    opened: Sequence[ShardSet], layers: tuple[str, ...], keep: Keep | None, say: Callable[[str], None]
) -> Iterator[Choice]:
    """Yield all units of all, without photos of which an earlier one has the masks."""
    owners: dict[bytes, int] = {}
    twice: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], list[str]] = {}
    for index, shards in enumerate(opened):
        held = committed_layers(shards, layers)
        if not held:
            raise ShardError(f"{shards.storage.url}: has no unit yet; finish `labelgen run` first, or leave it out")
        repeated = 0
        for number, of_unit in track(held.items(), f"merging {shards.storage.url}", "unit"):
            taken = []
            for key, digest in shards.digests(number).items():  # a photo that could not be read is in no other
                owner = index if digest is None else owners.setdefault(bytes.fromhex(digest), index)
                taken.append(owner == index)
                if owner != index:
                    pair = owner, index
                    twice[pair] += 1
                    examples.setdefault(pair, []).extend([key] if twice[pair] <= EXAMPLES else [])
            repeated += taken.count(False)
            yield Choice(shards, number, of_unit, _of_images(shards, number, taken))
        say(_told(shards, len(held), repeated if keep else 0))
    if twice and keep is None:
        raise ShardError(
            "\n".join(
                f"{opened[earlier].storage.url} and {opened[later].storage.url}: {count} photos are in both, such as "
                f"{', '.join(map(repr, examples[earlier, later]))} of the latter"
                for (earlier, later), count in twice.items()
            )
            + f"\n{REMEDY_FOR_PHOTOS}"
        )


def _of_images(shards: ShardSet, number: int, taken: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Return which rows of a unit's manifest of masks are of the images that are ``taken``, bool (R,)."""
    table, _ = shards.manifest(number)
    return np.asarray(np.array(taken, bool)[table["image_index"].to_numpy()], np.bool_)


def _told(shards: ShardSet, units: int, repeated: int) -> str:
    """Return what is taken of a shard set, for people."""
    planned = shards.unit_count
    missing = f", {planned - units} that are not labelled yet are not in the selection" if units < planned else ""
    again = f", without {repeated} photos of earlier ones" if repeated else ""
    return f"{shards.storage.url}: {units} of {planned} units{missing}{again}"
