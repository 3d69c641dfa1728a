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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.pipelines.microworld.batches import Batch, BatchStream
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
from sum_factory.pipelines.microworld.pretrain_settings import PHOTO_SETTINGS, PretrainSettings
from sum_factory.pipelines.photos.corpus import PhotoCorpus, open_photos
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.errors import SumError
from sum_factory.shared.precision import Precision, PrecisionSetting, autocast, precision_option, resolve, settle
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.decode import BOX_MIN, Prompts, decode_prompts, dense_positions
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.suites import read_suite
from sum_factory.trainer.prompts import first_prompts
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import Ranks, join_ranks, run_on_ranks
from sum_factory.trainer.run.loop import Run
from sum_factory.trainer.settings import change_settings, parse_variables

BETAS = (0.9, 0.95)
DEVICE = torch.device("cpu")
WEIGHTS = "vit_micro.safetensors"


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
                fed = best if s.fed_output == "best" else predicted_iou.detach()[:, 1:].argmax(1) + 1
                keep = ~empty & (torch.rand(len(empty), generator=generator) < s.corrected_share)
                mask_prompts = logits.detach()[row, fed][keep][:, None]
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
    settings: PretrainSettings,
    out: Path,
    processes: int,
    corpus_folder: Path | None = None,
    save_every: int = 100,
    photo_sets: Sequence[SetSettings] = (),
) -> Path:
    """Train into ``out`` in so many processes, from the last checkpoint there on if there is one; return the weights.

    Scenes are drawn into ``corpus_folder`` first, by default a folder of ``out``, and photos of ``photo_sets`` made
    small in another one. What has been trained to its end is left as it is. Raises ``SettingsDifferError`` if ``out``
    was trained with other settings or data, or in another precision, and ``InputError`` for sets that cannot be used.
    """
    precision = settle(settings.precision, DEVICE)
    settings, weights = replace(settings, precision=precision.name), out / WEIGHTS
    photos = open_photos(out / "photos", photo_sets, settings.coarseness) if photo_sets else None
    settings.require_enough(photos)
    done = checkpoints_of(out, processes).find(settings.steps, identity_of(settings, processes, photos), precision)
    if done == settings.steps and weights.exists():
        return weights
    folder = corpus_folder or out / "corpus"
    draw_corpus(settings, folder, processes)
    arguments = (settings, folder, out, save_every, photos)
    if processes == 1:
        train(*arguments)
    else:
        run_on_ranks(train, arguments, processes, cores=processes)
    return weights


def checkpoints_of(out: Path, processes: int) -> Checkpoints:
    """Return the checkpoints of a pre-training, of which the last is kept."""
    return Checkpoints(out, 1, processes, precision_option="--precision {0}")


def identity_of(settings: PretrainSettings, processes: int, photos: PhotoCorpus | None = None) -> dict[str, Any]:
    """Return all that decides the result: a run is resumed with these unchanged."""
    data = {} if photos is None else {"photo_corpus": photos.identity}
    return {**settings.identity(), "ranks": processes, **data}


def draw_corpus(settings: PretrainSettings, folder: Path, workers: int) -> Corpus:
    """Open the scenes that are trained on; draw them first if they are not there."""
    return open_corpus(folder, settings.world_seed, settings.scenes, settings.world, settings.coarseness, workers)


def train(
    settings: PretrainSettings, corpus_folder: Path, out: Path, save_every: int, photos: PhotoCorpus | None = None
) -> None:
    """Train to the last step, from the last checkpoint on if there is one, and export the weights."""
    tune_malloc()
    with join_ranks(DEVICE.type) as ranks:
        stream = BatchStream(draw_corpus(settings, corpus_folder, 1), settings, ranks, photos)
        model = Pretraining(settings, ranks)
        identity, precision = identity_of(settings, ranks.count, photos), resolve(settings.precision, DEVICE)
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
@click.option(
    "--steps", type=int, help=f"Steps [default: {PretrainSettings.steps}; with --photos {PHOTO_SETTINGS.steps}]."
)
@click.option(
    "--scenes",
    type=int,
    help=f"Scenes drawn [default: {PretrainSettings.scenes}; with --photos {PHOTO_SETTINGS.scenes}].",
)
@click.option("--ranks", type=int, default=2, show_default=True, help="Processes that share each batch.")
@click.option("--save-every", type=int, default=100, show_default=True)
@click.option("--weights", help="What training starts from: a file, or vit_micro [default: from scratch].")
@click.option(
    "--photos", "suite", help="A YAML file of sets of photos whose masks are learnt, too, once they are coarse."
)
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="Fills ${NAME} in --photos; repeatable.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change another setting; repeatable.")
@precision_option(PretrainSettings.precision, "auto is bf16 where the processor has instructions for it, else fp32.")
def main(
    out: Path,
    corpus_folder: Path | None,
    steps: int | None,
    scenes: int | None,
    ranks: int,
    save_every: int,
    weights: str | None,
    suite: str | None,
    variables: tuple[str, ...],
    changes: tuple[str, ...],
    precision: PrecisionSetting,
) -> None:
    """Pre-train vit_micro, from scratch or on; run again to resume."""
    given: dict[str, Any] = {"steps": steps, "scenes": scenes, "weights": weights, "precision": precision}
    try:
        sets = () if suite is None else read_suite(suite, parse_variables(variables)).sets
        settings = PretrainSettings() if suite is None else PHOTO_SETTINGS
        settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        settings = change_settings(settings, changes, "settings of pre-training")
        click.echo(f"wrote {pretrain(settings, out.absolute(), ranks, corpus_folder, save_every, sets)}")
    except SumError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
