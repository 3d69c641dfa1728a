"""What a run ends with: whether the trained model still makes automatic masks, on a few photos of its validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.errors import ImageError, InputError, SettingsError
from sum_factory.shared.exactness import with_encoder
from sum_factory.shared.sam.checkpoint import LoadedSam, load_sam
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.automatic import AutomaticScores, evaluate_automatic
from sum_factory.trainer.evaluation.automatic_report import warnings_of, write_automatic
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.variants.load import load_any

POINTS = 16
"""Points along a side of the grid: a quarter of SAM's, as only the change of what is kept counts here."""


def judge_closing(recipe: Recipe, out: Path, device: torch.device, say: Callable[[str], object]) -> None:
    """Judge automatic masks of the SAM that the run began with, and of the weights that it wrote into ``out``.

    Writes the tables of ``write_automatic`` there, and says what came out. Models that make no automatic masks, and
    photos that cannot be used for it, are said and left out: the run is over. To be called by one process.
    """
    if recipe.validation is None or not recipe.validation.automatic:
        return
    photos = recipe.validation.automatic
    try:
        after = judge_photos("after", load_any(str(out / WEIGHTS_FILE)), recipe, device, photos)
        scores = judge_photos("before", load_sam(recipe.sam), recipe, device, photos) + after
    except (InputError, ImageError, SettingsError) as error:
        say(f"automatic masks were not judged: {error}")
        return
    told = {"weights": {"before": recipe.sam, "after": WEIGHTS_FILE}, "precision": recipe.computed_in}
    write_automatic(Storage(str(out)), scores, told)
    for line in [_in_words(scores), *warnings_of(scores)]:
        say(line)


def judge_photos(
    name: str, model: LoadedSam, recipe: Recipe, device: torch.device, photos: int
) -> list[AutomaticScores]:
    """Judge automatic masks of so many photos of the recipe's validation, which it needs to have."""
    assert recipe.validation is not None, "photos are those of a validation"
    exactness = with_encoder(recipe.computed_in)
    move_to_device(model.sam, Runtime(str(device), exactness))
    settings = settings_for(model.architecture.name, points_per_side=POINTS)
    return list(evaluate_automatic(name, model, recipe.validation.sets, settings, exactness, photos))


def _in_words(scores: list[AutomaticScores]) -> str:
    """Say how many masks per photo each model keeps, and how many of the human masks these find."""
    parts = []
    for model in ("before", "after"):
        own = [each for each in scores if each.model == model]
        photos, human = sum(each.photos for each in own), sum(each.human_masks for each in own)
        found = sum(each.human_masks * (each.recall[0.5] or 0.0) for each in own)
        kept = sum(each.masks for each in own) / photos
        parts.append(f"{kept:.1f} per photo {model}, which find {found:.0f} of {human} human masks at IoU 0.5")
    return f"automatic masks ({photos} photos, {POINTS} x {POINTS} points): " + "; ".join(parts)
