"""What a sample with human masks costs: in a set of 1,000 photos and of 100,000, of 30 masks per photo and of 300.

    python -m pipelines.bench.human            # 400 samples of each, five repeats
    python -m pipelines.bench.human --quick    # 100 samples of each, three repeats, no folder pairs

A sample is read, decoded and brought to the loss grid as ``trainer fit`` does, on one thread, from COCO's JSON and from
folder pairs, in turn: 30 masks of a photo are drawn. The photos are links to a few files, so that the page cache is
warm for all of them. ``large_over_small`` is the time of a sample of the large set over that of the small one, the
larger of both layouts, ``all_masks_over_few`` that of a photo with 300 masks over one with 30. The samples of the small
set are checked against masks that are decoded here.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.shared.placement import Frame
from sum_factory.shared.progress import track
from sum_factory.trainer.data.grid import masks_on_grid
from sum_factory.trainer.data.human import CocoInstances, FolderPairs, HumanSet, Masks
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.samples import SampleSettings, TrainingSample, pick
from sum_factory.trainer.data.stream import HumanStream, MixedStream

SMALL, LARGE = 1_000, 100_000
DRAWN, FEW, MANY = 30, 30, 300
HEIGHT, WIDTH = 240, 320
FILES = 16
SETTINGS = SampleSettings(side=256, stride=4, masks=DRAWN, seed=0)
TASK = 2


def make_masks(count: int) -> Masks:
    """Return ``count`` ellipses at random positions, bool (count, HEIGHT, WIDTH)."""
    random = np.random.default_rng(0)
    masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for mask in masks:
        centre = random.integers((0, 0), (WIDTH, HEIGHT)).tolist()
        cv2.ellipse(mask, centre, random.integers(9, 90, 2).tolist(), random.uniform(0, 180), 0, 360, 1, -1)
    return masks.astype(bool)


def write_photos(folder: Path) -> None:
    """Write a few photos of noise, which a set links to."""
    folder.mkdir()
    for number in range(FILES):
        noise = np.random.default_rng(number).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(noise, (WIDTH, HEIGHT)))


def coco_set(photos: Path, file: Path, count: int, masks: Masks) -> HumanSet:
    """Write and open a COCO set of ``count`` photos, each with all of ``masks``."""
    rle = [
        {"size": each["size"], "counts": each["counts"].decode()}
        for each in coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    ]
    content: dict[str, Any] = {
        "images": [{"id": number, "file_name": f"{number % FILES}.jpg"} for number in range(count)],
        "annotations": [{"image_id": number, "segmentation": one} for number in range(count) for one in rle],
    }
    file.write_text(json.dumps(content))
    return CocoInstances(file, photos, TASK)


def pairs_set(photos: Path, folder: Path, count: int, mask: np.ndarray[Any, Any]) -> HumanSet:
    """Link ``count`` pairs of photo and mask, and open them."""
    cv2.imwrite(str(folder.with_suffix(".png")), mask.astype(np.uint8) * 255)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        os.link(photos / f"{number % FILES}.jpg", folder / "images" / f"{number:06d}.jpg")
        (folder / "masks" / f"{number:06d}.png").symlink_to(folder.with_suffix(".png"))
    return FolderPairs(folder / "images", folder / "masks", TASK)


def open_stream(human: HumanSet) -> MixedStream:
    """Return a stream of one set, which is listed by then."""
    stream = MixedStream({"human": HumanStream([human], SETTINGS)}, Mix(1, 0), batch=1)
    stream.load(0)
    return stream


def seconds_each(stream: MixedStream, slots: Sequence[int]) -> float:
    """Return the seconds that a sample takes."""
    started = time.perf_counter()
    for slot in slots:
        stream.load(slot)
    return (time.perf_counter() - started) / len(slots)


def compared(one: MixedStream, other: MixedStream, count: int, repeats: int) -> Iterator[tuple[float, float]]:
    """Yield, for each repeat, the seconds of a sample of two streams, timed in turn."""
    for repeat in range(repeats):
        slots = range(repeat * count, (repeat + 1) * count)
        yield seconds_each(one, slots), seconds_each(other, slots)


def agrees(stream: MixedStream, masks: Masks) -> bool:
    """Whether the first samples of a COCO set have the masks that were written into it."""
    frame = Frame.whole(SETTINGS.side, HEIGHT, WIDTH)
    for slot in range(5):
        sample = stream.load(slot)
        assert isinstance(sample, TrainingSample), "its stream has human masks alone"
        expected = masks_on_grid(masks[pick(len(masks), SETTINGS, sample.id)], frame, SETTINGS.stride)
        if not torch.equal(sample.masks, expected[expected.flatten(1).any(1)]):
            return False
    return True


@click.command()
@click.option("--quick", is_flag=True, help="Fewer samples and repeats.")
def main(quick: bool) -> None:
    """Time samples with human masks."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    count, repeats = (100, 3) if quick else (400, 5)
    masks = make_masks(MANY)
    figures: dict[str, float | bool] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = folder / "photos"
        write_photos(photos)
        large_masks = 3 if quick else DRAWN
        streams = {
            "coco_small": coco_set(photos, folder / "small.json", SMALL, masks[:large_masks]),
            "coco_large": coco_set(photos, folder / "large.json", LARGE, masks[:large_masks]),
            "few": coco_set(photos, folder / "few.json", SMALL, masks[:FEW]),
            "many": coco_set(photos, folder / "many.json", SMALL, masks),
        }
        pairs = [("coco_small", "coco_large"), ("few", "many")]
        if not quick:
            streams["pairs_small"] = pairs_set(photos, folder / "small", SMALL, masks[0])
            streams["pairs_large"] = pairs_set(photos, folder / "large", LARGE, masks[0])
            pairs.append(("pairs_small", "pairs_large"))
        opened = {name: open_stream(human) for name, human in track(streams.items(), "opening sets", "set")}
        assert agrees(opened["many"], masks), "other masks than were written"
        for one, other in pairs:
            times = list(compared(opened[one], opened[other], count, repeats))
            ratios = sorted(theirs / ours for ours, theirs in times)
            figures[f"{one}_ms"], figures[f"{other}_ms"] = (
                round(1000 * statistics.median(side), 3) for side in zip(*times, strict=True)
            )
            figures |= {f"{other}_ratio": round(statistics.median(ratios), 3)}
            figures |= {f"{other}_ratio_least": round(ratios[0], 3), f"{other}_ratio_most": round(ratios[-1], 3)}
    figures["large_over_small"] = max(float(figures[f"{large}_ratio"]) for _, large in pairs if large.endswith("large"))
    figures["all_masks_over_few"] = float(figures["many_ratio"])
    figures["masks_agree"] = True
    for name, value in figures.items():
        click.echo(f"{name:24} {value}")
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
