"""Plans are made of listings alone, as they come; what is new is added when that is asked for, and nothing is lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from sum_factory.labelgen import plan
from sum_factory.labelgen.growing_plan import Plan
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.plan import prepare
from sum_factory.labelgen.run import RunSummary, run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards import encoding
from sum_factory.shared.shards.dataset import MASKS, Dataset, Layer
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Finished = tuple[Path, RunSummary]
Problems = Callable[[Path], list[str]]

LAYER = Layer(MASKS, "tar", {}, {"sam": {"model_type": "none", "image_size": 64, "sha256": "0"}})


def planned(folder: Path, *sources: Path, extend: bool = False, unit_size: int = 2) -> Plan:
    """Plan a run over the photos of ``sources``; nothing is labelled."""
    return prepare(
        Storage(str(folder)), partial(list_photos, [str(one) for one in sources]), [(LAYER, "")], unit_size, extend
    )


def units_in(folder: Path) -> list[list[dict[str, Any]]]:
    """Read the plans as any JSON."""
    return [json.loads(path.read_text())["images"] for path in sorted((folder / "units").glob("*.json"))]


def keys_in(folder: Path) -> list[list[str]]:
    return [[image["key"] for image in images] for images in units_in(folder)]


def write_photos(folder: Path, *names: str) -> None:
    """Write files that are called like photos, each of a size of its own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.sha512(name.encode()).digest() * (1 + sum(name.encode()) % 7))


# From a listing alone


def test_plan_is_that_of_a_naive_walk(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.png", "a/y/é.jpg", "a.b/c.JPG", "a-b/d.tif", "写真.webp", "a/y.jpg", "a0.jpg"]
    write_photos(tmp_path / "photos", *names, ".hidden.jpg", "a/.cache/x.jpg", "notes.txt")
    planned(tmp_path / "set", tmp_path / "photos", unit_size=3)
    paths = sorted(
        str(path) for path in (tmp_path / "photos").rglob("*") if path.suffix in (*".x", ".txt") or path.is_file()
    )
    photos = [path for path in paths if "/." not in path and not path.endswith(".txt")]
    images = [image for unit in units_in(tmp_path / "set") for image in unit]
    assert [image["url"] for image in images] == photos
    assert [image["size"] for image in images] == [os.stat(path).st_size for path in photos]
    assert [image["stamp"] for image in images] == [f"{os.stat(p).st_size}:{os.stat(p).st_mtime}" for p in photos]
    assert [image["key"] for image in images] == [
        os.path.splitext(os.path.relpath(path, tmp_path / "photos"))[0] for path in photos
    ]
    assert [len(unit) for unit in units_in(tmp_path / "set")] == [3, 3, 2]


def test_no_photo_is_read_to_plan_and_each_once_to_be_labelled(
    photos: Path, tmp_path: Path, label: Label, finished: Finished, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    cat_file = LocalFileSystem.cat_file

    def counted(self: LocalFileSystem, path: str, *args: Any, **options: Any) -> bytes:
        read.append(path)
        return bytes(cat_file(self, path, *args, **options))

    monkeypatch.setattr(LocalFileSystem, "cat_file", counted)
    planned(tmp_path / "planned", photos)
    assert [path for path in read if path.startswith(f"{photos}/")] == []
    label(photos, tmp_path / "shards")
    of_photos = [path for path in read if path.startswith(f"{photos}/")]
    assert sorted(of_photos) == sorted(str(path) for path in photos.rglob("*.*"))
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_of_a_tar_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.tar"
    with tarfile.open(large, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", f"{'x' * 150}/é.jpg", "notes.json", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3_000_000
            with open("/dev/zero", "rb") as zeros:
                tar.addfile(member, zeros)
    read = [0]
    original = LocalFileSystem.open

    def counted(self: LocalFileSystem, *args: Any, **options: Any) -> Any:
        file = original(self, *args, **options)
        inner = file.f.read

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *exception: object) -> None:
                file.close()

            def read(self, size: int = -1) -> bytes:
                data = inner(size)
                read[0] += len(data)
                return bytes(data)

        return Counting()

    monkeypatch.setattr(LocalFileSystem, "open", counted)
    planned(tmp_path / "set", large)
    with tarfile.open(large) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
    told = [(image["member"], image["offset"], image["size"]) for unit in units_in(tmp_path / "set") for image in unit]
    assert told == [(member.name, member.offset_data, member.size) for member in members]
    assert 0 < read[0] < 20_000


# Digests are in the manifest


def test_manifest_names_the_bytes_that_were_labelled(own_photos: Path, tmp_path: Path, label: Label) -> None:
    (own_photos / "bad.jpg").write_bytes(b"no photo")
    shutil.copyfile(own_photos / "photo0.jpg", own_photos / "photo0 again.jpg")
    label(own_photos, tmp_path / "shards")
    urls = {image["key"]: image["url"] for unit in units_in(tmp_path / "shards") for image in unit}
    assert len(urls) == 8
    told = {
        row["image"]: row["digest"]
        for path in (tmp_path / "shards/manifest/masks").iterdir()
        for row in pq.read_table(path).to_pylist()
    }
    assert told == {key: hashlib.sha256(Path(url).read_bytes()).hexdigest() for key, url in urls.items()}
    for path in (tmp_path / "shards/masks").iterdir():
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    described = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    assert described["digest"] == told[described["key"]]


def test_photo_that_is_gone_before_its_turn_has_no_digest_and_is_named(
    three_photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch, problems: Problems
) -> None:
    prepare = plan.prepare

    def prepare_and_lose(*args: Any, **options: Any) -> Plan:
        planned = prepare(*args, **options)
        (three_photos / "photo2.jpg").unlink()
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_lose)
    (error,) = label(three_photos, tmp_path / "shards").errors
    assert "photo2.jpg: cannot be read" in error
    (image,) = [i for _, i in ShardSet.open(str(tmp_path / "shards")).walk() if i.key == "photo2"]
    assert (image.digest, image.masks) == (None, ())
    assert problems(tmp_path / "shards") == []


def test_member_that_is_another_now_is_noticed_where_it_is_read(
    three_photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (three_photos / "photo4.png").read_bytes()

    def write(*names: str) -> None:
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                (tmp_path / "one").write_bytes(data)
                with open(tmp_path / "one", "rb") as file:
                    tar.addfile(member, file)

    write("a.png", "b.png", "c.png")
    prepare = plan.prepare

    def prepare_and_change(*args: Any, **options: Any) -> Plan:
        planned = prepare(*args, **options)
        write("a.png", "c.png", "b.png")  # of the same size, at the same bytes: only the names tell
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_change)
    errors = label(tmp_path / "photos.tar", tmp_path / "shards").errors
    assert len(errors) == 2
    assert all(
        f"photos.tar::{n}.png: changed since the run was planned" in e for n, e in zip("bc", errors, strict=True)
    )


# Run again


def test_photo_of_another_size_is_refused_and_one_of_another_time_is_told_of(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    os.utime(tmp_path / "photos/b.jpg", (1, 1))
    (note,) = planned(tmp_path / "set", tmp_path / "photos").notes()
    assert f"1 images have another time stamp than when they were planned, such as {tmp_path}/photos/b.jpg;" in note
    (tmp_path / "photos/c.jpg").write_bytes(b"other")
    with pytest.raises(SettingsDifferError, match=r"photos/c\.jpg: changed since .*'c': \d+ bytes then, 5 now"):
        planned(tmp_path / "set", tmp_path / "photos")
    with pytest.raises(SettingsDifferError, match=r"c\.jpg: changed"):
        planned(tmp_path / "set", tmp_path / "photos", extend=True)


def test_photos_that_moved_are_found_by_their_keys(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "a.png", "b/c.jpg", "d.jpg", "a~2.gif")
    planned(tmp_path / "set", tmp_path / "photos")
    before = units_in(tmp_path / "set")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    again = planned(tmp_path / "set", tmp_path / "elsewhere")
    assert units_in(tmp_path / "set") == before
    assert (again.gone, sorted(again.moved)) == ([], [0, 1, 2])
    moved = [image for number in range(3) for image in again.moved[number].images]
    assert [image.key for image in moved] == [image["key"] for unit in before for image in unit]
    assert [image.url for image in moved] == [
        image["url"].replace("/photos/", "/elsewhere/") for unit in before for image in unit
    ]


def test_photo_in_front_of_one_of_the_same_name_takes_a_key_of_its_own(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    write_photos(tmp_path / "photos", "a.bmp", "b.gif")
    extended = planned(tmp_path / "set", tmp_path / "photos", extend=True)
    assert keys_in(tmp_path / "set") == [["a", "b"], ["a~2", "b~2"]]
    assert (extended.gone, extended.moved) == ([], {})
    assert [image["url"].rpartition("/")[2] for image in units_in(tmp_path / "set")[1]] == ["a.bmp", "b.gif"]


def test_same_folder_twice_is_found_twice(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    sources = (tmp_path / "photos", tmp_path / "photos")
    planned(tmp_path / "set", *sources)
    assert keys_in(tmp_path / "set") == [["a", "b"], ["c", "a~2"], ["b~2", "c~2"]]
    again = planned(tmp_path / "set", *sources)
    assert (again.gone, again.moved, list(again.numbers())) == ([], {}, [0, 1, 2])
    assert planned(tmp_path / "set", tmp_path / "photos").gone == ["a~2", "b~2", "c~2"]


def test_lost_dataset_of_an_extended_set_is_written_as_it_was(tmp_path: Path, snapshot: Snapshot) -> None:
    write_photos(tmp_path / "photos", "b.jpg", "d.jpg", "f.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    write_photos(tmp_path / "photos", "a.jpg", "c.jpg", "e.jpg")
    planned(tmp_path / "set", tmp_path / "photos", extend=True)
    before = snapshot(tmp_path / "set")
    (tmp_path / "set/dataset.json").unlink()
    planned(tmp_path / "set", tmp_path / "photos")
    assert snapshot(tmp_path / "set") == before
    (tmp_path / "set/dataset.json").unlink()
    with pytest.raises(SettingsDifferError, match="unit_size: there 2, asked for 3"):
        planned(tmp_path / "set", tmp_path / "photos", unit_size=3)
    (tmp_path / "set/units/000001.json").unlink()
    with pytest.raises(ShardError, match=r"dataset\.json: missing, and so is .*units/000001\.json"):
        planned(tmp_path / "set", tmp_path / "photos")


@pytest.mark.parametrize("number", range(4))
def test_lost_plan_of_an_extended_set_is_written_as_it_was(tmp_path: Path, snapshot: Snapshot, number: int) -> None:
    write_photos(tmp_path / "photos", "b.jpg", "d.jpg", "f.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    write_photos(tmp_path / "photos", "a.jpg", "c.jpg", "e.jpg")
    planned(tmp_path / "set", tmp_path / "photos", extend=True)
    before = snapshot(tmp_path / "set")
    (tmp_path / f"set/units/{number:06d}.json").unlink()
    planned(tmp_path / "set", tmp_path / "photos")
    assert snapshot(tmp_path / "set") == before


# As the listing goes on


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have units be handed out while the listing goes on, however short it is."""
    monkeypatch.setattr(plan, "UNITS_HELD", 1)
    monkeypatch.setattr(plan, "SECONDS_HELD", 0.0)
    monkeypatch.setattr("sum_factory.labelgen.comparison.BATCH", 2)


@pytest.mark.parametrize("encoding", ["tar", "zarr"])
def test_photos_that_are_labelled_while_others_are_listed_give_the_same_bytes(
    photos: Path, tmp_path: Path, label: Label, streamed: None, snapshot: Snapshot, problems: Problems, refiner: str,
    whole_in: Callable[[str], Path], encoding: str,
) -> None:  # fmt: skip
    summary = label(photos, tmp_path / "shards", refiner=refiner, keep_photos=True, encoding=encoding)
    assert (summary.units, summary.units_done, summary.is_whole) == (3, 3, True)
    assert snapshot(tmp_path / "shards") == snapshot(whole_in(encoding))
    assert problems(tmp_path / "shards") == []


def test_arrays_tell_of_all_units_though_planning_ends_while_they_are_described(
    photos: Path, tmp_path: Path, label: Label, streamed: None, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, add_units = encoding.shared_files, plan.add_units
    is_described = threading.Event()

    def described_slowly(dataset: Dataset, layer: Layer) -> dict[str, bytes]:
        files = described(dataset, layer)
        if not is_described.is_set():
            is_described.set()
            time.sleep(0.5)  # planning comes to its end, unless it has to wait
        return files

    def add_units_later(*of: Any) -> Dataset:
        is_described.wait()
        return add_units(*of)

    monkeypatch.setattr(encoding, "shared_files", described_slowly)
    monkeypatch.setattr(plan, "add_units", add_units_later)
    label(photos, tmp_path / "shards", encoding="zarr")
    assert problems(tmp_path / "shards") == []
    shards = ShardSet.open(str(tmp_path / "shards"))
    assert zarr.open_array(tmp_path / "shards/masks.zarr/label", mode="r").shape[0] >= sum(
        shards.manifest(number)[1].masks for number in range(3)
    )


def test_unit_is_there_to_be_labelled_before_the_listing_is_at_its_end(tmp_path: Path, streamed: None) -> None:
    write_photos(tmp_path / "photos", *(f"{number}.jpg" for number in range(9)))
    all_listed = [False]

    def slow(reserve: Any) -> Any:
        for number, photo in enumerate(list_photos([str(tmp_path / "photos")], reserve)):
            while number == 8 and not all_listed[0]:
                pass
            yield photo

    with prepare(Storage(str(tmp_path / "set")), slow, [(LAYER, "")], 2) as going_on:
        numbers = going_on.numbers()
        assert next(number for number in numbers if number is not None) == 0
        assert ShardSet.open(str(tmp_path / "set")).unit(0).images[0].key == "0"
        assert not going_on.is_whole
        assert not ShardSet.open(str(tmp_path / "set")).is_planned
        all_listed[0] = True
        assert [number for number in numbers if number is not None] == [1, 2, 3, 4]
        assert going_on.is_whole
    opened = ShardSet.open(str(tmp_path / "set"))
    assert (opened.is_planned, opened.unit_count, opened.image_count) == (True, 5, 9)


def test_listing_that_fails_half_way_ends_the_run_by_name_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, label: Label, streamed: None, snapshot: Snapshot, finished: Finished
) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def cut(sources: Any, reserve: Any, passed_over: Any) -> Any:
            for number, photo in enumerate(list_photos(sources, reserve)):
                if number == 4:
                    raise SettingsDifferError("the store is gone")
                yield photo

        patch.setattr("sum_factory.labelgen.run.list_photos", cut)
        with pytest.raises(SettingsDifferError, match="the store is gone"):
            label(photos, tmp_path / "shards")
    left = snapshot(tmp_path / "shards")
    assert {name: left[name] for name in left if name != "dataset.json"}.items() <= snapshot(finished[0]).items()
    assert not ShardSet.open(str(tmp_path / "shards")).is_planned
    label(photos, tmp_path / "shards")
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_first_listing_that_was_not_finished_takes_what_is_new(tmp_path: Path, streamed: None) -> None:
    write_photos(tmp_path / "photos", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg")
    list(planned(tmp_path / "whole", tmp_path / "photos").numbers())
    for name in ("dataset.json", "units/000000.json"):
        target = tmp_path / "set" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "whole" / name, target)
    told = json.loads((tmp_path / "whole/dataset.json").read_text())
    Storage(str(tmp_path / "set")).write(
        "dataset.json", plan.Dataset(2, (), 0, ShardSet.open(str(tmp_path / "whole")).dataset.layers).to_json()
    )
    assert told["images"] == 5
    write_photos(tmp_path / "photos", "a.jpg")
    (tmp_path / "photos/b.jpg").unlink()
    with planned(tmp_path / "set", tmp_path / "photos") as going_on:
        assert sorted(number for number in going_on.numbers() if number is not None) == [0, 1, 2]
    assert keys_in(tmp_path / "set") == [["b", "c"], ["a", "d"], ["e", "f"]]
    assert going_on.gone == ["b"]
    assert ShardSet.open(str(tmp_path / "set")).is_planned


def test_first_listing_that_was_not_finished_is_not_gone_on_with_in_another_folder(
    tmp_path: Path, streamed: None
) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    write_photos(tmp_path / "others", "x.jpg", "y.jpg")
    whole = planned(tmp_path / "set", tmp_path / "photos")
    list(whole.numbers())
    layers = ShardSet.open(str(tmp_path / "set")).dataset.layers
    Storage(str(tmp_path / "set")).write("dataset.json", plan.Dataset(2, (), 0, layers).to_json())
    before = keys_in(tmp_path / "set")
    with (
        pytest.raises(SettingsDifferError, match=r"3 planned images are gone, the first is 'a'; 2 images are new.*'x'"),
        planned(tmp_path / "set", tmp_path / "others") as going_on,
    ):
        list(going_on.numbers())
    assert keys_in(tmp_path / "set") == before


def test_what_is_gone_is_told_at_the_end_of_a_listing_that_went_on_meanwhile(
    photos: Path, own_photos: Path, tmp_path: Path, label: Label, loose: Any, streamed: None
) -> None:
    label(own_photos, tmp_path / "shards")
    layers = ShardSet.open(str(tmp_path / "shards")).dataset.layers
    Storage(str(tmp_path / "shards")).write("dataset.json", plan.Dataset(2, (), 0, layers).to_json())
    (own_photos / "photo0.jpg").unlink()
    said: list[str] = []
    settings = RunSettings(
        images=(str(own_photos),), shards=str(tmp_path / "shards"), automask=loose, unit_size=2, runtime=Runtime("cpu")
    )
    run(settings, said.append)
    assert [line for line in said if "gone" in line] == [
        "1 planned images are gone, or not in --images: 'photo0'; their labels stay"
    ]


# Whatever comes and goes

NAMES = [f"{a}{b}.{c}" for a in ("", "x/", "y/") for b in ("a", "b", "a~2") for c in ("jpg", "png", "bmp")]
names = st.lists(st.sampled_from(NAMES), unique=True, max_size=8)


@settings(max_examples=25, deadline=None)
@given(folders=st.lists(names, min_size=1, max_size=4), unit_size=st.integers(1, 3))
def test_every_photo_that_was_ever_listed_is_in_one_unit_and_stays_there(
    tmp_path_factory: pytest.TempPathFactory, folders: list[list[str]], unit_size: int
) -> None:
    home = tmp_path_factory.mktemp("grown")
    shown, before = home / "photos", dict[str, bytes]()
    everything = dict[str, int]()
    for step, listed in enumerate(folders):
        shutil.rmtree(shown, ignore_errors=True)
        write_photos(shown, "first.jpg", *listed)
        everything |= {str(path): path.stat().st_size for path in shown.rglob("*.*")}
        with planned(home / "set", shown, extend=step > 0, unit_size=unit_size) as plan_now:
            assert [n for n in plan_now.numbers() if n is not None] == list(range(len(units_in(home / "set"))))
        files = {str(path): path.read_bytes() for path in (home / "set/units").iterdir()}
        assert {name: files[name] for name in before} == before  # what is planned stays as it is
        before = files
        images = [image for unit in units_in(home / "set") for image in unit]
        assert sorted((image["url"], image["size"]) for image in images) == sorted(everything.items())
        assert len({image["key"] for image in images}) == len(images)
        assert all(1 <= len(unit) <= unit_size for unit in units_in(home / "set"))
        assert {image["key"] for image in images if image["url"] not in map(str, shown.rglob("*.*"))} == {
            *plan_now.gone
        }
        opened = ShardSet.open(str(home / "set"))
        assert [opened.size_of(number) for number in range(opened.unit_count)] == list(map(len, units_in(home / "set")))
        again = planned(home / "set", shown, unit_size=unit_size)
        assert (again.gone, again.moved) == (plan_now.gone, {})


def test_dataset_that_another_run_writes_while_its_plans_are_looked_for_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plans are listed twice, and between the two it has written one more."""
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    list(planned(tmp_path / "set", tmp_path / "photos").numbers())
    keys, files = keys_in(tmp_path / "set"), ("dataset.json", "units/000001.json")
    written = {name: (tmp_path / "set" / name).read_bytes() for name in files}
    for name in files:
        (tmp_path / "set" / name).unlink()
    names = Storage.names

    def names_and_then_more(self: Storage, folder: str) -> Any:
        found = [*names(self, folder)]
        for name, data in written.items():
            (tmp_path / "set" / name).write_bytes(data)
        return found

    monkeypatch.setattr(Storage, "names", names_and_then_more)
    with planned(tmp_path / "set", tmp_path / "photos") as going_on:
        assert [*going_on.numbers()] == [0, 1]
    assert keys_in(tmp_path / "set") == keys
