"""What is said of the results follows from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, verdict
from sum_factory.pipelines.microworld.ablation.claims import CLAIMS, anchors, claims_of, difference
from sum_factory.pipelines.microworld.ablation.quick import judge_quick
from sum_factory.pipelines.microworld.ablation.results import COLUMNS, Measure, Results, to_csv
from sum_factory.pipelines.microworld.ablation.settings import QUICK_SETTING
from sum_factory.trainer.methods import METHODS

Make = Callable[..., Results]
WORLD = {"sources": {"refinement": {"all": {"auroc": 0.84}}}}


def test_difference_to_the_frozen_model_has_the_same_size_both_ways(results_of: Make) -> None:
    results = results_of({"sam": 0.5, "sum": 0.6}, seeds=3)
    forth = difference(results, "small", "sum", "sam", "all", Measure())
    back = difference(results, "small", "sam", "sum", "all", Measure())
    assert forth is not None
    assert back is not None
    assert forth.seeds == back.seeds == 3
    assert np.isclose(forth.mean, 0.101)
    assert np.allclose([back.mean, back.low, back.high], [-forth.mean, -forth.high, -forth.low])


def test_methods_are_compared_on_the_seeds_that_both_have(results_of: Make) -> None:
    tables = results_of({"vanilla": 0.5, "sum": 0.6}, seeds=3).tables
    results = Results({cell: each for cell, each in tables.items() if cell.method == "sum" or cell.seed == 0})
    found = difference(results, "small", "sum", "vanilla", "all", Measure())
    assert found is not None
    assert found.seeds == 1
    assert np.isclose(found.mean, 0.1)


def test_what_has_not_been_run_is_not_judged(results_of: Make) -> None:
    results = results_of({"sam": 0.5, "vanilla": 0.6})
    assert difference(results, "small", "sum", "vanilla", "all", Measure()) is None
    assert difference(results, "medium", "vanilla", "sam", "all", Measure()) is None
    assert verdict(None) == "not run"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.001, 0.02, "holds"), (-0.001, 0.02, "not told apart"), (-0.02, -0.001, "does not hold")],
)
def test_verdict_follows_the_interval(low: float, high: float, said: str) -> None:
    assert verdict(Difference((low + high) / 2, low, high, 3)) == said
    assert verdict(Difference((low + high) / 2, low, high, 1)) == f"{said}, one seed"


def test_anchor_whose_interval_holds_0_is_not_said_to_hold(results_of: Make) -> None:
    results = results_of({"sam": 0.5, "human-only": 0.4, "vanilla": 0.5, "sum": 0.4997}, seeds=2)
    found = {each.text: each.verdict for each in anchors(results, WORLD)}
    assert found["SUM above SAM on part, after 1 point"] == "holds on average, not told apart from 0"


def test_anchors_ask_for_a_whole_point_over_vanilla(results_of: Make) -> None:
    for gain, expected in ((0.009, "missed"), (0.011, "holds")):
        results = results_of({"sam": 0.5, "human-only": 0.4, "vanilla": 0.55, "sum": 0.55 + gain}, seeds=2)
        found = {each.text: each.verdict for each in anchors(results, WORLD)}
        assert found["SUM above vanilla by 1.0 of mBIoU over all tasks, after 3 points"] == expected
        assert found["human-only below SAM on part, after 3 points"] == "holds"
        assert found["SUM above SAM on part, after 1 point"] == "holds"
        assert found["SUM above SAM on part, after 5 points"] == "not run"  # of three rounds


def test_quick_ablation_passes_only_if_both_methods_beat_sam(results_of: Make) -> None:
    assert judge_quick(results_of({"sam": 0.5, "vanilla": 0.52, "sum": 0.53}, setting=QUICK_SETTING))[1]
    for worse in ({"vanilla": 0.49, "sum": 0.53}, {"vanilla": 0.52, "sum": 0.5}, {"vanilla": 0.52}):
        text, passed = judge_quick(results_of({"sam": 0.5, **worse}, setting=QUICK_SETTING))
        assert not passed
        assert "FAILED" in text


def test_claims_are_about_methods_that_there_are_and_published_figures_in_points() -> None:
    assert {method for claim in CLAIMS for method in (claim.better, claim.worse)} <= {"sam", *METHODS}
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)


def test_claims_of_a_setting_are_those_of_the_papers_figures_for_it() -> None:
    """Differences of the published tables, worked out by hand: FT-Small's are no smaller ones of FT-Medium's."""
    found = {
        setting: {claim.text: None if gain is None else round(gain, 1) for claim, gain in claims_of(setting)}
        for setting in ("small", "medium")
    }
    both = {
        "SUM is better than SAM": (3.8, 4.9),
        "SUM is better than vanilla": (3.3, 1.8),
        "Vanilla gains": (0.5, 3.1),
        "Refinement is better than confidence": (4.0, None),
        "SUM is better than U2PL": (2.0, None),
        "Training on refined masks beats vanilla": (None, 1.2),
        "The task prompt adds at 1 point": (None, 2.4),
        "Human masks alone make SAM forget parts": (None, None),
    }
    for text, gains in both.items():
        assert tuple(found[setting][text] for setting in ("small", "medium")) == gains, text
    only_small = {
        "Vanilla loses on entities": 1.5,
        "Vanilla loses on parts": 1.4,
        "SUM with confidence is below SAM": 0.2,
        "After one point SUM is below SAM on entities": 2.3,
    }
    only_medium = {
        "Vanilla gains on entities": 3.8,
        "Vanilla gains on parts": 1.2,
        "After one point SUM is above SAM on entities": 2.4,
    }
    assert {text: gain for text, gain in found["small"].items() if text not in found["medium"]} == only_small
    assert {text: gain for text, gain in found["medium"].items() if text not in found["small"]} == only_medium


def test_csv_holds_every_mean(results_of: Make) -> None:
    lines = to_csv(results_of({"sam": 0.5, "sum": 0.6}, seeds=2).rows()).splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + 3 * (3 + 3 + 1) * 4 * 2  # runs, rounds of the protocols, tasks and all, metrics
    assert "small,sam,frozen,0,part,point,2,single,mBIoU,0.655000" in lines  # 0.5 + 0.1 + the mean of 0 to 0.11
    assert "small,sum,full,1,all,box,1,single,mIoU,0.739333" in lines
