"""`trainer fit` from top to bottom: shards and human masks in, SUM out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.errors import CheckpointError, InputError, SettingsError
from sum_factory.shared.precision import PrecisionSetting, Resolved, resolve, warn_if_emulated
from sum_factory.shared.progress import Stage, hushed
from sum_factory.shared.sam.architecture import meta_state
from sum_factory.shared.sam.attention import attend_in_pieces
from sum_factory.shared.sam.checkpoint import LoadedSam, load_sam, to_safetensors
from sum_factory.shared.sam.settings import TASKS, WEIGHTS_FILE
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.shared.sam.upstream import Sam
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.activations import recompute_blocks
from sum_factory.trainer.batch import Sums, backpropagate, keep_company, no_masks
from sum_factory.trainer.data.coded import Sample
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.pseudo import UNSPECIFIED, PseudoSet
from sum_factory.trainer.data.samples import SampleSettings
from sum_factory.trainer.data.sets import check_sets, folder_of_set, how_read, open_set
from sum_factory.trainer.data.stream import HumanStream, MixedStream, PseudoStream
from sum_factory.trainer.methods.addition import Addition, Student, state_of
from sum_factory.trainer.optimizer import make_optimizer, parameters_of, set_learning_rate, take_step
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.closing import judge_closing
from sum_factory.trainer.run.distributed import Ranks, join_ranks
from sum_factory.trainer.run.gradients import GradientSum
from sum_factory.trainer.run.loop import Run, Scores, software
from sum_factory.trainer.run.sharding import gathered, put_together, shard_blocks
from sum_factory.trainer.run.trackers import require_tracker
from sum_factory.trainer.run.validation import score_name, validate
from sum_factory.trainer.shown import pictures_of, samples_to_show
from sum_factory.trainer.variants import prepare, trainable, variants
from sum_factory.trainer.variants.load import require_no_hq
from sum_factory.trainer.variants.trained_weights import header_of_trained

SHOWN = 2
"""Photos of each stream of which TensorBoard shows predictions."""


@dataclass(frozen=True)
class FitSummary:
    """What a run did: the steps that were done when it began and when it ended, its seconds, and their share that it
    waited for data."""

    first_step: int
    steps: int
    seconds: float
    data_wait: float

    def lines(self) -> str:
        """Return the summary for people."""
        if self.first_step == self.steps:
            return f"{self.steps} of {self.steps} steps present, nothing to do"
        done = self.steps - self.first_step
        return (
            f"{done} steps in {self.seconds:.0f} s ({self.seconds / done:.2f} s each, "
            f"{100 * self.data_wait:.1f} % of it waiting for data)"
        )


@dataclass
class Model:
    """What is trained: SAM, and the task prompt unless the method has none."""

    loaded: LoadedSam
    sam: Sam
    task_prompt: TaskPrompt | None
    optimizer: torch.optim.Optimizer
    gradients: GradientSum
    addition: Addition
    saves_all_of_sam: bool = True
    """Whether all of SAM is saved, or what was trained alone."""
    is_sharded: bool = False
    """Whether the encoder's blocks are spread over processes."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that are saved, under their own names: SAM's or those of them that are trained, and the table of
        the task prompt."""
        state: dict[str, Tensor] = dict(self.sam.state_dict() if self.saves_all_of_sam else trainable(self.sam))
        return state if self.task_prompt is None else {**state, STATE_KEY: self.task_prompt.weight}

    def as_loaded(self, header: Mapping[str, Any]) -> LoadedSam:
        """Return the model as evaluation takes it."""
        tasks = tuple(header["trained_tasks"])
        return replace(self.loaded, sam=self.sam, task_prompt=self.task_prompt, trained_tasks=tasks)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained, in the optimizer's order."""
        return parameters_of(self.optimizer)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to go on after ``done`` steps: what it trains, on which data, and where it is saved."""

    recipe: Recipe
    ranks: Ranks
    model: Model
    human: Sequence[HumanSet]
    stream: MixedStream
    header: Mapping[str, Any]
    run: Run
    done: int

    def take_step(self, samples: Sequence[Sample], step: int) -> dict[str, Any]:
        """Take a step; return what to log."""
        return train_step(self.recipe, self.model, samples, step, self.ranks)


@contextmanager
def prepared(recipe: Recipe, out: Path) -> Iterator[Prepared]:
    """Join the other processes, open data and weights, and load the last checkpoint in ``out`` if there is one.

    Nothing is written. Raises ``SumError`` if data, weights or settings are wrong, or differ from those that the run
    began with.
    """
    require_tracker(recipe.tracker)
    tune_malloc()
    with join_ranks(recipe.device) as ranks:
        precision = agree_on_precision(recipe.precision, ranks)
        if ranks.leads:
            warn_if_emulated(precision, ranks.device)
        recipe = replace(recipe, precision=precision.name)
        with hushed(not ranks.leads):
            human = [open_set(each) for each in recipe.human]
            check_sets(recipe.validation.sets if recipe.validation is not None else ())
        model = make_model(recipe, ranks)
        stream = open_stream(recipe, int(model.sam.image_encoder.img_size), ranks, human)
        identity = identity_of(recipe, model, stream)
        header = header_of(recipe, model, identity)
        checkpoints, every = Checkpoints(out, recipe.checkpoint.keep, ranks.count), recipe.checkpoint.every
        state = model.weights, state_of(model.optimizer, model.addition)
        told = about(recipe, model, stream)
        run = Run(checkpoints, recipe.steps, every, *state, identity, header, ranks, about=told, tracker=recipe.tracker)
        yield Prepared(recipe, ranks, model, human, stream, header, run, run.resume(precision))


def fit(recipe: Recipe, out: str | Path, say: Callable[[str], None] = click.echo) -> FitSummary:
    """Train as ``recipe`` says into the folder ``out``, from its last checkpoint on if there is one.

    All is done in this process, with as many threads as torch has. `trainer fit` calls it in each of its processes.
    Raises ``SumError`` as ``prepared``, and if a step cannot be taken or saved.
    """
    out = Path(out)
    with prepared(recipe, out) as ready:
        recipe, ranks, model, done = ready.recipe, ready.ranks, ready.model, ready.done
        if ranks.leads:
            say(describe(recipe, model, ready.stream, done))
        shown = samples_to_show(ready.stream, SHOWN) if ranks.leads and done < recipe.steps else {}
        started = time.perf_counter()
        ready.run.go_on(
            done,
            ready.stream,
            ready.take_step,
            lambda step: validation_after(step, recipe, model, ready.header, ranks),
            lambda step: pictures_of(recipe, model, shown),
        )
        weights = gathered(model.weights, ranks)
        if ranks.leads:
            with Stage("writing the weights"):
                final = to_safetensors(model.addition.final(weights), {**ready.header, "step": recipe.steps})
                Storage(str(out)).write(WEIGHTS_FILE, final)
        seconds = time.perf_counter() - started
        if ranks.leads and done < recipe.steps:
            judge_closing(recipe, out, ranks.device, say)
        return FitSummary(done, recipe.steps, seconds, ready.stream.waited / max(seconds, 1e-9))


def agree_on_precision(asked: PrecisionSetting, ranks: Ranks) -> Resolved:
    """Return the precision of all processes: "auto" is bf16 only where it is bf16 on the device of each of them."""
    own = resolve(asked, ranks.device)
    if asked != "auto" or ranks.sum_numbers([own.name == "bf16"])[0] in (0, ranks.count):
        return own
    return Resolved(asked, "fp32", "auto is fp32 where not every process has a device with bfloat16")


def make_model(recipe: Recipe, ranks: Ranks) -> Model:
    """Load the SAM that is to be trained; only the weights that the variant trains get gradients."""
    require_no_hq(recipe.sam)
    loaded = load_sam(recipe.sam)
    prepare(loaded.sam, recipe.variant, recipe.settings_of_variant, recipe.seed)
    attend_in_pieces(loaded.sam.image_encoder)
    device = ranks.device
    sam = loaded.sam.to(device)
    task_prompt = make_task_prompt(recipe, loaded, device)
    addition = recipe.chosen_method.addition(Student(sam, task_prompt, recipe), recipe.settings_of_method)
    if recipe.fsdp and addition.state_dict():
        raise SettingsError(
            f"the method {recipe.method} keeps a state beside the weights, which is not spread over processes: leave "
            "fsdp out"
        )
    if recipe.activation_checkpointing:
        recompute_blocks(sam.image_encoder)
    if recipe.fsdp:
        shard_blocks(sam.image_encoder, ranks)
    optimizer = make_optimizer(sam, task_prompt, recipe.optimizer, addition.companion)
    gradients = GradientSum(parameters_of(optimizer), ranks)
    is_sharded = recipe.fsdp and ranks.count > 1
    saves_all_of_sam = variants()[recipe.variant].saves_all_of_sam
    return Model(loaded, sam, task_prompt, optimizer, gradients, addition, saves_all_of_sam, is_sharded)


def make_task_prompt(recipe: Recipe, loaded: LoadedSam, device: torch.device) -> TaskPrompt | None:
    """Return the task prompt that is trained, None if the method has none; refuse weights that have one then."""
    if recipe.chosen_method.task_prompt != "none":
        return (loaded.task_prompt or TaskPrompt(loaded.architecture.prompt_dim)).to(device)
    if loaded.task_prompt is not None:
        raise CheckpointError(
            f"{recipe.sam}: has a task prompt, which {recipe.method} does without; start from plain SAM "
            "(`trainer export` makes one of it, with the vector of one task folded in)"
        )
    return None


def open_stream(recipe: Recipe, side: int, ranks: Ranks, human: Sequence[HumanSet] | None = None) -> MixedStream:
    """Open the data that the method reads: human sets, unless they are given, and shards unless it uses none."""
    sampled = SampleSettings(side, recipe.stride, recipe.masks, recipe.seed, recipe.target)
    human = [open_set(each) for each in recipe.human] if human is None else human
    streams: dict[str, HumanStream | PseudoStream] = {"human": HumanStream(human, sampled)}
    method = recipe.chosen_method
    if method.reads_pseudo_labels:
        if recipe.shards is None:
            raise InputError(
                f"the method {recipe.method} trains on pseudo-labels: give --shards, made by `labelgen run`"
            )
        shards = open_shards(recipe.shards, recipe.cache.make(), recipe.relocation)
        streams["pseudo"] = PseudoStream(PseudoSet(shards, recipe.layer, method, sampled))
    return MixedStream(
        streams,
        recipe.streams,
        recipe.batch,
        ranks.rank,
        ranks.count,
        together=recipe.micro_batch,
        threads=recipe.data_threads,
        partners=method.reads_partners,
    )


def identity_of(recipe: Recipe, model: Model, stream: MixedStream) -> dict[str, Any]:
    """Return what decides the result, but for the content of files of human masks; a run can only be resumed with the
    same."""
    human = [how_read(each) for each in recipe.human]
    data = {f"{name}_data": each.order.identity for name, each in stream.streams.items()}
    layers = {
        name: recorded
        for each in stream.streams.values()
        if isinstance(each, PseudoStream)
        for name, recorded in each.pseudo.recorded.items()
    }
    read = {"human_settings": human} if any(human) else {}
    return {**recipe.identity(), "sam_sha256": model.loaded.sha256, **data, **read, **layers}


def header_of(recipe: Recipe, model: Model, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what the header of the weights says: how they were made, and which tasks have a vector of their own."""
    trained = {*model.loaded.trained_tasks, *(each.task for each in recipe.human)}
    if recipe.chosen_method.reads_pseudo_labels:
        trained.add(TASKS[UNSPECIFIED])
    of_trained = header_of_trained(recipe.variant, recipe.settings_of_variant, recipe.sam, model.loaded)
    return {
        "kind": "sum",
        "model_type": model.loaded.architecture.name,
        "trained_tasks": sorted(trained, key=TASKS.index) if model.task_prompt is not None else [],
        "software": software(),
        "run": identity,
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters),
        **({} if model.saves_all_of_sam else of_trained),
    }


def describe(recipe: Recipe, model: Model, stream: MixedStream, done: int) -> str:
    """Say what is about to be trained on what."""
    sizes = ", ".join(f"{len(each.order)} {name} photos" for name, each in stream.streams.items())
    count = sum(parameter.numel() for parameter in model.parameters)
    total = sum(value.numel() for value in meta_state(model.loaded.architecture).values())
    start = f"from step {done}" if done else "from the start"
    return (
        f"{recipe.method}, variant {recipe.variant}: {count:,} parameters are trained ({100 * count / total:.2f} % of "
        f"{model.loaded.architecture.name}'s {total:,}) on {model.sam.device} in {recipe.computed_in}; {sizes}; "
        f"{recipe.steps} steps of {recipe.photos_of(done)}, {start}"
    )


def about(recipe: Recipe, model: Model, stream: MixedStream) -> dict[str, str]:
    """Return what `trainer runs` tells of the run: its method, variant, model and data, and the name of its score."""
    data = [each.name or folder_of_set(each).name for each in recipe.human]
    for each in stream.streams.values():
        if isinstance(each, PseudoStream):
            data.append(each.pseudo.shards.storage.url.rstrip("/").rpartition("/")[2])
    told = {"method": recipe.method, "variant": recipe.variant, "model": model.loaded.architecture.name}
    told["data"] = " + ".join(data)
    return told if recipe.validation is None else {**told, "score": score_name(recipe.validation)}


def validation_after(step: int, recipe: Recipe, model: Model, header: Mapping[str, Any], ranks: Ranks) -> Scores | None:
    """Return the score and what to log of it, or None if no validation is due after this step."""
    if recipe.validation is None or step % recipe.validation.every:
        return None
    always = recipe.chosen_method.task_prompt == "all"
    with put_together(model.sam.image_encoder):
        return validate(model.as_loaded(header), recipe.validation, always, recipe.computed_in, ranks)


def train_step(recipe: Recipe, model: Model, samples: Sequence[Sample], step: int, ranks: Ranks) -> dict[str, Any]:
    """Take one optimizer step on the mixed batch; return what to log.

    Raises ``InputError``, before the weights are changed, if no process has a mask to train on.
    """
    rate = set_learning_rate(model.optimizer, recipe.optimizer, step - 1, recipe.steps)
    model.gradients.clear()
    sums = Sums(recipe.rounds)
    for micro_batch in micro_batches(recipe, samples, ranks):
        on_device = [sample.on(model.sam.device) for sample in micro_batch]
        sums.counts["skipped"] += sum(sample.skipped for sample in on_device)
        lesson = model.addition.lesson(on_device, step)
        if lesson is not None:
            settings, judged = recipe.interactive, (lesson.judge, lesson.extra)
            photos, precision = recipe.photos_of(step - 1), recipe.computed_in
            backpropagate(model.sam, model.task_prompt, lesson.batch, settings, photos, sums, precision, *judged)
        elif model.is_sharded:
            keep_company(model.sam, recipe.computed_in)
        model.gradients.add()
    total = Sums.from_list(ranks.sum_numbers(sums.to_list()), recipe.rounds)
    if not total.counts["masks"]:
        raise InputError(
            no_masks(step, recipe.photos_of(step - 1), int(total.counts["skipped"]), [each.key for each in samples])
        )
    model.gradients.finish()
    norm = take_step(model.optimizer, recipe.optimizer, step)
    model.addition.after_step(step, ranks)
    return {**total.means(), "gradient_norm": norm, "learning_rate": rate}


def micro_batches(recipe: Recipe, samples: Sequence[Sample], ranks: Ranks) -> list[Sequence[Sample]]:
    """Return what goes through the model together: as many batches in each process, the last ones perhaps empty."""
    count = ceil(ceil(recipe.batch / ranks.count) / recipe.micro_batch)
    return [samples[number * recipe.micro_batch : (number + 1) * recipe.micro_batch] for number in range(count)]
