"""Labelling with weights that have a task prompt: the vector that training added is given with every point."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sum_factory.labelgen import labeler
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import CheckpointError, SettingsDifferError, SettingsError
from sum_factory.shared.sam import checkpoint
from sum_factory.shared.sam.checkpoint import load_sam, read_weights, to_safetensors
from sum_factory.shared.sam.refiner import Refiner, save_refiner
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.shared.shards.shard_set import ShardSet

Label = Callable[..., RunSummary]


@pytest.fixture(scope="module")
def sum_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that made SUM weights of the packaged SAM, trained for "unspecified" and "salient"."""
    folder = tmp_path_factory.mktemp("sum")
    table = torch.randn(4, 192, generator=torch.Generator().manual_seed(0)) * 0.3
    header = {"kind": "sum", "trained_tasks": ["unspecified", "salient"]}
    (folder / "weights.safetensors").write_bytes(
        to_safetensors({**load_sam().sam.state_dict(), STATE_KEY: table}, header)
    )
    return folder


def masks_of(shards: Path) -> bytes:
    return (shards / "masks/000000.tar").read_bytes()


def plain_weights(sum_folder: Path, task: str, path: Path) -> str:
    """Write plain weights with the vector of a task in what prompts without a mask have, by hand; return their path."""
    loaded = load_sam(str(sum_folder))
    vector = loaded.task_vector(task)
    assert vector is not None
    state = loaded.sam.state_dict()
    state["prompt_encoder.no_mask_embed.weight"] = state["prompt_encoder.no_mask_embed.weight"] + vector
    path.write_bytes(to_safetensors(state, {}))
    return str(path)


@pytest.mark.parametrize("task", ["unspecified", "salient"])
def test_masks_are_those_of_plain_weights_with_the_vector(
    task: str, three_photos: Path, tmp_path: Path, label: Label, sum_folder: Path
) -> None:
    chosen = {} if task == "unspecified" else {"task": task}
    label(three_photos, tmp_path / "sum", sam=str(sum_folder), **chosen)
    label(three_photos, tmp_path / "by_hand", sam=plain_weights(sum_folder, task, tmp_path / "plain.safetensors"))
    label(three_photos, tmp_path / "without")
    assert masks_of(tmp_path / "sum") == masks_of(tmp_path / "by_hand") != masks_of(tmp_path / "without")
    recorded = ShardSet.open(str(tmp_path / "sum")).layer().weights["sam"]
    assert recorded == {**read_weights(str(sum_folder)).identity, "task": task}


def test_another_task_is_another_set(three_photos: Path, tmp_path: Path, label: Label, sum_folder: Path) -> None:
    label(three_photos, tmp_path / "s", sam=str(sum_folder), task="salient")
    with pytest.raises(SettingsDifferError, match=r"there .*'task': 'salient'.*, asked for .*'task': 'unspec"):
        label(three_photos, tmp_path / "s", sam=str(sum_folder))


def test_maps_are_made_with_the_task_of_the_masks(
    three_photos: Path, tmp_path: Path, label: Label, add_maps: Label, sum_folder: Path
) -> None:
    label(three_photos, tmp_path / "s", sam=str(sum_folder), task="salient")
    summary = add_maps(tmp_path / "s", source="entropy", sam=str(sum_folder))
    assert summary.unknown == 0
    assert summary.masks > 0
    layer = ShardSet.open(str(tmp_path / "s")).layer("uncertainty/entropy")
    assert layer.weights["sam"]["task"] == "salient"


def test_task_without_a_vector_is_refused_before_anything_is_written(
    three_photos: Path, tmp_path: Path, label: Label, sum_folder: Path
) -> None:
    with pytest.raises(SettingsError, match="never trained for the task 'part'"):
        label(three_photos, tmp_path / "s", sam=str(sum_folder), task="part")
    with pytest.raises(SettingsError, match="no task prompt, so the task 'part' means nothing"):
        label(three_photos, tmp_path / "s", task="part")
    assert not (tmp_path / "s").exists()


def test_refiner_of_another_task_is_refused(three_photos: Path, tmp_path: Path, label: Label, sum_folder: Path) -> None:
    loaded = load_sam(str(sum_folder), task="salient")
    refiner = str(tmp_path / "refiner.safetensors")
    save_refiner(Path(refiner), Refiner.copy_of(loaded.sam), loaded, {})
    with pytest.raises(CheckpointError, match="trained for masks of the task salient, and these are of unspecified"):
        label(three_photos, tmp_path / "s", sam=str(sum_folder), refiner=refiner)
    summary = label(three_photos, tmp_path / "s", sam=str(sum_folder), refiner=refiner, task="salient")
    assert summary.unknown == 0


def test_set_whose_weights_are_recorded_by_their_file_goes_on(
    three_photos: Path, tmp_path: Path, label: Label, add_maps: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(to_safetensors(load_sam().sam.state_dict(), {"of": "its own"}))
    of_file = hashlib.sha256(own.read_bytes()).hexdigest()
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "digest_of", lambda *_: of_file)
        label(three_photos, tmp_path / "s", sam=str(own))
    assert ShardSet.open(str(tmp_path / "s")).layer().weights["sam"]["sha256"] == of_file
    assert "nothing to do" in label(three_photos, tmp_path / "s", sam=str(own)).lines()
    assert add_maps(tmp_path / "s", source="entropy", sam=str(own)).unknown == 0


def test_machine_with_other_weights_at_the_same_place_labels_nothing(
    three_photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_sam().sam.state_dict()
    other["prompt_encoder.no_mask_embed.weight"] += 1
    (tmp_path / "other.safetensors").write_bytes(to_safetensors(other, {}))
    monkeypatch.setattr(labeler, "load_sam", lambda *_: load_sam(str(tmp_path / "other.safetensors")))
    with pytest.raises(CheckpointError, match=r"these are other weights .* than those that are recorded"):
        label(three_photos, tmp_path / "s")
    assert not list((tmp_path / "s").rglob("*.tar"))
