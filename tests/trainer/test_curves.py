"""Learning curves as PNG, and sample predictions in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sum_factory.trainer import training as fit_module
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import log as log_module
from sum_factory.trainer.run.curves import curves_of, draw_curves
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.run.log import CURVES, RunLog, read_log
from sum_factory.trainer.shown import CAPTION, GAP, pictures_of, samples_to_show
from sum_factory.trainer.training import fit, make_model, open_stream

LINES = [
    {"step": 1, "loss": 0.5, "iou": [0.25, 0.5, 0.75]},
    {"step": 2, "loss": 0.25, "iou": [0.5, 0.5, 1.0]},
    {"step": 2, "validation": {"all_mBIoU@1": 0.1, "all_mBIoU@3": 0.2, "all_mIoU@3": 0.3, "part_mBIoU@3": 0.4}},
]


def test_curves_are_those_of_the_log() -> None:
    assert curves_of(LINES) == {
        "loss": {"loss": ([1, 2], [0.5, 0.25])},
        "IoU in training": {"round 1": ([1, 2], [0.25, 0.5]), "round 3": ([1, 2], [0.75, 1.0])},
        "validation": {"all, mBIoU@3": ([2], [0.2]), "part, mBIoU@3": ([2], [0.4])},
    }
    refiner = [{"step": 1, "loss": 1.0, "iou_before": 0.5, "iou_after": 0.75}]
    assert curves_of(refiner)["IoU in training"] == {"iou before": ([1], [0.5]), "iou after": ([1], [0.75])}


@pytest.mark.parametrize("lines", [[], LINES[:1], LINES], ids=["nothing", "a step", "all"])
def test_picture_has_a_panel_for_what_there_is(lines: list[dict[str, object]]) -> None:
    picture = np.asarray(Image.open(io.BytesIO(draw_curves(lines))))
    panels = (picture[:, :, 0] < 50).any(0).sum()
    assert picture.shape[1] == pytest.approx(462 * max(1, {0: 0, 1: 2, 3: 3}[len(lines)]), abs=1)
    assert bool(panels) == bool(lines)


def test_events_go_on_after_a_resume_without_a_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies after step 5, whose checkpoint is that of step 3: 4 and 5 are done again, with other values."""
    monkeypatch.setattr(log_module, "draw_curves", lambda lines: str(len(lines)).encode())
    for first, last, factor in ((0, 5, 1), (3, 6, 10)):
        with RunLog(tmp_path, first, 6) as log:
            for step in range(first + 1, last + 1):
                log.step(step, {"loss": float(factor * step)}, 0.0)
                log.validation(step, {"all": float(factor)})
                log.show(step, {"human 1": np.full((4, 6, 3), factor * step, np.uint8)})
    seconds = {path.name.split(".")[3] for path in (tmp_path / "tensorboard").iterdir()}
    assert len(seconds) == 2, "within one second, the order of the files' names is by chance"
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload()
    expected = {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0, 6: 60.0}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [*expected.items()]
    assert [event.step for event in events.Scalars("validation/all")] == [*expected]
    pictures = {
        event.step: Image.open(io.BytesIO(event.encoded_image_string)) for event in events.Images("samples/human 1")
    }
    assert {step: picture.getpixel((5, 3)) for step, picture in pictures.items()} == {
        step: (value, value, value) for step, value in expected.items()
    }
    assert (tmp_path / CURVES).read_bytes() == b"12", "of the lines that are left"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs draw, as they do outside of tests."""
    monkeypatch.setattr(log_module, "draw_curves", draw_curves)
    monkeypatch.setattr(fit_module, "SHOWN", 1)


@pytest.mark.usefixtures("drawn")
def test_run_draws_at_each_checkpoint(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    fit(make_recipe(steps=3, batch=2, rounds=2), tmp_path, say=lambda _: None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["samples/human 1", "samples/pseudo 1"]
    assert [event.step for event in events.Images("samples/pseudo 1")] == [2, 3]
    assert (tmp_path / CURVES).read_bytes() == draw_curves(read_log(tmp_path))
    assert [event.step for event in events.Scalars("train/iou_round_2")] == [1, 2, 3]


def test_samples_are_the_same_and_drawing_changes_nothing(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(rounds=2)
    model, stream = make_model(recipe, ALONE), open_stream(recipe, 128, ALONE)
    before, state = {k: v.clone() for k, v in model.weights.items()}, torch.get_rng_state()
    samples = samples_to_show(stream, 2)
    assert [*samples] == ["human 1", "human 2", "pseudo 1", "pseudo 2"]
    one, other = (pictures_of(recipe, model, samples) for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in samples)
    assert all(torch.equal(value, before[name]) for name, value in model.weights.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters)
    again = samples_to_show(open_stream(recipe, 128, ALONE), 2)
    assert {name: sample.key for name, sample in again.items()} == {name: each.key for name, each in samples.items()}


def test_picture_shows_photo_target_and_two_rounds(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(rounds=3)
    model, stream = make_model(recipe, ALONE), open_stream(recipe, 128, ALONE)
    samples = samples_to_show(stream, 1)
    picture = pictures_of(recipe, model, samples)["human 1"]
    sample = samples["human 1"].on(torch.device("cpu"))
    height = round(sample.image.shape[1] * 256 / max(sample.image.shape[1:]))
    assert picture.shape[0] == CAPTION + height
    width = (picture.shape[1] - 3 * GAP) // 4
    panels = [picture[CAPTION:, k * (width + GAP) :][:, :width].astype(int) for k in range(4)]
    masks = torch.nn.functional.interpolate(
        sample.masks[:, : sample.valid[0], : sample.valid[1]].any(0)[None, None].float(), panels[0].shape[:2]
    )[0, 0].numpy()
    changed = (np.abs(panels[1] - panels[0]).sum(2) > 0)[:, : masks.shape[1]]
    assert (changed == (masks > 0)).mean() > 0.95, "the human mask is drawn where it is"
    assert (panels[2] != panels[1]).any()
