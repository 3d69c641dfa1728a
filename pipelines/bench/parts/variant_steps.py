"""Steps of training of each variant, on the same photos, masks and prompts."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from sum_factory.pipelines.demo.plan import HUMAN_SEED
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.precision import Precision
from sum_factory.shared.progress import Stage, hushed
from sum_factory.shared.sam.architecture import ARCHITECTURES, NothingDrawn, build_architecture
from sum_factory.shared.sam.checkpoint import to_safetensors
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.data.coded import Sample
from sum_factory.trainer.data.sets import LabelMapsSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.training import Model, make_model, open_stream, train_step
from sum_factory.trainer.variants import prepare, trainable, variants


@dataclass(frozen=True)
class Workload:
    """What a step is taken on: scenes in ``folder``, the SAM below and the side of its input, and how much of it."""

    folder: Path
    sam: str
    side: int
    batch: int
    masks: int
    rounds: int
    device: str = "cpu"
    precision: Precision = "fp32"

    def recipe(self, variant: str) -> Recipe:
        """Return the run of a variant on human masks of entities."""
        images, labels = self.folder / "images", self.folder / "entity"
        return Recipe(
            human=(LabelMapsSettings("label-maps", images, labels, "entity", name="entity"),),
            sam=self.sam,
            method="human-only",
            variant=variant,
            steps=1_000,
            batch=self.batch,
            micro_batch=self.batch,
            masks=self.masks,
            rounds=self.rounds,
            optimizer=OptimizerSettings(learning_rate=1e-4),
            device=self.device,
            precision=self.precision,
            data_threads=1,
        )


@dataclass
class Steps:
    """The steps of a variant: their losses, and the seconds of processor time of those after the first."""

    recipe: Recipe
    model: Model
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def take(self, samples: Sequence[Sample], number: int) -> None:
        """Take step ``number``, from 1 on."""
        started = time.process_time()
        self.losses.append(train_step(self.recipe, self.model, samples, number, ALONE)["loss"])
        if number > 1:
            self.seconds.append(time.process_time() - started)


def write_workload(folder: Path, model: str, batch: int, masks: int, rounds: int) -> Workload:
    """Draw ``batch`` scenes into ``folder``, and random weights of a ``model`` that does not ship."""
    write_sets(folder, HUMAN_SEED, batch)
    sam = PACKAGED
    if model != PACKAGED:
        torch.manual_seed(0)
        sam = str(folder / f"{model}.safetensors")
        Path(sam).write_bytes(to_safetensors(build_architecture(ARCHITECTURES[model]).state_dict(), {}))
    return Workload(folder, sam, ARCHITECTURES[model].image_size, batch, masks, rounds)


def take_steps(workload: Workload, names: Sequence[str], repeats: int) -> dict[str, Steps]:
    """Take ``repeats`` steps of each variant after one that is not timed, in turn and on the same batches.

    Raises ``AssertionError`` if a weight that a variant does not train has changed.
    """
    taken = {name: begin(workload, name) for name in names}
    before = {name: {key: value.clone() for key, value in frozen(steps).items()} for name, steps in taken.items()}
    for number, samples in enumerate(_batches(workload, repeats + 1), 1):
        for name, steps in taken.items():
            with Stage(f"step {number} of {repeats + 1} of {name}"):
                steps.take(samples, number)
    for name, steps in taken.items():
        changed = [key for key, value in frozen(steps).items() if not torch.equal(value, before[name][key])]
        assert not changed, f"{name}: does not train {changed[0]}, which has changed"
    return taken


def begin(workload: Workload, name: str) -> Steps:
    """Return a variant before its first step."""
    recipe = workload.recipe(name)
    return Steps(recipe, make_model(recipe, ALONE))


def frozen(steps: Steps) -> dict[str, nn.Parameter]:
    """Return the parameters that are not trained."""
    return {key: value for key, value in steps.model.sam.named_parameters() if not value.requires_grad}


def _batches(workload: Workload, count: int) -> list[Sequence[Sample]]:
    with hushed(True):
        return list(open_stream(workload.recipe("full"), workload.side, ALONE).steps(0, count))


def peak_mb(workload: Workload, name: str) -> float:
    """Return what two steps of a variant add to the peak memory of this process, in MB: weights, gradients, the
    optimizer's moments and what a step keeps. Call it in a process that has done nothing else.
    """
    torch.set_num_threads(1)
    batches = _batches(workload, 2)
    before = _peak_mb()
    steps = begin(workload, name)
    for number, samples in enumerate(batches, 1):
        steps.take(samples, number)
    return _peak_mb() - before


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trained_parameters(model: str) -> Mapping[str, tuple[int, float]]:
    """Return how many parameters each variant trains of a model, and their share of that model's own; no weights are
    read or drawn."""
    counts = {}
    for name, variant in variants().items():
        with torch.device("meta"), NothingDrawn():
            sam = build_architecture(ARCHITECTURES[model])
            whole = sum(parameter.numel() for parameter in sam.parameters())
            prepare(sam, name, variant.settings(), 0)
        count = sum(parameter.numel() for parameter in trainable(sam).values())
        counts[name] = (count, count / whole)
    return counts
