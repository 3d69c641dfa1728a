"""Label photos that a program hands over, and hand the masks back: what ``labelgen run`` does, without a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sum_factory.labelgen.kept import labels_of
from sum_factory.labelgen.labeler import maps_of, rows_of
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.read_ahead import LoadedPhoto, load_photo
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.labelgen.uncertainty import UncertaintyMaker, UncertaintyMap
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.lanes import take_cores
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.uncertainty import decode_u, refined_label
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import ImageError, InputError, SettingsError
from sum_factory.shared.exactness import Exactness, settle
from sum_factory.shared.images import RgbImage
from sum_factory.shared.labelled_photo import LabelledPhoto, Map, Mask, columns_of
from sum_factory.shared.photo_files import read_listed
from sum_factory.shared.photo_pixels import AnyPhoto, pixels_of
from sum_factory.shared.placement import at_full_size, resized_size
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.shared.sam.runtime import Runtime, move_to_device, resize
from sum_factory.shared.sam.settings import PACKAGED, TASKS
from sum_factory.shared.shards.dataset import REFINEMENT

Load = Callable[[], LoadedPhoto]


def label(
    photos: AnyPhoto | Iterable[AnyPhoto],
    *,
    sam: str = PACKAGED,
    refiner: str | None = None,
    task: str = TASKS[0],
    automask: AutomaskSettings | Mapping[str, float | None] | None = None,
    min_refine_area: int = 0,
    device: str = "auto",
    exactness: Exactness = "exact",
    points_per_batch: int = 64,
    threads: int | None = None,
    errors: Literal["raise", "keep"] = "raise",
) -> Iterator[LabelledPhoto]:
    """Label photos with a frozen SAM, and yield each with its masks, in order. Nothing is written.

    ``photos`` are one or more of: paths and URLs (what ``labelgen run --images`` takes: folders, tars and patterns,
    too), Pillow images, and arrays of RGB, uint8 (H, W, 3). They are read when their turn comes, so that an endless
    iterable will do. With a ``refiner`` the masks have maps of doubt, in the layer "refinement". ``automask`` may name
    some settings alone, such as ``{"points_per_side": 16}``: the others are the model's own. The other arguments mean
    what the fields of ``RunSettings`` mean.

    Masks are those of ``segment_anything``'s generator, drawn from SAM's own logits; those that a shard set gives back
    are drawn from what it keeps of them, and differ in a few pixels of their boundaries.

    Raises ``SumError`` at once for weights or settings that cannot be used. A photo that cannot be read ends the
    iteration with its ``ImageError`` or ``InputError``; with ``errors`` "keep" it is yielded without masks, and its
    ``error`` says why.
    """
    loaded = load_sam(sam, task=task)
    model = move_to_device(loaded.sam, Runtime(device, exactness))
    settle(exactness, model.device)
    settings = automask
    if not isinstance(settings, AutomaskSettings):
        settings = settings_for(loaded.architecture.name, **(settings or {}))
    maker = None
    if refiner is not None:
        second = load_refiner(refiner, loaded).to(model.device)
        chosen = UncertaintySettings(min_refine_area=min_refine_area)
        maker = UncertaintyMaker(model, second, chosen, points_per_batch, exactness=exactness)
    elif min_refine_area:
        raise SettingsError("min_refine_area is about refining: give a refiner, too")
    make = partial(LabelGenerator, model, settings, points_per_batch, exactness=exactness)
    named = _named(photos, loaded.architecture.image_size)
    return _label(named, make, maker, model.device, threads or usable_cores(), errors == "keep")


def _label(
    named: Iterator[tuple[str, Load]],
    make: Callable[..., LabelGenerator],
    maker: UncertaintyMaker | None,
    device: torch.device,
    cores: int,
    keeps_errors: bool,
) -> Iterator[LabelledPhoto]:
    """Label photo by photo, several at once on a CPU. Torch has the threads that it had before when all is done."""
    threads = torch.get_num_threads()
    lanes = take_cores(device, cores)
    generator = make(lanes=lanes)

    def begin(named: tuple[str, Load]) -> LabelledPhoto:
        key, load = named
        try:
            return _labelled(key, load(), generator, maker)
        except (ImageError, InputError) as error:
            if not keeps_errors:
                raise
            return _failed(key, str(error))

    try:
        yield from lanes.in_order(begin, named)
    finally:
        torch.set_num_threads(threads)


def _named(photos: AnyPhoto | Iterable[AnyPhoto], side: int) -> Iterator[tuple[str, Load]]:
    """Yield the key of each photo, and what loads it for a SAM of input ``side``."""
    alone = isinstance(photos, str | Path | Image.Image | np.ndarray)
    several: Iterable[AnyPhoto] = [photos] if alone else photos  # type: ignore[list-item, assignment]
    for number, photo in enumerate(several):
        if isinstance(photo, str | Path):
            for file in list_photos([str(photo)]):
                yield file.key, partial(load_photo, file, side, read_listed)
        else:
            yield str(number), partial(_load_pixels, photo, side, f"photo {number}")


def _load_pixels(photo: AnyPhoto, side: int, name: str) -> LoadedPhoto:
    pixels = pixels_of(photo, name)
    height, width = pixels.shape[:2]
    if 0 in resized_size(height, width, side):
        raise ImageError(f"{name}: {width} x {height} is too thin for SAM's square of {side} px; cut it up")
    return LoadedPhoto(pixels, resize(pixels, side))


def _labelled(key: str, photo: LoadedPhoto, generator: LabelGenerator, maker: UncertaintyMaker | None) -> LabelledPhoto:
    generated = generator.label(photo.pixels, photo.resized)
    maps: Sequence[UncertaintyMap] | None = None
    if maker is not None:
        maps = maps_of(generated, labels_of(generated), maker, generator.side)
    return LabelledPhoto(
        key=key,
        height=generated.size[0],
        width=generated.size[1],
        **columns_of(rows_of(generated)),
        mean_u={} if maps is None else {REFINEMENT: _means(maps)},
        error=None,
        drawn=_InMemory(photo.pixels, replace(generated, embeddings={}), maps or ()),
    )


def _failed(key: str, why: str) -> LabelledPhoto:
    return LabelledPhoto(key, 0, 0, **columns_of([]), mean_u={}, error=why, drawn=_Nothing(why))


def _means(maps: Sequence[UncertaintyMap]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if each.mean_u is None else each.mean_u for each in maps], np.float64)


@dataclass(frozen=True)
class _InMemory:
    """Draws what labelling made of a photo."""

    pixels: RgbImage
    generated: GeneratedMasks
    maps: Sequence[UncertaintyMap]

    def image(self) -> RgbImage:
        return self.pixels

    def mask(self, index: int) -> Mask:
        return self.generated.mask(index)

    def uncertainty(self, index: int, layer: str) -> Map | None:
        made = self.maps[index]
        return self._at_full_size(decode_u(made.blob), index) if made.is_known else None

    def refined(self, index: int, layer: str) -> Mask | None:
        made = self.maps[index]
        return (
            np.asarray(self._at_full_size(decode_label(refined_label(made.blob)), index) > 0) if made.is_known else None
        )

    def _at_full_size(self, grid: Map, index: int) -> Map:
        return at_full_size(grid, self.generated.frames[index], *self.generated.size)


@dataclass(frozen=True)
class _Nothing:
    """Stands for a photo that could not be read."""

    why: str

    def image(self) -> RgbImage:
        raise ImageError(self.why)

    def mask(self, index: int) -> Mask:
        raise ImageError(self.why)

    def uncertainty(self, index: int, layer: str) -> Map | None:
        raise ImageError(self.why)

    def refined(self, index: int, layer: str) -> Mask | None:
        raise ImageError(self.why)
