"""`labelgen run --extend` adds units for new photos and touches nothing that is there; all commands work on the set."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.convert import convert
from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.commands import FAILED
from sum_factory.shared.errors import SettingsDifferError, SettingsError
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Problems = Callable[[Path], list[str]]

FIRST, SECOND = ("photo0.jpg", "photo4.png", "sub/photo3.png"), ("photo2.jpg", "sub/photo1.jpg", "sub/photo5.png")


def labelgen(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def copy(photos: Path, folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(photos / name, folder / name)
    return folder


def state_of(shards: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return bytes, time and inode of every file: what shows that one was written anew."""
    files = (path for path in shards.rglob("*") if path.is_file())
    return {str(p.relative_to(shards)): (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


def masks_of(shards: str | Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return of every image the labels and what the manifest says of them, wherever they lie."""
    opened = open_shards(str(shards))
    found = {}
    for number, image in opened.walk():
        rows = [{**row, "offset": 0, "image_index": 0} for row in image.masks]
        found[image.key] = list(zip(rows, opened.label_blobs(number, image), strict=True))
    return found


@pytest.fixture(scope="module")
def home(photos: Path, label: Label, refiner: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos`` and sets, ``tar`` and ``zarr``, of its first three; no test may change it."""
    home = tmp_path_factory.mktemp("home")
    copy(photos, home / "photos", *FIRST)
    for encoding in ("tar", "zarr"):
        label(home / "photos", home / encoding, refiner=refiner, encoding=encoding)
    return home


@pytest.fixture
def grown(home: Path, photos: Path, tmp_path: Path) -> Path:
    """A folder with copies of these sets, in ``home``, and of all six photos, in ``photos``."""
    shutil.copytree(home, tmp_path / "home")
    copy(photos, tmp_path / "photos", *FIRST, *SECOND)
    return tmp_path


@pytest.fixture
def extended(grown: Path, label: Label, refiner: str) -> Callable[[str], Path]:
    """``extended(encoding)`` is the set, extended by these photos."""

    def extended(encoding: str) -> Path:
        shards = grown / "home" / encoding
        label(grown / "photos", shards, refiner=refiner, encoding=encoding, extend=True)
        return shards

    return extended


@pytest.mark.parametrize("encoding", ["tar", "zarr"])
def test_new_photos_get_units_and_nothing_committed_is_touched(
    grown: Path, photos: Path, tmp_path: Path, label: Label, refiner: str, problems: Problems, encoding: str
) -> None:
    shards, before = grown / "home" / encoding, state_of(grown / "home" / encoding)
    with pytest.raises(SettingsDifferError, match=r"3 images are new, the first is 'photo2'\. Give --extend"):
        label(grown / "photos", shards, refiner=refiner, encoding=encoding)
    assert state_of(shards) == before
    summary = label(grown / "photos", shards, refiner=refiner, encoding=encoding, extend=True)
    assert (summary.units, summary.units_before, summary.units_done, summary.images) == (4, 2, 2, 3)
    after = state_of(shards)
    shared = {name for name in before if name == "dataset.json" or name.endswith("zarr.json")}
    assert {name: after[name] for name in before if name not in shared} == {
        name: before[name] for name in before if name not in shared
    }
    units = [[image.key for image in ShardSet.open(str(shards)).unit(number).images] for number in range(4)]
    assert units == [["photo0", "photo4"], ["sub/photo3"], ["photo2", "sub/photo1"], ["sub/photo5"]]
    assert problems(shards) == []
    label(photos, tmp_path / "at once", refiner=refiner, encoding=encoding)
    assert masks_of(shards) == masks_of(tmp_path / "at once")
    assert label(grown / "photos", shards, refiner=refiner, encoding=encoding).units_done == 0
    assert label(grown / "photos", shards, refiner=refiner, encoding=encoding, extend=True).units_done == 0
    assert state_of(shards) == after
    if encoding == "zarr":
        labels = zarr.open(str(shards / "masks.zarr"), mode="r")["label"]
        assert labels.shape[0] == 4 * labels.shards[0]


def test_extended_set_has_the_same_bytes_wherever_it_is_made(
    extended: Callable[[str], Path], photos: Path, tmp_path: Path, label: Label, refiner: str, snapshot: Snapshot
) -> None:
    copy(photos, tmp_path / "own", *FIRST)
    label(tmp_path / "own", tmp_path / "again", refiner=refiner)
    copy(photos, tmp_path / "own", *SECOND)
    label(tmp_path / "own", tmp_path / "again", refiner=refiner, extend=True)
    of_labels = ({n: v for n, v in snapshot(s).items() if not n.startswith("units/")}
                 for s in (extended("tar"), tmp_path / "again"))  # fmt: skip
    assert next(of_labels) == next(of_labels)


def test_every_command_works_on_an_extended_set(
    extended: Callable[[str], Path], home: Path, grown: Path, tmp_path: Path, label: Label, refiner: str,
    snapshot: Snapshot, problems: Problems,
) -> None:  # fmt: skip
    view = select(str(grown / "home/tar"), str(tmp_path / "old view"), Filter())
    seen = masks_of(tmp_path / "old view")
    shards = extended("tar")
    assert view.units == 2
    assert masks_of(tmp_path / "old view") == seen  # units that came later are not in it
    whole = snapshot(shards)
    status = labelgen("status", "--shards", shards)
    assert "6 images in 4 units" in status.stdout
    assert "layer uncertainty/refinement (tar): 4 of 4 units, 6 images" in status.stdout
    assert labelgen("verify", "--shards", shards).exit_code == 0
    assert labelgen("gc", "--shards", shards, "--older-than=0").stdout.startswith("0 files")
    everything = masks_of(shards)
    for name, make in {
        "selected": lambda out: select(str(shards), out, Filter()),
        "merged": lambda out: merge([str(shards), str(tmp_path / "other")], out, "first"),
        "converted": lambda out: convert(str(shards), out, "zarr"),
    }.items():
        if name == "merged":
            label(home / "photos", tmp_path / "other", refiner=refiner)
        make(str(tmp_path / name))
        assert masks_of(tmp_path / name).keys() == everything.keys()
        assert problems_of(tmp_path / name) == []
    assert {key: [frame for _, frame in masks] for key, masks in masks_of(tmp_path / "converted").items()} == {
        key: [frame for _, frame in masks] for key, masks in everything.items()
    }
    for number in (1, 3):
        (shards / f"masks/{number:06d}.tar").write_bytes(b"")
    (shards / "units/000002.json").write_bytes(b"{}")
    assert labelgen("repair", "--shards", shards).exit_code == 3
    label(grown / "photos", shards, refiner=refiner)
    shutil.rmtree(shards / "quarantine")
    assert snapshot(shards) == whole
    exported = labelgen("export", "--shards", shards, "--out", tmp_path / "all.json")
    assert f"6 images, {sum(map(len, everything.values()))} masks" in exported.stdout
    assert "6 images" in labelgen("view", "--shards", shards, "--out", tmp_path / "page.html").stdout


def problems_of(url: Path) -> list[str]:
    return [problem for check in verify(open_shards(str(url))) for problem in check.problems]


def test_set_that_was_converted_before_is_brought_up_to_date(
    home: Path, extended: Callable[[str], Path], tmp_path: Path, problems: Problems
) -> None:
    convert(str(home / "tar"), str(tmp_path / "converted"), "zarr")
    shards = extended("tar")
    summary = convert(str(shards), str(tmp_path / "converted"), "zarr")
    assert (summary.units, summary.units_before, summary.units_done, summary.problems) == (8, 4, 4, ())
    assert problems(tmp_path / "converted") == []
    opened = [ShardSet.open(str(url)).dataset for url in (shards, tmp_path / "converted")]
    assert opened[0].unit_ids == opened[1].unit_ids
    assert opened[0].extended == opened[1].extended == (2, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"automask": {"points_per_side": 3}}, "points_per_side: there 2, asked for 3"),
        ({"unit_size": 3}, "unit_size: there 2, asked for 3"),
        ({"encoding": "zarr"}, "encoding: there tar, asked for zarr"),
        ({"refiner": "other"}, r"layer uncertainty/refinement: was made with other weights:\n  refiner"),
        ({"min_refine_area": 5}, "min_refine_area: there 0, asked for 5"),
    ],
)
def test_extension_with_other_settings_is_refused_by_name_and_changes_nothing(
    grown: Path, label: Label, refiner: str, other_refiner: str, loose: AutomaskSettings, changes: dict[str, Any],
    named: str,
) -> None:  # fmt: skip
    before = state_of(grown / "home/tar")
    if "automask" in changes:
        changes = {"automask": replace(loose, **changes["automask"])}
    if "refiner" in changes:
        changes = {"refiner": other_refiner}
    with pytest.raises(SettingsDifferError, match=named):
        label(grown / "photos", grown / "home/tar", **{"refiner": refiner, **changes}, extend=True)
    assert state_of(grown / "home/tar") == before


def test_nothing_is_extended_where_nothing_is(photos: Path, tmp_path: Path, label: Label) -> None:
    with pytest.raises(SettingsError, match=r"no shard set to extend is there; check --shards"):
        label(photos, tmp_path / "shards", extend=True)
    assert not (tmp_path / "shards").exists()
    result = labelgen("run", "--images", photos, "--shards", tmp_path / "shards", "--extend")
    assert result.exit_code == FAILED
    assert "no shard set to extend is there" in result.stderr


def test_photos_that_are_gone_are_listed_and_stay(
    grown: Path, label: Label, refiner: str, problems: Problems, capsys: pytest.CaptureFixture[str]
) -> None:
    (grown / "photos/photo4.png").unlink()
    before = masks_of(grown / "home/tar")
    label(grown / "photos", grown / "home/tar", refiner=refiner, extend=True)
    assert "1 planned images are gone, or not in --images: 'photo4'; their labels stay" in capsys.readouterr().out
    after = masks_of(grown / "home/tar")
    assert {key: after[key] for key in before} == before
    assert len(after) == 6
    assert problems(grown / "home/tar") == []


def test_two_extensions_at_once_both_have_their_photos_labelled(
    grown: Path, photos: Path, tmp_path: Path, label: Label, refiner: str, problems: Problems,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shards, create, overtaken = grown / "home/tar", Storage.create, []
    one = copy(photos, tmp_path / "one", *FIRST, *SECOND[:2])

    def overtake(self: Storage, name: str, data: bytes) -> bool:
        if not overtaken and name == "units/000002.json":
            overtaken.append(name)
            label(one, shards, refiner=refiner, extend=True)
        return create(self, name, data)

    monkeypatch.setattr(Storage, "create", overtake)
    summary = label(grown / "photos", shards, refiner=refiner, extend=True)
    assert overtaken
    assert (summary.units, summary.units_before, summary.units_done) == (4, 3, 1)
    units = [[image.key for image in ShardSet.open(str(shards)).unit(number).images] for number in range(4)]
    assert units == [["photo0", "photo4"], ["sub/photo3"], ["photo2", "sub/photo1"], ["sub/photo5"]]
    assert problems(shards) == []


KILLED = """
import os, signal
from sum_factory.shared.store.storage import Storage

create = Storage.create
def replacement(self, file, data):
    due = file == {name!r}
    if due and {when!r} == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    created = create(self, file, data)
    if due:
        os.kill(os.getpid(), signal.SIGKILL)
    return created
Storage.create = replacement
"""


@pytest.mark.parametrize(
    ("name", "when", "left"),
    [
        ("units/000002.json", "before", 2),
        ("units/000002.json", "after", 3),
        ("units/000003.json", "after", 4),
        ("manifest/masks/000002.parquet", "before", 4),
    ],
)
def test_extension_that_is_killed_leaves_whole_units_and_the_same_command_goes_on(
    grown: Path, extended: Callable[[str], Path], label: Label, refiner: str, loose_options: list[str],
    snapshot: Snapshot, tmp_path: Path, forks: Any, name: str, when: str, left: int,
) -> None:  # fmt: skip
    shards = shutil.copytree(grown / "home/tar", tmp_path / "killed")
    command = ["run", f"--images={grown}/photos", f"--shards={shards}", f"--refiner={refiner}", *loose_options]
    process = forks.begin(tmp_path / "said", [*command, "--extend"], KILLED.format(name=name, when=when))
    assert forks.end(process) == -signal.SIGKILL, (tmp_path / "said").read_text()
    opened = ShardSet.open(str(shards))
    assert opened.unit_count == left
    assert all(opened.unit(number).images for number in range(left))
    assert opened.committed() == [0, 1]
    assert [problem for check in verify(opened) for problem in check.problems if "data without" not in problem] == []
    if left < 4:
        with pytest.raises(SettingsDifferError, match=r"images are new.*Give --extend"):
            label(grown / "photos", shards, refiner=refiner)
    label(grown / "photos", shards, refiner=refiner, extend=True)
    whole, made = snapshot(extended("tar")), snapshot(shards)
    assert {n: v for n, v in made.items() if "/.partial-" not in n} == whole
