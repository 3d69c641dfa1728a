"""What does not fit an uncertainty layer is refused, by name and with what to do, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import CheckpointError, SettingsDifferError, SettingsError, ShardError
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import Refiner, save_refiner
from sum_factory.shared.shards.shard_set import ShardSet

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Problems = Callable[[Path], list[str]]
Refined = tuple[Path, RunSummary]


def test_other_refiner_into_the_same_layer_is_refused_by_name(
    refined: Refined, photos: Path, label: Label, other_refiner: str, add_maps: Label, snapshot: Snapshot
) -> None:
    before = snapshot(refined[0])
    for attempt in (
        lambda: add_maps(refined[0], other_refiner),
        lambda: label(photos, refined[0], refiner=other_refiner),
    ):
        with pytest.raises(SettingsDifferError, match=r"(?s)refinement.*other weights.*refiner.*--layer"):
            attempt()
    assert snapshot(refined[0]) == before


def test_other_settings_into_the_same_layer_are_refused_by_name(
    refined: Refined, refiner: str, add_maps: Label
) -> None:
    with pytest.raises(SettingsDifferError, match=r"(?s)min_refine_area: there 0, asked for 100.*--layer-name"):
        add_maps(refined[0], refiner, min_refine_area=100)
    with pytest.raises(SettingsDifferError, match=r"(?s)source: there refinement, asked for entropy.*--layer-name"):
        add_maps(refined[0], source="entropy", layer_name="refinement")


@pytest.fixture
def other_sam(tmp_path: Path) -> str:
    """The path of a SAM of other weights than the packaged one's."""
    state = load_sam().sam.state_dict()
    state["mask_decoder.iou_token.weight"] = state["mask_decoder.iou_token.weight"] + 1
    save_file(state, tmp_path / "other_sam.safetensors")
    return str(tmp_path / "other_sam.safetensors")


def test_sam_that_did_not_make_the_masks_is_refused(
    refined: Refined, refiner: str, add_maps: Label, other_sam: str
) -> None:
    with pytest.raises(SettingsDifferError, match=r"(?s)layer masks.*sha256: there .*the weights that made the masks"):
        add_maps(refined[0], refiner, layer_name="other", sam=other_sam)


def test_refiner_of_another_sam_is_refused_before_anything_is_written(
    photos: Path, refined: Refined, tmp_path: Path, label: Label, add_maps: Label, other_sam: str
) -> None:
    loaded, path = load_sam(other_sam), tmp_path / "foreign.safetensors"
    save_refiner(path, Refiner.copy_of(loaded.sam), loaded, {})
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: this refiner was trained for"):
        label(photos, tmp_path / "shards", refiner=str(path))
    assert not (tmp_path / "shards").exists()
    with pytest.raises(CheckpointError, match="was trained for"):
        add_maps(refined[0], str(path), layer_name="foreign")
    assert ShardSet.open(str(refined[0])).uncertainty_layers == ("refinement",)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({}, SettingsError, "source refinement needs a refiner"),
        ({"source": "entropy", "refiner": "r"}, SettingsError, "source entropy uses no refiner"),
        ({"refiner": "gone.safetensors"}, CheckpointError, r"gone\.safetensors: no such file"),
        ({"source": "entropy", "layer_name": "../masks"}, ShardError, "cannot name a layer"),
    ],
)
def test_contradictions_are_refused(
    refined: Refined, add_maps: Label, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        add_maps(refined[0], **arguments)
    assert ShardSet.open(str(refined[0])).uncertainty_layers == ("refinement",)


def test_least_area_without_a_refiner_is_refused(photos: Path, tmp_path: Path, label: Label) -> None:
    with pytest.raises(SettingsError, match="give --refiner"):
        label(photos, tmp_path / "shards", min_refine_area=100)
