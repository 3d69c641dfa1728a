"""Layers are added to ``dataset.json`` one by one, also by several processes at once, and none is lost or replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.shards.dataset import DATASET, Dataset, Layer, add_layer, read_dataset, uncertainty_layer
from sum_factory.shared.store.storage import Storage

REMEDY = "Give another --layer-name."
MASKS = Layer("masks", "tar", {"points_per_side": 2}, {"sam": {"image_size": 64, "sha256": "a"}})
UNITS = ("0" * 32, "1" * 32)


def layer(name: str, **settings: object) -> Layer:
    return Layer(uncertainty_layer(name), "tar", {"source": "entropy", **settings}, {"sam": {"sha256": "a"}})


def create(url: str) -> Storage:
    """Return a new shard set with the layer of masks."""
    storage = Storage(url)
    storage.write(DATASET, Dataset(2, UNITS, 3, {"masks": MASKS}).to_json())
    return storage


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """A new shard set on a disk, which can be locked, and elsewhere."""
    yield create(str(tmp_path / "shards") if request.param == "disk" else "memory://layers/shards")
    fsspec.filesystem("memory").store.clear()


def stored(storage: Storage) -> Dataset:
    dataset = read_dataset(storage)
    assert dataset is not None
    return dataset


def test_added_layer_stands_beside_the_others(storage: Storage) -> None:
    before = stored(storage)
    returned = add_layer(storage, layer("one"), REMEDY)
    assert returned == stored(storage)
    assert dict(returned.layers) == {"masks": MASKS, "uncertainty/one": layer("one")}
    assert replace(returned, layers=before.layers) == before


def test_adding_a_layer_again_writes_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    added = add_layer(storage, layer("one"), REMEDY)
    monkeypatch.setattr(Storage, "write", lambda *args: pytest.fail("written again"))
    assert add_layer(storage, layer("one"), REMEDY) == added


def test_provenance_is_no_part_of_a_layer(storage: Storage) -> None:
    add_layer(storage, replace(layer("one"), provenance={"torch": "1"}), REMEDY)
    add_layer(storage, replace(layer("one"), provenance={"torch": "2"}), REMEDY)
    assert stored(storage).layers["uncertainty/one"].provenance == {"torch": "1"}


def test_other_settings_or_weights_under_a_name_are_refused_with_what_to_do(storage: Storage) -> None:
    added = add_layer(storage, layer("one", min_refine_area=0), REMEDY)
    with pytest.raises(
        SettingsDifferError, match=r"(?s)uncertainty/one.*min_refine_area: there 0, asked for 9.*--layer"
    ):
        add_layer(storage, layer("one", min_refine_area=9), REMEDY)
    with pytest.raises(SettingsDifferError, match=r"(?s)uncertainty/one.*other weights.*sam.*--layer-name"):
        add_layer(storage, replace(layer("one", min_refine_area=0), weights={"sam": {"sha256": "b"}}), REMEDY)
    assert stored(storage) == added


def test_own_layer_that_another_run_overwrites_at_once_is_added_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, old = Storage.write, stored(storage).to_json()
    writes: list[bytes] = []

    def overwritten_once(self: Storage, name: str, data: bytes) -> None:
        writes.append(data)
        write(self, name, old if len(writes) == 1 else data)

    monkeypatch.setattr(Storage, "write", overwritten_once)
    add_layer(storage, layer("one"), REMEDY)
    assert len(writes) == 2
    assert set(stored(storage).layers) == {"masks", "uncertainty/one"}


ADD = """
import sys
from sum_factory.shared.shards.dataset import Layer, add_layer
from sum_factory.shared.store.storage import Storage
for name in sys.argv[2:]:
    add_layer(Storage(sys.argv[1]), Layer(f"uncertainty/{name}", "tar", {"name": name}, {}), "")
"""


def test_processes_that_add_layers_at_once_lose_none(tmp_path: Path) -> None:
    storage = create(str(tmp_path / "shards"))
    names = [[f"p{process}n{number}" for number in range(30)] for process in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", ADD, storage.url, *mine]) for mine in names]
    assert [process.wait() for process in running] == [0] * 4
    assert set(stored(storage).layers) == {"masks", *(f"uncertainty/{name}" for mine in names for name in mine)}
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [DATASET]


def test_shard_set_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(ShardError, match=r"shards/dataset\.json: missing"):
        add_layer(Storage(str(tmp_path / "shards")), layer("one"), REMEDY)


@pytest.mark.parametrize("name", ["", "a/b", "../masks", ".hidden", "a b", "ä", "a\n"])
def test_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ShardError, match="cannot name a layer"):
        uncertainty_layer(name)


def test_dataset_file_tells_all_of_a_layer(tmp_path: Path) -> None:
    storage = create(str(tmp_path / "shards"))
    add_layer(storage, layer("one", min_refine_area=5), REMEDY)
    told = json.loads((tmp_path / "shards/dataset.json").read_text())["layers"]["uncertainty/one"]
    assert told["settings"] == {"source": "entropy", "min_refine_area": 5}
    assert told["weights"] == {"sam": {"sha256": "a"}}
    assert told["id"] == layer("one", min_refine_area=5).id
