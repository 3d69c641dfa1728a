"""Kinds of layers: found by themselves, told apart by the layer's name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards import kinds as package
from sum_factory.shared.shards.dataset import OUTPUTS, Layer
from sum_factory.shared.shards.kinds import comparable, is_unknown, kind_of, kinds, planes_of, schema_of

NEW = """
from sum_factory.shared.shards.kinds.kind import LayerKind

KIND = LayerKind(
    name="depths", per="image", columns=(), zarr_layout=None, member="exr", faults=None, contents="depths"
)
"""


def test_every_kind_has_a_name_and_a_member_of_its_own() -> None:
    assert set(kinds()) == {"masks", "uncertainty", "photos", "logits", "embeddings"}
    assert len({kind.member for kind in kinds().values()}) == len(kinds())
    assert all(kind_of(f"{name}/any" if kind.is_family else name) is kind for name, kind in kinds().items())


def test_maps_can_be_made_of_all_that_sam_put_out() -> None:
    assert {name for name, kind in kinds().items() if kind.is_output} == {*OUTPUTS}


@pytest.mark.parametrize("layer", ["depths", "uncertainty", "uncertainty/", "masks/mine", ""])
def test_layer_of_no_kind_is_refused_with_those_there_are(layer: str) -> None:
    with pytest.raises(ShardError, match=r"no such layer, but .*masks"):
        kind_of(layer)


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kind more: one file, and nothing else."""
    (tmp_path / "depths.py").write_text(NEW)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    kinds.cache_clear()
    yield
    kinds.cache_clear()
    sys.modules.pop(f"{package.__name__}.depths", None)


def test_a_new_kind_is_a_new_file(another: None) -> None:
    assert kind_of("depths").member == "exr"
    assert schema_of("depths").names[0] == "image"


def test_columns_follow_those_that_place_a_blob() -> None:
    place = schema_of("photos")
    for name in ("masks", "uncertainty/any", "logits", "embeddings"):
        assert schema_of(name).names[: len(place)] == place.names
    assert schema_of("uncertainty/any").field("mean_u").type == pa.float32()


def test_row_is_unknown_where_its_kind_says_so() -> None:
    assert is_unknown({"u_valid": False})
    assert is_unknown({"valid": False})
    assert not is_unknown({"u_valid": True, "valid": None})
    assert not is_unknown({"mask": 0})


def test_parts_follow_from_what_made_the_layer() -> None:
    assert planes_of(Layer("masks", "tar", {}, {})) == ("label",)
    assert planes_of(Layer("uncertainty/a", "tar", {}, {"refiner": {}})) == ("u", "refined")
    assert planes_of(Layer("uncertainty/a", "tar", {}, {})) == ("u",)
    assert planes_of(Layer("photos", "tar", {}, {})) == ()


def test_ids_of_masks_and_of_kept_layers_do_not_count_where_sets_are_compared() -> None:
    made = Layer("uncertainty/a", "tar", {"masks": "0a", "logits": "1b", "source": "entropy"}, {})
    assert comparable(made) == {"logits": "kept", "source": "entropy"}
