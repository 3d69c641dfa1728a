"""Photos are labelled while others are still being listed."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from plans import LAYER, Finished, Label, Problems, Snapshot, keys_in, planned, write_photos
from sum_factory.labelgen import plan
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.plan import prepare
from sum_factory.labelgen.run import run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards import encoding
from sum_factory.shared.shards.dataset import Dataset, Layer
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage


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
