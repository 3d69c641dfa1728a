"""The folder of sets that the ablation on photos reads.

DIR/NAME/meta.json        its "kind" is salient, entity or part; unlabelled or none for photos without masks
DIR/NAME/images/ID.jpg
DIR/NAME/masks/ID.png     of salient objects: one mask per photo
DIR/NAME/instances.json   of entities and parts: COCO
DIR/NAME/train.txt        the photos that may be trained on, an ID a line
DIR/NAME/val.txt          those that are tested, none of them in train.txt; unlabelled sets have none
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from sum_factory.shared.errors import InputError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, SetSettings, Task

Split = Literal["train", "val"]
UNLABELLED = "unlabelled"
KINDS = {each: each for each in ("salient", "entity", "part", UNLABELLED)} | {"none": UNLABELLED}
"""What a set may say of its masks, and what is made of it."""


@dataclass(frozen=True)
class PhotoSet:
    """A set in a folder. ``kind`` is the task of its masks, or that it has none."""

    folder: Path
    kind: str

    @property
    def name(self) -> str:
        """Its name: that of the folder."""
        return self.folder.name

    def list_of(self, split: Split) -> Path:
        """Return the file that lists the photos of a split."""
        return self.folder / f"{split}.txt"

    def ids(self, split: Split) -> list[str]:
        """Return the ids of the photos of a split, in the file's order. Raises ``InputError``."""
        path = self.list_of(split)
        try:
            found = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read; expected a text file with the id of a photo per line") from error
        if not found:
            raise InputError(f"{path}: lists no photo")
        return found

    def digest(self, split: Split) -> str:
        """Return a hash of which photos are in a split."""
        return hashlib.sha256("\n".join(self.ids(split)).encode()).hexdigest()[:32]

    def settings(self, split: Split) -> SetSettings:
        """Describe the photos of a split and their masks as a recipe or a suite would."""
        images, listed, task = self.folder / "images", self.list_of(split), cast("Task", self.kind)
        if self.kind == "salient":
            return FolderPairsSettings("folder-pairs", images, self.folder / "masks", task, name=self.name, list=listed)
        return CocoSettings("coco", self.folder / "instances.json", images, task, name=self.name, list=listed)

    def photos(self, split: Split) -> list[Path]:
        """Return the files of the photos of a split. Raises ``InputError`` if one is missing."""
        files = {path.stem: path for path in sorted((self.folder / "images").iterdir()) if is_photo(path)}
        missing = [each for each in self.ids(split) if each not in files]
        if missing:
            raise InputError(
                f"{self.folder / 'images'}: {len(missing)} photos of {split}.txt are missing: {missing[0]}"
            )
        return [files[each] for each in self.ids(split)]


def is_photo(path: Path) -> bool:
    """Say whether a file is called as a photo is."""
    return path.suffix.lower().lstrip(".") in {suffix.lstrip(".") for suffix in IMAGE_SUFFIXES}


@dataclass(frozen=True)
class Data:
    """All sets of a folder. ``fine`` are those whose exact masks are the human ones of the runs; ``untested`` are the
    names of those that methods are not tested on."""

    sets: tuple[PhotoSet, ...]
    fine: tuple[PhotoSet, ...]
    untested: tuple[str, ...] = ()

    @property
    def tested(self) -> list[PhotoSet]:
        """The sets that methods are tested on: those with masks, if nobody left them out."""
        return [each for each in self.sets if each.kind != UNLABELLED and each.name not in self.untested]

    @property
    def pool(self) -> Iterator[Path]:
        """The photos that the frozen model labels: those that may be trained on, of all sets but the fine ones."""
        for each in self.sets:
            if each not in self.fine:
                yield from each.photos("train")


def read_data(folder: Path, fine: Sequence[str], untested: Sequence[str] = ()) -> Data:
    """Return the sets of a folder. Raises ``InputError`` for what is no set, and where train and val share a photo."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one with a folder a set")
    sets = tuple(_read(each) for each in sorted(folder.iterdir()) if (each / "images").is_dir())
    by_name = {each.name: each for each in sets}
    unknown = [name for name in fine if name not in by_name or by_name[name].kind == UNLABELLED]
    if unknown or not fine:
        masked = ", ".join(name for name, each in by_name.items() if each.kind != UNLABELLED)
        raise InputError(
            f"{folder}: fine sets: expected some of {masked or 'those with masks, of which there are none'}"
            f", found {', '.join(unknown) or 'none'}"
        )
    require_named(folder, "untested", untested, sets)
    for each in sets:
        if each.kind != UNLABELLED and (shared := set(each.ids("train")) & set(each.ids("val"))):
            raise InputError(f"{each.folder}: {min(shared)} is in train.txt and in val.txt; expected it in one of them")
    return Data(sets, tuple(by_name[name] for name in fine), tuple(untested))


def require_named(folder: Path, setting: str, names: Sequence[str], sets: Sequence[PhotoSet]) -> None:
    """Raise ``InputError`` for names in a setting that no set of the folder has, or that are there twice."""
    known = [each.name for each in sets]
    wrong = ", ".join(dict.fromkeys(name for name in names if name not in known or names.count(name) > 1))
    if wrong:
        raise InputError(f"{folder}: {setting}: expected some of {', '.join(known)}, once each, found {wrong}")


def _read(folder: Path) -> PhotoSet:
    path = folder / "meta.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read; expected JSON with the kind of the set's masks") from error
    if kind not in KINDS:
        raise InputError(f"{path}: kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    return PhotoSet(folder, KINDS[kind])
