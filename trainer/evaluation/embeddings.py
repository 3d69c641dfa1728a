"""Embeddings of photos for several models: encoders with the same weights run once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn

from sum_factory.shared.images import RgbImage
from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.runtime import embed_for


class Embeddings:
    """Embeds photos for each of ``models``, and keeps the first ``limit`` bytes of embeddings. Sets of several tasks
    often have the same photos in the same order: if the latest embeddings were kept, each would be gone when its photo
    comes again."""

    def __init__(self, models: Mapping[str, LoadedSam], precision: Precision, limit: int) -> None:
        self.models, self.precision, self.limit = models, precision, limit
        self.groups = groups_of(models)
        self._kept: dict[bytes, dict[str, Tensor]] = {}
        self._bytes = 0

    def embed(self, image: RgbImage) -> dict[str, Tensor]:
        """Return the embedding (1, C, g, g), float32, of a photo, uint8 (H, W, 3), by model."""
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        if key in self._kept:
            return {name: each.to(self.models[name].sam.device) for name, each in self._kept[key].items()}
        found: dict[str, Tensor] = {}
        for names in self.groups:
            embeddings = embed_for([self.models[name].sam for name in names], image, self.precision)
            found.update(zip(names, embeddings, strict=True))
        size = sum(each.nbytes for each in found.values())
        if self._bytes + size <= self.limit:
            self._bytes += size
            self._kept[key] = {name: each.cpu() for name, each in found.items()}
        return {name: found[name] for name in self.models}


def groups_of(models: Mapping[str, LoadedSam]) -> list[list[str]]:
    """Return the names of the models, those together whose encoders have the same digest."""
    if len(models) == 1:
        return [list(models)]
    groups: dict[str, list[str]] = {}
    for name, model in models.items():
        groups.setdefault(encoder_digest(model.sam.image_encoder), []).append(name)
    return list(groups.values())


def encoder_digest(encoder: nn.Module) -> str:
    """Return the SHA-256 of an encoder: of how it is built, and of the names and numbers of its weights."""
    digest = hashlib.sha256(repr(encoder).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
