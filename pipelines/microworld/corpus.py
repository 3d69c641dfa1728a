"""Scenes drawn once and kept on disk for pre-training: images and coarse masks, memory-mapped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.microworld.coarse import Coarseness, coarse_masks
from sum_factory.pipelines.microworld.scene import World, make_scene
from sum_factory.shared.progress import Stage

Chunk = tuple[int, int, int, World, Coarseness]
"""Seed, first scene, number of scenes, and what they are drawn by."""
Drawn = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], list[npt.NDArray[np.uint8]]]
"""Of a chunk: images, backgrounds packed, and each scene's masks packed."""
TARGET_SIDE = 128
"""Training targets are kept at this side: twice the low-resolution grid of ``vit_micro``."""


@dataclass(frozen=True)
class Corpus:
    """Memory-mapped scenes.

    ``images`` is uint8 (N, S, S, 3). The coarse masks of scene n are the rows ``first[n]:first[n + 1]`` of
    ``packed``, uint8 (M, TARGET_SIDE ** 2 / 8), one bit per pixel. ``background`` has the same layout with one row
    a scene: the pixels that belong to no object.
    """

    images: npt.NDArray[np.uint8]
    packed: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]
    background: npt.NDArray[np.uint8]

    def masks(self, scene: int) -> npt.NDArray[np.bool_]:
        """Return the coarse masks of a scene, bool (K, TARGET_SIDE, TARGET_SIDE)."""
        return _unpack(self.packed[self.first[scene] : self.first[scene + 1]])

    def empty_pixels(self, scene: int) -> npt.NDArray[np.bool_]:
        """Return where no object is, bool (TARGET_SIDE, TARGET_SIDE)."""
        return np.asarray(_unpack(self.background[scene : scene + 1])[0])


def open_corpus(folder: Path, seed: int, count: int, world: World, coarseness: Coarseness, workers: int) -> Corpus:
    """Open the corpus in ``folder``; draw it first if it is not there.

    Raises ``ValueError`` if the folder holds a corpus that was drawn with other settings.
    """
    settings = {"seed": seed, "count": count, "world": asdict(world), "coarseness": asdict(coarseness)}
    described = json.dumps(settings, sort_keys=True)
    record = folder / "corpus.json"
    if not record.exists():
        _draw(folder, seed, count, world, coarseness, workers, described)
    elif record.read_text() != described:
        raise ValueError(f"{folder}: holds a corpus drawn with other settings; name another folder or delete it")
    return Corpus(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        packed=np.load(folder / "packed.npy", mmap_mode="r"),
        first=np.load(folder / "first.npy"),
        background=np.load(folder / "background.npy", mmap_mode="r"),
    )


def _draw(
    folder: Path, seed: int, count: int, world: World, coarseness: Coarseness, workers: int, described: str
) -> None:
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    side = world.side
    images = np.lib.format.open_memmap(aside / "images.npy", "w+", np.uint8, (count, side, side, 3))
    background = np.lib.format.open_memmap(aside / "background.npy", "w+", np.uint8, (count, TARGET_SIDE**2 // 8))
    packed, first = [], [0]
    chunks = [(seed, start, min(64, count - start), world, coarseness) for start in range(0, count, 64)]
    with Stage("drawing the corpus", count, "scene") as stage:
        for (_, start, size, _, _), drawn in zip(chunks, _draw_all(chunks, workers), strict=True):
            images[start : start + size], background[start : start + size] = drawn[0], drawn[1]
            for rows in drawn[2]:
                packed.append(rows)
                first.append(first[-1] + len(rows))
            stage.advance(size)
    images.flush()
    background.flush()
    np.save(aside / "packed.npy", np.concatenate(packed))
    np.save(aside / "first.npy", np.asarray(first, np.int64))
    (aside / "corpus.json").write_text(described)
    os.rename(aside, folder)


def _draw_all(chunks: Sequence[Chunk], workers: int) -> Iterator[Drawn]:
    """Draw chunks in as many processes as have something to do; a single one is this."""
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from map(_draw_chunk, chunks)
        return
    context = get_context("spawn")  # a fork of a process that has threads can hang
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        yield from pool.map(_draw_chunk, chunks)


def _draw_chunk(chunk: Chunk) -> Drawn:
    seed, start, count, world, coarseness = chunk
    images, empty, packed = [], [], []
    for index in range(start, start + count):
        scene = make_scene(seed, index, world)
        images.append(scene.image)
        empty.append(_pack(_halve((scene.entities == 0)[None]))[0])
        packed.append(_pack(_halve(coarse_masks(scene, coarseness))))
    return np.stack(images), np.stack(empty), packed


def _halve(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Bring bool (K, S, S) to (K, TARGET_SIDE, TARGET_SIDE): set where at least half of the block is."""
    count, side, _ = masks.shape
    block = side // TARGET_SIDE
    blocks = masks.reshape(count, TARGET_SIDE, block, TARGET_SIDE, block)
    return np.asarray(blocks.sum((2, 4)) * 2 >= block * block)


def _pack(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.packbits(masks.reshape(len(masks), TARGET_SIDE**2), axis=1)


def _unpack(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    bits = np.unpackbits(rows, axis=1)
    return bits.reshape(len(rows), TARGET_SIDE, TARGET_SIDE).astype(bool)
