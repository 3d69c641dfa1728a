"""Whether a model still makes automatic masks, and what they are worth: a fine-tuned SAM beside the one it came from.

Fine-tuning trains the head that predicts IoU, too. Where that head drifts, the filters of the automatic generator drop
good masks or keep bad ones, which no score of prompted masks tells. A model is run as ``labelgen run`` runs it: on a
grid of points, with the same settings before and after, without a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.masks import Mask
from sum_factory.shared.progress import track
from sum_factory.shared.sam.architecture import meta_state
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.data.sets import SetSettings, check_sets, open_set
from sum_factory.trainer.evaluation.photos import load_sample, masks_with_pixels
from sum_factory.trainer.evaluation.run import load_weights

RECALLS = (0.5, 0.75, 0.9)
"""IoU from which on a human mask counts as found."""
BIN = 0.02
"""Width of the bins of predicted IoU: nearly all masks that are kept lie in the last tenth."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The automatic masks of one or more photos, beside the human ones.

    ``predicted`` and ``true``, float64 (K,), are of each kept mask in photos that have human masks: the IoU that the
    model expects, and the IoU with the human mask that it fits best. ``found``, float64 (M,), is of each human mask:
    the IoU with the kept mask that fits it best, 0 if none was kept. ``kept`` counts the kept masks of all photos.
    """

    photos: int
    kept: int
    predicted: Floats
    true: Floats
    found: Floats

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        """Return all of them as one."""
        arrays = [
            np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0)])
            for name in ("predicted", "true", "found")
        ]
        return cls(sum(part.photos for part in parts), sum(part.kept for part in parts), *arrays)


@dataclass(frozen=True)
class Bin:
    """Masks whose predicted IoU is ``start`` or more, and less than the next bin's: their number, the mean of their
    predicted IoU, and of their true one."""

    start: float
    masks: int
    predicted: float
    true: float


@dataclass(frozen=True)
class AutomaticScores:
    """What a model's automatic masks of one set are worth.

    ``recall`` is the share of the human masks that some kept mask fits by an IoU of so much. ``predicted`` and
    ``true`` are means over the kept masks of photos that have human masks; ``calibration_error`` is the mean of the
    distance of the two over ``bins``, each weighed by its masks. What no mask tells is None.
    """

    model: str
    set: str
    task: str
    photos: int
    human_masks: int
    masks: int
    masks_a_photo: float
    recall: Mapping[float, float | None]
    predicted: float | None
    true: float | None
    calibration_error: float | None
    bins: Sequence[Bin] = field(repr=False)

    @classmethod
    def of(cls, model: str, name: str, task: str, judged: Judged) -> AutomaticScores:
        """Return the scores of what was judged."""
        bins = calibration_bins(judged.predicted, judged.true)
        known = len(judged.predicted)
        return cls(
            model=model,
            set=name,
            task=task,
            photos=judged.photos,
            human_masks=len(judged.found),
            masks=judged.kept,
            masks_a_photo=judged.kept / judged.photos,
            recall={least: _mean(judged.found >= least) for least in RECALLS},
            predicted=_mean(judged.predicted),
            true=_mean(judged.true),
            calibration_error=sum(b.masks * abs(b.predicted - b.true) for b in bins) / known if known else None,
            bins=bins,
        )


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def calibration_bins(predicted: Floats, true: Floats) -> list[Bin]:
    """Return the bins that have masks; what is predicted below 0 or above 1 counts to the first or the last."""
    last = round(1 / BIN) - 1
    indexes = np.clip(np.floor(predicted / BIN + 1e-9).astype(int), 0, last)
    return [
        Bin(index * BIN, int(inside.sum()), float(predicted[inside].mean()), float(true[inside].mean()))
        for index in np.unique(indexes).tolist()
        for inside in [indexes == index]
    ]


def judge(generated: GeneratedMasks, human: Sequence[Mask]) -> Judged:
    """Compare the automatic masks of one photo with its human masks, bool (H, W), at the photo's own size."""
    kept = len(generated)
    if not human:
        return Judged(1, kept, np.zeros(0), np.zeros(0), np.zeros(0))
    if not kept:
        return Judged(1, kept, np.zeros(0), np.zeros(0), np.zeros(len(human)))
    overlaps = np.asarray(coco.iou(generated.rles(), [encode_rle(mask) for mask in human], [0] * len(human)))
    return Judged(1, kept, generated.predicted_iou, overlaps.max(1), overlaps.max(0))


def evaluate_automatic(
    name: str,
    model: LoadedSam,
    sets: Sequence[SetSettings],
    settings: AutomaskSettings,
    exactness: Exactness = "exact",
    photos: int | None = None,
) -> Iterator[AutomaticScores]:
    """Make automatic masks of the photos of each set with ``model``, which the scores call ``name``.

    At most ``photos`` are taken of all sets together, as many of each as of the others. Raises ``SettingsError`` for a
    model whose decoder is not SAM's, ``InputError`` or ``ImageError`` for a set or file that cannot be used.
    """
    require_plain_decoder(name, model)
    check_sets(sets)
    generator = LabelGenerator(model.sam, settings, exactness=exactness)
    for each, limit in zip(sets, _shares(photos, len(sets)), strict=True):
        if limit == 0:
            continue
        opened = open_set(each)
        title = each.name or each.task
        parts: list[Judged] = []
        for index in track(range(len(opened.keys))[:limit], f"automatic masks of {title}, {name}", "image"):
            sample = load_sample(opened, index, title, generator.side)
            human = [mask for _, mask in masks_with_pixels(sample)]
            parts.append(judge(generator.label(sample.image), human))
        yield AutomaticScores.of(name, title, each.task, Judged.joined(parts))


def _shares(photos: int | None, sets: int) -> list[int | None]:
    """Return how many photos of each set are taken, at most; None for all."""
    if photos is None:
        return [None] * sets
    return [photos // sets + (number < photos % sets) for number in range(sets)]


def require_plain_decoder(name: str, model: LoadedSam) -> None:
    """Raise ``SettingsError`` for a model whose mask decoder has other weights than SAM's, as HQ-SAM's has."""
    prefix = "mask_decoder."
    plain = {each.removeprefix(prefix) for each in meta_state(model.architecture) if each.startswith(prefix)}
    if model.sam.mask_decoder.state_dict().keys() != plain:
        raise SettingsError(
            f"{name}: automatic masks take the three outputs of SAM's mask decoder, and this model has another decoder "
            "(HQ-SAM's, say, which has one output): leave automatic masks out"
        )


def compare_automatic(
    before: str | None,
    after: Mapping[str, tuple[str, str | None]],
    sets: Sequence[SetSettings],
    runtime: Runtime,
) -> list[AutomaticScores]:
    """Return the scores of the model before training, called "before", then of each model by its name.

    ``after`` has the weights of each, and the SAM that they sit on if they need one. All models have the settings of
    the first. ``before`` is by default vit_micro. One model is in memory at a time. Raises as ``load_any`` and
    ``evaluate_automatic``, and ``SettingsError`` for models of another architecture than that before.
    """
    base = load_weights(before or PACKAGED, runtime)
    architecture = base.architecture.name
    scores = _scores("before", base, sets, settings_for(architecture), runtime)
    del base
    for name, (weights, sam) in after.items():
        model = load_weights(weights, runtime, sam)
        if model.architecture.name != architecture:
            raise SettingsError(
                f"{weights}: of {model.architecture.name}, and the model before training is {architecture}; give the "
                "one that it came from as --before"
            )
        scores += _scores(name, model, sets, settings_for(architecture), runtime)
        del model
    return scores


def _scores(
    name: str, model: LoadedSam, sets: Sequence[SetSettings], settings: AutomaskSettings, runtime: Runtime
) -> list[AutomaticScores]:
    return list(evaluate_automatic(name, model, sets, settings, runtime.exactness))


def have_fallen(before: Sequence[AutomaticScores], after: Sequence[AutomaticScores]) -> bool:
    """Return whether the second model keeps half as many masks as the first, or fewer."""
    kept = [sum(each.masks for each in scores) for scores in (before, after)]
    return kept[0] > 0 and 2 * kept[1] <= kept[0]


def warning_of(before: Sequence[AutomaticScores], after: Sequence[AutomaticScores]) -> str | None:
    """Return what to tell people if masks have fallen by half, else None."""
    if not have_fallen(before, after):
        return None
    photos = sum(each.photos for each in before)
    kept = [sum(each.masks for each in scores) / photos for scores in (before, after)]
    return (
        f"warning: {after[0].model}: automatic masks have fallen from {kept[0]:.1f} to {kept[1]:.1f} per photo "
        f"({photos} photos, with the settings of the model before training): the IoU that the model predicts has "
        "drifted, or its masks are less stable, and `labelgen run` would keep few of them. Lower --pred-iou-thresh "
        "there, or train with a lower learning rate, fewer steps or fewer weights"
    )
