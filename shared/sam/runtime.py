"""Where and how a SAM runs: device, bf16, ``torch.compile``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor


@dataclass(frozen=True)
class Runtime:
    """``device`` "auto" picks CUDA, then Apple's GPU, then the CPU. ``bf16`` runs the image encoder in bfloat16
    (masks then differ slightly from fp32's); ``compile`` compiles it. Both are off by default."""

    device: str = "auto"
    bf16: bool = False
    compile: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what can change a result, for a shard set's record: which device does not count, bf16 does."""
        return {"bf16": self.bf16}


def pick_device(device: str = "auto") -> torch.device:
    """Return the device that ``device`` names; "auto" picks the best there is."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def place(sam: Sam, runtime: Runtime) -> Sam:
    """Move ``sam`` to its device, and compile its encoder if that is asked for; returns the same object."""
    sam.to(pick_device(runtime.device))
    if runtime.compile:
        sam.image_encoder.compile()
    return sam


class Predictor(SamPredictor):  # type: ignore[misc]
    """Upstream's predictor, whose image encoder may run in bfloat16; everything after it stays fp32."""

    def __init__(self, sam: Sam, bf16: bool = False) -> None:
        self.features: Tensor
        super().__init__(sam)
        self.bf16 = bf16

    def set_image(self, image: npt.NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Embed an image, uint8 (H, W, 3)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            super().set_image(image, image_format)
        features: Tensor = self.features
        self.features = features.float()
