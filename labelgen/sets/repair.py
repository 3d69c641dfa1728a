"""Take broken units of a shard set back, so that the command that made them makes them again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sum_factory.labelgen.settings import IMPORTED
from sum_factory.shared.errors import ShardError
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import DATASET, REMEDY_FOR_DATASET, UNCERTAINTY, unit_name, unit_path
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.verify import PLANS, verify
from sum_factory.shared.store.storage import Storage

QUARANTINE = "quarantine"
"""Folder in the shard set that keeps what was taken back; nothing reads it."""


@dataclass(frozen=True)
class Broken:
    """A unit of a layer, or the plan of a unit (``layer`` is ``PLANS``), and what is wrong with it."""

    layer: str
    unit: int
    problems: tuple[str, ...]
    files: tuple[str, ...]
    """Its files, in the order in which they are taken back: without its manifest a unit is not committed."""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        unit = f"unit {unit_name(self.unit)}"
        return f"the plan of {unit}" if self.layer == PLANS else f"{unit} of {self.layer}"


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a shard set: what can be taken back, in the order to do so, and the problems that are left."""

    broken: tuple[Broken, ...]
    left: tuple[str, ...]
    made_by: str = "run"
    """The command that made the masks."""

    def commands(self) -> str:
        """Return which commands make again what is taken back."""
        layers = sorted({broken.layer.split("/", 1)[1] for broken in self.broken if _is_of_maps(broken.layer)})
        commands = (
            [f"`labelgen {self.made_by}`"] if any(not _is_of_maps(broken.layer) for broken in self.broken) else []
        )
        commands += [f"`labelgen uncertainty --layer-name {layer}`" for layer in layers]
        return ", then ".join(commands)


def diagnose(shards: ShardSet) -> Diagnosis:
    """Check a shard set as ``verify`` does, and tell what can be taken back from what cannot. Nothing is changed.

    Maps, logits and embeddings go with their masks, also sound ones: masks that are made
    again may differ, on another device.

    Raises ``ShardError`` if nothing fits ``dataset.json``: then this is the file that is wrong.
    """
    broken: dict[tuple[str, int], tuple[str, ...]] = {}
    left: list[str] = []
    checks = list(verify(shards))
    named = [check for check in checks if check.unit < len(shards.dataset.unit_ids)]
    plans = sum(check.layer == PLANS for check in named)
    for check in checks:
        if check.problems and (check.unit < 0 or not _is_there(shards.storage, check.layer, check.unit)):
            left += check.problems
        elif check.problems:
            broken[check.layer, check.unit] = check.problems
    if broken and plans == len(shards.dataset.unit_ids) and all(check.record is None for check in named):
        name = shards.storage.path(DATASET)
        raise ShardError(f"{name}: no plan of a unit and nothing that is committed fits it; {REMEDY_FOR_DATASET}")
    for layer in (name for name in shards.dataset.layers if kind_of(name).of_masks):
        for number in shards.committed(layer):
            if (MASKS, number) in broken:
                broken.setdefault((layer, number), ("its masks are taken back",))
    ordered = sorted(broken, key=lambda key: (key[0] == PLANS or not kind_of(key[0]).of_masks, key[0] == PLANS, key))
    found = tuple(Broken(*key, broken[key], files_of(shards, *key)) for key in ordered)
    return Diagnosis(found, tuple(left), "import" if IMPORTED in shards.layer(MASKS).settings else "run")


def _is_of_maps(layer: str) -> bool:
    return layer != PLANS and kind_of(layer).name == UNCERTAINTY


def take_back(storage: Storage, broken: tuple[Broken, ...]) -> str:
    """Move the files of broken units aside; return the folder in the shard set where they are, under their own names.

    Whatever interrupts this, what is left of the shard set can be taken back, and made again, as before: maps go
    before their masks, and manifests before data.
    """
    folder = f"{QUARANTINE}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    for one in track(broken, "taking back", "unit"):
        for name in one.files:
            if storage.exists(name):
                storage.move(name, f"{folder}/{name}")
    return folder


def files_of(shards: ShardSet, layer: str, unit: int) -> tuple[str, ...]:
    """Return the files of a unit of a layer, or of its plan, in the order in which they are taken back."""
    return (unit_path(unit),) if layer == PLANS else (manifest_path(layer, unit), *shards.data_files(unit, layer))


def _is_there(storage: Storage, layer: str, unit: int) -> bool:
    """Whether there is something to take back: a plan that is missing is none."""
    return layer != PLANS or storage.exists(unit_path(unit))
