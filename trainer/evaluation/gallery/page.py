"""A self-contained HTML page of what models make of the same clicks, as the paper's figures show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from sum_factory.shared.masks import iou
from sum_factory.shared.precision import Precision
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.store.local_files import whole_file
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.evaluation.clicks import Click, first_click
from sum_factory.trainer.evaluation.gallery.changes import Compared, SetChanges, largest_changes, outputs_by_task
from sum_factory.trainer.evaluation.gallery.draw import loupe, overlay, photo_url
from sum_factory.trainer.evaluation.photos import load_sample
from sum_factory.trainer.evaluation.settings import Protocol

MASK_COLOUR, TRUTH_COLOUR = (64, 160, 255), (255, 190, 40)


@dataclass(frozen=True)
class GallerySettings:
    """What a page shows: at most ``most`` gains and as many losses of each set, and of the first ``prompted`` of them
    the outputs under each task prompt. Of a photo at most ``max_masks`` are played."""

    protocol: Protocol
    most: int = 3
    prompted: int = 1
    max_masks: int | None = None
    precision: Precision = "fp32"


def write_gallery(
    out: Path, models: Mapping[str, LoadedSam], sets: Sequence[SetSettings], settings: GallerySettings
) -> int:
    """Write the page of two or more models, of which the last is compared with the first; return how many masks it
    shows. Raises as ``largest_changes``, and ``StorageError`` if the page cannot be written."""
    template = jinja2.Template(
        (files("sum_factory.trainer.evaluation.gallery") / "page.html").read_text(), autoescape=True
    )
    changes = list(
        largest_changes(models, sets, settings.protocol, settings.most, settings.max_masks, settings.precision)
    )
    cards = [card for each in changes for card in _cards(each, models, settings)]
    cards.sort(key=lambda card: -abs(card["change"]))
    names = list(models)
    html = template.render(
        models=[
            {"name": name, "type": model.architecture.name, "digest": model.sha256[:12]}
            for name, model in models.items()
        ],
        first=names[0],
        last=names[-1],
        protocol=settings.protocol,
        sets=[
            {"name": each.settings.name, "task": each.settings.task, "masks": each.masks, "means": each.means}
            for each in changes
        ],
        tasks=list(dict.fromkeys(each.settings.task for each in changes)),
        cards=cards,
    )
    with whole_file(out) as file:
        file.write(html.encode("utf-8", "backslashreplace"))
    return len(cards)


def _cards(changes: SetChanges, models: Mapping[str, LoadedSam], settings: GallerySettings) -> Iterator[dict[str, Any]]:
    """Yield what the template shows of each mask that was chosen of a set."""
    opened = open_set(changes.settings)
    side = min(int(model.sam.image_encoder.img_size) for model in models.values())
    prompted = next((name for name in reversed(list(models)) if models[name].task_prompt is not None), None)
    for rank, chosen in enumerate(track(changes.chosen, f"drawing {changes.settings.name}", "mask")):
        sample = load_sample(opened, chosen.index, changes.settings.name, side)
        card = _card(chosen, sample)
        if prompted is not None and rank < settings.prompted:
            card["prompts"] = _prompts(prompted, models[prompted], sample, chosen.number, settings.precision)
        yield card


def _card(chosen: Compared, sample: HumanSample) -> dict[str, Any]:
    photo, target = sample.image, sample.masks_at([chosen.number])[0]
    masks = [each.mask for each in chosen.reported.values()]
    panels = [
        {
            "name": name,
            "overlay": overlay(photo, mask, MASK_COLOUR),
            "clicks": _numbered(each.clicks),
            "iou": each.iou,
            "boundary_iou": each.boundary_iou,
        }
        for (name, each), mask in zip(chosen.reported.items(), masks, strict=True)
    ]
    return {
        "set": chosen.settings.name,
        "task": chosen.settings.task,
        "key": sample.key,
        "number": chosen.number,
        "change": chosen.change,
        "width": photo.shape[1],
        "height": photo.shape[0],
        "photo": photo_url(photo),
        "window": loupe(masks, target),
        "panels": [
            {"name": "photo", "overlay": None, "clicks": []},
            *panels,
            {"name": "truth", "overlay": overlay(photo, target, TRUTH_COLOUR), "clicks": []},
        ],
    }


def _prompts(name: str, model: LoadedSam, sample: HumanSample, number: int, precision: Precision) -> dict[str, Any]:
    """Return what the template shows of the first click under each task prompt."""
    target = sample.masks_at([number])[0]
    click = first_click(target)
    rows = [
        {
            "task": found.task,
            "prompted": found.prompted,
            "outputs": [
                {
                    "overlay": overlay(sample.image, mask, MASK_COLOUR),
                    "predicted": predicted,
                    "iou": iou(mask, target),
                }
                for mask, predicted in zip(found.masks, found.predicted, strict=True)
            ],
        }
        for found in outputs_by_task(model, sample, click, precision)
    ]
    return {"model": name, "clicks": _numbered([click]), "rows": rows}


def _numbered(clicks: Sequence[Click]) -> list[dict[str, Any]]:
    return [
        {"number": number, "x": click.x + 0.5, "y": click.y + 0.5, "positive": click.positive}
        for number, click in enumerate(clicks, 1)
    ]
