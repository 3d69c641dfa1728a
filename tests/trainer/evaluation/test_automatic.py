"""What automatic masks are worth, against plain loops; and that a drifted IoU head is told at the end of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.checkpoint import LoadedSam, load_sam, to_safetensors
from sum_factory.shared.sam.hq import add_hq
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.evaluation import automatic as module
from sum_factory.trainer.evaluation.automatic import AutomaticScores, Judged, evaluate_automatic, judge
from sum_factory.trainer.evaluation.automatic_report import markdown, rows_of
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import closing
from sum_factory.trainer.run.settings import ValidationSettings
from sum_factory.trainer.training import fit

LOOSE = AutomaskSettings(
    points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, max_area_share=2.0
)
"""Settings that keep every mask."""
Masks = npt.NDArray[np.bool_]


@pytest.fixture
def tiny(tiny_weights: str) -> LoadedSam:
    return load_sam(tiny_weights)


def with_head_at(weights: str, value: float, out: Path) -> str:
    """Write the weights with a head that predicts an IoU of ``value`` for every mask, and return their path."""
    sam = load_sam(weights).sam
    last = sam.mask_decoder.iou_prediction_head.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(value)
    out.write_bytes(to_safetensors(sam.state_dict(), {}))
    return str(out)


def plain_iou(mask: Masks, other: Masks) -> float:
    both = sum(bool(a) and bool(b) for a, b in zip(mask.flat, other.flat, strict=True))
    either = sum(bool(a) or bool(b) for a, b in zip(mask.flat, other.flat, strict=True))
    return both / either


def drawn(masks: Masks, predicted: npt.NDArray[np.float64]) -> GeneratedMasks:
    """Return what a generator would that found these masks, bool (K, H, W)."""
    count, size = len(masks), (masks.shape[1], masks.shape[2])
    numbers, nothing = np.zeros(count, np.int64), np.zeros(count)
    logits = np.zeros((count, 1, 1), np.float32)
    frames = (Frame.whole(64, *size),) * count
    rles = {k: encode_rle(mask) for k, mask in enumerate(masks)}
    return GeneratedMasks(
        size, logits, frames, numbers, nothing, numbers, predicted, nothing, embeddings={}, cleaned=rles
    )


def rectangles(random: np.random.Generator, count: int, size: tuple[int, int]) -> Masks:
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        top, left = random.integers(0, 6, 2)
        mask[top : top + random.integers(4, 12), left : left + random.integers(4, 14)] = True
    return masks


def test_masks_are_judged_as_a_plain_loop_does() -> None:
    """Photos of several sizes, with rectangles that overlap more or less, compared pixel by pixel."""
    random = np.random.default_rng(5)
    parts, true, predicted, found = [], [], [], []
    for kept, human, size in ((9, 7, (20, 30)), (30, 4, (33, 21)), (0, 5, (20, 20)), (8, 1, (24, 24))):
        masks, others, expected = rectangles(random, kept, size), rectangles(random, human, size), random.random(kept)
        parts.append(judge(drawn(masks, expected), list(others)))
        table = [[plain_iou(mask, other) for other in others] for mask in masks]
        true += [max(row) for row in table]
        found += [max((row[k] for row in table), default=0.0) for k in range(human)]
        predicted += expected.tolist()
    scores = AutomaticScores.of("m", "s", "part", Judged.joined(parts))
    assert (scores.photos, scores.masks, scores.human_masks) == (4, 47, 17)
    shares = {least: sum(iou >= least for iou in found) / len(found) for least in (0.5, 0.75, 0.9)}
    assert scores.recall == shares
    assert len({*shares.values(), 0.0, 1.0}) > 3, "the three differ"
    assert scores.true == pytest.approx(sum(true) / len(true))
    assert scores.predicted == pytest.approx(sum(predicted) / len(predicted))


def test_photos_are_labelled_as_the_generator_does(tiny: LoadedSam, human_sets: tuple[SetSettings, ...]) -> None:
    parts = human_sets[1]
    (scores,) = evaluate_automatic("tiny", tiny, [parts], LOOSE, photos=3)
    samples = [open_set(parts).load(index) for index in range(3)]
    made = [LabelGenerator(tiny.sam, LOOSE).label(sample.image) for sample in samples]
    assert scores.masks == sum(map(len, made)) > 30
    assert scores.human_masks == sum(sample.count for sample in samples)
    assert scores.predicted == pytest.approx(np.concatenate([each.predicted_iou for each in made]).mean())


def test_recall_counts_masks_that_are_as_good_and_not_those_that_are_less() -> None:
    found = np.array([0.5, 0.749, 0.75, 0.9, 1.0, 0.0])
    scores = AutomaticScores.of("m", "s", "part", Judged(2, 3, np.zeros(0), np.zeros(0), found))
    assert scores.recall == {0.5: 5 / 6, 0.75: 3 / 6, 0.9: 2 / 6}
    assert (scores.masks_a_photo, scores.true, scores.calibration_error) == (1.5, None, None)


def test_calibration_is_by_bins() -> None:
    """Errors of opposite sign cancel within a bin, and not between bins."""
    predicted = np.array([0.905, 0.915, 0.985, 1.2])
    true = np.array([0.805, 1.0, 0.685, 0.9])
    scores = AutomaticScores.of("m", "s", "part", Judged(1, 4, predicted, true, np.ones(1)))
    assert [(round(b.start, 6), b.masks) for b in scores.bins] == [(0.9, 2), (0.98, 2)]
    within = [abs(0.91 - 0.9025), abs(1.0925 - 0.7925)]
    assert scores.calibration_error == pytest.approx(sum(within) / 2)
    assert scores.predicted == pytest.approx(predicted.mean())


def test_photos_without_human_masks_tell_how_many_are_kept_and_no_more(tiny: LoadedSam) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    generated = LabelGenerator(tiny.sam, LOOSE).label(photo)
    judged = Judged.joined([judge(generated, []), judge(generated, [np.eye(64, dtype=bool)])])
    assert (judged.photos, judged.kept, len(judged.true)) == (2, 2 * len(generated), len(generated))
    scores = AutomaticScores.of("m", "s", "part", Judged.joined([judge(generated, [])]))
    assert set(scores.recall.values()) == {None}
    assert "| - |" in markdown(rows_of([scores]))


def test_photos_are_shared_out_over_sets(tiny: LoadedSam, human_sets: tuple[SetSettings, ...]) -> None:
    for photos, expected in ((1, [1]), (3, [2, 1])):
        scores = evaluate_automatic("m", tiny, human_sets, AutomaskSettings(points_per_side=1), photos=photos)
        assert [each.photos for each in scores] == expected


def test_another_decoder_is_refused(tiny: LoadedSam, human_sets: tuple[SetSettings, ...]) -> None:
    sam = deepcopy(tiny.sam)
    add_hq(sam)
    with pytest.raises(SettingsError, match="another decoder"):
        list(evaluate_automatic("m", LoadedSam(sam, tiny.architecture, ""), human_sets, LOOSE))


def test_means_are_over_sets_and_numbers_are_sums() -> None:
    few = AutomaticScores.of("m", "few", "part", Judged(1, 2, np.array([0.9]), np.array([0.5]), np.array([0.6])))
    many = AutomaticScores.of("m", "many", "part", Judged(2, 0, np.zeros(0), np.zeros(0), np.array([0.0, 0.0, 0.0])))
    row = rows_of([few, many])[-1]
    assert (row["set"], row["photos"], row["human masks"]) == ("all", 3, 4)
    assert (row["masks a photo"], row["recall@0.5"], row["true IoU"]) == (1.0, 0.5, 0.5)


def test_the_command_compares_and_warns(
    tiny_weights: str, human_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that predicts 0.95 keeps every mask, one that predicts 0.1 none."""
    monkeypatch.setattr(module, "settings_for", lambda _: replace(LOOSE, pred_iou_thresh=0.88))
    before = with_head_at(tiny_weights, 0.95, tmp_path / "before.safetensors")
    after = with_head_at(tiny_weights, 0.1, tmp_path / "after.safetensors")
    suite = tmp_path / "suite.yaml"
    folders = f"images: {human_folder / 'images'}, labels: {human_folder / 'part'}"
    suite.write_text(f"sets:\n- {{kind: label-maps, name: parts, task: part, limit: 2, {folders}}}\n")
    out = tmp_path / "out"
    command = ["evaluate", "--weights", after, "--suite", str(suite), "--rounds", "1", "--out", str(out)]
    result = CliRunner().invoke(main, [*command, "--automatic", "--before", before])
    assert result.exit_code == 0, result.output
    assert "warning: after: automatic masks have fallen from " in result.stdout
    assert (out / "automatic.md").read_text() in result.stdout
    rows = list(csv.DictReader((out / "automatic.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["before", "after"]
    assert float(rows[0]["masks a photo"]) > 1
    assert [rows[1][name] for name in ("masks a photo", "recall@0.5", "true IoU")] == ["0.0", "0.0", ""]
    summary = json.loads((out / "automatic.json").read_text())
    assert summary["weights"] == {"before": before, "after": after}
    assert summary["results"][0]["predicted"] == pytest.approx(0.95)
    other = CliRunner().invoke(main, [*command, "--automatic"])
    assert "of tiny, and the model before training is vit_micro" in other.stderr


def test_before_is_for_automatic(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--suite", "x", "--out", str(tmp_path), "--before", "y"])
    assert result.exit_code == 2
    assert "is for --automatic; give that, too" in " ".join(result.stderr.split())


MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def validated(
    make_recipe: MakeRecipe, human_sets: tuple[SetSettings, ...], monkeypatch: pytest.MonkeyPatch
) -> MakeRecipe:
    """Make recipes of a step, whose closing automatic masks are of one point."""
    monkeypatch.setattr(closing, "POINTS", 3)
    validation = ValidationSettings(human_sets[1:], every=100, automatic=2)
    return lambda **changes: make_recipe(
        **{"steps": 1, "batch": 1, "rounds": 1, "variant": "decoder", "validation": validation, **changes}
    )


def drifted(monkeypatch: pytest.MonkeyPatch, weights: str, tmp_path: Path, value: float) -> None:
    """Have what is written at the end of a run predict ``value`` as the IoU of every mask."""
    shifted = with_head_at(weights, value, tmp_path / f"{value}.safetensors")
    monkeypatch.setattr(closing, "load_any", lambda path: load_sam(shifted))


@pytest.mark.parametrize(("value", "warned"), [(0.1, True), (0.95, False)])
def test_a_run_whose_iou_head_drifted_says_so(
    value: float,
    warned: bool,
    validated: MakeRecipe,
    tiny_weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing, "settings_for", lambda *_, **__: replace(LOOSE, pred_iou_thresh=0.88))
    start = with_head_at(tiny_weights, 0.95, tmp_path / "start.safetensors")
    drifted(monkeypatch, tiny_weights, tmp_path, value)
    said: list[str] = []
    closing.judge_closing(validated(sam=start), tmp_path, torch.device("cpu"), said.append)
    assert said[0].startswith("automatic masks (2 photos, 3 x 3 points): ")
    assert any(line.startswith("warning: after: automatic masks have fallen") for line in said) is warned
    assert bool(json.loads((tmp_path / "automatic.json").read_text())["warnings"]) is warned


def test_a_run_ends_with_automatic_masks_of_what_it_wrote(
    validated: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.trainer.training.judge_closing", closing.judge_closing)
    said: list[str] = []
    out = tmp_path / "out"
    fit(validated(), out, say=said.append)
    assert any(line.startswith("automatic masks (2 photos") for line in said)
    assert [each["model"] for each in json.loads((out / "automatic.json").read_text())["results"]] == [
        "before",
        "after",
    ]
    again: list[str] = []
    fit(validated(), out, say=again.append)
    assert not any("automatic" in line for line in again), "nothing was trained"


def test_automatic_masks_at_the_end_can_be_left_out(
    validated: MakeRecipe, human_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    said: list[str] = []
    for validation in (None, ValidationSettings(human_sets, automatic=0)):
        closing.judge_closing(validated(validation=validation), tmp_path, torch.device("cpu"), said.append)
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_automatic_masks_is_no_failure_of_the_run(
    validated: MakeRecipe, tiny: LoadedSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_hq(tiny.sam)
    monkeypatch.setattr(closing, "load_any", lambda path: tiny)
    said: list[str] = []
    closing.judge_closing(validated(), tmp_path, torch.device("cpu"), said.append)
    assert len(said) == 1
    assert said[0].startswith("automatic masks were not judged: after: ")
