"""Write down what came out: tables in Markdown, charts as SVG, put between marks in a page whose words are people's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sum_factory.pipelines.microworld.ablation.bootstrap import verdict
from sum_factory.pipelines.microworld.ablation.cells import FROZEN, STUDY_SETTING, cells_of
from sum_factory.pipelines.microworld.ablation.claims import anchors, claims_of, difference
from sum_factory.pipelines.microworld.ablation.compare import GROUPS, SettingRuns
from sum_factory.pipelines.microworld.ablation.kinds import entities_table
from sum_factory.pipelines.microworld.ablation.plots import Line, line_chart
from sum_factory.pipelines.microworld.ablation.reported import Reported
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.pipelines.microworld.ablation.studies import STUDIES, study_charts, study_rows
from sum_factory.pipelines.microworld.ablation.tables import (
    curves,
    differences_by_prompt_table,
    differences_table,
    means_table,
    percent,
    prompts_table,
    table,
)
from sum_factory.shared.errors import InputError
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.report import ALL

IMAGES_FOLDER, CALIBRATION, PICTURES = "images", "ablation_calibration.svg", "ablation.jpg"
"""The folder beside the page, and names in it."""
BOX = Measure("mBIoU", "box", 1, "single")
CHARTED = (
    "SAM, frozen",
    "human-only",
    "human-only, filled",
    "vanilla",
    "mask-refinement",
    "sum",
    "sum-soft",
    "augseg-mixed-prompt",
    "u2pl",
    "self-distillation",
    "model-merging",
)
"""The rows that are drawn where there are more than these: nobody tells two dozen curves apart."""
NOT_RUN = "Nothing of this has been run."
MAKER = "pipelines.microworld.ablation"
BEGIN, END = f"<!-- {{}}: made by {MAKER} -->", "<!-- end of {} -->"


def blocks_of(plan: Plan, results: Results, world: dict[str, Any] | None, kept: Reported) -> dict[str, str]:
    """Return the parts of the page that are made, by name, but for those of settings that are ``kept``; without a
    ``world`` that has been measured, no figures of it."""
    blocks = {"progress": progress(plan, results, kept)}
    for setting in (each for each in plan.settings if each not in kept.settings):
        blocks[f"means {setting}"], blocks[f"differences {setting}"] = setting_blocks(plan, results, setting)
        blocks[f"claims {setting}"] = claims_table(results, setting)
    if shows_pictures(plan, kept):
        blocks["pictures"] = (
            f"![Held-out masks after 3 points]({IMAGES_FOLDER}/{PICTURES})" if results.tables else NOT_RUN
        )
    if STUDY_SETTING not in kept.settings:
        blocks["world"] = world_block(world)
        blocks["studies"] = studies_block(plan, results)
        blocks["anchors"] = anchors_table(results, world)
    return blocks


def setting_blocks(plan: Plan, results: Results, setting: str) -> tuple[str, str]:
    """Return the means of a setting with their charts, and its differences; it may not have been run."""
    if not has_runs(results, setting):
        return NOT_RUN, NOT_RUN
    runs = SettingRuns(plan, results, setting)
    tables = [means_table(runs, "mBIoU"), means_table(runs, "mIoU"), prompts_table(runs, "mBIoU")]
    charts = "\n".join(f"![{setting}: {group}]({IMAGES_FOLDER}/{chart_name(setting, group)})" for group in GROUPS)
    differences = [differences_table(runs, "mBIoU"), differences_by_prompt_table(runs, "mBIoU")]
    if FROZEN in results.tables and plan.scenes(FROZEN.split).exists():
        differences.append(entities_table(plan, results, setting))
    return "\n\n".join([*tables, charts]), "\n\n".join(differences)


def shows_pictures(plan: Plan, kept: Reported) -> bool:
    """Say whether the setting that pictures are of is shown, not kept."""
    return plan.settings[0] not in kept.settings


def has_runs(results: Results, setting: str) -> bool:
    """Say whether any run of a setting is done; the frozen model is in none."""
    return any(cell.setting == setting for cell in results.tables)


def chart_name(setting: str, group: str) -> str:
    """Return the file name of the chart of mBIoU over points."""
    return f"ablation_{setting}_{group}.svg"


def progress(plan: Plan, results: Results, kept: Reported) -> str:
    """Say what has been run, by setting and seed, and of how many scenes."""
    cells, rows = cells_of(plan), []
    for setting in plan.settings:
        for seed in plan.seeds:
            here = [cell for cell in cells if (cell.setting, cell.seed) == (setting, seed) and not cell.is_frozen]
            done = [cell for cell in here if cell in results.tables or kept.has(cell)]
            rows.append([setting, seed, f"{len(done)} of {len(here)}"])
    text = (
        f"{plan.pool} unlabelled scenes, {plan.human} with human masks, {plan.held_out} held-out scenes with at most "
        f"{plan.masks_of_a_scene} masks of a task each."
    )
    return f"{text}\n\n{table(['setting', 'seed', 'runs done'], rows)}"


def world_block(world: dict[str, Any] | None) -> str:
    """Return the figures of the world and their chart."""
    return (
        NOT_RUN
        if world is None
        else f"{world_table(world)}\n\n![Share of wrong pixels by u]({IMAGES_FOLDER}/{CALIBRATION})"
    )


def world_table(world: dict[str, Any]) -> str:
    """Return where labels are wrong, how sure the model is there, and how well each source finds it."""
    coarse = world["coarse_boundary_iou"]
    facts = [
        [
            f"mBIoU of coarse versions with exact masks, 0 if nothing is left: {', '.join(coarse)}",
            ", ".join(f"{100 * each:.1f}" for each in coarse.values()),
        ],
        ["labels a scene", f"{world['labels_a_scene']:.1f}"],
        ["labels that overlap an exact mask by half", percent(world["labels_with_a_meaning"])],
        ["wrong pixels of the image, of such a label, against the exact mask", percent(world["wrong_pixels"])],
        ["of these within 12 px of the label's outline", percent(world["wrong_pixels_near"])],
        [
            "wrong pixels that were taught: wrong in the coarse version of the exact mask, too",
            percent(world["wrong_pixels_taught"]),
        ],
        [
            "wrong pixels of coarse versions that were learnt: wrong in the label, too",
            percent(world["taught_pixels_wrong"]),
        ],
        ["mean confidence |2p - 1| where wrong", f"{world['confidence_where_wrong']:.3f}"],
        ["wrong pixels with a confidence over 0.9", percent(world["sure_where_wrong"])],
        ["human masks that made a pair for the refiner", percent(world["pairs"])],
    ]
    facts += [
        [
            f"mean IoU of labels of {task} ({each['labels']}), raw and refined",
            f"{each['raw']:.3f}, {each['refined']:.3f}",
        ]
        for task, each in world["iou"].items()
    ]
    names = list(world["sources"])
    keys = {
        "auroc": "area under the ROC curve, all pixels, stored maps",
        "auroc_near": "the same, near the outline",
        "accuracy_certain": "labels right where c > 0.6",
        "accuracy_doubtful": "labels right elsewhere",
        "errors_doubtful": "wrong pixels that are found so",
    }
    sources = [[title, *(f"{world['sources'][name][ALL][key]:.3f}" for name in names)] for key, title in keys.items()]
    exact = [
        [where, *(f"{value:.3f}" for value in world[key].values())]
        for key, where in (("auroc_exact", "all pixels"), ("auroc_exact_near", "near the outline"))
    ]
    header = ["area under the ROC curve, nothing rounded", *world["auroc_exact"]]
    return "\n\n".join([table(["labels", ""], facts), table(["source", *names], sources), table(header, exact)])


def claims_table(results: Results, setting: str) -> str:
    """Return the paper's claims beside what came out when an oracle picks one of the first point's three outputs, which
    is judged; beside it stand the single output and a box. The paper's figures are those with the same human masks."""
    rows = []
    for claim, published in claims_of(setting):
        cells: list[object] = [claim.text, claim.task, claim.measure.round]
        cells.append("" if published is None else f"{published:+.1f}")
        found, *others = (
            difference(results, setting, claim.better, claim.worse, claim.task, measure)
            for measure in (claim.measure, replace(claim.measure, output="single"), BOX)
        )
        rows.append([*cells, found or "", verdict(found), *(other or "" for other in others)])
    return table(
        ["claim", "task", "points", "paper, mIoU", "here, mBIoU", "verdict", "single output", "box, no point"], rows
    )


def studies_block(plan: Plan, results: Results) -> str:
    """Return what was turned: mBIoU after 3 points by task, and the charts."""
    rows = study_rows(plan, results, GROUPS)
    if not rows:
        return NOT_RUN
    drawn = study_charts(plan, results)
    charts = "\n".join(
        f"![{each.title}]({IMAGES_FOLDER}/{each.chart_name})" for each in STUDIES if each.chart_name in drawn
    )
    return f"{table(['turned', 'to', 'method', *GROUPS], rows)}\n\n{charts}"


def choices_table(results: Results) -> str:
    """Return what settings are chosen by: mBIoU on the scenes of validation after 3 points, by task."""
    rows = []
    for cell in results.tables:
        scores = results.scores(cell, Measure())
        rows.append([cell.variant, cell.method, *(f"{100 * scores.mean(group):.2f}" for group in GROUPS)])
    return table(["changed", "method", *GROUPS], rows)


def anchors_table(results: Results, world: dict[str, Any] | None) -> str:
    """Return what was expected before anything was run, beside what came out in the setting "small"."""
    rows = [[each.text, each.found, each.verdict] for each in anchors(results, world)]
    return table(["expected", "found", ""], rows)


def write_charts(plan: Plan, results: Results, world: dict[str, Any] | None, out: Path) -> None:
    """Draw mBIoU over 1 to 6 points, the studies, and how often pixels are wrong by u, of what there is. Raises
    ``StorageError``."""
    charts = {**curve_charts(plan, results), **study_charts(plan, results)}
    if world is not None:
        charts[CALIBRATION] = calibration_chart(world)
    storage = Storage(str(out))
    for name, chart in charts.items():
        storage.write(name, chart.encode())


def curve_charts(plan: Plan, results: Results) -> dict[str, str]:
    """Return charts of mBIoU over points by file name, of all settings and tasks of which something was run."""
    charts = {}
    for setting in (each for each in plan.settings if has_runs(results, each)):
        runs = SettingRuns(plan, results, setting)
        for group in GROUPS:
            title = f"{setting}, {group}: mean and standard deviation over seeds"
            lines = charted(curves(runs, group))
            charts[chart_name(setting, group)] = line_chart(title, "points", "mBIoU, %", lines)
    return charts


def charted(lines: Mapping[str, Line]) -> dict[str, Line]:
    """Return the curves that are drawn: all, or if these are too many, those of ``CHARTED``."""
    return {title: line for title, line in lines.items() if len(lines) <= len(CHARTED) or title in CHARTED}


def calibration_chart(world: dict[str, Any]) -> str:
    """Return the chart of how often pixels are wrong, by u and source."""
    lines = {
        source: Line([each["u"] for each in found["calibration"]], [each["wrong"] for each in found["calibration"]])
        for source, found in world["sources"].items()
    }
    return line_chart("Pixels that are wrong, by u", "mean u", "share of pixels", lines, diagonal=True)


def fill(page: str, blocks: dict[str, str], name: str, maker: str = MAKER) -> str:
    """Put ``blocks`` between the marks of their maker in a page. Raises ``InputError`` if a mark of one is missing."""
    for block, text in blocks.items():
        begin, end = BEGIN.format(block).replace(MAKER, maker), END.format(block)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise InputError(f"{name}: expected the lines {begin!r} and {end!r}; put them where {block} belongs")
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page
