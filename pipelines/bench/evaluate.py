"""How fast masks are judged: ``trainer.evaluation``, against one mask at a time over all of the photo.

    python -m pipelines.bench.evaluate [--quick]

On scenes of the micro-world at 1500 x 2250, with the packaged model, whose encoder has run before. Both sides play six
rounds from a point, with the same decoder. Processor time on one thread. The last line is a JSON object: by how much
the plain side takes longer, and whether both gave the same masks and scores, to the bit.
"""

from __future__ import annotations

import time
from itertools import islice

import click
import cv2
import numpy as np
import torch

from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.plain_evaluation import Mask, Score, play_plainly
from sum_factory.pipelines.microworld.scene import Scene, make_scenes
from sum_factory.shared.placement import Frame
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Embedder
from sum_factory.trainer.evaluation.protocol import play_image
from sum_factory.trainer.evaluation.settings import Protocol

HEIGHT, WIDTH = 1500, 2250
SEED = 22
LEAST = 1000
"""Pixels of the masks that are judged, at least."""
Outcome = list[tuple[Score, Mask]]


def enlarged(scene: Scene) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], list[Mask]]:
    """Return a scene's photo and its masks, of entities and of parts, smoothly brought to the benchmark's size."""
    image = cv2.resize(scene.image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    masks = np.concatenate([scene.masks("entity"), scene.masks("part")]).astype(np.float32)
    smooth = (cv2.resize(mask, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) > 0.5 for mask in masks)
    return np.asarray(image, np.uint8), [mask for mask in smooth if mask.sum() >= LEAST]


@click.command()
@click.option("--quick", is_flag=True, help="One scene, and eight masks of it at most.")
@click.option("--scenes", default=6, show_default=True)
@click.option("--rounds", default=6, show_default=True)
@torch.no_grad()
def main(quick: bool, scenes: int, rounds: int) -> None:
    """Compare both sides."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sam = load_sam().sam
    frame = Frame.whole(int(sam.image_encoder.img_size), HEIGHT, WIDTH)
    seconds = {"plain": 0.0, "ours": 0.0}
    equal, count = True, 0
    chosen = make_scenes(SEED, 0, 1 if quick else scenes)
    for number, scene in enumerate(track(list(chosen), "judging", "scene")):
        image, masks = enlarged(scene)
        masks = list(islice(masks, 8 if quick else len(masks)))
        embedding, targets = Embedder(sam).embed(image), np.stack(masks)
        if number == 0:
            list(play_image(sam, embedding, None, frame, targets[:1], "", Protocol(rounds=2)))  # compiles kernels
        started = time.process_time()
        plain = play_plainly(sam, embedding, masks, rounds)
        seconds["plain"] += time.process_time() - started
        started = time.process_time()
        played = list(play_image(sam, embedding, None, frame, targets, "", Protocol(rounds=rounds)))
        seconds["ours"] += time.process_time() - started
        count += len(masks)
        ours = [(tuple(vars(each.score).values()), each.mask) for each in played]
        equal &= all(a == c and np.array_equal(b, d) for (a, b), (c, d) in zip(plain, ours, strict=True))
    for name, taken in seconds.items():
        click.echo(f"{name:6} {1000 * taken / count / rounds:6.1f} ms per mask and round, {count} masks")
    click.echo(last_line({"ratio": round(seconds["plain"] / seconds["ours"], 2), "equal": equal}))
    assert equal, "both sides give the same masks and scores"


if __name__ == "__main__":
    main()
