"""Where and how a SAM runs: device, exactness, ``torch.compile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.exactness import LEVELS, Exactness, Level, allow_tf32
from sum_factory.shared.placement import CropBox, resized_size
from sum_factory.shared.precision import Precision, autocast
from sum_factory.shared.sam.attention import attend_in_pieces
from sum_factory.shared.sam.fast_linear import use_fast_linear
from sum_factory.shared.sam.hq import embed_for_decoders
from sum_factory.shared.sam.upstream import Sam


@dataclass(frozen=True)
class Runtime:
    """``device`` "auto" picks CUDA, then Apple's GPU, then the CPU. ``exactness`` says how near masks are to
    upstream's; ``compile`` compiles the image encoder."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps. auto takes CUDA if it is there, then Apple's GPU, then the CPU."""
    exactness: Exactness = "exact"
    """exact: upstream's masks. encoder-bf16: from an embedding in bf16. fast: all in bf16."""
    compile: bool = False
    """Whether the image encoder is compiled by ``torch.compile``: a slow start, then less time per photo."""

    @property
    def level(self) -> Level:
        """What encoder and decoder compute in."""
        return LEVELS[self.exactness]

    def settings(self) -> dict[str, Any]:
        """Return what can change a result, for a shard set's record: which device does not count, exactness does."""
        return self.level.settings()


def pick_device(device: str = "auto") -> torch.device:
    """Return the device that ``device`` names; "auto" picks the best there is. Raises ``SettingsError`` for no name of
    any."""
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise SettingsError(f"device {device!r}: there is none; expected auto, cpu, cuda, cuda:1 or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def require_device(device: torch.device) -> torch.device:
    """Return ``device``. Raises ``SettingsError`` if this machine has none such that PyTorch can use."""
    if device.type == "cuda":
        there = int(torch.cuda.device_count())
    elif device.type == "mps":
        there = int(torch.backends.mps.is_available())
    else:
        return device
    if (device.index or 0) >= there:
        raise SettingsError(
            f"device {device}: PyTorch finds {there} of these here; look at the driver and at PyTorch's build, or give "
            "another device (auto takes what there is)"
        )
    return device


def embed_for(sams: Sequence[Sam], image: npt.NDArray[np.uint8], precision: Precision) -> list[Tensor]:
    """Return the embedding (1, C, g, g) of an image, uint8 (H, W, 3), for each of several SAMs whose encoders have the
    same weights: the first one's runs. Embeddings are float32."""
    resized = resize(image, sams[0].image_encoder.img_size)
    return _embed_resized(sams, resized, precision)


@torch.no_grad()
def _embed_resized(sams: Sequence[Sam], resized: npt.NDArray[np.uint8], precision: Precision) -> list[Tensor]:
    pixels = torch.as_tensor(resized, device=sams[0].device).permute(2, 0, 1)[None].contiguous()
    with autocast(sams[0].device.type, precision):
        decoders = [sam.mask_decoder for sam in sams]
        found = embed_for_decoders(sams[0].image_encoder, decoders, sams[0].preprocess(pixels))
    return [features.float() for features in found]


def move_to_device(sam: Sam, runtime: Runtime) -> Sam:
    """Move ``sam`` to its device, and compile its encoder if that is asked for; returns the same object.

    From then on this process computes in fp32 on a GPU as the level says, with or without TF32. Raises
    ``SettingsError`` if there is no such device.
    """
    allow_tf32(runtime.level.tf32)
    sam.to(require_device(pick_device(runtime.device)))
    attend_in_pieces(sam.image_encoder)
    use_fast_linear(sam.image_encoder)
    if runtime.compile:
        sam.image_encoder.compile()
    return sam


def resize(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Scale an image, uint8 (H, W, 3), so that its longer side is ``side``, as ``ResizeLongestSide.apply_image``."""
    height, width = resized_size(image.shape[0], image.shape[1], side)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@dataclass
class Embedder:
    """Embeds images as ``SamPredictor`` does. The image encoder may run in bf16; embeddings are float32.

    Several threads may use one at once.
    """

    sam: Sam
    precision: Precision = "fp32"

    def embed(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """Return the embedding, (1, C, g, g), of an image, uint8 (H, W, 3), RGB."""
        return self._embed_resized(resize(image, self.sam.image_encoder.img_size))

    def embed_crop(
        self, image: npt.NDArray[np.uint8], crop_box: CropBox, resized: npt.NDArray[np.uint8] | None = None
    ) -> Tensor:
        """Return the embedding, (1, C, g, g), of the crop x0, y0, x1, y1 of an image, uint8 (H, W, 3).

        ``resized``, if at hand, is what ``resize`` makes of the whole image: it is used if the crop is all of it.
        """
        x0, y0, x1, y1 = crop_box
        if resized is not None and (x0, y0, y1, x1) == (0, 0, *image.shape[:2]):
            return self._embed_resized(resized)
        return self.embed(image[y0:y1, x0:x1])

    def _embed_resized(self, resized: npt.NDArray[np.uint8]) -> Tensor:
        return _embed_resized([self.sam], resized, self.precision)[0]
