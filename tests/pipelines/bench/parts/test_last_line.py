"""The last line of a benchmark is flat, whatever the figures are in."""

from __future__ import annotations

import json

import pytest

from sum_factory.pipelines.bench.parts.last_line import last_line


def test_figures_within_figures_are_named_by_both_and_a_spread_has_two_ends() -> None:
    figures = {"ratio": [4.5, 4.1, 4.9], "spread": (1, 2), "equal": True, "mb": {"theirs": 3, "ours": {"peak": 0.5}}}
    assert json.loads(last_line(figures)) == {
        "ratio": 4.5,
        "ratio_least": 4.1,
        "ratio_most": 4.9,
        "spread_least": 1,
        "spread_most": 2,
        "equal": True,
        "mb_theirs": 3,
        "mb_ours_peak": 0.5,
    }


@pytest.mark.parametrize("value", ["fp32", None, [1], {"inner": [1, 2, 3, 4]}])
def test_what_is_no_figure_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(TypeError, match=r"^outer"):
        last_line({"outer": value})
