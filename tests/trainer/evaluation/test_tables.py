"""Tables against plain loops over rows, and against the published files as they lie."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sum_factory.trainer.data.sets import FolderPairsSettings, Task
from sum_factory.trainer.evaluation.plots import draw_rounds
from sum_factory.trainer.evaluation.published import Prompted, column_of, columns, published_mean, published_set
from sum_factory.trainer.evaluation.report import Results
from sum_factory.trainer.evaluation.run import SCORES, SetScores
from sum_factory.trainer.evaluation.tables import Line, make_lines, to_csv, to_latex, to_markdown

SETS: dict[str, Task] = {"COIFT": "salient", "EntitySeg 0": "entity", "PACO": "part", "own_set": "part"}
COMPARED = {"sum": ["SUM FT-Medium"], "sam": ["SAM"]}
POINT = Prompted("mIoU", "point", 1, "oracle")


def published_lines(name: str) -> list[dict[str, str]]:
    text = files("sum_factory.trainer.evaluation").joinpath(f"published_figures/{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def set_scores(name: str, task: Task, seed: int, gain: float) -> SetScores:
    """Scores of two to six images, of one to three masks each; ``gain`` is added to noise that depends on ``seed``."""
    random, rows = np.random.default_rng(seed), []
    for image in range(2 + seed % 5):
        base = random.random()
        for mask in range(1 + image % 3):
            for number in (1, 2, 3):
                score = 0.5 * base + 0.1 * random.random() + gain
                row = {"set": name, "task": task, "image": f"{image}", "mask": mask, "round": number, "area": 9}
                scores = {"iou": score, "boundary_iou": score / 2, "predicted_iou": 1.0}
                rows.append({**row, **scores, "first": "point", "output": "oracle", "height": 3, "width": 3})
    settings = FolderPairsSettings(kind="folder-pairs", images=Path("i"), masks=Path("m"), task=task, name=name)
    return SetScores(settings, None, 9, 9, 0, pa.Table.from_pylist(rows, SCORES))


@pytest.fixture(scope="module")
def results() -> Results:
    """Two models on four sets; the second is better by 0.2 everywhere."""
    return {
        model: [set_scores(name, task, place, gain) for place, (name, task) in enumerate(SETS.items())]
        for model, gain in (("sam", 0.0), ("sum", 0.2))
    }


@pytest.fixture(scope="module")
def lines(results: Results) -> list[Line]:
    return make_lines(results, COMPARED)


def plain_mean(results: Results, model: str, names: list[str], column: str, number: int) -> float:
    means = []
    for result in results[model]:
        if result.settings.name in names:
            values = [row[column] for row in result.rows.to_pylist() if row["round"] == number]
            means.append(sum(values) / len(values))
    return 100 * sum(means) / len(means)


def test_csv_has_the_published_form_with_means_over_sets(results: Results, lines: list[Line]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(lines, COMPARED))))
    assert list(rows[0])[:5] == ["metric", "prompt", "output", "task", "dataset"]
    ours = [(r["metric"], r["prompt"]) for r in rows[:: len(rows) // 4]]
    assert ours == [("mIoU", "1 point"), ("mIoU", "3 points"), ("mBIoU", "1 point"), ("mBIoU", "3 points")]
    groups = {"salient": ["COIFT"], "entity": ["EntitySeg 0"], "part": ["PACO", "own_set"], "all": list(SETS)}
    for row in rows:
        names = [row["dataset"]] if row["dataset"] else groups[row["task"]]
        column = {"mIoU": "iou", "mBIoU": "boundary_iou"}[row["metric"]]
        for model in results:
            expected = plain_mean(results, model, names, column, int(row["prompt"][0]))
            assert float(row[model]) == pytest.approx(expected, abs=0.006)
            assert float(row[f"{model} low"]) <= float(row[model]) <= float(row[f"{model} high"])
    assert [row["task"] for row in rows if not row["dataset"]][:4] == ["salient", "entity", "part", "all"]


def test_published_column_and_difference_stand_beside_ours(lines: list[Line]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(lines, COMPARED))))
    seen = 0
    for row in rows:
        asked = {name: row[name] for name in ("metric", "prompt", "dataset")}
        found = [line for line in published_lines("by_dataset") if asked.items() <= line.items()]
        for model, (column,) in COMPARED.items():
            shown, difference = row[f"{column} (published)"], row[f"{model} - published {column}"]
            assert (shown == "") == (difference == "")
            if row["dataset"]:
                assert [float(each) for each in [shown] if each] == [float(line[column]) for line in found]
            if shown:
                seen += 1
                assert float(difference) == pytest.approx(float(row[model]) - float(shown), abs=0.011)
    assert seen == 2 * (3 + 2)  # 1 point, mIoU: three sets, and the means of their tasks that have no other set


def test_differences_between_models_are_paired(lines: list[Line]) -> None:
    """A gain that is the same on every mask has no spread, however much the scores have."""
    for line in lines:
        wanted = 20 if line.prompted.metric == "mIoU" else 10
        gain = line.gains["sum"]
        assert (gain.mean, gain.low, gain.high) == pytest.approx((wanted,) * 3)
        assert line.ours["sam"].high - line.ours["sam"].low > 0.1


def test_intervals_are_those_of_images_drawn_one_by_one(results: Results, lines: list[Line]) -> None:
    """A plain bootstrap of one set: draw images, pool their masks, average; 4000 times."""
    table = [row for row in results["sam"][3].rows.to_pylist() if row["round"] == 1]
    images = sorted({row["image"] for row in table})
    of_image = {image: [row["iou"] for row in table if row["image"] == image] for image in images}
    random = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        pooled = [value for k in random.integers(len(images), size=len(images)) for value in of_image[images[k]]]
        means.append(100 * sum(pooled) / len(pooled))
    (line,) = [each for each in lines if each.dataset == "own_set" and each.prompted == POINT]
    low, high = np.quantile(means, [0.025, 0.975])
    spread = high - low
    assert line.ours["sam"].low == pytest.approx(low, abs=0.1 * spread)
    assert line.ours["sam"].high == pytest.approx(high, abs=0.1 * spread)


def test_markdown_and_latex_have_a_table_a_prompt_and_metric(lines: list[Line]) -> None:
    markdown, latex = to_markdown(lines, COMPARED), to_latex(lines, COMPARED)
    titles = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert titles[0] == "## mIoU, 1 point, output: oracle"
    assert len(titles) == latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    (coift,) = [line for line in markdown.split("## ")[1].splitlines() if "COIFT" in line]
    cells = [cell.strip() for cell in coift.split("|")[1:-1]]
    assert (cells[0], cells[1], cells[3], cells[6]) == ("salient", "COIFT", "93.7", "93.1")
    assert float(cells[4]) == pytest.approx(float(cells[2]) - 93.7, abs=0.11)
    assert r"own\_set" in latex
    assert r"\textbf{mean of 4 sets}" in latex
    for table, played in zip(latex.split(r"\begin{tabular}{")[1:], ("1 point", "3 points") * 2, strict=True):
        columns = 9 if played == "1 point" and "93.7" in table else 5  # nothing is published of these after 3 points
        assert table.partition("}")[0] == "ll" + "r" * (columns - 2)
        assert {line.count(" & ") for line in table.splitlines() if line.endswith(r"\\")} == {columns - 1}


def test_published_means_are_over_the_sets_that_were_evaluated() -> None:
    lines = [line for line in published_lines("by_dataset") if (line["metric"], line["prompt"]) == ("mIoU", "1 point")]
    everything = [line["dataset"] for line in lines]
    overall = published_mean("SAM", POINT, "all", everything)
    assert overall == pytest.approx(sum(float(line["SAM"]) for line in lines) / 14)
    assert overall == pytest.approx(69.0, abs=0.051)  # as published: over sets, not over the tasks' means, 69.43
    some = [line["dataset"] for line in lines if line["task"] == "salient"][:2]
    assert published_mean("SAM", POINT, "salient", some) == pytest.approx((93.7 + 51.0) / 2)
    assert published_mean("SAM", POINT, "part", ["PACO", "own set"]) is None
    three = Prompted("mIoU", "point", 3, "oracle")
    assert published_mean("SAM", three, "all", everything) == 77.2  # of which there are means alone
    assert published_mean("SAM", three, "all", everything[:-1]) is None


@pytest.mark.parametrize(
    ("column", "prompted", "task", "value"),
    [
        ("SUM FT-Medium", Prompted("mIoU", "point", 3, "oracle"), "part", 67.9),
        ("SUM FT-Small", Prompted("mBIoU", "point", 3, "oracle"), "all", 74.8),
        ("Vanilla FT-Medium", Prompted("mIoU", "point", 1, "oracle"), "entity", 78.8),
        ("Vanilla FT-Small", Prompted("mIoU", "point", 3, "oracle"), "entity", 81.2),
        ("HQ-SAM", Prompted("mIoU", "point", 6, "single"), "salient", 92.4),
        ("HQ-SAM", Prompted("mIoU", "point", 6, "oracle"), "salient", None),
        ("SUM ViT-B", Prompted("mBIoU", "point", 6, "oracle"), "part", 74.1),
    ],
)
def test_published_means_are_read_from_the_right_table(
    column: str, prompted: Prompted, task: str, value: float | None
) -> None:
    names = [line["dataset"] for line in published_lines("by_dataset")[:14] if task in (line["task"], "all")]
    assert published_mean(column, prompted, task, names) == value


def test_hq_sams_figures_are_for_its_own_protocol_alone() -> None:
    squeezed = Prompted("mIoU", "squeezed-box", 1, "hq")
    found = [published_set("HQ-SAM (ViT-L)", squeezed, name) for name in ("DIS-VD", "coift", "HRSOD", "ThinObject5K")]
    assert found == [78.6, 94.8, 93.6, 89.5]
    assert published_set("PA-SAM", squeezed, "ThinObject5K") == 92.7
    assert published_set("PA-SAM", Prompted("mIoU", "box", 1, "single"), "DIS-VD") is None


def test_models_are_compared_with_the_column_of_their_name() -> None:
    assert [column_of(name) for name in ("sam", "sum_ft-medium", "hq-sam", "mine")] == [
        "SAM",
        "SUM FT-Medium",
        "HQ-SAM",
        None,
    ]
    assert len({*columns()}) == len(columns())


def test_curves_are_drawn_for_every_group_and_model_the_same_each_time(results: Results) -> None:
    first, second = (dict(draw_rounds({name: each[:1] for name, each in results.items()})) for _ in range(2))
    assert list(first) == ["curves_point.png", "curves_point.svg"]
    assert first == second
    assert first["curves_point.png"].startswith(b"\x89PNG")
    for words in ("salient, mIoU", "all, mBIoU", ">sam<", ">sum<"):
        assert words in first["curves_point.svg"].decode()


def test_curves_of_a_prompt_played_with_two_outputs_do_not_share_a_name(results: Results) -> None:
    (oracle,) = results["sam"][:1]
    outputs = pa.array(["single"] * len(oracle.rows))
    single = oracle.rows.set_column(oracle.rows.schema.names.index("output"), "output", outputs)
    both = replace(oracle, rows=pa.concat_tables([oracle.rows, single]))
    names = {name for name, _ in draw_rounds({"sam": [both]})}
    assert names == {f"curves_point_{output}.{kind}" for output in ("oracle", "single") for kind in ("png", "svg")}
