"""Labelling on an S3-compatible store: the bytes of a local run, also after a crash, or with two runs at once."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import SettingsDifferError, StorageError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.cache import Cache
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Finished = tuple[Path, RunSummary]
Upload = Callable[[Path, str], None]
Download = Callable[[str], dict[str, bytes]]


def local_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def problems(url: str) -> list[str]:
    return [problem for check in verify(ShardSet.open(url)) for problem in check.problems]


def test_run_writes_the_files_of_a_local_run(
    photos: Path, bucket: str, label: Label, finished: Finished, download: Download
) -> None:
    shards = f"{bucket}/some/shards"
    summary = label(photos, shards)
    assert (summary.images, summary.masks) == (finished[1].images, finished[1].masks)
    assert download(shards) == local_files(finished[0])
    assert problems(shards) == []
    assert label(photos, shards).lines() == "3 of 3 units present, nothing to do"
    with pytest.raises(SettingsDifferError, match=f"{shards}(.|\n)*unit_size"):
        label(photos, shards, unit_size=3)


def test_run_into_zarr_writes_and_reads_there_what_it_does_here(
    photos: Path, bucket: str, label: Label, refiner: str, whole_in: Callable[[str], Path], download: Download,
    tmp_path: Path,
) -> None:  # fmt: skip
    shards, here = f"{bucket}/shards", ShardSet.open(str(whole_in("zarr")))
    settings: dict[str, Any] = {"refiner": refiner, "keep_photos": True, "encoding": "zarr"}
    label(photos, shards, **settings)
    assert download(shards) == local_files(whole_in("zarr"))
    assert problems(shards) == []
    for cache in (None, Cache(tmp_path / "cache", 1 << 24)):
        there = ShardSet.open(shards, cache)
        for layer in there.dataset.layers:
            for unit in there.committed(layer):
                everything = range(len(there.reader(layer).rows(unit)))
                assert there.reader(layer).blobs(unit, everything) == here.reader(layer).blobs(unit, everything)
    there.storage.delete("uncertainty/refinement.zarr/refined/zarr.json")
    there.storage.write("masks.zarr/zarr.json", b"{}")
    assert label(photos, shards, **settings).units_done == 0
    assert download(shards) == local_files(whole_in("zarr"))


def test_damage_is_found(bucket: str, finished: Finished, upload: Upload) -> None:
    shards = f"{bucket}/shards"
    upload(finished[0], shards)
    assert problems(shards) == []
    storage = ShardSet.open(shards).storage
    storage.write("masks/000001.tar", storage.read("masks/000001.tar")[:-1])
    (problem,) = problems(shards)
    assert f"{shards}/masks/000001.tar" in problem


class Stopped(BaseException):
    """What stops a run as a signal would."""


@pytest.mark.parametrize("name", ["masks/000001.tar", "manifest/masks/000001.parquet"])
def test_run_that_stopped_between_units_goes_on(
    photos: Path, bucket: str, label: Label, finished: Finished, download: Download,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    shards, whole = f"{bucket}/shards", local_files(finished[0])

    def until(write: Callable[..., Any]) -> Callable[..., Any]:
        def stop_or_write(self: Storage, file: str, data: bytes) -> Any:
            if file == name:
                raise Stopped
            return write(self, file, data)

        return stop_or_write

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", until(Storage.write))
        patch.setattr(Storage, "create", until(Storage.create))
        with pytest.raises(Stopped):
            label(photos, shards)
    left = download(shards)
    assert left == {file: whole[file] for file in left}
    assert len(left) < len(whole)
    commits, commit = [], UnitWriter.commit

    def counted(self: UnitWriter, *args: Any) -> Any:
        commits.append(self.unit.number)
        return commit(self, *args)

    monkeypatch.setattr(UnitWriter, "commit", counted)
    assert label(photos, shards).units_before == 1
    assert commits == [1, 2]
    assert download(shards) == whole


def test_two_runs_at_once_both_succeed(
    photos: Path, bucket: str, finished: Finished, loose_options: list[str], download: Download, forks: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    command = ["run", f"--images={photos}", f"--shards={bucket}/shards", *loose_options]
    both, said = [forks.begin(tmp_path / "said", command) for _ in range(2)], tmp_path / "said"
    assert [forks.end(process) for process in both] == [0, 0], said.read_text()
    assert said.read_text().count("units labelled") + said.read_text().count("nothing to do") == 2
    assert download(f"{bucket}/shards") == local_files(finished[0])


def test_run_overtaken_while_planning_takes_the_plan_that_was_first(
    photos: Path, bucket: str, label: Label, finished: Finished, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, overtaken = Storage.create, []

    def create_later(self: Storage, name: str, data: bytes) -> bool:
        if not overtaken:
            overtaken.append(name)
            label(photos, self.url)
        return create(self, name, data)

    monkeypatch.setattr(Storage, "create", create_later)
    assert label(photos, f"{bucket}/shards").units_done == 0
    assert overtaken == ["dataset.json"]
    assert download(f"{bucket}/shards") == local_files(finished[0])


def test_uncertainty_layer_is_added_there(
    photos: Path, bucket: str, finished: Finished, refined: Finished, refiner: str, upload: Upload,
    download: Download, label: Label, add_maps: Label,
) -> None:  # fmt: skip
    shards = f"{bucket}/shards"
    upload(finished[0], shards)
    assert add_maps(shards, refiner).units_done == 3
    assert download(shards) == local_files(refined[0])
    assert add_maps(shards, refiner).lines() == "3 of 3 units present, nothing to do"
    assert label(photos, shards, refiner=refiner).units_done == 0
    assert problems(shards) == []


def of_labels(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out the plans, which say where the photos were."""
    return {name: data for name, data in files.items() if not name.startswith("units/")}


def test_photos_are_read_from_there(
    photos: Path, bucket: str, tmp_path: Path, label: Label, finished: Finished, upload: Upload,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    upload(photos, f"{bucket}/photos")
    summary = label(f"{bucket}/photos", tmp_path / "shards")
    assert summary.masks == finished[1].masks
    assert of_labels(local_files(tmp_path / "shards")) == of_labels(local_files(finished[0]))
    assert label(f"{bucket}/photos", tmp_path / "shards").units_done == 0
    capsys.readouterr()
    assert label(f"{bucket}/photos/*.jpg", tmp_path / "shards").units_done == 0
    assert "4 planned images are gone, or not in --images: 'photo4', 'sub/photo1', " in capsys.readouterr().out


def test_listing_of_many_pages_is_that_of_a_folder(
    photos: Path, bucket: str, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(photos, f"{bucket}/all/photos")
    filesystem = fsspec.filesystem("s3")
    filesystem.touch(f"{bucket}/all/photos/sub/")  # which stands for a folder
    asked: list[str] = []
    call_s3 = type(filesystem).call_s3

    def of_two(self: object, method: str, **options: Any) -> Any:
        asked.append(options["Prefix"])
        return call_s3(self, method, MaxKeys=2, **options)

    monkeypatch.setattr(type(filesystem), "call_s3", of_two)
    monkeypatch.setattr(type(filesystem), "find", lambda *arguments, **options: pytest.fail("all at once"))
    here, there = (list(list_photos([str(url)])) for url in (photos, f"{bucket}/all/photos"))
    assert [(photo.key, photo.size) for photo in there] == [(photo.key, photo.size) for photo in here]
    assert [photo.url.removeprefix(f"{bucket}/all") for photo in there] == [
        photo.url.removeprefix(str(photos.parent)).replace(f"/{photos.name}/", "/photos/") for photo in here
    ]
    assert asked == ["all/photos/"] * 4
    (single,) = list_photos([there[0].url])
    assert single.stamp == there[0].stamp  # whichever way it is listed


def test_photos_are_read_from_a_tar_there(
    photos: Path, bucket: str, tmp_path: Path, label: Label, finished: Finished, upload: Upload, download: Download
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in sorted(path for path in photos.rglob("*") if path.is_file()):
            tar.add(path, str(path.relative_to(photos)))
    upload(tmp_path, f"{bucket}/tars")
    label(f"{bucket}/tars/*.tar", f"{bucket}/shards")
    assert of_labels(download(f"{bucket}/shards")) == of_labels(local_files(finished[0]))


def test_missing_bucket_is_named(photos: Path, object_store: str, label: Label) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/shards/dataset\.json"):
        label(photos, "s3://no-such-bucket/shards")
