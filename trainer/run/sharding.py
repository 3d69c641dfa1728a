"""Weights, gradients and the optimizer's moments of the encoder's blocks in parts, one per process: PyTorch's FSDP2.

A block's weights are put together when it is computed and taken apart again. A checkpoint holds whole tensors: it does
not show over how many processes they were spread, if any.

PyTorch's module takes a second to import, so it is imported by what needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sum_factory.shared.sam.upstream import ImageEncoderViT
from sum_factory.trainer.run.distributed import Ranks

_TENSORS = "torch.distributed.tensor"


def is_sharded(tensor: Any) -> bool:
    """Whether ``tensor`` is one in parts over processes."""
    module = sys.modules.get(_TENSORS)
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that is here, which shares its memory; all of it, if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_blocks(encoder: ImageEncoderViT, ranks: Ranks) -> None:
    """Spread the weights of the encoder's blocks over all processes, in place; gradients will be *sums* over them.

    The rest of SAM is small, and whole everywhere. A single process keeps all.
    """
    if ranks.count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for block in encoder.blocks:
        fully_shard(block, mesh=mesh)
        block.set_gradient_divide_factor(1.0)
        block.set_force_sum_reduction_for_comms(True)  # gloo has no other


@contextmanager
def put_together(encoder: ImageEncoderViT) -> Iterator[None]:
    """Keep the weights of sharded blocks whole meanwhile, so that each process can encode as many photos as it has.

    Otherwise a block waits for all other processes to come to it, too.
    """
    blocks = [block for block in encoder.blocks if any(map(is_sharded, block.parameters()))]
    for block in blocks:
        block.set_reshard_after_forward(False)
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.reshard()
            block.set_reshard_after_forward(True)


def gathered(value: Any, ranks: Ranks) -> Any:
    """Return ``value``, a tensor or containers of such, without tensors in parts; all processes have to call it.

    The process that leads gets the whole tensors, on the CPU; the others get nothing in their place.
    """
    if is_sharded(value):
        full = value.full_tensor()
        return full.cpu() if ranks.leads else None
    if isinstance(value, Mapping):
        return {name: gathered(each, ranks) for name, each in value.items()}
    if isinstance(value, list):
        return [gathered(each, ranks) for each in value]
    return value


def whole_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of the gradients of parameters, either all sharded or none, over all processes."""
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if is_sharded(norm) else norm  # type: ignore[attr-defined]


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor what a tensor ``like`` this has of it in each process."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor), "it is sharded"
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts_of_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's whole ``state`` with what this process has of the moments of sharded parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    moments = {
        number: {
            name: part_of(value, like[number]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in each.items()
        }
        for number, each in state["state"].items()
    }
    return {**state, "state": moments}
