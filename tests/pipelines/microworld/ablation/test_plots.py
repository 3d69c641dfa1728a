"""Charts are well-formed SVG of every point and bar, with the names of all lines beside the plot."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sum_factory.pipelines.microworld.ablation.compare import rows_of
from sum_factory.pipelines.microworld.ablation.plots import Line, draw_lines, line_chart
from sum_factory.pipelines.microworld.ablation.report import CHARTED, charted
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.trainer.methods import METHODS

SVG = "{http://www.w3.org/2000/svg}"
LINES = {"a < b": Line([1, 2, 3, 4], [0, 1, 4, 2]), "c": Line([1, 4], [5, 6], [1, 0])}


def test_chart_holds_every_point_and_bar() -> None:
    (axes,) = draw_lines("title", "x", "y", LINES).axes
    drawn = {each.get_label(): each for each in axes.containers}
    assert set(drawn) == set(LINES)
    for name, line in LINES.items():
        points, _, bars = drawn[name].lines
        np.testing.assert_array_equal(points.get_xydata(), np.stack([line.x, line.y], 1))
        ends = [] if not line.spread else [[low[1], high[1]] for low, high in bars[0].get_segments()]
        assert ends == [[y - bar, y + bar] for y, bar in zip(line.y, line.spread, strict=False)]
    low, high = axes.get_ylim()
    assert low <= 0
    assert high >= 6


def test_chart_is_text_with_its_names_and_the_same_every_time() -> None:
    chart = line_chart("title", "points", "mBIoU", LINES)
    texts = {"".join(text.itertext()).strip() for text in ElementTree.fromstring(chart).iter(f"{SVG}text")}
    assert {"title", "points", "mBIoU", *LINES} <= texts
    assert line_chart("title", "points", "mBIoU", LINES) == chart


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_points_of_the_text_are_where_its_ticks_say(scale: float) -> None:
    lines = {name: Line(line.x, [scale * y for y in line.y]) for name, line in LINES.items()}
    root = ElementTree.fromstring(line_chart("title", "x", "y", lines))
    marks = [
        [(float(use.attrib["x"]), float(use.attrib["y"])) for use in group.iter(f"{SVG}use")]
        for group in root.iter(f"{SVG}g")
        if "clip-path" in group.attrib and group.find(f"{SVG}use") is not None
    ]
    assert [len(each) for each in marks] == [len(line.x) for line in lines.values()]
    for points, line in zip(marks, lines.values(), strict=True):
        for axis, values in enumerate((line.x, line.y)):
            places, numbers = ticks_of(root, "xy"[axis])
            read = np.poly1d(np.polyfit(places, numbers, 1))([point[axis] for point in points])
            np.testing.assert_allclose(read, values, atol=1e-4 * np.ptp(numbers))


def ticks_of(root: ElementTree.Element, axis: str) -> tuple[list[float], list[float]]:
    """Return the places of the ticks of an axis, and the numbers that stand there."""
    ticks = [group for group in root.iter(f"{SVG}g") if group.attrib.get("id", "").startswith(f"{axis}tick")]
    places = [float(tick.find(f".//{SVG}use").attrib[axis]) for tick in ticks]  # type: ignore[union-attr]
    return places, [float("".join(tick.itertext()).strip().replace("\N{MINUS SIGN}", "-")) for tick in ticks]


def test_every_method_is_told_by_its_colour_and_by_its_marker() -> None:
    names = ("sam", "human-only, filled", "human-only, decoder", *METHODS)
    (axes,) = draw_lines("t", "x", "y", {name: Line([1], [5]) for name in names}).axes
    points = [each.lines[0] for each in axes.containers]
    assert len({str(each.get_color()) for each in points}) == len(names)
    assert len({str(each.get_marker()) for each in points}) == len(names)


def test_names_of_all_methods_fit_beside_the_plot() -> None:
    figure = draw_lines(
        "t", "x", "y", {name: Line([1], [5]) for name in ("sam", "human-only, filled", "human-only, decoder", *METHODS)}
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    box, (axes,) = legend.get_window_extent(canvas.get_renderer()), figure.axes
    assert axes.get_window_extent().x1 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0


def test_diagonal_is_where_x_is_y() -> None:
    (axes,) = draw_lines("t", "x", "y", {"a": Line([1], [5])}, diagonal=True).axes
    assert axes.lines[-1].get_slope() == 1
    assert axes.lines[-1].get_xy1() == (0, 0)


def test_chart_without_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a point"):
        line_chart("t", "x", "y", {})


def test_of_too_many_curves_those_that_the_story_tells_of_are_drawn(tmp_path: Path) -> None:
    titles = [row.title for row in rows_of(Plan(tmp_path))]
    assert set(CHARTED) < set(titles), "every one that is drawn is a row"
    line = Line([1], [50.0])
    assert list(charted(dict.fromkeys(titles, line))) == [title for title in titles if title in CHARTED]
    few = dict.fromkeys(["SAM, frozen", "sum-online", "human-only, hq"], line)
    assert charted(few) == few
