"""Sets of human masks as a recipe or a suite describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, ConfigDict, Field, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from sum_factory.shared.errors import InputError
from sum_factory.shared.progress import SPEAKER, Stage
from sum_factory.shared.sam.task_prompt import task_id
from sum_factory.trainer.data.human import (
    Choice,
    CocoInstances,
    FolderPairs,
    HumanSet,
    JoinedSets,
    LabelMaps,
    PascalPart,
)
from sum_factory.trainer.data.human.fitting import Orientation
from sum_factory.trainer.data.human.foreground import Setting as Foreground
from sum_factory.trainer.data.human.label_maps import Channel
from sum_factory.trainer.data.human.pairing import Names
from sum_factory.trainer.data.human.pascal_part import What
from sum_factory.trainer.data.human.photos import Alpha
from sum_factory.trainer.data.human.problems import Skip
from sum_factory.trainer.data.public import PublicSet, locate, public_set
from sum_factory.trainer.data.public import Task as Task

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ChosenPhotos:
    """What the settings of all sets share: a name, and which photos are in."""

    name: str = ""
    """Name of the set in messages and reports. A suite asks for one, different for each set."""
    list: Path | None = None
    """Text file with a photo per line, as name or path, with or without suffix, or a folder for all below it: the
    others are left out. By default all are taken."""
    list_lines: tuple[PositiveInt, PositiveInt] | None = None
    """Of ``list`` only the lines from the first to the second of these, counted from 1. By default all count."""
    match: str | None = None
    """Pattern of the paths of photos in their folder, such as ``entity_01_*``: the others are left out. ``*`` stands
    for any text. By default all are taken."""
    limit: PositiveInt | None = None
    """Take only the first so many photos, of those that ``list`` and ``match`` leave. By default all are taken."""

    def __post_init__(self) -> None:
        if self.list_lines is not None and self.list is None:
            raise ValueError("list_lines: expected a list that has these lines, found none")

    @property
    def choice(self) -> Choice:
        """Which photos are taken."""
        return Choice(self.list, self.match, self.limit, self.list_lines)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AnySetSettings(ChosenPhotos):
    """What the settings of sets of all layouts share: which photos are in, and what is done about odd ones."""

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
    """Folder of the masks: one per photo, of its size. It may be that of the photos: then photos are JPEGs and masks
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
    """A file of COCO instances, VIA's regions or Label Studio's tasks, or a folder of files of one photo each, and the
    folder that the names of photos in it are relative to."""

    kind: Literal["coco"]
    """Which layout the set has: this one."""
    annotations: Path
    """JSON file of COCO instances, with RLE or polygons, of VIA's regions, or of Label Studio's tasks; or a folder of
    files of one photo each, as SA-1B and labelme have them. Crowds are left out, unless there is nothing else."""
    images: Path
    """Folder of the photos: what the ``file_name`` entries are relative to."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    categories: tuple[int | str, ...] = ()
    """Categories whose annotations are taken, each an id, a name or a supercategory; names may hold ``*``. By default
    all are taken."""
    without_categories: tuple[int | str, ...] = ()
    """Categories whose annotations are left out, likewise."""


@dataclass(frozen=True, config=STRICT)
class LabelMapsSettings(AnySetSettings):
    """A folder of photos and a folder of label maps of the same names."""

    kind: Literal["label-maps"]
    """Which layout the set has: this one."""
    images: Path
    """Folder of the photos, and of folders of photos. Each is paired with the label map of the same path but for the
    suffix."""
    labels: Path
    """Folder of the label maps: one per photo, of its size, as PNG or TIFF. Each value is one mask, and each colour."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    ignored: tuple[int, ...] | None = None
    """Values of the label maps that are no masks: background and void. By default 0, and 255 where it means void. A
    colour is R + 256 G + 65536 B."""
    least: int = 0
    """Values below this are no masks either: 24000 leaves the single objects of Cityscapes."""
    channel: Channel | None = None
    """Of label maps in colours, the channel that holds the values. By default a colour is one value."""
    segments: Path | None = None
    """JSON file of COCO panoptic, whose crowds are no masks either."""
    photo_names: str | None = None
    """How photos are named, such as ``{}_im.jpg``: ``{}`` is what their label maps are called, too, and ``*`` is any
    text."""
    label_names: str | None = None
    """How label maps are named, such as ``{}_*.png``. With a ``*`` in it, a photo may have several label maps."""
    most_blank: Share = 0.1
    """Share of the label maps that may have no mask, or a single one over all of the photo, of those that are looked at
    when the set is opened."""


@dataclass(frozen=True, config=STRICT)
class PascalPartSettings(AnySetSettings):
    """MATLAB files of Pascal-Part, one per photo, and the folder of the photos."""

    kind: Literal["pascal-part"]
    """Which layout the set has: this one."""
    annotations: Path
    """Folder of the files, such as Annotations_Part."""
    images: Path
    """Folder of the photos, JPEGs of the same names."""
    task: Task
    """What the masks are of. Training gives the vector of this task, evaluation reports by it."""
    what: What = "parts"
    """Whether a mask is a part of an object or a whole one."""


ReadableSettings = Annotated[
    FolderPairsSettings | CocoSettings | LabelMapsSettings | PascalPartSettings, Field(discriminator="kind")
]
"""Any of the layouts, told apart by ``kind``."""


@dataclass(frozen=True, config=STRICT)
class JoinedSettings(ChosenPhotos):
    """Several sets that count as one, such as those that are published in parts."""

    kind: Literal["joined"]
    """Which layout the set has: this one."""
    sets: tuple[ReadableSettings, ...] = Field(min_length=1)
    """The sets, each with a name of its own: a photo is called by it and by its own name. All are of one task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, uses = Counter(member.name.strip() for member in self.sets).most_common(1)[0]
        if uses > 1 or not all(member.name.strip() for member in self.sets):
            raise ValueError(f"expected a name of its own for each of the joined sets, found {name!r} {uses} times")
        if len({member.task for member in self.sets}) > 1:
            raise ValueError("expected joined sets of one task")

    @property
    def task(self) -> Task:
        """The task of the joined sets."""
        return self.sets[0].task


@dataclass(frozen=True, config=STRICT)
class PublicSettings(ChosenPhotos):
    """A public set by its name: which files of it are read, and how, is known. See ``trainer data list``."""

    set: str
    """Name of the set. `trainer data list` names all, and `trainer data fetch-help` says where to get one."""
    root: Path
    """Folder that holds the set, or the folders of several; the set is looked for in it and up to two folders below."""
    kind: Literal["public"] = "public"
    """Which layout the set has: the one that it is published in. May be left out."""
    skip: Skip | None = None
    """As for other sets. By default as the set needs it."""
    orientation: Orientation | None = None
    """As for other sets. By default as the set needs it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", self.name or self.published.title)  # raises for an unknown set

    @property
    def published(self) -> PublicSet:
        """What is known of the set."""
        return public_set(self.set)

    @property
    def task(self) -> Task:
        """What the masks are of."""
        return self.published.task


def _with_kind(value: Any) -> Any:
    return {"kind": "public", **value} if isinstance(value, dict) and "set" in value and "kind" not in value else value


NOT_OF_READING = {"name", "kind", "set", "task", "list", "list_lines", "match", "limit", "most_blank"}
"""Settings that change no mask of a photo that is in; which photos are in, and their task, is known apart."""


def how_read(settings: ChosenPhotos) -> dict[str, Any]:
    """Return the settings that decide which masks the photos of a set have, but for paths and what is as by default."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name == "sets":
            members = {member.name: how_read(member) for member in value}
            value = {name: each for name, each in members.items() if each} or None
        if field.name not in NOT_OF_READING and value not in (None, field.default) and not isinstance(value, Path):
            found[field.name] = value
    return found


SetSettings = Annotated[
    Annotated[
        FolderPairsSettings | CocoSettings | LabelMapsSettings | PascalPartSettings | JoinedSettings | PublicSettings,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_with_kind),
]
"""Any set, told apart by ``kind``, or by ``set`` for one that is known by its name."""
_ADAPTER: TypeAdapter[ReadableSettings | JoinedSettings] = TypeAdapter(
    Annotated[
        FolderPairsSettings | CocoSettings | LabelMapsSettings | PascalPartSettings | JoinedSettings,
        Field(discriminator="kind"),
    ]
)


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
    name = name_of_set(settings)
    with Stage(f"opening {name} in {folder_of_set(settings)}"):
        opened = layout_of(settings)
        findings = [*place_of(settings), *opened.findings]
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


def name_of_set(settings: SetSettings) -> str:
    """Return what to call a set: its name, or else the folder of its photos."""
    return settings.name or str(folder_of_set(settings))


def folder_of_set(settings: SetSettings) -> Path:
    """Return the folder of the photos of a set, or what holds it."""
    match settings:
        case PublicSettings():
            return settings.root
        case JoinedSettings():
            return settings.sets[0].images
    return settings.images


def place_of(settings: SetSettings) -> list[str]:
    """Return in a sentence where a public set was found; nothing of others. Raises ``InputError``."""
    return [f"read from {folder_of_set(located(settings))}"] if isinstance(settings, PublicSettings) else []


def located(settings: PublicSettings) -> ReadableSettings | JoinedSettings:
    """Return the settings of a public set as it lies on disk. Raises ``InputError`` if it is not there."""
    layout = locate(settings.published, settings.root)
    for member in layout.get("sets", (layout,)):
        member["task"] = settings.task
        for key in ("skip", "orientation"):
            if (told := getattr(settings, key)) is not None:
                member[key] = told
    for key in ("list", "list_lines", "match", "limit"):
        if (told := getattr(settings, key)) is not None:
            if key in layout:
                raise InputError(f"{settings.set}: its photos are chosen by {key} already; describe the set in full")
            layout[key] = told
    return _ADAPTER.validate_python({**layout, "name": settings.name})


def layout_of(settings: SetSettings) -> HumanSet:
    """Return the set of these settings, not yet opened. Raises ``InputError`` for a public set that is not there."""
    match settings:
        case PublicSettings():
            return layout_of(located(settings))
        case JoinedSettings():
            return JoinedSets(
                settings.name, {member.name: layout_of(member) for member in settings.sets}, settings.choice
            )
    images, task = settings.images, task_id(settings.task)
    shared: Shared = {
        "choice": settings.choice,
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
            return LabelMaps(
                images,
                settings.labels,
                task,
                settings.ignored,
                settings.least,
                Names(settings.photo_names, settings.label_names),
                most_blank=settings.most_blank,
                channel=settings.channel,
                segments=settings.segments,
                **shared,
            )
        case CocoSettings():
            without = settings.without_categories
            return CocoInstances(
                settings.annotations, images, task, settings.categories, without_categories=without, **shared
            )
        case PascalPartSettings():
            return PascalPart(settings.annotations, images, task, settings.what, **shared)
