"""The figures of the world, against counts written out."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from sum_factory.pipelines.microworld.ablation.world import BINS, calibration, pairs_share
from sum_factory.pipelines.microworld.certainty import Judged


def test_calibration_counts_pixels_and_errors_by_bins_of_u() -> None:
    random = np.random.default_rng(0)
    judged = []
    for shape in ((9, 7), (4, 5)):
        certainty = random.integers(0, 26, shape).astype(np.float32) / 25
        judged.append(Judged("part", 0.7, None, certainty, random.random(shape) < 0.3, np.ones(shape, bool)))
    u = np.concatenate([(1 - each.certainty).ravel() for each in judged])
    wrong = np.concatenate([each.wrong.ravel() for each in judged])
    edges = np.arange(BINS + 1) / BINS
    expected = []
    for low, high in pairwise(edges):
        inside = (u >= low) & ((u < high) if high < 1 else (u <= 1))
        if inside.any():
            expected.append((u[inside].mean(), inside.mean(), wrong[inside].mean()))
    found = [(each["u"], each["pixels"], each["wrong"]) for each in calibration(judged)]
    assert np.allclose(found, expected, atol=1e-6)


def test_pairs_are_counted_over_all_steps(tmp_path: Path) -> None:
    lines = [{"step": 1, "pairs": 3, "masks": 4}, {"step": 2, "pairs": 0, "masks": 4}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert pairs_share(tmp_path) == 3 / 8
