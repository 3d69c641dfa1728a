"""Where and how a SAM runs: device, exactness, ``torch.compile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.exactness import LEVELS, Exactness, Level, allow_tf32
from sum_factory.shared.memory import BatchSize
from sum_factory.shared.placement import CropBox, resized_size
from sum_factory.shared.precision import Precision, autocast
from sum_factory.shared.sam.attention import attend_in_pieces
from sum_factory.shared.sam.compiled import compile_encoder
from sum_factory.shared.sam.fast_linear import use_fast_linear
from sum_factory.shared.sam.hq import embed_for_decoders
from sum_factory.shared.sam.upstream import Sam


@dataclass(frozen=True)
class Runtime:
    """``device`` "auto" picks CUDA, then Apple's GPU, then the CPU. ``exactness`` says how near masks are to
    upstream's; ``compile`` compiles encoder and decoder."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps. auto takes CUDA if it is there, then Apple's GPU, then the CPU."""
    exactness: Exactness = "exact"
    """exact: upstream's masks. encoder-bf16: from an embedding in bf16. fast: all in bf16."""
    compile: bool = False
    """Whether encoder and decoder are compiled by ``torch.compile``: a slow start, then less time per photo."""
    gpu_memory: float = 0.9
    """Share of a GPU's memory that labelling may take; work that does not fit is done in smaller batches."""

    @property
    def level(self) -> Level:
        """What encoder and decoder compute in."""
        return LEVELS[self.exactness]

    def settings(self) -> dict[str, Any]:
        """Return what can change a result, for a shard set's record: which device does not count, exactness does."""
        return self.level.settings()


CropOfImage = tuple[npt.NDArray[np.uint8], CropBox, npt.NDArray[np.uint8] | None]
"""An image, uint8 (H, W, 3), the crop x0, y0, x1, y1 of it, and what ``resize`` makes of the whole, if at hand."""


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
    return _embed(sams, _to_input(sams[0], resized), precision)


def _to_input(sam: Sam, resized: npt.NDArray[np.uint8]) -> Tensor:
    """Return the encoder's input, float32 (1, 3, S, S), of a resized image; the copy to a GPU is not waited for."""
    pixels = torch.from_numpy(resized)
    if sam.device.type == "cuda":
        pixels = pixels.pin_memory().to(sam.device, non_blocking=True)
    image: Tensor = sam.preprocess(pixels.to(sam.device).permute(2, 0, 1)[None].contiguous())
    return image


@torch.no_grad()
def _embed(sams: Sequence[Sam], images: Tensor, precision: Precision) -> list[Tensor]:
    with autocast(sams[0].device.type, precision):
        decoders = [sam.mask_decoder for sam in sams]
        found = embed_for_decoders(sams[0].image_encoder, decoders, images)
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
    if sam.device.type == "cuda":  # tokens come with channels last
        sam.image_encoder.neck.to(memory_format=torch.channels_last)
    if runtime.compile:
        compile_encoder(sam.image_encoder)
    return sam


def resize(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Scale an image, uint8 (H, W, 3), so that its longer side is ``side``, as ``ResizeLongestSide.apply_image``."""
    height, width = resized_size(image.shape[0], image.shape[1], side)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@dataclass
class Embedder:
    """Embeds images as ``SamPredictor`` does. The image encoder may run in bf16; embeddings are float32.

    It takes ``batch`` images together, which is halved for good when a GPU's memory runs out. Several threads may use
    one at once.
    """

    sam: Sam
    precision: Precision = "fp32"
    batch: BatchSize = field(default_factory=lambda: BatchSize(1))

    def embed(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """Return the embedding, (1, C, g, g), of an image, uint8 (H, W, 3), RGB."""
        (embedding,) = self._embed_resized([resize(image, self.sam.image_encoder.img_size)])
        return embedding

    def embed_crop(
        self, image: npt.NDArray[np.uint8], crop_box: CropBox, resized: npt.NDArray[np.uint8] | None = None
    ) -> Tensor:
        """Return the embedding, (1, C, g, g), of the crop x0, y0, x1, y1 of an image, uint8 (H, W, 3).

        ``resized``, if at hand, is what ``resize`` makes of the whole image: it is used if the crop is all of it.
        """
        (embedding,) = self.embed_crops([(image, crop_box, resized)])
        return embedding

    def embed_crops(self, crops: Sequence[CropOfImage]) -> list[Tensor]:
        """Return the embedding of each of several crops, given as ``embed_crop`` takes them."""
        return self.batch.fit(lambda: self._embed_resized([self._resized(*crop) for crop in crops]))

    def _resized(
        self, image: npt.NDArray[np.uint8], crop_box: CropBox, resized: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        x0, y0, x1, y1 = crop_box
        if resized is not None and (x0, y0, y1, x1) == (0, 0, *image.shape[:2]):
            return resized
        return resize(image[y0:y1, x0:x1], self.sam.image_encoder.img_size)

    def _embed_resized(self, resized: Sequence[npt.NDArray[np.uint8]]) -> list[Tensor]:
        """Embed batch after batch. The last one is filled up: what comes of an image must not depend on how many come
        with it, and kernels differ by the size of a batch."""
        found: list[Tensor] = []
        for start in range(0, len(resized), self.batch.size):
            some = resized[start : start + self.batch.size]
            inputs = [_to_input(self.sam, each) for each in some]
            missing = self.batch.size - len(some)
            images = torch.cat([*inputs, *(torch.zeros_like(inputs[0]) for _ in range(missing))])
            found += torch.split(_embed([self.sam], images, self.precision)[0], 1)[: len(some)]
        return found
