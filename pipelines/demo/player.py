"""Models that play on the same scenes, side by side, as pages of pictures show them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor

from sum_factory.pipelines.microworld.sets import describe_set
from sum_factory.shared.images import RgbImage
from sum_factory.shared.masks import Mask
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.runtime import Embedder
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import Task, open_set
from sum_factory.trainer.evaluation.protocol import Played, play_image
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.predict import UserPrompt, draw_prediction

CLICKS_SHOWN = 3


class Player:
    """A model that plays on scenes of one set; each is embedded once, whatever is asked about it."""

    def __init__(self, model: LoadedSam) -> None:
        self.model = model
        self._embedder = Embedder(model.sam)
        self._embeddings: dict[str, Tensor] = {}

    def play(self, scene: HumanSample, target: Mask, task: Task) -> Played:
        """Return what the model reports for ``target``, bool (H, W), after the clicks that pages show."""
        if scene.key not in self._embeddings:
            self._embeddings[scene.key] = self._embedder.embed(scene.image)
        frame = Frame.whole(int(self.model.sam.image_encoder.img_size), *scene.image.shape[:2])
        vector, protocol = self.model.task_vector(task), Protocol(rounds=CLICKS_SHOWN)
        rounds = play_image(self.model.sam, self._embeddings[scene.key], vector, frame, target[None], "", protocol)
        return list(rounds)[-1]


def shown_targets(folder: Path, task: Task, count: int, least: float) -> Iterator[tuple[HumanSample, Mask]]:
    """Yield the first ``count`` scenes of ``write_sets`` in ``folder`` that have a mask of a task which covers the
    share ``least`` of them, with one such mask each."""
    return islice(_large_targets(folder, task, least), count)


def _large_targets(folder: Path, task: Task, least: float) -> Iterator[tuple[HumanSample, Mask]]:
    opened = open_set(describe_set(folder, task))
    for index in range(len(opened.keys)):
        scene = opened.load(index)
        large = [mask for mask in scene.masks if mask.mean() >= least]
        if large:
            yield scene, large[index % len(large)]


def draw_played(played: Played, image: RgbImage) -> RgbImage:
    """Draw the mask that a model reports, and the clicks that it got."""
    positive, negative = (
        tuple((float(click.x), float(click.y)) for click in played.clicks if click.positive is wanted)
        for wanted in (True, False)
    )
    return draw_prediction(image, played.mask, UserPrompt(positive, negative))
