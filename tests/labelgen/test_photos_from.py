"""A shard set is used from any folder, and after its photos have moved: by each command, or the user is told how."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from page_content import embedded
from sum_factory.labelgen.cli import main
from sum_factory.labelgen.commands.label import FINISHED_WITH_IMAGE_ERRORS
from sum_factory.labelgen.page.write import write_page
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.commands import FAILED
from sum_factory.shared.errors import InputError
from sum_factory.shared.photo_files import read_listed
from sum_factory.shared.relocation import Relocation
from sum_factory.shared.shards.dataset import unit_path
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import ShardSet

Label = Callable[..., RunSummary]
AddMaps = Callable[..., RunSummary]


def labelgen(*arguments: str | Path) -> Result:
    """Call the command; anything but a clean exit is the test's error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def command(name: str, shards: Path, out: Path) -> list[str | Path]:
    """Return a command that reads photos, or tells where they lie."""
    own = ["--source=entropy", "--device=cpu"] if name == "uncertainty" else ["--out", out]
    return [name, "--shards", shards, *own]


def sources(exported: Path) -> list[str]:
    return [image["source"] for image in json.loads(exported.read_text())["images"]]


@pytest.fixture(scope="module")
def home(photos: Path, label: Label, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, and ``shards`` that were made there by relative paths, which no test may change."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(photos, home / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        label("photos", "shards")
    return home


@pytest.fixture
def shards(home: Path, tmp_path: Path) -> Path:
    """A copy of these shards for a test to change."""
    return shutil.copytree(home / "shards", tmp_path / "shards")


@pytest.fixture
def moved(home: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder that the photos have moved to during the test."""
    there = tmp_path / "elsewhere" / "pictures"
    there.parent.mkdir()
    (home / "photos").rename(there)
    yield there
    there.rename(home / "photos")


def test_same_run_from_another_folder_has_nothing_to_do_and_reads_no_photo(
    home: Path, label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.labelgen.labeler.read_listed", lambda photo: pytest.fail("a photo was read"))
    for folder, spelling in ((tmp_path, home / "photos"), (home, "./photos/"), (home / "photos", ".")):
        monkeypatch.chdir(folder)
        summary = label(spelling, home / "shards")
        assert (summary.units_before, summary.units_done) == (3, 0)


def test_identity_is_that_of_any_other_place(home: Path, finished: tuple[Path, RunSummary]) -> None:
    assert ShardSet.open(str(home / "shards")).dataset == ShardSet.open(str(finished[0])).dataset


def test_set_made_by_relative_paths_is_used_from_another_folder(
    home: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("uncertainty", "view", "export"):
        result = labelgen(*command(name, Path("shards"), Path(f"{name}.out")))
        assert result.exit_code == 0, result.output
    assert "0 errors" in labelgen("status", "--shards", "shards").stdout
    assert [bool(photo["picture"]) for photo in embedded(tmp_path / "view.out")["photos"]] == [True] * 6
    assert sources(tmp_path / "export.out") == [
        image.url for number in range(3) for image in ShardSet.open(str(home / "shards")).unit(number).images
    ]
    assert all(Path(source).is_file() for source in sources(tmp_path / "export.out"))


@pytest.mark.parametrize("name", ["uncertainty", "view"])
def test_photos_that_moved_stop_a_command_before_it_does_anything(
    name: str, home: Path, shards: Path, moved: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    before = snapshot(shards)
    result = labelgen(*command(name, shards, tmp_path / "out"))
    assert result.exit_code == FAILED
    assert f"{home}/photos/photo0.jpg: cannot be read (No such file or directory)" in result.stderr
    assert f"--photos-from OLD=NEW, such as {home}/photos=NEW" in result.stderr
    assert snapshot(shards) == before
    assert not (tmp_path / "out").exists()


def test_photos_are_found_where_they_are_said_to_lie(
    home: Path, shards: Path, moved: Path, tmp_path: Path, add_maps: AddMaps, own_shards: Path
) -> None:
    option = f"--photos-from={home}={tmp_path}", f"--photos-from={home}/photos={moved}"  # the longer one counts
    for name in ("uncertainty", "view", "export"):
        result = labelgen(*command(name, shards, tmp_path / f"{name}.out"), *option)
        assert result.exit_code == 0, result.output
    assert [bool(photo["picture"]) for photo in embedded(tmp_path / "view.out")["photos"]] == [True] * 6
    assert all(Path(source).is_file() and source.startswith(f"{moved}/") for source in sources(tmp_path / "export.out"))
    add_maps(own_shards, source="entropy")  # of photos that never moved
    made = [folder / "uncertainty/entropy/000000.tar" for folder in (shards, own_shards)]
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize("name", ["uncertainty", "view", "export"])
def test_old_place_of_no_photo_is_refused_with_one_that_is(name: str, home: Path, shards: Path, tmp_path: Path) -> None:
    wrong = f"--photos-from={home}/photo=/new", f"--photos-from={home}/photos={home}/photos"
    result = labelgen(*command(name, shards, tmp_path / "out"), *wrong)
    assert result.exit_code == FAILED
    assert f"recorded at or below {home}/photo; the first is recorded at {home}/photos/photo0.jpg" in result.stderr
    assert not (tmp_path / "out").exists()


def test_photo_that_is_not_in_the_new_place_is_named_with_both(
    home: Path, shards: Path, moved: Path, tmp_path: Path
) -> None:
    (moved / "photo0.jpg").rename(tmp_path / "aside.jpg")
    try:
        option = f"--photos-from={home}/photos={moved}"
        view = labelgen(*command("view", shards, tmp_path / "out"), option)
        maps = labelgen(*command("uncertainty", shards, tmp_path / "out"), option)
    finally:
        (tmp_path / "aside.jpg").rename(moved / "photo0.jpg")
    assert view.exit_code == FAILED
    named = rf"{moved}/photo0\.jpg: cannot be read .*'photo0' is recorded at {home}/photos/photo0\.jpg: .*--photos-from"
    assert re.search(named, view.stderr)
    assert maps.exit_code == FINISHED_WITH_IMAGE_ERRORS
    assert re.search(named, labelgen("status", "--shards", shards).stdout)


def test_another_photo_in_the_new_place_is_refused(home: Path, shards: Path, tmp_path: Path) -> None:
    other = shutil.copytree(home / "photos", tmp_path / "other")
    shutil.copyfile(other / "photo2.jpg", other / "photo0.jpg")
    option = f"--photos-from={home}/photos={other}"
    view = labelgen(*command("view", shards, tmp_path / "out"), option)
    assert view.exit_code == FAILED
    assert f"{other}/photo0.jpg: changed since it was labelled, or another photo than image 'photo0'" in view.stderr
    maps = labelgen(*command("uncertainty", shards, tmp_path / "out"), option)
    assert maps.exit_code == FINISHED_WITH_IMAGE_ERRORS
    status = labelgen("status", "--shards", shards).stdout
    assert status.count("changed since it was labelled") == 1


def test_single_photo_that_is_there_is_enough_to_go_on(
    home: Path, shards: Path, moved: Path, tmp_path: Path, add_maps: AddMaps
) -> None:
    """Photos that are lost for good cost their maps alone, even if they are all of the first unit."""
    last = ShardSet.open(str(shards)).unit(2).images[-1]
    (tmp_path / "kept" / Path(last.url).name).parent.mkdir()
    shutil.copyfile(moved / Path(last.url).relative_to(home / "photos"), tmp_path / "kept" / Path(last.url).name)
    relocation = Relocation.of([(str(Path(last.url).parent), str(tmp_path / "kept"))])
    summary = add_maps(shards, source="entropy", photos_from=relocation, missing_photos="record")
    assert len(summary.errors) == 5


@pytest.fixture
def of_an_earlier_version(shards: Path) -> Path:
    """The shards with the relative places that earlier versions recorded."""
    shard_set = ShardSet.open(str(shards))
    for number in range(3):
        unit = shard_set.unit(number)
        images = [replace(image, url=f"photos/{image.url.split('/photos/', 1)[1]}") for image in unit.images]
        shard_set.storage.write(unit_path(number), replace(unit, images=tuple(images)).to_json())
    return shards


def test_relative_places_of_earlier_versions_are_mapped_too(
    home: Path, of_an_earlier_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = labelgen(*command("view", of_an_earlier_version, tmp_path / "out"))
    assert "such as photos=NEW" in refused.stderr
    for name in ("uncertainty", "view"):
        option = f"--photos-from=photos={home}/photos"
        assert labelgen(*command(name, of_an_earlier_version, tmp_path / "out"), option).exit_code == 0


def test_relative_places_of_earlier_versions_are_the_same_photos_to_a_run(
    home: Path, of_an_earlier_version: Path, label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (of_an_earlier_version / "manifest/masks/000001.parquet").unlink()
    monkeypatch.chdir(home)
    read: list[str] = []
    monkeypatch.setattr(
        "sum_factory.labelgen.labeler.read_listed", lambda photo: (read.append(photo.key), read_listed(photo))[1]
    )
    summary = label("photos", of_an_earlier_version)
    assert (summary.units_before, summary.units_done, summary.errors) == (2, 1, ())
    assert sorted(read) == sorted(image.key for image in ShardSet.open(str(of_an_earlier_version)).unit(1).images)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (of_an_earlier_version / "manifest/masks/000001.parquet").unlink()
    summary = label(home / "photos", of_an_earlier_version)
    assert (summary.units_before, summary.units_done, summary.errors) == (2, 1, ())


@pytest.fixture
def store() -> Iterator[str]:
    """An empty folder on a file system that is not local."""
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def test_tar_moves_from_a_store_to_a_disk_and_back(
    photos: Path, store: str, label: Label, add_maps: AddMaps, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "two.tar", "w") as tar:
        for name in ("photo0.jpg", "photo2.jpg"):
            tar.add(photos / name, name)
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"{store}/sa/two.tar", (tmp_path / "two.tar").read_bytes())
    label(f"{store}/sa/two.tar", tmp_path / "far")
    label(tmp_path / "two.tar", tmp_path / "near")
    memory.mv(f"{store}/sa/two.tar", f"{store}/two.tar")
    to_disk, to_store = ((f"{store}/sa", str(tmp_path)), (str(tmp_path / "two.tar"), f"{store}/two.tar"))
    with pytest.raises(InputError, match=rf"{store}/sa/two\.tar::photo0\.jpg: cannot be read .*--photos-from"):
        add_maps(tmp_path / "far", source="entropy")
    assert add_maps(tmp_path / "far", source="entropy", photos_from=Relocation.of([to_disk])).errors == ()
    (tmp_path / "two.tar").unlink()
    assert add_maps(tmp_path / "near", source="entropy", photos_from=Relocation.of([to_store])).errors == ()
    made = [tmp_path / name / "uncertainty/entropy/000000.tar" for name in ("far", "near")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_photos_of_a_view_moved_with_those_of_its_sources(
    home: Path, shards: Path, moved: Path, tmp_path: Path
) -> None:
    select(str(shards), str(tmp_path / "some"), Filter(images=("photo[02]",)))
    with pytest.raises(InputError, match="--photos-from"):
        write_page(open_shards(str(tmp_path / "some")), tmp_path / "page.html", 9)
    relocation = Relocation.of([(f"{home}/photos", str(moved))])
    some = open_shards(str(tmp_path / "some"), photos_from=relocation)
    assert write_page(some, tmp_path / "page.html", 9) == 2
    exported = labelgen(*command("export", tmp_path / "some", tmp_path / "out"), f"--photos-from={home}/photos={moved}")
    assert exported.exit_code == 0
    assert sources(tmp_path / "out") == [f"{moved}/photo0.jpg", f"{moved}/photo2.jpg"]
