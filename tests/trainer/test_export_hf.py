"""A model as a folder of the Hugging Face libraries, against upstream's predictor; and the cards of exported models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

from sum_factory.shared.errors import CheckpointError, InputError, SettingsError, StorageError
from sum_factory.shared.sam.checkpoint import load_sam, to_safetensors
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer import export_hf as module
from sum_factory.trainer.cli import main
from sum_factory.trainer.export import export_plain_sam
from sum_factory.trainer.export_hf import export_hf
from sum_factory.trainer.model_card import model_card
from sum_factory.trainer.variants.load import load_any


@pytest.fixture
def tiny_sum(tiny_weights: str, tmp_path: Path) -> Path:
    """The folder of a run: SUM weights of the tiny SAM, trained for two tasks, with what the run tells of itself."""
    folder = tmp_path / "run"
    folder.mkdir()
    table = torch.randn(len(TASKS), 32, generator=torch.Generator().manual_seed(1))
    state = {**load_sam(tiny_weights).sam.state_dict(), STATE_KEY: table}
    header = {"kind": "sum", "trained_tasks": list(TASKS[:2]), "run": {"batch": 4, "loss": {"theta": 0.5}}, "step": 30}
    (folder / "weights.safetensors").write_bytes(to_safetensors(state, header))
    about = {
        "what": "training",
        "steps": 40,
        "method": "sum",
        "variant": "full",
        "data": "mine + labels",
        "score": "iou",
    }
    (folder / "run.json").write_text(json.dumps(about))
    lines = [{"step": 10, "validation": {"iou": 0.61}}, {"step": 30, "validation": {"iou": 0.58}}]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_sam_model_does_what_upstreams_predictor_does(tiny_sum: Path, tmp_path: Path) -> None:
    """For a task, a photo that is not square, points and a box."""
    from transformers import SamModel, SamProcessor

    out = tmp_path / "hf"
    command = ["export", "--format=hf", f"--weights={tiny_sum}", "--task=salient", f"--out={out}"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: in SamModel its outputs are equal to torch's to" in result.output
    export_plain_sam(str(tiny_sum), tmp_path / "plain.pth", "salient")
    predictor = segment_anything.SamPredictor(load_sam(str(tmp_path / "plain.pth")).sam)
    image = np.random.default_rng(0).integers(0, 256, (75, 120, 3), dtype=np.uint8)
    predictor.set_image(image)
    model, processor = SamModel.from_pretrained(out).eval(), SamProcessor.from_pretrained(out)
    points = [[30.0, 20.0], [70.0, 10.0]]
    given = processor(image, input_points=[[points]], input_labels=[[[1, 0]]], return_tensors="pt")
    assert given["pixel_values"].shape[-1] == 128
    for several in (True, False):
        with torch.no_grad():
            found = model(**given, multimask_output=several)
        _, iou, low = predictor.predict(np.array(points), np.array([1, 0]), None, None, several, return_logits=True)
        np.testing.assert_allclose(found.iou_scores[0, 0].numpy(), iou, atol=1e-3)
        scale = np.abs(low).max()
        assert np.abs(found.pred_masks[0, 0].numpy() - low).max() < 0.02 * scale  # photos are resized a shade otherwise
    masks = processor.image_processor.post_process_masks(
        found.pred_masks, given["original_sizes"], given["reshaped_input_sizes"]
    )
    expected, _, _ = predictor.predict(np.array(points), np.array([1, 0]), None, None, False)
    assert (masks[0][0].numpy() != expected).mean() < 0.01
    assert result.exit_code == 0
    with pytest.raises(StorageError, match="is there already"):
        export_hf(str(tiny_sum), out)


def test_models_that_sam_model_cannot_be_are_refused(tmp_path: Path, tiny_weights: str) -> None:
    with pytest.raises(CheckpointError, match="a vit_micro, whose image encoder begins with convolutions"):
        export_hf("vit_micro", tmp_path / "hf")
    with pytest.raises(SettingsError, match="no task prompt"):
        export_hf(tiny_weights, tmp_path / "hf", "salient")
    assert not (tmp_path / "hf").exists()


@pytest.mark.filterwarnings("ignore")
def test_outputs_that_differ_leave_no_folder(
    tiny_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NORM_EPSILON", 10.0)
    with pytest.raises(InputError, match="outputs of SamModel differ from ours by"):
        export_hf(tiny_weights, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_safetensors_have_the_tensors_of_the_pth(tiny_sum: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["export", "--format=safetensors", f"--weights={tiny_sum}", f"--out={tmp_path / 'a.safetensors'}"]
    )
    assert result.exit_code == 0, result.output
    export_plain_sam(str(tiny_sum), tmp_path / "a.pth")
    plain, found = torch.load(tmp_path / "a.pth", weights_only=True), load_file(tmp_path / "a.safetensors")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        told = json.loads(file.metadata()["sum_factory"])
    assert (told["kind"], told["task"]) == ("sam", "unspecified")
    assert load_sam(str(tmp_path / "a.safetensors")).sha256 == load_sam(str(tmp_path / "a.pth")).sha256


def test_cards_tell_what_is_known(tiny_sum: Path, tiny_weights: str, tmp_path: Path) -> None:
    export_plain_sam(str(tiny_sum), tmp_path / "a.pth", "salient")
    card = (tmp_path / "a.pth.md").read_text()
    for told in (
        "`tiny`",
        "`salient`",
        "mine + labels",
        "0.5800 at the last, and 0.6100 at the best, step 10",
        "30 of 40",
    ):
        assert told in card, told
    assert '| `loss` | `{"theta": 0.5}` |' in card
    assert load_sam(str(tiny_sum)).sha256 in card
    assert "`segment_anything` knows no `tiny`" in card
    unknown = model_card(load_any(tiny_weights), tiny_weights, "unspecified", "")
    for told in (
        "the weights do not lie in the folder of a run",
        "no validation is recorded",
        "the weights do not say",
    ):
        assert told in unknown, told
    assert "Licence" in unknown


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_vit_b_comes_back_as_it_was(tmp_path: Path) -> None:
    """Of random weights: written, compared by the export itself, and read as Hugging Face's."""
    with torch.device("meta"):
        empty = segment_anything.sam_model_registry["vit_b"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in empty.items()}
    state |= {name: 1 + value for name, value in state.items() if value.ndim == 1 and name.endswith("weight")}
    torch.save(state, tmp_path / "vit_b.pth")
    assert export_hf(str(tmp_path / "vit_b.pth"), tmp_path / "hf") < 1e-3
    assert load_sam(str(tmp_path / "hf")).identity == load_sam(str(tmp_path / "vit_b.pth")).identity
