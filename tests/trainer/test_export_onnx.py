"""Exported ONNX files in onnxruntime, against upstream's predictor and our own code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import segment_anything
import torch
from click.testing import CliRunner

from sum_factory.shared.errors import InputError, SettingsError
from sum_factory.shared.placement import Frame, resized_size
from sum_factory.shared.sam.checkpoint import load_sam, to_safetensors
from sum_factory.shared.sam.hq import embed
from sum_factory.shared.sam.runtime import resize
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer import export_onnx as module
from sum_factory.trainer.cli import main
from sum_factory.trainer.export import export_plain_sam
from sum_factory.trainer.export_onnx import (
    DECODER,
    ENCODER,
    Decoder,
    Encoder,
    export_onnx,
    high_pass_by_products,
)
from sum_factory.trainer.predict import UserPrompt, predict_mask
from sum_factory.trainer.variants import prepare, trainable, variants
from sum_factory.trainer.variants.load import load_any
from sum_factory.trainer.variants.sam_adapter import high_pass
from sum_factory.trainer.variants.trained_weights import header_of_trained

SIDE = 128
Arrays = dict[str, Any]


def photo(height: int, width: int) -> Any:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def encoded(encoder: onnxruntime.InferenceSession, image: Any) -> Any:
    pixels = resize(image, SIDE).transpose(2, 0, 1)[None].astype(np.float32)
    return encoder.run(None, {"image": pixels})[0]


def decoded(
    decoder: onnxruntime.InferenceSession,
    embedding: Any,
    coords: Any,
    labels: list[int],
    size: tuple[int, int],
    **more: Any,
) -> Any:
    """Run the decoder as upstream's notebook does; ``coords`` are in pixels of the photo."""
    given = {
        "image_embeddings": embedding,
        "point_coords": Frame.whole(SIDE, *size).to_input(np.array(coords, np.float64))[None].astype(np.float32),
        "point_labels": np.array([labels], np.float32),
        "mask_input": np.zeros((1, 1, SIDE // 4, SIDE // 4), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }
    given["point_coords"][0, np.array(labels) == -1] = 0
    return decoder.run(None, {**given, **more})


@pytest.fixture
def tiny_sum(tiny_weights: str, tmp_path: Path) -> str:
    """SUM weights of the tiny SAM, trained for two tasks."""
    table = torch.randn(len(TASKS), 32, generator=torch.Generator().manual_seed(1))
    state = {**load_sam(tiny_weights).sam.state_dict(), STATE_KEY: table}
    (tmp_path / "sum.safetensors").write_bytes(to_safetensors(state, {"trained_tasks": list(TASKS[:2])}))
    return str(tmp_path / "sum.safetensors")


def test_files_do_what_upstreams_predictor_does(tiny_sum: str, tmp_path: Path) -> None:
    """Exported once, for a task: photos, points, a box and a mask prompt of other sizes than in the export."""
    out = tmp_path / "onnx"
    result = CliRunner().invoke(
        main, ["export", "--format=onnx", f"--weights={tiny_sum}", "--task=salient", f"--out={out}"]
    )
    assert result.exit_code == 0, result.output
    assert (
        f"wrote {out / 'README.md'}, {out / DECODER}, {out / ENCODER}: in onnxruntime its outputs are equal to torch's"
        in result.output
    )
    export_plain_sam(tiny_sum, tmp_path / "plain.pth", "salient")
    predictor = segment_anything.SamPredictor(load_sam(str(tmp_path / "plain.pth")).sam)
    encoder, decoder = session(out / ENCODER), session(out / DECODER)
    for size in ((75, 120), (301, 97)):
        image = photo(*size)
        predictor.set_image(image)
        embedding = encoded(encoder, image)
        assert np.abs(embedding - predictor.features.numpy()).max() < 1e-5
        points, box = np.array([[30.0, 20], [50, 60], [70, 10]]), np.array([5.0, 6.0, 60.0, 70.0])
        for count, labels in ((3, [1, 0, 1]), (1, [1])):
            several = decoded(decoder, embedding, [*points[:count], (0, 0)], [*labels, -1], size)
            for multimask, which in ((True, slice(1, None)), (False, slice(0, 1))):
                expected = predictor.predict(
                    points[:count], np.array(labels), None, None, multimask, return_logits=True
                )
                for found, wanted in zip(several, expected, strict=True):
                    assert np.abs(found[0, which] - wanted).max() < 4e-5
        mask, prompt = several[2][0, :1], [points[0], box[:2], box[2:]]
        given = {"mask_input": mask[None], "has_mask_input": np.ones(1, np.float32)}
        found = decoded(decoder, embedding, prompt, [1, 2, 3], size, **given)
        expected = predictor.predict(points[:1], np.array([1]), box, mask, False, return_logits=True)
        assert np.abs(found[0][0, :1] - expected[0]).max() < 4e-5


def test_task_that_was_never_trained_is_refused(tiny_sum: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="never trained for the task 'part'"):
        export_onnx(tiny_sum, tmp_path / "other", "part")
    assert not (tmp_path / "other").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["adapter", "hq", "lora", "sam-adapter"])
def test_every_variant_is_exported(tiny_weights: str, tmp_path: Path, name: str) -> None:
    """With weights that differ from the SAM below: new layers start as if they were not there."""
    loaded, settings = load_sam(tiny_weights), variants()[name].settings()
    header = header_of_trained(name, settings, tiny_weights, loaded)
    prepare(loaded.sam, name, settings, 0)
    generator = torch.Generator().manual_seed(3)
    state = {
        key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in trainable(loaded.sam).items()
    }
    path = tmp_path / "part.safetensors"
    path.write_bytes(to_safetensors(state, {**header, "trained_tasks": []}))
    export_onnx(str(path), tmp_path / "onnx")
    image, weights = photo(75, 120), load_any(str(path))
    embedding, decoder = encoded(session(tmp_path / "onnx" / ENCODER), image), session(tmp_path / "onnx" / DECODER)
    for points in ([(30, 40)], [(30, 40), (60, 50)]):
        prediction = predict_mask(weights, image, UserPrompt(tuple(points)))
        labels = [1] * len(points) + [-1]
        masks, iou, _ = decoded(decoder, embedding, [*points, (0, 0)], labels, (75, 120))
        which = prediction.output if len(points) == 1 and masks.shape[1] > 1 else 0
        assert iou[0, which] == pytest.approx(prediction.predicted_iou, abs=1e-4)
        assert (masks[0, which] > 0).mean() == pytest.approx(prediction.mask.mean(), abs=2e-4)
        assert masks.shape[1] == (1 if name == "hq" else 4)
    plain = predict_mask(load_sam(tiny_weights), image, UserPrompt(((30, 40),)))
    assert not np.array_equal(plain.mask, predict_mask(weights, image, UserPrompt(((30, 40),))).mask)


def test_photos_are_cut_where_sam_cuts_them(tiny_weights: str) -> None:
    """For photos of every shape: one pixel more or less would shift masks."""
    decoder = Decoder(load_sam(tiny_weights).sam, False)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    for height, width in [(h, 1000 - 7 * h) for h in range(10, 140, 9)]:
        rows, columns = resized_size(height, width, SIDE)
        whole = torch.nn.functional.interpolate(ramp, (SIDE, SIDE), mode="bilinear", align_corners=False)
        expected = torch.nn.functional.interpolate(
            whole[..., :rows, :columns], (height, width), mode="bilinear", align_corners=False
        )
        assert torch.equal(decoder.mask_postprocessing(ramp, torch.tensor([float(height), width])), expected)


def test_products_filter_as_fourier_transforms_do() -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 5
    for share in (0.25, 0.1, 0.6):
        assert (high_pass_by_products(images, share) - high_pass(images, share)).abs().max() < 1e-4


def test_outputs_that_differ_leave_no_file(tiny_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "embed", lambda *given: embed(*given) * 1.01)
    monkeypatch.setattr(Encoder, "forward", lambda self, image: embed(self.sam, self.sam.preprocess(image)))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / ENCODER).write_bytes(b"an older one")
    with pytest.raises(
        InputError, match=r"encoder.onnx: image_embeddings differs from torch's by 0\.0099 .* nothing is"
    ):
        export_onnx(tiny_weights, tmp_path / "onnx")
    assert [path.read_bytes() for path in (tmp_path / "onnx").iterdir()] == [b"an older one"]


def test_missing_package_is_told_with_how_it_comes(
    tiny_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(
        main, ["export", "--format=onnx", f"--weights={tiny_weights}", f"--out={tmp_path / 'onnx'}"]
    )
    assert result.exit_code == 1
    assert "pip install 'sum-factory[onnx]'" in result.output
    assert list(tmp_path.iterdir()) == []
