"""Where and how a SAM runs: device, precision, ``torch.compile``."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from shared.frame import CropBox
from shared.precision import Precision, PrecisionSetting, Resolved, autocast, resolve
from shared.sam.attention import attend_in_pieces
from shared.sam.fast_linear import use_fast_linear


@dataclass(frozen=True)
class Runtime:
    """``device`` "auto" picks CUDA, then Apple's GPU, then the CPU. ``precision`` is that of the image encoder (in bf16
    masks differ slightly from fp32's, which are the default everywhere); ``compile`` compiles it."""

    device: str = "auto"
    precision: PrecisionSetting = "fp32"
    compile: bool = False

    def resolve(self) -> Resolved:
        """Return what the precision is on the device."""
        return resolve(self.precision, pick_device(self.device))

    def settings(self) -> dict[str, Any]:
        """Return what can change a result, for a shard set's record: which device does not count, precision does."""
        return {"precision": self.resolve().name}


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
    attend_in_pieces(sam.image_encoder)
    use_fast_linear(sam.image_encoder)
    if runtime.compile:
        sam.image_encoder.compile()
    return sam


def resize(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Scale an image, uint8 (H, W, 3), so that its longer side is ``side``, as SAM does."""
    resized: npt.NDArray[np.uint8] = ResizeLongestSide(side).apply_image(image)
    return resized


class Predictor(SamPredictor):  # type: ignore[misc]
    """Upstream's predictor, whose image encoder may run in bf16; everything after it stays fp32."""

    def __init__(self, sam: Sam, precision: Precision = "fp32") -> None:
        self.features: Tensor
        super().__init__(sam)
        self.precision = precision

    def set_image(self, image: npt.NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Embed an image, uint8 (H, W, 3), RGB."""
        self.set_resized(resize(image, self.model.image_encoder.img_size), (image.shape[0], image.shape[1]))

    def embed_crop(
        self, image: npt.NDArray[np.uint8], crop_box: CropBox, resized: npt.NDArray[np.uint8] | None = None
    ) -> Tensor:
        """Embed the crop x0, y0, x1, y1 of an image, uint8 (H, W, 3), and return its features, (1, C, g, g).

        Several threads may do so at once: the image that is set stays the one that it is.
        ``resized``, if at hand, is what ``resize`` makes of the whole image: it is used if the crop is all of it.
        """
        x0, y0, x1, y1 = crop_box
        size = (image.shape[0], image.shape[1])
        apart = copy(self)
        if resized is not None and (x0, y0, y1, x1) == (0, 0, *size):
            apart.set_resized(resized, size)
        else:
            apart.set_image(image[y0:y1, x0:x1])
        return apart.features

    def set_resized(self, resized: npt.NDArray[np.uint8], size: tuple[int, int]) -> None:
        """Embed what ``resize`` made of an image of ``size`` height, width."""
        pixels = torch.as_tensor(resized, device=self.device).permute(2, 0, 1)[None].contiguous()
        with autocast(self.device.type, self.precision):
            self.set_torch_image(pixels, size)
        features: Tensor = self.features
        self.features = features.float()
