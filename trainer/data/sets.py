"""Sets of human masks as a recipe or a suite describes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from sum_factory.shared.errors import SourceError
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.task_prompt import task_id
from sum_factory.trainer.data.human import CocoInstances, FolderPairs, HumanSet, LabelMaps, Subset

Task = Literal["unspecified", "salient", "entity", "part"]
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class FolderPairsSettings:
    """A folder of photos and a folder of masks of the same stem."""

    kind: Literal["folder-pairs"]
    """Says that the set has this layout."""
    images: Path
    """Folder of the photos."""
    masks: Path
    """Folder of the masks: one image a photo, of the same stem; 128 and above is in the mask."""
    task: Task
    """What kind of mask these are: salient, entity, part, or unspecified."""
    name: str = ""
    """What results call the set; by default its task."""
    list: Path | None = None
    """A file with one stem a line; others are left out."""
    limit: PositiveInt | None = None
    """The first so many samples only."""


@dataclass(frozen=True, config=STRICT)
class CocoSettings:
    """A COCO instances file and the folder that its ``file_name`` entries are relative to."""

    kind: Literal["coco"]
    """Says that the set has this layout."""
    annotations: Path
    """The JSON file of COCO instances."""
    images: Path
    """Folder that the ``file_name`` entries are relative to."""
    task: Task
    """What kind of mask these are: salient, entity, part, or unspecified."""
    name: str = ""
    """What results call the set; by default its task."""
    list: Path | None = None
    """A file with one stem a line; others are left out."""
    limit: PositiveInt | None = None
    """The first so many samples only."""


@dataclass(frozen=True, config=STRICT)
class LabelMapsSettings:
    """A folder of photos and a folder of label-map PNGs of the same stem."""

    kind: Literal["label-maps"]
    """Says that the set has this layout."""
    images: Path
    """Folder of the photos."""
    labels: Path
    """Folder of the label maps: one PNG a photo, of the same stem; a value is one mask."""
    task: Task
    """What kind of mask these are: salient, entity, part, or unspecified."""
    name: str = ""
    """What results call the set; by default its task."""
    ignored: tuple[int, ...] = (0, 255)
    """Values that are no masks."""
    list: Path | None = None
    """A file with one stem a line; others are left out."""
    limit: PositiveInt | None = None
    """The first so many samples only."""


SetSettings = Annotated[FolderPairsSettings | CocoSettings | LabelMapsSettings, Field(discriminator="kind")]
"""Any of the three layouts, told apart by ``kind``."""


def open_set(settings: SetSettings) -> HumanSet:
    """Open a set, which checks that its files are there. Raises ``SourceError``, naming the folder or file."""
    with Stage(f"opening {settings.name or settings.images}"):
        whole = _open_whole(settings)
    indices: Sequence[int] = range(len(whole.keys))
    if settings.list is not None:
        indices = _listed(settings.list, whole.keys)
    if settings.limit is not None:
        indices = indices[: settings.limit]
    if len(indices) == 0:
        raise SourceError(f"{settings.name or settings.images}: no samples; check list and limit")
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
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    missing = sorted(wanted - set(keys))
    if missing:
        raise SourceError(f"{path}: {len(missing)} of its stems are not in the set, the first is {missing[0]!r}")
    return [index for index, key in enumerate(keys) if key in wanted]
