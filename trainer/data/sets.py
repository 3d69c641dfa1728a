"""Sets of human masks as a recipe or a suite describes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from sum_factory.shared.errors import InputError
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.task_prompt import task_id
from sum_factory.trainer.data.human import CocoInstances, FolderPairs, HumanSet, LabelMaps, Subset

Task = Literal["unspecified", "salient", "entity", "part"]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class FolderPairsSettings:
    """A folder of photos and a folder of masks of the same stem."""

    kind: Literal["folder-pairs"]
    """Which layout the set has: this one."""
    images: Path
    """Folder of the photos. Each is paired with the file of the same stem."""
    masks: Path
    """Folder of the masks: one grey image a photo, of its size and stem. Values of 128 and above are the mask."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    name: str = ""
    """Name of the set in messages and reports. A suite asks for one, different for each set."""
    list: Path | None = None
    """Text file with one stem a line: the other photos are left out. By default all are taken."""
    limit: PositiveInt | None = None
    """Take only the first so many photos, of those that ``list`` leaves. By default all are taken."""


@dataclass(frozen=True, config=STRICT)
class CocoSettings:
    """A COCO instances file and the folder that its ``file_name`` entries are relative to."""

    kind: Literal["coco"]
    """Which layout the set has: this one."""
    annotations: Path
    """JSON file of COCO instances, with RLE or polygons. Crowds are left out."""
    images: Path
    """Folder of the photos: what the ``file_name`` entries are relative to."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    name: str = ""
    """Name of the set in messages and reports. A suite asks for one, different for each set."""
    list: Path | None = None
    """Text file with one stem a line: the other photos are left out. By default all are taken."""
    limit: PositiveInt | None = None
    """Take only the first so many photos, of those that ``list`` leaves. By default all are taken."""


@dataclass(frozen=True, config=STRICT)
class LabelMapsSettings:
    """A folder of photos and a folder of label-map PNGs of the same stem."""

    kind: Literal["label-maps"]
    """Which layout the set has: this one."""
    images: Path
    """Folder of the photos. Each is paired with the file of the same stem."""
    labels: Path
    """Folder of the label maps: one PNG a photo, of its size and stem. Each value is one mask."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    name: str = ""
    """Name of the set in messages and reports. A suite asks for one, different for each set."""
    ignored: tuple[int, ...] = (0, 255)
    """Values of the label maps that are no masks: background and void."""
    list: Path | None = None
    """Text file with one stem a line: the other photos are left out. By default all are taken."""
    limit: PositiveInt | None = None
    """Take only the first so many photos, of those that ``list`` leaves. By default all are taken."""


SetSettings = Annotated[FolderPairsSettings | CocoSettings | LabelMapsSettings, Field(discriminator="kind")]
"""Any of the three layouts, told apart by ``kind``."""


def open_set(settings: SetSettings) -> HumanSet:
    """Open a set, which checks that its files are there. Raises ``InputError``, naming the folder or file."""
    with Stage(f"opening {settings.name or settings.images}"):
        whole = _open_whole(settings)
    indices: Sequence[int] = range(len(whole.keys))
    if settings.list is not None:
        indices = _listed(settings.list, whole.keys)
    if settings.limit is not None:
        indices = indices[: settings.limit]
    if len(indices) == 0:
        raise InputError(f"{settings.name or settings.images}: no samples; check list and limit")
    return whole if len(indices) == len(whole.keys) else Subset(whole, tuple(indices))


def _open_whole(settings: SetSettings) -> HumanSet:
    task = task_id(settings.task)
    match settings:
        case FolderPairsSettings():
            return FolderPairs(settings.images, settings.masks, task)
        case LabelMapsSettings():
            return LabelMaps(settings.images, settings.labels, task, settings.ignored)
        case CocoSettings():
            return CocoInstances(settings.annotations, settings.images, task)


def _listed(path: Path, keys: list[str]) -> list[int]:
    """Return the places of the stems that a file lists, one a line, in the set's order."""
    try:
        wanted = {line.strip() for line in path.read_text().splitlines() if line.strip()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    missing = sorted(wanted - set(keys))
    if missing:
        raise InputError(f"{path}: {len(missing)} of its stems are not in the set, the first is {missing[0]!r}")
    return [index for index, key in enumerate(keys) if key in wanted]
