"""Sets of human masks as a recipe or a suite describes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from sum_factory.shared.progress import SPEAKER, Stage
from sum_factory.shared.sam.task_prompt import task_id
from sum_factory.trainer.data.human import Choice, CocoInstances, FolderPairs, HumanSet, LabelMaps
from sum_factory.trainer.data.human.fitting import Orientation
from sum_factory.trainer.data.human.foreground import Setting as Foreground
from sum_factory.trainer.data.human.pairing import Names
from sum_factory.trainer.data.human.photos import Alpha
from sum_factory.trainer.data.human.problems import Skip

Task = Literal["unspecified", "salient", "entity", "part"]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AnySetSettings:
    """What the settings of sets of all layouts share: which photos are in, and what is done about odd ones."""

    name: str = ""
    """Name of the set in messages and reports. A suite asks for one, different for each set."""
    list: Path | None = None
    """Text file with a photo a line, as name or path, with or without suffix: the others are left out. By default all
    are taken."""
    match: str | None = None
    """Pattern of the paths of photos in their folder, such as ``entity_01_*``: the others are left out. ``*`` stands
    for any text. By default all are taken."""
    limit: PositiveInt | None = None
    """Take only the first so many photos, of those that ``list`` and ``match`` leave. By default all are taken."""
    skip: Skip = "nothing"
    """What to do about photos and masks that cannot be used: refuse the set (nothing), or leave them out and say how
    many of which kind (problems)."""
    orientation: Orientation = "auto"
    """Whether masks were drawn on photos as EXIF turns them. By default sizes tell, and where they do not, the other
    photos of the set."""
    photo_alpha: Alpha = "white"
    """What the fourth channel of photos is: transparency, which is laid over white, or something else that is
    dropped."""


@dataclass(frozen=True, config=STRICT)
class FolderPairsSettings(AnySetSettings):
    """A folder of photos and a folder of mask files of the same names, or one folder with both."""

    kind: Literal["folder-pairs"]
    """Which layout the set has: this one."""
    images: Path
    """Folder of the photos, and of folders of photos. Each is paired with the mask of the same path but for the
    suffix."""
    masks: Path
    """Folder of the masks: one a photo, of its size. It may be that of the photos: then photos are JPEGs and masks
    PNGs."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    foreground: Foreground = "auto"
    """What in a mask is foreground: half of the largest value and above, what is not 0, what is 0, what is opaque, or
    these values. By default some masks of the set tell, and what they told is said."""
    photo_names: str | None = None
    """How photos are named, such as ``{}_im.jpg``: ``{}`` is what their masks are called, too, and ``*`` is any
    text."""
    mask_names: str | None = None
    """How masks are named, such as ``{}_gt.png``. With a ``*`` in it, a photo may have several mask files."""
    most_blank: Share = 0.1
    """Share of the masks that may be empty or full, of those that are looked at when the set is opened."""


@dataclass(frozen=True, config=STRICT)
class CocoSettings(AnySetSettings):
    """A file of COCO instances, or of VIA's regions, and the folder that its ``file_name`` entries are relative to."""

    kind: Literal["coco"]
    """Which layout the set has: this one."""
    annotations: Path
    """JSON file of COCO instances, with RLE or polygons, or of VIA's regions. Crowds are left out, unless there is
    nothing else."""
    images: Path
    """Folder of the photos: what the ``file_name`` entries are relative to."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    categories: tuple[int | str, ...] = ()
    """Categories whose annotations are taken, each an id, a name or a supercategory; names may hold ``*``. By default
    all are taken."""


@dataclass(frozen=True, config=STRICT)
class LabelMapsSettings(AnySetSettings):
    """A folder of photos and a folder of label maps of the same names."""

    kind: Literal["label-maps"]
    """Which layout the set has: this one."""
    images: Path
    """Folder of the photos, and of folders of photos. Each is paired with the label map of the same path but for the
    suffix."""
    labels: Path
    """Folder of the label maps: one a photo, of its size, as PNG or TIFF. Each value is one mask, and each colour."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    ignored: tuple[int, ...] | None = None
    """Values of the label maps that are no masks: background and void. By default 0, and 255 where it means void. A
    colour is R + 256 G + 65536 B."""
    least: int = 0
    """Values below this are no masks either: 24000 leaves the single objects of Cityscapes."""
    photo_names: str | None = None
    """How photos are named, such as ``{}_im.jpg``: ``{}`` is what their label maps are called, too, and ``*`` is any
    text."""
    label_names: str | None = None
    """How label maps are named, such as ``{}_*.png``. With a ``*`` in it, a photo may have several label maps."""
    most_blank: Share = 0.1
    """Share of the label maps that may have no mask, or a single one over all of the photo, of those that are looked at
    when the set is opened."""


SetSettings = Annotated[FolderPairsSettings | CocoSettings | LabelMapsSettings, Field(discriminator="kind")]
"""Any of the three layouts, told apart by ``kind``."""


class Shared(TypedDict):
    """What the sets of all layouts are given."""

    choice: Choice
    orientation: Orientation
    photo_alpha: Alpha
    skip: Skip


_told: set[str] = set()
"""What was said of sets in this process: a set is opened again for each evaluation, and not told of again."""


def open_set(settings: SetSettings) -> HumanSet:
    """Open a set, which checks it, and say on stderr what was found. Raises ``InputError``, naming folder or file."""
    name = settings.name or str(settings.images)
    with Stage(f"opening {name}" if settings.name is None else f"opening {name} in {settings.images}"):
        opened = layout_of(settings)
        findings = opened.findings
    line = f"{name}: {len(opened.keys):,} photos; {'; '.join(findings)}"
    if line not in _told and not SPEAKER.silent:
        _told.add(line)
        SPEAKER.say(line)
    return opened


def check_sets(sets: Iterable[SetSettings]) -> None:
    """Open sets that are read later, and keep none: those of a suite would not fit into memory together.

    Raises ``InputError``.
    """
    for settings in sets:
        open_set(settings)


def layout_of(settings: SetSettings) -> HumanSet:
    """Return the set of these settings, not yet opened."""
    images, task = settings.images, task_id(settings.task)
    shared: Shared = {
        "choice": Choice(settings.list, settings.match, settings.limit),
        "orientation": settings.orientation,
        "photo_alpha": settings.photo_alpha,
        "skip": settings.skip,
    }
    match settings:
        case FolderPairsSettings():
            names = Names(settings.photo_names, settings.mask_names)
            foreground, most_blank = settings.foreground, settings.most_blank
            return FolderPairs(images, settings.masks, task, foreground, names, most_blank=most_blank, **shared)
        case LabelMapsSettings():
            names = Names(settings.photo_names, settings.label_names)
            ignored, least, most_blank = settings.ignored, settings.least, settings.most_blank
            return LabelMaps(images, settings.labels, task, ignored, least, names, most_blank=most_blank, **shared)
        case CocoSettings():
            return CocoInstances(settings.annotations, images, task, settings.categories, **shared)
