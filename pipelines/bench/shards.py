"""Shards: bytes, labels per second and samples per second, against the method's published layout of tars of PNGs.

    python -m pipelines.bench.shards [--quick] [--photos FOLDER] [--refiner FILE]

Both sides hold the same masks of the same photos, up to 90 per photo (``bench.parts.shard_material``), and load the
same 30 of a photo, label and uncertainty, on one thread, side after side, from files that were read before. The
reference (``bench.parts.reference_shards``) keeps 8-bit PNGs of 256 x 256, as SAM's logits come. Two harder anchors
stand beside it: PNGs of the 64 x 64 that ``vit_micro``'s logits have (``native``), and a loader that knows where each
PNG lies and decodes only what is picked (``smart``). A second table is of a SAM of 1024 pixels, whose logits are 256 x
256; there is no pretrained one here, so its logits are made from these (``enlarge``).

End to end a sample is the photo and 30 labels: the reference decodes the original and scales it to 1024; here the
trainer loads the sample as ever, the photo from the layer ``photos`` at 1024. What both sides load must agree.

What it costs to write a unit of 256 photos whose masks and maps are encoded, processor time alone, is compared with the
time that a GPU labels it for, at four photos per second.

The last line is a JSON object: ratios are the reference over ours, medians over the repeats, with the spread beside
them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch.nn import functional as F

from sum_factory.pipelines.bench.parts import reference_shards
from sum_factory.pipelines.bench.parts.fidelity import measure_fidelity
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.shard_material import Floats, LabelledPhoto, enlarge, label_photos
from sum_factory.pipelines.bench.parts.shard_sets import (
    Loader,
    Plan,
    bytes_of_labels,
    decode_original,
    encode,
    plan_set,
    write_blobs,
    write_labels,
    write_photos,
)
from sum_factory.shared.masks import iou
from sum_factory.shared.placement import CELL
from sum_factory.shared.progress import Stage, track
from sum_factory.shared.shards.dataset import ENCODINGS

PICKED = 30
UNIT = 256
"""Photos of the unit whose writing is timed."""
LABELLED_A_SECOND = 4.0
"""Photos that a GPU labels per second, with which the time of writing is compared."""
PHOTO_SIDE = 1024
PNG_SIDE = 256
TOLERANCE_OF_U = 0.02 + 1 / 255 + 1e-6
"""Ours is off by 0.02 at most, and the reference's by half a step of 1 / 255 for each of the two it subtracts."""
ROUNDING = 1e-5
"""Logits this near to 0 may get either sign when a sigmoid is rounded to 8 bits."""
LEAST_IOU = 0.99
"""Of masks whose boundary both sides place between cells, each in its own steps."""

LEAST_TIMINGS = 6

Seconds = dict[str, list[float]]
Work = Callable[[int], object]


def interleave(sides: Mapping[str, Work], count: int, repeats: int) -> Seconds:
    """Time each side's work on items 0 to ``count`` - 1; return its seconds an item of each repeat.

    In each repeat every side in turn works on all items, one after the other as a loading process does, at least
    ``LEAST_TIMINGS`` times; its seconds are the median. All have worked on every item once before.
    """
    for name, work in sides.items():
        for item in track(range(count), f"warming {name} up", "item"):
            work(item)
    seconds: Seconds = {name: [] for name in sides}
    for _ in track(range(repeats), f"loading by {', '.join(sides)}", "repeat"):
        for name, work in sides.items():
            took = []
            for turn in range(max(count, LEAST_TIMINGS)):
                started = time.perf_counter()
                work(turn % count)
                took.append(time.perf_counter() - started)
            seconds[name].append(statistics.median(took))
    return seconds


def ratio(seconds: Seconds, reference: str, ours: str) -> tuple[float, list[float]]:
    """Return the median over the repeats of the reference's time over ours, and the least and the largest."""
    values = [theirs / mine for theirs, mine in zip(seconds[reference], seconds[ours], strict=True)]
    return significant(statistics.median(values)), [significant(min(values)), significant(max(values))]


def significant(value: float) -> float:
    """Round to three digits."""
    return float(f"{value:.3g}")


def probabilities(photo: LabelledPhoto, side: int) -> tuple[Floats, Floats]:
    """Return sigmoid(s) and sigmoid(r) of all masks as the reference stores them, (K, side, side)."""
    both = (torch.from_numpy(values)[:, None] for values in (photo.s, photo.r))
    size = (side, side)
    s, r = (F.interpolate(v, size, mode="bilinear", align_corners=False)[:, 0].sigmoid().numpy() for v in both)
    return s, r


def rows_of(photo: LabelledPhoto) -> list[list[Any]]:
    """Return the lines of the reference's ``metadata.csv``."""
    columns = (photo.areas, *photo.boxes.T, *photo.points.T, photo.predicted_iou, photo.stability)
    crop = list(photo.frame.crop_box)
    return [[k, *values, *crop] for k, values in enumerate(zip(*(c.tolist() for c in columns), strict=True))]


class Bench:
    """Photos of one grid, as the reference stores them and as shard sets; and how they are loaded."""

    def __init__(self, folder: Path, photos: Sequence[LabelledPhoto], say: Callable[[str], None]) -> None:
        self.folder, self.photos, self.say = folder, photos, say
        self.native = photos[0].frame.side // CELL
        self.sides = {f"png {side}": side for side in sorted({self.native, PNG_SIDE}, reverse=True)}
        assert all(np.isfinite(grid).all() for photo in photos for grid in photo.grids), (
            "what is timed has them at hand"
        )
        random = np.random.default_rng(0)
        self.picks = [np.sort(random.permutation(len(photo))[:PICKED]) for photo in photos]
        self.figures: dict[str, Any] = {"grid": self.native, "photos": len(photos), "masks": sum(map(len, photos))}

    def write(self, repeats: int) -> None:
        """Write everything; figures of bytes and of milliseconds per image, PNGs and photos apart from the labels."""
        seconds: dict[str, list[float]] = {}
        sizes: dict[str, float] = {}
        for repeat in track(range(repeats), "writing", "repeat"):
            for name, side in self.sides.items():
                stored = [(*probabilities(photo, side), rows_of(photo)) for photo in self.photos]
                place = self._place(name)
                place.mkdir(exist_ok=True)
                started = time.perf_counter()
                sizes[name] = sum(
                    reference_shards.write_image(place, str(i), *of_photo) for i, of_photo in enumerate(stored)
                )
                seconds.setdefault(name, []).append(time.perf_counter() - started)
            for encoding in ENCODINGS:
                plan = plan_set(self._place(encoding) / str(repeat), self.photos, encoding)
                started = time.perf_counter()
                write_labels(plan, self.photos)
                seconds.setdefault(encoding, []).append(time.perf_counter() - started)
                sizes[encoding] = bytes_of_labels(self._place(encoding) / str(repeat))
        masks = self.figures["masks"]
        self.figures["bytes_a_mask"] = {name: round(size / masks) for name, size in sizes.items()}
        self.figures["write_ms_an_image"] = {
            name: significant(1000 * statistics.median(values) / len(self.photos)) for name, values in seconds.items()
        }
        for name, size in sizes.items():
            written = self.figures["write_ms_an_image"][name]
            self.say(f"  {name:10} {size / masks:8.0f} bytes per mask, {written:8.1f} ms per image to write")

    def write_unit(self, count: int) -> None:
        """Write a unit of ``count`` photos, those at hand over again; figures of processor time over that of labelling.

        Only here is the time of all threads counted; masks and maps are encoded before.
        """
        turns = [n % len(self.photos) for n in range(count)]
        encoded = [encode(photo) for photo in self.photos]
        photos = [replace(self.photos[turn], key=str(n)) for n, turn in enumerate(turns)]
        shares = {}
        for encoding in track(ENCODINGS, f"writing a unit of {count} photos", "encoding"):
            plan = plan_set(self._place(encoding) / "unit", photos, encoding)
            started = time.process_time()
            write_blobs(plan, photos, [encoded[turn] for turn in turns])
            shares[encoding] = significant((time.process_time() - started) / count * LABELLED_A_SECOND)
        self.figures["write_share_of_labelling"] = shares
        told = ", ".join(f"{encoding} {100 * share:.3g} %" for encoding, share in shares.items())
        self.say(f"  written, over the time of labelling at {LABELLED_A_SECOND:g} photos/s: {told}")

    def open(self, encoding: str, photo_side: int) -> Loader:
        """Return what loads the labels of an encoding, with the photos at ``photo_side``."""
        place = self._place(encoding) / f"with photos of {photo_side}"
        plan: Plan = plan_set(place, self.photos, encoding)
        write_labels(plan, self.photos)
        write_photos(plan, self.photos, photo_side)
        return Loader(place, masks=PICKED)

    def load(self, repeats: int) -> None:
        """Check that both sides load the same labels; figures of labels and of samples per second."""
        loaders = {encoding: self.open(encoding, PHOTO_SIDE) for encoding in ENCODINGS}
        with Stage("checking that all sides load the same"):
            self.check(loaders)
        labels: dict[str, Work] = {}
        for name in self.sides:
            labels[name] = self._faithful(name)
            labels[f"{name}, smart"] = self._smart(name)
        for encoding, loader in loaders.items():
            labels[encoding] = self._codes(loader)
            labels[f"{encoding}, as floats"] = self._values(loader)
        seconds = interleave(labels, len(self.photos), repeats)
        self._report("labels", seconds, [*self.sides, *(f"{name}, smart" for name in self.sides)], PICKED)
        samples: dict[str, Work] = {name: self._with_original(name, PHOTO_SIDE) for name in self.sides}
        samples |= {encoding: self._samples(loader) for encoding, loader in loaders.items()}
        self._report("end_to_end", interleave(samples, len(self.photos), repeats), list(self.sides), 1)
        side = self.photos[0].frame.side
        if side != PHOTO_SIDE:
            samples = {name: self._with_original(name, side) for name in self.sides}
            samples |= {encoding: self._samples(self.open(encoding, side)) for encoding in ENCODINGS}
            seconds = interleave(samples, len(self.photos), repeats)
            self._report(f"end_to_end_at_{side}", seconds, list(self.sides), 1)

    def keep(self, most: int) -> None:
        """Measure what the first encoding keeps of masks and maps; the others hold the same codes (``check``)."""
        loader = self.open(ENCODINGS[0], PHOTO_SIDE)
        read = [loader.labels(i, np.arange(len(photo))).values() for i, photo in enumerate(self.photos)]
        with Stage("comparing with SAM's own masks"):
            found = measure_fidelity(self.photos, [values[0] for values in read], [values[1] for values in read], most)
        self.figures |= {name: round(value, 5) for name, value in vars(found).items() if name != "masks"}
        self.figures["masks_at_full_size"] = found.masks
        self.say(
            f"  kept: mask IoU {found.mask_iou:.4f}, boundary IoU {found.mask_boundary_iou:.4f} ({found.masks} masks), "
            f"u off by {found.u_max_error:.4f}"
        )

    def check(self, loaders: Mapping[str, Loader]) -> None:
        """Fail if the sides do not load the same masks and maps."""
        for i, (photo, picked) in enumerate(zip(self.photos, self.picks, strict=True)):
            read = {encoding: loader.labels(i, picked) for encoding, loader in loaders.items()}
            rows, columns = photo.frame.interpolation_cells
            masks, maps = (values[:, :rows, :columns] for values in read[ENCODINGS[0]].values())
            for other in read.values():
                same = zip((masks, maps), other.values(), strict=True)
                assert all(np.array_equal(a, b[:, :rows, :columns]) for a, b in same), "the encodings differ"
            for name, side in self.sides.items():
                s, u, metadata = reference_shards.load(self._place(name), str(i), picked.tolist())
                assert [int(line["id"]) for line in metadata] == picked.tolist()
                smart = reference_shards.load_smart(self._index(name, i), picked.tolist())
                assert all(np.array_equal(a, b) for a, b in zip((s, u), smart, strict=True))
                if side == self.native:
                    compare(masks, maps, s[:, :rows, :columns], u[:, :rows, :columns], photo.grids[0][picked])
                else:
                    compare_between_cells(masks, s, self.native)

    def _report(self, what: str, seconds: Seconds, references: Sequence[str], labels: int) -> None:
        """Add ratios to the figures, and say how many ``what`` a second each side loads."""
        rates = {name: significant(labels / statistics.median(values)) for name, values in seconds.items()}
        self.figures[f"{what}_a_second"] = rates
        self.say(f"  {what}: " + ", ".join(f"{name} {rate:g}/s" for name, rate in rates.items()))
        for ours in seconds:
            if ours.startswith("png"):
                continue
            found = {reference: ratio(seconds, reference, ours) for reference in references}
            self.figures[f"{what}_ratio {ours}"] = {name: [median, *spread] for name, (median, spread) in found.items()}
            ratios = ", ".join(
                f"{median:g}x {name} ({low:g}-{high:g})" for name, (median, (low, high)) in found.items()
            )
            self.say(f"    {ours}: {ratios}")

    def _place(self, name: str) -> Path:
        return self.folder / name

    def _index(self, name: str, photo: int) -> reference_shards.Index:
        return reference_shards.index_image(self._place(name), str(photo))

    def _faithful(self, name: str) -> Work:
        return lambda i: reference_shards.load(self._place(name), str(i), self.picks[i].tolist())

    def _smart(self, name: str) -> Work:
        indices = [self._index(name, i) for i in range(len(self.photos))]
        return lambda i: reference_shards.load_smart(indices[i], self.picks[i].tolist())

    def _codes(self, loader: Loader) -> Work:
        return lambda i: loader.labels(i, self.picks[i])

    def _values(self, loader: Loader) -> Work:
        return lambda i: loader.labels(i, self.picks[i]).values()

    def _with_original(self, name: str, side: int) -> Work:
        labels = self._faithful(name)
        return lambda i: (decode_original(self.photos[i].original, side), labels(i))

    def _samples(self, loader: Loader) -> Work:
        return lambda i: loader.sample(i, 0)


def compare(masks: Floats, maps: Floats, s: Floats, u: Floats, logits: Floats) -> None:
    """Fail unless both sides, of one grid, have the same masks, and maps as near as each side's rounding lets them.

    ``masks`` are our logits, ``s`` the reference's probabilities, ``logits`` what both were made of.
    """
    differ = (np.rint(s * 255) >= 128) != (masks > 0)
    assert not (differ & (np.abs(logits) > ROUNDING)).any(), "a mask differs from the reference's"
    assert np.abs(maps - u).max(initial=0) <= TOLERANCE_OF_U, "a map differs from the reference's"


def compare_between_cells(masks: Floats, s: Floats, native: int) -> None:
    """Fail unless our logits (K, h, w), brought to the finer grid of ``s`` (K, G, G), give nearly the same masks."""
    padded = F.pad(
        torch.from_numpy(masks)[:, None],
        (0, native - masks.shape[2], 0, native - masks.shape[1]),
        mode="replicate",
    )
    fine = F.interpolate(padded, s.shape[1:], mode="bilinear", align_corners=False)[:, 0].numpy() > 0
    factor = s.shape[1] // native
    seen = (slice((masks.shape[1] - 1) * factor), slice((masks.shape[2] - 1) * factor))
    pairs = zip(fine, np.rint(s * 255) >= 128, strict=True)
    mean = np.mean([iou(mine[seen], theirs[seen]) for mine, theirs in pairs])
    assert mean >= LEAST_IOU, f"masks agree with the reference's to an IoU of {mean:.4f}"


def measure(
    photos: Sequence[LabelledPhoto], repeats: int, most: int, unit: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the figures of labelled photos of one grid; ``unit`` photos are written at once."""
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), photos, say)
        bench.write(repeats)
        bench.write_unit(unit)
        bench.load(repeats)
        bench.keep(most)
    return bench.figures


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that the floors are about: against the reference as published, and in full against others."""
    published = f"png {PNG_SIDE}"
    sizes = figures["bytes_a_mask"]
    native = f"png {figures['grid']}"
    of_tar, of_zarr = figures["labels_ratio tar"], figures["labels_ratio zarr"]
    return {
        "bytes_ratio": significant(sizes[published] / sizes["tar"]),
        "bytes_ratio_zarr": significant(sizes[published] / sizes["zarr"]),
        "bytes_ratio_native": significant(sizes[native] / sizes["tar"]),
        "labels_ratio_tar": of_tar[published][0],
        "labels_ratio_zarr": of_zarr[published][0],
        "labels_ratio_native_tar": of_tar[native][0],
        "labels_ratio_native_zarr": of_zarr[native][0],
        "end_to_end_ratio": figures["end_to_end_ratio tar"][published][0],
        "end_to_end_ratio_zarr": figures["end_to_end_ratio zarr"][published][0],
        **{f"write_share_{encoding}": share for encoding, share in figures["write_share_of_labelling"].items()},
        "mask_iou": figures["mask_iou"],
        "mask_boundary_iou": figures["mask_boundary_iou"],
        "u_max_error": figures["u_max_error"],
    }


@click.command()
@click.option("--quick", is_flag=True, help="Two photos, three repeats, and no second table.")
@click.option(
    "--photos",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of photos to label; by default scenes of the micro-world.",
)
@click.option(
    "--refiner", type=click.Path(path_type=Path, exists=True), default=None, help="By default a copy of SAM's decoder."
)
@click.option("--count", default=8, show_default=True, help="How many photos.")
@click.option("--repeats", default=5, show_default=True)
def main(quick: bool, photos: Path | None, refiner: Path | None, count: int, repeats: int) -> None:
    """Compare shard sets with tars of PNGs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if quick:
        count, repeats = 2, 3
    labelled = label_photos(photos, count, refiner)
    what = "scenes of the micro-world" if photos is None else str(photos)
    click.echo(f"{len(labelled)} of {what}, {sum(map(len, labelled))} masks by vit_micro on 64 x 64 cells")
    figures = measure(labelled, repeats, 40 if quick else 400, UNIT // 8 if quick else UNIT, click.echo)
    result = {**headline(figures), "in_full": figures}
    if not quick:
        click.echo("the same, made into logits on 256 x 256 cells")
        enlarged = [enlarge(photo) for photo in track(labelled, "enlarging", "photo")]
        large = measure(enlarged, repeats, 80, UNIT, click.echo)
        result["grid_256"] = {**headline(large), "in_full": large}
    click.echo(last_line(result))


if __name__ == "__main__":
    main()
