"""AdamW with layer-wise learning rates, and the schedule (SUM, App. B.1)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from sum_factory.shared.errors import DivergedError
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.trainer.run.sharding import is_sharded, whole_norm

_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
_STEM = ("image_encoder.patch_embed.", "image_encoder.pos_embed")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class OptimizerSettings:
    """Settings of AdamW; the defaults are the paper's.

    ``schedule`` says what follows the linear warm-up: a constant rate, or a fall to 0 at the last step, linear or as a
    cosine.
    """

    learning_rate: float = Field(default=1e-5, gt=0)
    """Rate of the prompt encoder, the mask decoder and the encoder's neck. The encoder's blocks have less."""
    layer_decay: float = Field(default=0.8, gt=0, le=1)
    """Factor of the rate from one block of the image encoder to the one before it. 1 gives all blocks the same rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay. Biases, norms and the task prompt have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the running means of the gradients and of their squares."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all weights together. A larger gradient is scaled down to it."""
    warmup: int = Field(default=0, ge=0, le=10**9)
    """Steps at the start in which the rate rises linearly to its full value. 0 is none."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    """What follows the warm-up: a constant rate; a fall to 0 at the last step, linear or as a cosine; or step, a tenth
    of the rate after 10 of 12 parts of the steps, as HQ-SAM's training has it."""
    task_prompt_scale: float = Field(default=1.0, gt=0)
    """Factor of the rate for the task prompt. It starts at zero, so a short run needs more."""


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Return the factor of the learning rate of the parameter ``name`` of a SAM whose encoder has ``depth`` blocks.

    decay ** (depth - i) for block i, one more for patch embedding and positions, 1 for the neck and all that follows.
    """
    if name.startswith(_STEM):
        return decay ** (depth + 1)
    block = _BLOCK.match(name)
    return 1.0 if block is None else float(decay ** (depth - int(block[1])))


def make_optimizer(
    model: nn.Module, task_prompt: TaskPrompt | None, settings: OptimizerSettings, companion: nn.Module | None = None
) -> torch.optim.AdamW:
    """Make AdamW over the parameters of a SAM or a refiner that need gradients, and give each a gradient of 0.

    ``companion`` is what a method trains beside the model, if it trains anything.

    A parameter that a step does not reach then has a gradient of 0 instead of None, in every process that shares the
    step.

    Vectors (biases, norms) and the task prompt have no weight decay. Each group holds, beside what AdamW needs, its
    ``scale``, the factor of the learning rate.
    """
    blocks = (_BLOCK.match(name) for name, _ in model.named_parameters())
    depth = max((int(block[1]) + 1 for block in blocks if block is not None), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [*model.named_parameters(), *(() if companion is None else companion.named_parameters())]
    for name, parameter in named:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((layer_scale(name, depth, settings.layer_decay), decay), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "scale": scale, "weight_decay": decay} for (scale, decay), parameters in groups.items()
    ]
    if task_prompt is not None:
        task_prompt.weight.grad = torch.zeros_like(task_prompt.weight)
        listed.append({"params": [task_prompt.weight], "scale": settings.task_prompt_scale, "weight_decay": 0.0})
    mixed = any(is_sharded(parameter) for group in listed for parameter in group["params"])
    foreach = False if mixed else None  # all of a group at once, which PyTorch cannot if some are sharded
    return torch.optim.AdamW(listed, lr=settings.learning_rate, betas=settings.betas, foreach=foreach)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return all parameters, in the optimizer's order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int, steps: int) -> float:
    """Set every group's rate for ``step`` (counted from 0) of ``steps``; return the rate of scale 1."""
    rate = settings.learning_rate * schedule(settings, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def take_step(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int) -> float:
    """Clip the gradients of all groups together, take a step, and return their norm before clipping.

    Raises ``DivergedError``, before anything is changed, if it is not finite.
    """
    norm = _clip(parameters_of(optimizer), settings.clip_norm)
    if not math.isfinite(norm):
        raise DivergedError(
            f"step {step}: the gradient is {norm}; the last checkpoint is sound. Lower optimizer.learning_rate, or "
            "give --precision fp32, in another --out folder"
        )
    optimizer.step()
    return norm


def _clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Clip the gradients of all parameters together; return their norm before. PyTorch takes no mixture of parameters
    that are sharded over processes and others."""
    both = [[each for each in parameters if is_sharded(each) == sharded] for sharded in (False, True)]
    norms = [whole_norm(some) for some in both if some]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for some in both:
        nn.utils.clip_grads_with_norm_(some, most, norm)
    return float(norm)


def schedule(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Return the factor of the learning rate at ``step``, in (0, 1]."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    left = (steps - step) / max(1, steps - settings.warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "step":
            return 1.0 if 12 * step < 10 * steps else 0.1
        case "linear":
            return left
        case "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * left)
