"""The card of an exported model: what it is, what it learnt on, how it was scored, and whose licences apply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sum_factory.shared.names import printable
from sum_factory.shared.sam.checkpoint import LoadedSam, read_header
from sum_factory.shared.sam.forms.reading import is_safetensors
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_FILE
from sum_factory.trainer.run.overview import ABOUT, RunState, read_run

DEEPEST = 3
"""Folders above a file of weights in which its run is looked for: those of a checkpoint lie two below."""

CARD = """---
{front}license: other
tags:
- segment-anything
- mask-generation
---

# {title}

A Segment Anything model, `{model}`, that takes photos of {side} pixels on their longer side. {task}

{use}

| | |
|---|---|
| exported from | `{weights}` |
| SHA-256 of its weights | `{sha256}` |
{facts}

## What it learnt on

{data}

## Scores

{scores}

## Settings of its training

{settings}

## Licence

SAM's weights are published under Apache 2.0, and this model starts from such weights or from others of the same layout:
theirs are the first terms to look up. What it was trained on, photos and human masks, comes under terms of its own, in
many sets for research alone: look each set up before you publish the weights or use them commercially.
"""


def model_card(loaded: LoadedSam, weights: str, task: str, use: str, front: str = "") -> str:
    """Return the card of ``loaded``, which was read from ``weights`` and exported for ``task``, in Markdown.

    ``use`` says how it is loaded. What is not known is said to be unknown: weights that no run here trained have no
    data, no settings and no scores.
    """
    header, run = _header(weights), _run_of(weights)
    settings = header.get("run", {})
    has_vector = loaded.task_prompt is not None
    return CARD.format(
        front=front,
        title=printable(Path(weights).name or weights),
        model=loaded.architecture.name,
        side=loaded.architecture.image_size,
        task=f"It predicts for the task `{task}`, whose vector is part of the weights." if has_vector else "",
        use=use,
        weights=printable(weights),
        sha256=loaded.sha256,
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(header, run)),
        data=_data(run),
        scores=_scores(run),
        settings=_table(settings) if settings else "Not known: the weights do not say.",
    )


def _facts(header: Mapping[str, Any], run: RunState | None) -> list[tuple[str, str]]:
    facts = []
    if run is not None:
        facts += [("method", f"`{run.method}`"), ("variant", f"`{run.variant}`")]
        facts.append(("steps", f"{header.get('step', run.step)} of {run.steps}"))
    if isinstance(header.get("software"), Mapping):
        facts.append(("trained with", ", ".join(f"{name} {version}" for name, version in header["software"].items())))
    elif header.get("software"):
        facts.append(("trained with", printable(str(header["software"]))))
    return facts


def _data(run: RunState | None) -> str:
    if run is None:
        return "Not known: the weights do not lie in the folder of a run."
    return f"{printable(run.data)}. Human masks and shard sets are named as the run named them."


def _scores(run: RunState | None) -> str:
    if run is None or run.best is None:
        return (
            "None are known: no validation is recorded. `trainer evaluate` compares it with the SAM that it began as."
        )
    return (
        f"In the validation of its training {run.score:.4f} at the last, and {run.best:.4f} at the best, step "
        f"{run.best_step}. `trainer evaluate` scores it on sets of its own."
    )


def _table(settings: Mapping[str, Any]) -> str:
    rows = (f"| `{printable(name)}` | `{_told(value)}` |" for name, value in sorted(settings.items()))
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _told(value: Any) -> str:
    return printable(json.dumps(value)).replace("|", "\\|")


def _file_of(weights: str) -> Path | None:
    path = Path(weights)
    path = path / WEIGHTS_FILE if path.is_dir() else path
    return path if path.is_file() and weights != PACKAGED else None


def _header(weights: str) -> Mapping[str, Any]:
    """Return what weights say of how they were made; nothing if they say nothing."""
    path = _file_of(weights)
    if path is None:
        return {}
    with path.open("rb") as file:
        return read_header(path) if is_safetensors(file.read(9)) else {}


def _run_of(weights: str) -> RunState | None:
    """Return the state of the run in whose folder weights lie, None if they lie in none or in a damaged one."""
    path = _file_of(weights)
    for folder in () if path is None else path.resolve().parents[:DEEPEST]:
        if (folder / ABOUT).is_file():
            try:
                return read_run(folder, folder.name)
            except (OSError, ValueError):
                return None
    return None
