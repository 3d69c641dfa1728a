"""What the runs below a folder have come to, as their small files say: no weights are read, and no torch is needed.

run.json     written when a run starts: what is trained, by which method and variant, on which data, how many steps
log.jsonl    a line per step, and one a validation
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sum_factory.shared.names import printable
from sum_factory.shared.store.local_files import read_regular
from sum_factory.shared.store.refusals import reason_of

ABOUT, LOG = "run.json", "log.jsonl"
DEEPEST = 6
"""Levels of folders below the one that is asked for in which runs are looked for."""
LATEST = 20
"""Steps that the loss of a run is the mean of."""
COLUMNS = ("run", "method", "variant", "data", "step", "loss", "score", "best", "when")
OWN_COLUMNS = ("method", "variant")
"""Settings that have a column anyway."""
MOST_TOLD = 40
"""Characters of a setting that are shown, at most."""


@dataclass(frozen=True)
class RunState:
    """A run: its folder below the one that was asked for, what it trains, and how far it is.

    ``loss`` is the mean of the latest steps. ``score`` is that of the latest validation, which decides which checkpoint
    is the best; ``best`` is the highest, of the step ``best_step``. ``when`` is the time of the last step, in UTC.
    ``settings`` are all that decides the result, by dotted keys; none for a run of an earlier version.
    """

    run: str
    what: str
    method: str
    variant: str
    data: str
    step: int
    steps: int
    loss: float | None
    score: float | None
    best: float | None
    best_step: int | None
    when: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A folder that tells of no run, and why."""

    folder: str
    reason: str


def find_runs(root: Path) -> tuple[list[RunState], list[Skipped]]:
    """Return the runs in ``root`` and below, by their names, and the folders that hold none or a damaged one.

    Of folders that hold no run at any level, the uppermost is named. Links are not followed.
    """
    runs: list[RunState] = []
    skipped: list[Skipped] = []
    _look(root, root, 0, runs, skipped)
    return sorted(runs, key=lambda each: each.run), sorted(skipped, key=lambda each: each.folder)


def _look(folder: Path, root: Path, depth: int, runs: list[RunState], skipped: list[Skipped]) -> bool:
    """Add what is found in ``folder``; return whether there was a run or a damaged one."""
    name = str(folder.relative_to(root))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        if any(entry.name in (ABOUT, LOG) for entry in entries):
            runs.append(read_run(folder, name))
            return True
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        skipped.append(Skipped(name, reason))
        return True
    below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    found: list[Skipped] = []
    held = [depth < DEEPEST and _look(each, root, depth + 1, runs, found) for each in below]
    is_held = any(held)
    if not is_held:
        skipped.append(Skipped(name, "no run: it has no run.json, nor has any folder in it"))
    else:
        skipped += found
    return is_held


def read_run(folder: Path, name: str) -> RunState:
    """Return the state of the run in ``folder``. Raises ``OSError``, or ``ValueError`` saying what is damaged."""
    if not (folder / ABOUT).exists():
        raise ValueError(f"a run without {ABOUT}, of an earlier version; it is written when the run goes on")
    about = _object(read_regular(str(folder / ABOUT)), ABOUT)
    told = {key: about.get(key, "-") for key in ("what", "method", "variant", "data")}
    steps = about.get("steps")
    if not isinstance(steps, int) or not all(isinstance(value, str) for value in told.values()):
        raise ValueError(f"{ABOUT} is damaged: it does not say what is trained for how many steps")
    log, when = b"", (folder / ABOUT).stat().st_mtime
    if (folder / LOG).exists():
        log, when = read_regular(str(folder / LOG)), (folder / LOG).stat().st_mtime
    step, losses, scores = 0, [], {}
    for line in _lines(log):
        step = line["step"]
        try:
            if "loss" in line:
                losses.append(float(line["loss"]))
            if "validation" in line and "score" in about:
                scores[step] = float(line["validation"][about["score"]])
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{LOG} is damaged: what it says of step {step} is no number") from error
    best = max(scores, key=lambda each: (scores[each], -each)) if scores else None
    return RunState(
        run=name,
        **told,
        step=step,
        steps=steps,
        loss=sum(losses[-LATEST:]) / len(losses[-LATEST:]) if losses else None,
        score=scores[max(scores)] if scores else None,
        best=None if best is None else scores[best],
        best_step=best,
        when=datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M"),
        settings=about["settings"] if isinstance(about.get("settings"), dict) else {},
    )


def _lines(log: bytes) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; one that is cut short at the end, by a run that died, is left out."""
    *whole, _ = log.split(b"\n")
    for number, text in enumerate(whole, 1):
        line = _object(text, f"line {number} of {LOG}")
        if not isinstance(line.get("step"), int):
            raise ValueError(f"line {number} of {LOG} is damaged: it has no step")
        yield line


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is damaged: it is no JSON object")
    return value


def as_table(runs: list[RunState]) -> str:
    """Return runs as a table for people, and below it the settings in which they differ, if they do."""
    compared = differing(runs)
    tables = [[COLUMNS, *(_row(run) for run in runs)]]
    if compared:
        tables.append([("run", *compared), *((printable(run.run), *_told(run, compared)) for run in runs)])
    return "\n\n".join(map(_aligned, tables))


def differing(runs: list[RunState]) -> list[str]:
    """Return the keys of settings of which not all runs have the same value, but for those with a column and hashes."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: {json.dumps(run.settings.get(key), sort_keys=True) for run in runs} for key in keys}
    return [key for key in keys if len(values[key]) > 1 and key not in OWN_COLUMNS and not _is_hash(key)]


def _is_hash(key: str) -> bool:
    return key.endswith(("_sha256", "_data")) or key == "selection" or key.startswith("layer_")


def _told(run: RunState, keys: list[str]) -> list[str]:
    values = (json.dumps(run.settings[key]) if key in run.settings else "-" for key in keys)
    return [printable(text if len(text) <= MOST_TOLD else f"{text[: MOST_TOLD - 3]}...") for text in values]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(run: RunState) -> tuple[str, ...]:
    best = "-" if run.best is None else f"{run.best:.4f} at {run.best_step}"
    method = run.method if run.what == "training" else run.what
    progress = f"{run.step} of {run.steps}"
    return (
        *map(printable, (run.run, method, run.variant, run.data)),
        progress,
        _number(run.loss),
        _number(run.score),
        best,
        run.when,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def as_json(runs: list[RunState], skipped: list[Skipped]) -> str:
    """Return runs and what was skipped as JSON for programs."""
    return json.dumps({"runs": [asdict(run) for run in runs], "skipped": [asdict(each) for each in skipped]}, indent=2)
