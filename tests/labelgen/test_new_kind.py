"""A kind of layer more is one file: its layer is written, checked, converted, selected and merged like any other."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sum_factory.labelgen.sets.convert import convert
from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.labelgen.sets.status import status_of
from sum_factory.shared.shards import kinds as package
from sum_factory.shared.shards.dataset import Layer, add_layer
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.kinds import kinds
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.shards.verify import verify

AREAS = """
import numpy as np
import pyarrow as pa

from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_layout import single_array
from sum_factory.shared.shards.kinds.kind import LayerKind, faults_by_mask


def zarr_layout(dataset, layer):
    area = Array("area", (1,), ("mask", "value"), "cells of the mask; 0: there is no such mask", "float32")
    return single_array(area, lambda blob: np.frombuffer(blob, "<f4"), lambda cells: cells.tobytes())


def faults(held):
    def fault_of(row, data, mask, number):
        area = np.frombuffer(data, "<f4")[0]
        return None if area == row["cells"] else f"its area is {area:g}, expected {row['cells']}"

    return faults_by_mask(held, fault_of)


KIND = LayerKind(
    name="areas", per="mask", columns=(("cells", pa.int32()),), zarr_layout=zarr_layout, member="areas", faults=faults,
    contents="areas", of_masks=True,
)
"""


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "areas.py").write_text(AREAS)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "kinds")])
    kinds.cache_clear()
    yield
    kinds.cache_clear()
    sys.modules.pop(f"{package.__name__}.areas", None)


def add_areas(folder: Path, encoding: str, wrong: int = 0) -> list[int]:
    """Add the layer ``areas``, each area too large by ``wrong``, and return those of all masks."""
    shards = ShardSet.open(str(folder))
    layer = Layer("areas", encoding, {}, {})
    dataset = add_layer(shards.storage, layer, "take another")
    write_shared_files(shards.storage)
    found = []
    for number in shards.committed(MASKS):
        unit, record = shards.unit(number), shards.manifest(number)[1]
        rows = shards.reader(MASKS).rows(number)
        writer = UnitWriter(dataset, layer, unit)
        for index in range(len(unit.images)):
            masks = [*range(*rows.first[index : index + 2])]
            areas = [int((shards.reader(MASKS).read(number, [mask], "label").values(0) > 0).sum()) for mask in masks]
            blobs = [np.float32(area + wrong).tobytes() for area in areas]
            writer.add_image(index, (1, 1), blobs, {"cells": areas}, {})
            found += areas
        writer.commit(shards.storage, record.data_sha256)
    return found


def areas_in(folder: Path) -> list[int]:
    shards = open_shards(str(folder))
    found = []
    for number in shards.committed("areas"):
        count = len(shards.reader(MASKS).rows(number))
        found += [int(np.frombuffer(blob, "<f4")[0]) for blob in shards.reader("areas").blobs(number, range(count))]
    return found


def problems(folder: Path) -> list[str]:
    return [problem for check in verify(open_shards(str(folder))) for problem in check.problems]


@pytest.mark.parametrize(("encoding", "other"), [("tar", "zarr"), ("zarr", "tar")])
def test_layer_of_a_new_kind_is_one_like_the_others(
    encoding: str, other: str, own_shards: Path, tmp_path: Path, another: None
) -> None:
    areas = add_areas(own_shards, encoding)
    assert len({*areas}) > 2
    assert areas_in(own_shards) == areas
    assert problems(own_shards) == []
    (line,) = (line for line in status_of(open_shards(str(own_shards)), "shards") if line.startswith("layer areas"))
    assert f"3 of 3 units, 6 images, {len(areas)} masks, 0 errors" in line
    convert(str(own_shards), str(tmp_path / "converted"), other)
    assert areas_in(tmp_path / "converted") == areas
    assert problems(tmp_path / "converted") == []
    select(str(own_shards), str(tmp_path / "selected"), Filter(images=("sub/*",)))
    assert 0 < len(areas_in(tmp_path / "selected")) < len(areas)
    assert problems(tmp_path / "selected") == []
    shutil.copytree(own_shards, tmp_path / "copy")
    merge([str(own_shards), str(tmp_path / "copy")], str(tmp_path / "merged"), keep="first")
    assert areas_in(tmp_path / "merged") == areas


@pytest.mark.parametrize("encoding", ["tar", "zarr"])
def test_what_its_own_check_finds_is_told(encoding: str, own_shards: Path, another: None) -> None:
    first = add_areas(own_shards, encoding, wrong=1)[0]
    told = [problem for problem in problems(own_shards) if "its area is" in problem]
    assert len(told) == 3  # the first of each unit
    assert f"mask 0 of image photo0: its area is {first + 1}, expected {first}" in told[0]
