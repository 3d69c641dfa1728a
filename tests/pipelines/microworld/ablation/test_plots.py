"""Charts are well-formed SVG that hold every point, inside the frame."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from sum_factory.pipelines.microworld.ablation.plots import HEIGHT, LEFT, PLOT_WIDTH, TOP, Line, line_chart
from sum_factory.trainer.methods import METHODS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_points_lie_in_the_plot_in_proportion_to_their_values(scale: float) -> None:
    y = [0.0, 1.0, 4.0, 2.0]
    lines = {"a < b": Line([1, 2, 3, 4], [scale * v for v in y]), "c": Line([1, 4], [scale * 5, scale * 6], [scale, 0])}
    root = ElementTree.fromstring(line_chart("title", "x", "y", lines))
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert len(circles) == 6
    assert all(LEFT <= x <= LEFT + PLOT_WIDTH and TOP <= row <= HEIGHT for x, row in circles)
    first = [row for _, row in circles[:4]]
    for value, row in zip(y, first, strict=True):
        assert row == pytest.approx(first[0] + (first[2] - first[0]) * value / 4, abs=0.15)
    assert "a < b" in [text.text for text in root.iter(f"{SVG}text")]


def test_names_of_all_methods_fit_beside_the_plot() -> None:
    lines = {name: Line([1], [5]) for name in ("human-only, decoder", *METHODS)}
    root = ElementTree.fromstring(line_chart("t", "x", "y", lines))
    texts = {text.text or "": text.attrib for text in root.iter(f"{SVG}text")}
    for name in lines:
        glyph = 0.65 * float(texts[name]["font-size"])  # more than a letter of a sans-serif face takes on average
        assert float(texts[name]["x"]) + glyph * len(name) <= float(root.attrib["width"])


def test_ticks_enclose_values_and_bars_and_are_round() -> None:
    root = ElementTree.fromstring(line_chart("t", "points", "mBIoU", {"a": Line([1, 2], [61.3, 64.9], [2.0, 0.2])}))
    numbers = [
        float(text.text or "") for text in root.iter(f"{SVG}text") if (text.text or "").replace(".", "").isdigit()
    ]
    in_y = sorted(number for number in numbers if number > 10)
    assert in_y[0] <= 59.3
    assert in_y[-1] >= 65.1
    assert len(in_y) <= 8
    steps = {round(b - a, 6) for a, b in pairwise(in_y)}
    assert len(steps) == 1


def test_chart_of_one_value_has_a_height() -> None:
    ElementTree.fromstring(line_chart("t", "x", "y", {"a": Line([1], [5])}, diagonal=True))


def test_chart_without_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a point"):
        line_chart("t", "x", "y", {})
