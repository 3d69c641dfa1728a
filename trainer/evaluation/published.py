"""Published figures, which tables show beside ours; ``published_figures/README.md`` says whose they are."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from sum_factory.trainer.evaluation.report import ALL
from sum_factory.trainer.evaluation.settings import SQUEEZED

HQ_SAM_COLUMNS = ("HQ-SAM (ViT-L)", "PA-SAM")
"""The columns of HQ-SAM's own protocol."""

Line = dict[str, str]
Rename = Callable[[str], str]


@dataclass(frozen=True)
class Prompted:
    """What a score is of: a metric after a round of a protocol."""

    metric: str
    first: str
    round: int
    output: str


@dataclass(frozen=True)
class _Figure:
    column: str
    metric: str
    first: str
    round: int
    outputs: frozenset[str]
    task: str
    dataset: str
    """The set, or nothing for the mean of a task's sets, or of all."""
    value: float

    def is_of(self, prompted: Prompted) -> bool:
        wanted = prompted.metric, prompted.first, prompted.round
        return wanted == (self.metric, self.first, self.round) and prompted.output in self.outputs


def columns() -> tuple[str, ...]:
    """Return the names of all published columns."""
    return tuple(dict.fromkeys(figure.column for figure in _figures()))


def column_of(model: str) -> str | None:
    """Return the published column that a model is called as, if there is one: "sum-ft-medium" is "SUM FT-Medium"."""
    return {plain(column): column for column in columns()}.get(plain(model))


def published_set(column: str, prompted: Prompted, name: str) -> float | None:
    """Return the published score of a set, in percent; None if there is none."""
    found = (each.value for each in _of(column, prompted) if each.dataset and plain(each.dataset) == plain(name))
    return next(found, None)


def published_mean(column: str, prompted: Prompted, task: str, names: list[str]) -> float | None:
    """Return the published mean over these sets of a task, or over these of "all", in percent.

    It is the mean of the sets' own figures, if there are all of these; else the published mean, if the sets are those
    that it is of. None if there is neither.
    """
    of_sets = [published_set(column, prompted, name) for name in names]
    values = [value for value in of_sets if value is not None]
    if len(values) == len(names):
        return sum(values) / len(values)
    if {plain(name) for name in names} != _sets_of(task):
        return None
    return next((each.value for each in _of(column, prompted) if not each.dataset and each.task == task), None)


def published_task(column: str, prompted: Prompted, task: str) -> float | None:
    """Return the published mean over all the paper's sets of a task, or over all its sets ("all"), in percent."""
    return published_mean(column, prompted, task, sorted(_sets_of(task)))


def plain(name: str) -> str:
    """Return a name without what people write differently: case, spaces and marks."""
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _of(column: str, prompted: Prompted) -> Iterator[_Figure]:
    return (figure for figure in _figures() if figure.column == column and figure.is_of(prompted))


def _sets_of(task: str) -> set[str]:
    """Return the sets that the paper's means are of."""
    return {plain(line["dataset"]) for line in _lines("by_dataset") if task in (line["task"], ALL)}


@lru_cache(maxsize=1)
def _figures() -> tuple[_Figure, ...]:
    return (*_by_dataset(), *_ablation(), *_semi_supervised(), *_hq_architecture(), *_backbones(), *_hq_sam())


def _by_dataset() -> Iterator[_Figure]:
    for line in _lines("by_dataset"):
        yield from _in_line(line, line["metric"], line["prompt"], "oracle", line["task"], line["dataset"], str)


def _ablation() -> Iterator[_Figure]:
    for line in _lines("ablation"):
        prompt = f"{line['points']} points"
        yield from _in_line(line, line["metric"], prompt, "oracle", line["task"], "", _of_mix("FT-Medium"))


def _semi_supervised() -> Iterator[_Figure]:
    for line in _lines("semi_supervised_3point"):
        yield from _in_line(line, line["metric"], "3 points", "oracle", line["task"], "", _of_mix("FT-Small"))


def _hq_architecture() -> Iterator[_Figure]:
    for line in _lines("hq_arch_1point"):
        metric, _, prompt = line["metric"].partition(" ")
        yield from _in_line(line, metric, prompt, "single", line["task"], "", str)


def _backbones() -> Iterator[_Figure]:
    for line in _lines("backbones"):
        for name in line:
            task, _, model = name.partition(" ")
            if model:
                one, prompt = {f"{model} {line['backbone']}": line[name]}, f"{line['points']} points"
                yield from _in_line(one, line["metric"], prompt, "oracle", task, "", str)


def _hq_sam() -> Iterator[_Figure]:
    for line in _lines("hq_sam_box"):
        for column in HQ_SAM_COLUMNS:
            outputs = frozenset({"hq", "hq+sam", "single"})
            value = float(line[column])
            yield _Figure(column, line["metric"], SQUEEZED, 1, outputs, "salient", line["dataset"], value)


def _in_line(
    line: Line, metric: str, prompt: str, output: str, task: str, dataset: str, rename: Rename
) -> Iterator[_Figure]:
    """Yield the figures of a line; for a box, there is one output in any case."""
    number, kind = prompt.split()
    first = "box" if kind == "box" else "point"
    outputs = frozenset({"oracle", "single"} if first == "box" else {output})
    for name, value in line.items():
        if name not in ("metric", "prompt", "points", "task", "dataset"):
            yield _Figure(rename(name), metric, first, int(number), outputs, task, dataset, float(value))


def _of_mix(mix: str) -> Rename:
    """Return how columns of a table are called that is of one mix of training data; SAM has none."""
    return lambda name: name if name == "SAM" else f"{name} {mix}"


def _lines(name: str) -> list[Line]:
    text = files("sum_factory.trainer.evaluation").joinpath(f"published_figures/{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
