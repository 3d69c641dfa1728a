"""Pre-train ``vit_micro`` on coarse entity and part masks of the micro-world, interactively, from scratch.

    python -m pipelines.microworld.pretrain --out runs/vit_micro            # a few hours on two cores; resumable

The model is left as SAM's data engine left SAM: it has never seen a thin structure annotated, nor a group of
entities as one mask. Each step encodes a few scenes, prompts every one with points and boxes, and goes on with
clicks at the errors and the previous logits as mask prompt. Each round is backpropagated at once into the gradient
of the image embedding, so that memory does not grow with the rounds.

Two processes of one thread each share every batch and average their gradients: on two cores that was faster than one
process of two threads. The result depends on the number of processes, and on how the kind of processor rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.pipelines.microworld.corpus import TARGET_SIDE, Corpus, open_corpus
from sum_factory.pipelines.microworld.damage import damaged_logits
from sum_factory.pipelines.microworld.interaction import (
    ANYWHERE,
    STRIDE,
    best_iou,
    correct,
    mask_loss,
    output_iou,
    upsample,
)
from sum_factory.pipelines.microworld.muon import Muon
from sum_factory.pipelines.microworld.picture import PictureHead
from sum_factory.pipelines.microworld.pretrain_settings import PretrainSettings
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.precision import Precision, PrecisionSetting, autocast, precision_option, resolve, settle
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.decode import BOX_MIN, Prompts, decode_prompts, dense_positions
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.prompts import first_prompts
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import Ranks, join_ranks, run_on_ranks
from sum_factory.trainer.run.loop import Run

BETAS = (0.9, 0.95)
DEVICE = torch.device("cpu")
WEIGHTS = "vit_micro.safetensors"


@dataclass(frozen=True)
class Batch:
    """B images float32 (B, 3, S, S) in 0..255, and the targets bool (P, T, T) of P prompts.

    ``empty`` marks, bool (P,), the prompts on background; there ``targets`` holds the background.
    """

    images: Tensor
    image_index: Tensor
    targets: Tensor
    empty: Tensor


def load_batch(corpus: Corpus, settings: PretrainSettings, step: int, ranks: Ranks) -> Batch:
    """Load a rank's images of the batch of ``step``, from 0: a pure function of its arguments."""
    images, index, targets, empty = [], [], [], []
    steps_per_epoch = len(corpus.images) // settings.images
    epoch, position = divmod(step, steps_per_epoch)
    order = np.random.default_rng([settings.seed, 1_000_003 + epoch]).permutation(len(corpus.images))
    scenes = order[position * settings.images : (position + 1) * settings.images]
    for b, scene in enumerate(scenes[ranks.rank :: ranks.count]):
        rng = np.random.default_rng([settings.seed, step, int(scene)])
        image, masks = corpus.images[scene], corpus.masks(int(scene))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        picked = masks[rng.permutation(len(masks))[: settings.masks]]
        repeats = [picked[i % len(picked)] for i in range(settings.masks)] if len(picked) else []
        background = [corpus.empty_pixels(int(scene))] * settings.empty_prompts
        stacked = _turn(np.stack(repeats + background), turns, flip)
        images.append(_jitter(_turn(image[None], turns, flip)[0], rng))
        targets.append(stacked)
        index += [b] * len(stacked)
        empty += [False] * len(repeats) + [True] * len(background)
    return Batch(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(index),
        torch.from_numpy(np.concatenate(targets)),
        torch.tensor(empty),
    )


def _turn(stack: npt.NDArray[Any], turns: int, flip: bool) -> npt.NDArray[Any]:
    stack = np.rot90(stack, turns, (1, 2))
    return np.ascontiguousarray(stack[:, :, ::-1] if flip else stack)


def _jitter(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Change brightness, contrast and colour balance a little."""
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
    offset = rng.uniform(-15, 15)
    return np.clip((image - 128.0) * gain + 128.0 + offset, 0, 255).astype(np.float32)


@dataclass
class BatchStream:
    """Gives a rank's batch of each step, loaded when it is asked for. ``waited`` sums the seconds that this took."""

    corpus: Corpus
    settings: PretrainSettings
    ranks: Ranks
    waited: float = 0.0

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps ``first`` to ``last`` - 1."""
        for step in range(first, last):
            started = time.perf_counter()
            batch = load_batch(self.corpus, self.settings, step, self.ranks)
            self.waited += time.perf_counter() - started
            yield batch


class Optimizers:
    """Optimizers that take their steps together, and whose states are saved as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of parameters of all."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, rate: float) -> None:
        """Take a step at a learning rate, and forget the gradients."""
        for group in self.groups:
            group["lr"] = rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring all to the states that ``state_dict`` holds."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)


class Pretraining:
    """The model, its optimizers, and the steps that they take."""

    def __init__(self, settings: PretrainSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.precision = resolve(settings.precision, DEVICE).name
        torch.manual_seed(settings.seed)
        if settings.weights is None:
            self.sam = initialise(build_architecture(ARCHITECTURES["vit_micro"]))
        else:
            self.sam = load_sam(settings.weights).sam
        self.head = PictureHead(ARCHITECTURES["vit_micro"].prompt_dim) if settings.picture_weight else None
        self.optimizers = make_optimizers(self.sam, self.head, settings, self.precision)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [*self.sam.parameters(), *(self.head.parameters() if self.head is not None else ())]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: SAM's under their own names, and those of the head that draws pictures."""
        return {**self.sam.state_dict(), **(self.head.state_dict(prefix="head.") if self.head is not None else {})}

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0: warm-up, constant, linear decay."""
        s = self.settings
        left = (s.steps - step) / max(1.0, s.decay * s.steps)
        return s.learning_rate * min(1.0, (step + 1) / s.warmup, left)

    def train_step(self, batch: Batch, number: int) -> dict[str, float]:
        """Take an optimizer step, the first of which is number 1, on all rounds of a batch; return what to log."""
        s, step = self.settings, number - 1
        seed = (s.seed * 1_000_003 + step) * self.ranks.count + self.ranks.rank
        generator = torch.Generator().manual_seed(seed)
        rounds = 1 if step < s.single_round_steps else s.rounds
        self.sam.train()
        images = (batch.images - self.sam.pixel_mean) / self.sam.pixel_std
        with autocast(DEVICE.type, self.precision):
            embedding = self.sam.image_encoder(images)
        leaf = embedding.detach().float().requires_grad_()
        log = self.interact(batch, leaf, rounds, max(0.0, 1 - step / s.balanced_steps), generator)
        if self.head is not None:
            error = self.head(leaf, images)
            (s.picture_weight * error).backward()
            log["picture"] = float(error.detach())
        embedding.backward(leaf.grad.to(embedding.dtype))
        average_gradients(self.parameters, self.ranks)
        log["norm"] = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        self.optimizers.step(self.learning_rate(step))
        return {**log, "lr": self.learning_rate(step)}

    def interact(
        self, batch: Batch, leaf: Tensor, rounds: int, balance: float, generator: torch.Generator
    ) -> dict[str, float]:
        """Play the rounds on ``leaf`` (B, C, g, g), accumulating gradients; return loss and IoU of every round.

        ``balance`` is how far classes are balanced in the cross-entropy, 0 to 1.
        """
        s = self.settings
        shares = torch.where(batch.empty, 0.0, s.box_share)
        prompts = first_prompts(batch.targets, ANYWHERE, shares, STRIDE, TARGET_SIDE * STRIDE, generator)
        targets, empty, image_index = batch.targets, batch.empty, batch.image_index
        log = {}
        for number in range(rounds):
            with autocast(DEVICE.type, self.precision):
                logits, predicted_iou = decode_prompts(self.sam, leaf, image_index, prompts, dense_positions(self.sam))
            logits, predicted_iou = logits.float(), predicted_iou.float()
            with torch.no_grad():
                large = upsample(logits)
                iou = output_iou(large, targets)
            boxed = (prompts.token_types == BOX_MIN).any(1)
            several = number == 0
            quality = torch.where(boxed[:, None], iou, best_iou(large, targets, image_index, empty)) if several else iou
            best = 1 + iou[:, 1:].argmax(1) if several else torch.zeros_like(image_index)
            row = torch.arange(len(best))
            chosen = upsample(logits[row, best][:, None])[:, 0]
            losses = mask_loss(chosen / s.temperature, targets, balance)
            loss = losses[~empty].mean()
            if several and boxed.any():
                single = upsample(logits[boxed, :1])[:, 0]
                loss = loss + mask_loss(single / s.temperature, targets[boxed], balance).sum() / len(losses)
            outputs = slice(None) if several else slice(0, 1)
            loss = loss + s.iou_weight * F.mse_loss(predicted_iou[:, outputs], quality[:, outputs])
            (loss / rounds).backward()  # type: ignore[no-untyped-call]
            log[f"iou_{number + 1}"] = float(iou[row, best][~empty].mean())
            log[f"loss_{number + 1}"] = float(loss.detach())
            if several:  # go on with what inference would go on with; prompts on nothing stop here
                believed = predicted_iou.detach()[:, 1:].argmax(1) + 1
                keep = ~empty & (torch.rand(len(empty), generator=generator) < s.corrected_share)
                mask_prompts = logits.detach()[row, believed][keep][:, None]
                targets, image_index, empty = targets[keep], image_index[keep], empty[keep]
                prompts = Prompts(prompts.coords[keep], prompts.token_types[keep])
                if s.damaged_share:
                    replaced = torch.rand(len(mask_prompts), generator=generator) < s.damaged_share
                    mask_prompts[replaced] = damaged_logits(targets[replaced], mask_prompts.shape[-1], generator)
            else:
                mask_prompts = logits.detach()[:, :1]
            if number + 1 < rounds:
                prompts = correct(prompts, upsample(mask_prompts)[:, 0], targets, generator).with_mask(mask_prompts)
        return {"loss": sum(log[f"loss_{number + 1}"] for number in range(rounds)) / rounds, **log}


def average_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Replace every gradient by its mean over the processes; one that a process lacks is 0 there."""
    if ranks.count == 1:
        return
    gradients = []
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append(parameter.grad)
    ranks.sum_gradients(parameters)
    torch._foreach_div_(gradients, ranks.count)


def make_optimizers(sam: Sam, head: PictureHead | None, settings: PretrainSettings, precision: Precision) -> Optimizers:
    """Return Muon for the matrices of the transformers and AdamW for everything else.

    In the first 250 steps Muon gets from 0 to an IoU of 0.34 where AdamW alone gets to 0.24.
    """
    named = dict(sam.named_parameters())
    matrices = {
        name: parameter
        for name, parameter in named.items()
        if parameter.ndim == 2 and ("blocks" in name or "transformer.layers" in name) and "rel_pos" not in name
    }
    others = [parameter for name, parameter in named.items() if name not in matrices]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim >= 2]},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate, decay = settings.learning_rate, settings.weight_decay
    return Optimizers(
        torch.optim.AdamW(groups, rate, BETAS, weight_decay=decay),
        Muon(matrices.values(), rate, decay, precision),
        *([] if head is None else [torch.optim.AdamW(head.parameters(), rate, BETAS)]),
    )


def initialise(sam: Sam) -> Sam:
    """Give the encoder the usual ViT initialisation, from which it learns faster than from torch's default."""
    for module in sam.image_encoder.blocks.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.trunc_normal_(module.weight, std=0.02)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    return sam


def export_weights(sam: Sam, path: Path) -> None:
    """Write the weights as fp16 safetensors, whole or not at all."""
    aside = path.with_suffix(".partial")
    save_file({name: value.half().contiguous() for name, value in sam.state_dict().items()}, aside)
    os.replace(aside, path)


def pretrain(
    settings: PretrainSettings, out: Path, processes: int, corpus_folder: Path | None = None, save_every: int = 100
) -> Path:
    """Train into ``out`` in so many processes, from the last checkpoint there on if there is one; return the weights.

    Scenes are drawn into ``corpus_folder`` first, by default a folder of ``out``. What has been trained to its end is
    left as it is. Raises ``SettingsDifferError`` if ``out`` was trained with other settings, or in another precision.
    """
    precision = settle(settings.precision, DEVICE)
    settings, weights = replace(settings, precision=precision.name), out / WEIGHTS
    done = checkpoints_of(out, processes).find(settings.steps, identity_of(settings, processes), precision)
    if done == settings.steps and weights.exists():
        return weights
    folder = corpus_folder or out / "corpus"
    draw_corpus(settings, folder, processes)
    arguments = (settings, folder, out, save_every)
    if processes == 1:
        train(*arguments)
    else:
        run_on_ranks(train, arguments, processes, cores=processes)
    return weights


def checkpoints_of(out: Path, processes: int) -> Checkpoints:
    """Return the checkpoints of a pre-training, of which the last is kept."""
    return Checkpoints(out, 1, processes, precision_option="--precision {0}")


def identity_of(settings: PretrainSettings, processes: int) -> dict[str, Any]:
    """Return all that decides the result: a run is resumed with these unchanged."""
    return {**asdict(settings), "ranks": processes}


def draw_corpus(settings: PretrainSettings, folder: Path, workers: int) -> Corpus:
    """Open the scenes that are trained on; draw them first if they are not there."""
    return open_corpus(folder, settings.world_seed, settings.scenes, settings.world, settings.coarseness, workers)


def train(settings: PretrainSettings, corpus_folder: Path, out: Path, save_every: int) -> None:
    """Train to the last step, from the last checkpoint on if there is one, and export the weights."""
    tune_malloc()
    with join_ranks(DEVICE.type) as ranks:
        stream = BatchStream(draw_corpus(settings, corpus_folder, 1), settings, ranks)
        model = Pretraining(settings, ranks)
        identity, precision = identity_of(settings, ranks.count), resolve(settings.precision, DEVICE)
        header = {"kind": "pre-training checkpoint", "run": identity}
        checkpoints = checkpoints_of(out, ranks.count)
        state = model.weights, model.optimizers
        run = Run(checkpoints, settings.steps, save_every, *state, identity, header, ranks, "pre-training")
        run.go_on(run.resume(precision), stream, model.train_step)
        if ranks.leads:
            export_weights(model.sam, out / WEIGHTS)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints, log and weights.")
@click.option("--corpus", "corpus_folder", type=click.Path(path_type=Path), help="Drawn scenes [default: OUT/corpus].")
@click.option("--steps", type=int, default=PretrainSettings.steps, show_default=True)
@click.option("--scenes", type=int, default=PretrainSettings.scenes, show_default=True)
@click.option("--ranks", type=int, default=2, show_default=True, help="Processes that share each batch.")
@click.option("--save-every", type=int, default=100, show_default=True)
@precision_option(PretrainSettings.precision, "auto is bf16 where the processor has instructions for it, else fp32.")
def main(
    out: Path,
    corpus_folder: Path | None,
    steps: int,
    scenes: int,
    ranks: int,
    save_every: int,
    precision: PrecisionSetting,
) -> None:
    """Pre-train vit_micro from scratch; run again to resume."""
    settings = PretrainSettings(steps=steps, scenes=scenes, precision=precision)
    weights = pretrain(settings, out.absolute(), ranks, corpus_folder, save_every)
    click.echo(f"wrote {weights}")


if __name__ == "__main__":
    main()
