"""`trainer fit --dry-run`: what a run does up to and including a step, by the code of a run; nothing of it is kept."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from sum_factory.shared.cores import usable_memory
from sum_factory.shared.progress import hushed
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.sets import name_of_set, open_set
from sum_factory.trainer.data.stream import PseudoStream
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.closing import judge_photos
from sum_factory.trainer.run.settings import ValidationSettings
from sum_factory.trainer.training import Prepared, describe, prepared, validation_after

COUNTED = 8
"""Photos of a set whose masks are counted, at most."""
VALIDATED = 4
"""Photos of a set that are evaluated for each process, at most, to tell how long a validation takes."""


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found: ``found`` are lines for people; ``seconds`` are those of its step, the first of the
    ``steps`` that are left, and of the whole run."""

    found: tuple[str, ...]
    steps: int
    seconds: float
    whole_seconds: float

    def lines(self) -> str:
        """Return all of it for people."""
        return "\n".join(self.found)


def rehearse(recipe: Recipe, out: Path, say: Callable[[str], None] = click.echo) -> Rehearsal:
    """Do all that ``fit`` does up to and including one step, the one that would come next in ``out``; write nothing.

    Raises as ``fit``.
    """
    with prepared(recipe, out) as ready:
        recipe, ranks, run = ready.recipe, ready.ranks, ready.run
        if ranks.leads:
            say(describe(recipe, ready.model, ready.stream, ready.done))
        left = recipe.steps - ready.done
        found = [*_data(ready), *_shapes(ready)]
        if not left:
            return Rehearsal((*found, "the run is finished: no step was taken"), 0, 0.0, 0.0)
        started = time.perf_counter()
        values = run.rehearse(ready.done, ready.stream, ready.take_step)
        seconds = time.perf_counter() - started
        validation, validations = _validate(ready), _validations(recipe, ready.done)
        closing = _close(ready)
        total = left * seconds + validations * validation + closing
        found += _of_step(values, seconds, ready.stream.waited)
        found.append(_memory(ranks.gather(_peaks(ranks.device))))
        found.append(_time(left, seconds, validations, validation, closing, total))
        return Rehearsal(tuple(found), left, seconds, total)


def _data(ready: Prepared) -> Iterator[str]:
    """Yield a line for each set and for the shards."""
    for settings, human in zip(ready.recipe.human, ready.human, strict=True):
        name = name_of_set(settings)
        yield f"human set {name}, task {settings.task}: {len(human.keys):,} photos, {_masks_a_photo(human)}"
    for stream in ready.stream.streams.values():
        if isinstance(stream, PseudoStream):
            yield _shards(stream.pseudo)


def _masks_a_photo(human: HumanSet) -> str:
    """Say how many masks photos of a set have, as some of them tell."""
    count = len(human.keys)
    looked_at = np.unique(np.linspace(0, count - 1, min(COUNTED, count)).round().astype(int)).tolist()
    masks = [human.load(index).count for index in looked_at]
    if len(masks) == count:
        return f"{sum(masks):,} masks"
    return (
        f"about {round(count * sum(masks) / len(masks)):,} masks ({sum(masks)} in the {len(masks)} that were counted)"
    )


def _shards(pseudo: PseudoSet) -> str:
    layers = ", ".join(f"{name} ({pseudo.shards.dataset.layers[name].encoding})" for name in pseudo.layer_ids)
    read = "maps are read" if pseudo.layer is not None else "no maps are read"
    return (
        f"shards {pseudo.shards.storage.url}: {len(pseudo):,} photos with {pseudo.mask_count:,} masks in "
        f"{len(pseudo.groups):,} units; layers {layers}; {read}"
    )


def _shapes(ready: Prepared) -> Iterator[str]:
    recipe, architecture = ready.recipe, ready.model.loaded.architecture
    side, grid, cells = architecture.image_size, architecture.grid_size, architecture.image_size // recipe.stride
    yield (
        f"shapes: photos {side} x {side}, embedding {architecture.prompt_dim} x {grid} x {grid}, losses and clicks on "
        f"a grid of {cells} x {cells}; at most {recipe.masks} masks per photo in {recipe.rounds} rounds; "
        f"{recipe.photos_of(0)} photos per step, {recipe.micro_batch} at once in each of {ready.ranks.count} processes"
    )


def _of_step(values: Mapping[str, Any], seconds: float, waited: float) -> Iterator[str]:
    masks, photos = values["masks"], values["photos"]
    yield (
        f"step: {seconds:.2f} s, of which {waited:.2f} s waiting for data; {photos} photos with {masks} masks "
        f"({masks / max(1, photos):.1f} per photo), {values['skipped_masks']} masks left out; loss {values['loss']:.4f}"
    )


def _peaks(device: torch.device) -> tuple[int, int]:
    """Return the most bytes that this process has had so far, of main memory and of its GPU's."""
    unit = 1 if sys.platform == "darwin" else 1024
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, on_device


def _memory(peaks: Sequence[tuple[int, int]]) -> str:
    main, on_device = (max(each) for each in zip(*peaks, strict=True))
    told = f"memory: at most {main / 1e9:.2f} GB in a process, of {usable_memory() / 1e9:.1f} GB"
    return f"{told}; at most {on_device / 1e9:.2f} GB on a GPU" if on_device else told


def _validations(recipe: Recipe, first: int) -> int:
    """Return how many validations are left after step ``first``."""
    if recipe.validation is None:
        return 0
    return recipe.steps // recipe.validation.every - first // recipe.validation.every


def _validate(ready: Prepared) -> float:
    """Return the seconds that a validation takes, as some photos of each set tell; 0 if the run has none."""
    settings = ready.recipe.validation
    if settings is None:
        return 0.0
    some = _some_of(settings, VALIDATED * ready.ranks.count)
    recipe = replace(ready.recipe, validation=replace(some, every=1))
    with hushed(True):
        counts = [[len(open_set(each).keys) for each in sets] for sets in (settings.sets, some.sets)]
        started = time.perf_counter()
        validation_after(1, recipe, ready.model, ready.header, ready.ranks)
        seconds = time.perf_counter() - started
    return seconds * sum(counts[0]) / sum(counts[1])


def _close(ready: Prepared) -> float:
    """Return the seconds that automatic masks take when the run is over, as one photo tells; 0 if none are made."""
    settings = ready.recipe.validation
    if settings is None or not settings.automatic or not ready.ranks.leads:
        return 0.0
    base = load_sam(ready.recipe.sam)
    with hushed(True):
        started = time.perf_counter()
        judge_photos("before", base, ready.recipe, ready.ranks.device, 1)
        return 2 * settings.automatic * (time.perf_counter() - started)


def _some_of(settings: ValidationSettings, photos: int) -> ValidationSettings:
    """Return a validation on so many photos of each set, at most."""
    sets = [replace(each, limit=min(photos, each.limit or photos)) for each in settings.sets]
    return replace(settings, sets=tuple(sets))


def _time(left: int, seconds: float, validations: int, validation: float, closing: float, total: float) -> str:
    told = f"time: {left} steps of {seconds:.2f} s"
    if validations:
        told += f" and {validations} validations of {validation:.1f} s"
    if closing:
        told += f" and {closing:.1f} s of automatic masks at the end"
    return f"{told} are {_span(total)}, without checkpoints; the first step, which this was, is the slowest"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
