"""The parts of upstream's ``segment_anything`` that are used here, and torchvision's kernel for box NMS.

To import either package as a whole is to import torchvision's models, and with them torch's compiler: three seconds of
processor time, in every process, for nothing that labelling needs. So both packages are put where Python finds them,
and their ``__init__`` runs when somebody asks for what it defines: ``from segment_anything import SamPredictor`` works
as ever, before or after, and gives the same classes.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class _Postponed(ModuleType):
    """A package whose submodules can be imported, while its own code waits until a name is asked for."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]  # it is one like any other now
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]  # found by its spec, which has a loader
        return getattr(self, name)


def postpone(package: str) -> None:
    """Have ``package`` run its ``__init__`` when it is asked for a name, unless it has run already."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is not None:
        sys.modules[package] = module = module_from_spec(spec)
        module.__class__ = _Postponed


postpone("segment_anything")
postpone("torchvision")

import torch  # noqa: E402
import torchvision.extension  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
    common,
    image_encoder,
    transformer,
)
from segment_anything.utils import amg  # noqa: E402
from torch import Tensor  # noqa: E402

__all__ = [
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "TwoWayTransformer",
    "amg",
    "common",
    "image_encoder",
    "nms",
    "transformer",
]

KERNEL_ALONE = 4000
"""Numbers of boxes up to which ``batched_nms`` does nothing for a single class but call the kernel, on any device."""


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the index of the ``boxes`` (N, 4), float32, that box NMS leaves, the best of ``scores`` (N,) first.

    As torchvision's ``batched_nms`` for a single class, equal scores in the same order.
    """
    index: Tensor
    if boxes.numel() > KERNEL_ALONE:  # equal scores come in another order then
        from torchvision.ops.boxes import batched_nms

        index = batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), threshold)
        return index
    torchvision.extension._assert_has_ops()
    index = torch.ops.torchvision.nms(boxes, scores, threshold)
    return index
