"""SUM checkpoints in software that knows plain SAM: upstream's registry and predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from click.testing import CliRunner

from sum_factory.shared.errors import CheckpointError, SettingsError
from sum_factory.shared.sam.checkpoint import load_sam, to_safetensors
from sum_factory.shared.sam.settings import TASKS, WEIGHTS_FILE
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer.cli import main
from sum_factory.trainer.export import export_plain_sam


@pytest.fixture(scope="module")
def sum_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SUM checkpoint of a random ViT-B in the folder of a run, never trained for parts."""
    folder = tmp_path_factory.mktemp("run")
    with torch.device("meta"):
        empty = segment_anything.sam_model_registry["vit_b"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in empty.items()}
    for name, value in state.items():
        if value.ndim == 1 and name.endswith("weight"):  # of norms
            value += 1
    table = torch.randn(len(TASKS), 256, generator=generator)
    header = {"kind": "sum", "model_type": "vit_b", "trained_tasks": list(TASKS[:3])}
    (folder / WEIGHTS_FILE).write_bytes(to_safetensors({**state, STATE_KEY: table}, header))
    return folder


def test_export_predicts_in_upstream_as_the_task_is_prompted_here(sum_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.pth"
    result = CliRunner().invoke(main, ["export", f"--weights={sum_checkpoint}", f"--out={out}", "--task=salient"])
    assert result.exit_code == 0, result.output
    assert f'    sam = sam_model_registry["vit_b"](checkpoint="{out.name}")' in (tmp_path / "plain.pth.md").read_text()
    loaded = load_sam(str(sum_checkpoint / WEIGHTS_FILE))
    upstream = segment_anything.sam_model_registry["vit_b"](checkpoint=out)
    ours, theirs = loaded.sam.state_dict(), upstream.state_dict()
    assert [name for name, value in theirs.items() if not torch.equal(value, ours[name])] == [
        "prompt_encoder.no_mask_embed.weight"
    ]
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1))
    prompted, plain = segment_anything.SamPredictor(loaded.sam), segment_anything.SamPredictor(upstream)
    for predictor in (prompted, plain):  # equal weights encode equally, and slowly
        predictor.original_size, predictor.input_size = (48, 64), (768, 1024)
        predictor.features, predictor.is_image_set = embedding, True
    vector = loaded.task_vector("salient")
    assert vector is not None
    prompts = (
        {"point_coords": np.array([[30.0, 20.0]]), "point_labels": np.array([1])},
        {"box": np.array([5.0, 6.0, 40.0, 30.0])},
    )
    for prompt in prompts:
        for several in (True, False):
            prompted.features = embedding + vector[None, :, None, None]
            expected = prompted.predict(**prompt, multimask_output=several, return_logits=True)
            found = plain.predict(**prompt, multimask_output=several, return_logits=True)
            for a, b in zip(found, expected, strict=True):
                assert np.abs(a - b).max() <= 4e-5
            assert found[2].std() > 0.1
            prompted.features = embedding
            without = prompted.predict(**prompt, multimask_output=several, return_logits=True)
            assert np.abs(found[2] - without[2]).max() > 0.1


@pytest.fixture
def tiny_sum(tiny_weights: str, tmp_path: Path) -> str:
    """SUM weights of the tiny SAM, trained for all tasks."""
    table = torch.randn(len(TASKS), 32, generator=torch.Generator().manual_seed(1))
    state = {**load_sam(tiny_weights).sam.state_dict(), STATE_KEY: table}
    (tmp_path / "sum.safetensors").write_bytes(to_safetensors(state, {"trained_tasks": list(TASKS)}))
    return str(tmp_path / "sum.safetensors")


def test_export_is_for_the_unspecified_task_by_default(tiny_sum: str, tmp_path: Path) -> None:
    export_plain_sam(tiny_sum, tmp_path / "default.pth")
    before, after = load_sam(tiny_sum), load_sam(str(tmp_path / "default.pth"))
    vector = before.task_vector("unspecified")
    assert vector is not None
    embeds = [each.sam.prompt_encoder.no_mask_embed.weight for each in (before, after)]
    assert torch.equal(embeds[1], embeds[0] + vector)
    assert after.task_prompt is None


def test_later_rounds_are_exported_as_they_are(tiny_sum: str, tmp_path: Path) -> None:
    export_plain_sam(tiny_sum, tmp_path / "plain.pth", "entity")
    mask = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    embedded = [
        load_sam(weights).sam.prompt_encoder(points=None, boxes=None, masks=mask)[1]
        for weights in (tiny_sum, str(tmp_path / "plain.pth"))
    ]
    assert torch.equal(*embedded)


def test_task_that_was_never_trained_is_refused(sum_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"never trained for the task 'part'.*unspecified, salient, entity"):
        export_plain_sam(str(sum_checkpoint), tmp_path / "a.pth", "part")
    assert list(tmp_path.iterdir()) == []


def test_plain_weights_are_exported_as_they_are_and_know_no_task(tiny_weights: str, tmp_path: Path) -> None:
    export_plain_sam(tiny_weights, tmp_path / "a.pth")
    assert load_sam(str(tmp_path / "a.pth")).identity == load_sam(tiny_weights).identity
    with pytest.raises(SettingsError, match="no task prompt, so the task 'salient' means nothing to them"):
        export_plain_sam(tiny_weights, tmp_path / "b.pth", "salient")
    assert not (tmp_path / "b.pth").exists()


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        export_plain_sam(str(tmp_path), tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
