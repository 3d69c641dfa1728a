"""Write down what came out on photos: tables and charts, put between marks in a page whose words are people's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sum_factory.pipelines.microworld.ablation.plots import line_chart
from sum_factory.pipelines.microworld.ablation.report import IMAGES_FOLDER, NOT_RUN, calibration_chart, fill
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import OURS, pairs_of
from sum_factory.pipelines.microworld.ablation.tables import (
    curves,
    differences_by_prompt_table,
    differences_table,
    means_table,
    prompts_table,
    table,
)
from sum_factory.pipelines.microworld.sets import SCENE_TASKS
from sum_factory.pipelines.photos.ablation.compare import PhotoRuns, rows_of, runs_of
from sum_factory.pipelines.photos.ablation.labels import describe_labels
from sum_factory.pipelines.photos.ablation.pictures import write_pictures
from sum_factory.pipelines.photos.ablation.plan import PhotosPlan
from sum_factory.pipelines.photos.ablation.where import differences_by_kind, kinds_of_masks
from sum_factory.shared.progress import Stage
from sum_factory.shared.store.storage import Storage

PAGE, OVERLAYS, SHAPES, CALIBRATION = "photos.md", "photos.jpg", "photos.png", "photos_calibration.svg"
MAKER = "pipelines.photos.ablation"
METRICS_SHOWN = ("mBIoU", "mIoU")


def write_photos_page(plan: PhotosPlan, results: Results, docs: Path) -> None:
    """Write tables, charts and pictures of ``results`` into the page in ``docs``. Raises ``InputError``.

    Pictures that show photos stay in the folder of the runs: whoever made the page may not be free to pass them on.
    """
    with Stage("making tables and charts"):
        page = fill((docs / PAGE).read_text(), blocks_of(plan, results), str(docs / PAGE), MAKER)
        storage = Storage(str(docs))
        charts = charts_of(PhotoRuns(plan, results)) if results.tables else {}
        if results.tables and (found := describe_labels(plan))["sources"]:
            charts[CALIBRATION] = calibration_chart(found)
        for name, chart in charts.items():
            storage.write(f"{IMAGES_FOLDER}/{name}", chart.encode())
    if results.tables:
        with Stage("drawing pictures"):
            write_pictures(plan, results, plan.out / OVERLAYS, docs / IMAGES_FOLDER / SHAPES)
    storage.write(PAGE, page.encode())


def blocks_of(plan: PhotosPlan, results: Results) -> dict[str, str]:
    """Return the parts of the page that are made, by name."""
    if not results.tables:
        return dict.fromkeys(("progress", "labels", "means", "differences", "where", "charts", "pictures"), NOT_RUN)
    runs = PhotoRuns(plan, results)
    links = [f"![photos: {group}]({IMAGES_FOLDER}/{chart_name(group)})" for group in runs.groups]
    return {
        "progress": progress(plan, results),
        "labels": labels_tables(describe_labels(plan)),
        "means": "\n\n".join(make(runs, metric) for make in (means_table, prompts_table) for metric in METRICS_SHOWN),
        "differences": "\n\n".join(
            make(runs, metric) for make in (differences_table, differences_by_prompt_table) for metric in METRICS_SHOWN
        ),
        "where": where_table(plan, results),
        "charts": "\n".join(links),
        "pictures": f"![Masks of photos of val after 3 points]({IMAGES_FOLDER}/{SHAPES})",
    }


def progress(plan: PhotosPlan, results: Results) -> str:
    """Say what has been run on what."""
    data = plan.opened
    seeds = [[row.title, len(runs_of(results, row))] for row in rows_of(plan)]
    sets = [[each.name, each.kind, len(each.ids("train")), len(each.ids("val"))] for each in data.tested]
    fine = ", ".join(each.name for each in data.fine)
    text = (
        f"The frozen model labels {len(plan.labelled)} photos. Human masks are those of {fine}. Runs differ "
        f"from the recipe `ablation` by {', '.join(f'`{each}`' for each in plan.fit_changes) or 'nothing'}."
    )
    return "\n\n".join([text, table(["set", "masks", "train", "val"], sets), table(["method", "seeds done"], seeds)])


def labels_tables(found: Mapping[str, Any]) -> str:
    """Return what is known of the labels, by task, and how well each source of uncertainty finds their errors."""
    if not found["sources"]:
        return "No label of a photo whose human masks are known overlaps one of them by half."
    columns = ["labels", "their mIoU", "refined", "right where c > 0.6", "right elsewhere", "AUROC", "near the outline"]
    rows: list[list[object]] = []
    for source, by_task in found["sources"].items():
        for task, each in by_task.items():
            if task != "calibration":
                names = ("accuracy_certain", "accuracy_doubtful", "auroc", "auroc_near")
                refined = f"{each['mean_refined_iou']:.3f}" if "mean_refined_iou" in each else ""
                values = [f"{each[name]:.3f}" for name in names]
                rows.append([source, task, each["labels"], f"{each['mean_iou']:.3f}", refined, *values])
    text = f"Of {found['photos']} labelled photos whose human masks are known, the labels that overlap one by half."
    chart = f"![Pixels that are wrong, by u]({IMAGES_FOLDER}/{CALIBRATION})"
    return "\n\n".join([text, table(["source", "task", *columns], rows), chart, found_table(found["by size"])])


def found_table(by_size: Mapping[str, Any]) -> str:
    """Return by size which share of the human masks there is a label for, and how large labels are."""
    tasks = sorted({task for each in by_size.values() for task in each["masks"]}, key=SCENE_TASKS.index)
    rows: list[list[object]] = []
    for size, each in by_size.items():
        cells = [f"{100 * each['found'][t]:.0f} % of {each['masks'][t]}" if t in each["found"] else "" for t in tasks]
        rows.append([size, *cells, f"{100 * each['labels']:.0f} %"])
    text = "Human masks of these photos that a label overlaps by half, and the sizes of all labels:"
    return f"{text}\n\n{table(['human mask', *tasks, 'of all labels'], rows)}"


def where_table(plan: PhotosPlan, results: Results) -> str:
    """Return where SUM is better than others, by the size and the thinness of masks."""
    measure = Measure()
    others = [worse for better, worse in pairs_of(rows_of(plan)) if better == OURS]
    done = [other for other in others if runs_of(results, OURS) and runs_of(results, other)]
    if not done:
        return NOT_RUN
    kinds = kinds_of_masks(plan, results, measure)
    columns = {other.title: dict(differences_by_kind(results, kinds, OURS, other, measure)) for other in done}
    rows = [
        [kind.title, int(kind.chosen.sum()), *(of_kind[kind] or "" for of_kind in columns.values())] for kind in kinds
    ]
    return table(["mBIoU of sum, 3 points, above", "masks", *columns], rows)


def chart_name(group: str) -> str:
    """Return the file name of the chart of a task."""
    return f"photos_{group}.svg"


def charts_of(runs: PhotoRuns) -> dict[str, str]:
    """Return charts of mBIoU over points by file name."""
    charts = {}
    for group in runs.groups:
        title = f"photos, {group}: mean and standard deviation over seeds"
        charts[chart_name(group)] = line_chart(title, "points", "mBIoU, %", curves(runs, group))
    return charts
