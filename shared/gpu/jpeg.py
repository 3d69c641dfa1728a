"""JPEGs that a GPU decodes and scales: by nvJPEG, if this build of torchvision has it.

Its pixels differ from Pillow's by a level or two here and there, as do those of scaling on a GPU. So this is for the
level ``fast`` alone. What it cannot decode, or should not, is left to Pillow: it also says what is wrong with a file.
"""

from __future__ import annotations

import threading
import warnings

import numpy as np
import torch
from torch.nn import functional as F

from sum_factory.shared.images import RgbImage
from sum_factory.shared.memory import to_host
from sum_factory.shared.placement import resized_size
from sum_factory.shared.progress import SPEAKER

END = b"\xff\xd9"
"""What a whole JPEG ends with. Of a file that is cut short the GPU would make a grey photo without a word."""
DEPRECATED = "The image decoding and encoding capabilities of TorchVision"
"""How the warning begins that torchvision is to lose them, at each photo: Pillow goes on then."""


class JpegDecoder:
    """Decodes upright RGB JPEGs on ``device``. Threads may share one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._gave_up = False

    def decode(self, data: bytes, side: int) -> tuple[RgbImage, RgbImage] | None:
        """Return the pixels of a file, and these scaled for a SAM of input ``side``; None if that is left to Pillow.

        Both are RGB, uint8 (H, W, 3). A GPU whose memory is short, or that has no decoder, leaves it all.
        """
        if self._gave_up or not data.rstrip(b"\0\n\r ").endswith(END):
            return None
        try:
            return self._decode(data, side)
        except torch.OutOfMemoryError:
            return None
        except ImportError:  # a torchvision that has no decoders any more
            self._give_up()
            return None
        except RuntimeError as error:
            if "nvjpeg" in str(error).lower():
                self._give_up()
            return None

    @torch.no_grad()
    def _decode(self, data: bytes, side: int) -> tuple[RgbImage, RgbImage]:
        from torchvision.io import ImageReadMode, decode_jpeg  # brings torch's compiler, seconds of it

        warnings.filterwarnings("ignore", DEPRECATED, DeprecationWarning)
        encoded = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
        pixels = decode_jpeg(encoded, ImageReadMode.RGB, device=self.device)
        size = resized_size(pixels.shape[1], pixels.shape[2], side)
        scaled = F.interpolate(pixels[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]
        return _to_rgb(pixels), _to_rgb(scaled.round_().clamp_(0, 255).to(torch.uint8))

    def _give_up(self) -> None:
        with self._lock:
            if not self._gave_up:
                self._gave_up = True
                SPEAKER.say(
                    "this torchvision has no nvJPEG: photos are decoded by the CPU, which may keep a GPU waiting"
                )


def _to_rgb(pixels: torch.Tensor) -> RgbImage:
    """Return (3, H, W) as (H, W, 3) in main memory."""
    rgb: RgbImage = to_host(pixels.permute(1, 2, 0).contiguous()).numpy()
    return rgb
