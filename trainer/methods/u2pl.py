"""U2PL (Wang et al., CVPR 2022), adapted to prompts: what a label is not sure of still says what it is *not*.

To vanilla's losses comes a contrastive loss on the image embeddings. A mask stands where the original has a class.

    anchors    cells of a mask whose label is sure: what the student makes of them
    positive   the mean of what all those cells hold, without gradient
    negatives  cells that are unreliable: not sure of some label of their own photo, and sure not to be of this mask; of
               this photo, and of photos before it, from a memory bank
    loss       mean over the anchors z of  -log( e^(z.z+ / t) / (e^(z.z+ / t) + sum over 50 negatives e^(z.z- / t)) ),
               z.z' being their cosine similarity
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.hq import split
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.methods.addition import Addition, Lesson, Student, is_pseudo
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.run.settings import CHECKED, MOST

SampleKey = tuple[int, int]


@checked_dataclass(frozen=True, config=CHECKED)
class U2plSettings:
    """Settings of U2PL's contrastive loss; the defaults are those that are published."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of the contrastive loss beside the losses of masks. 0 leaves vanilla."""
    temperature: float = Field(default=0.5, gt=0)
    """What cosine similarities are divided by."""
    anchors: int = Field(default=256, ge=1, le=MOST)
    """Cells that are drawn of each mask as anchors, with repetition."""
    negatives: int = Field(default=50, ge=1, le=MOST)
    """Negatives that are drawn for each anchor."""
    certainty: float = Field(default=0.3, ge=0, le=1)
    """An anchor's label is more certain than this."""
    unreliable: float = Field(default=0.2, gt=0, le=1)
    """Share of a photo's cells that count as unreliable in the first step; it falls to 0 with the last one."""
    bank: int = Field(default=30_000, ge=1, le=10**7)
    """Cells that the memory bank holds; the oldest make room for new ones."""
    banked: int = Field(default=256, ge=1, le=MOST)
    """Unreliable cells that one photo adds to the bank, at most."""


class U2pl(Addition):
    """The contrastive loss and its bank. Certainty is read to choose cells by it, and weighs no loss."""

    settings: U2plSettings

    def __init__(self, student: Student, settings: U2plSettings) -> None:
        super().__init__(student, settings)
        if settings.weight and not any(each.requires_grad for each in student.sam.image_encoder.parameters()):
            raise SettingsError(
                f"the variant {student.recipe.variant} leaves the image encoder as it is, and U2PL's contrastive loss "
                "is about nothing else: give a variant that trains it, or method_settings.weight=0"
            )
        channels = int(student.sam.mask_decoder.transformer_dim)
        self.bank = torch.zeros(0, channels, device=student.sam.device)
        self.found: dict[SampleKey, Tensor] = {}

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return vanilla's lesson, and the loss of the embeddings of photos with pseudo-labels."""
        batch = self.student.collate([replace(sample, certainty=None) for sample in samples])
        if batch is None:
            return None
        used = [sample for sample in samples if len(sample)]
        share = self.settings.unreliable * (1 - (step - 1) / self.student.recipe.steps)
        if not self.settings.weight or not any(map(is_pseudo, used)):
            return Lesson(batch)
        return Lesson(batch, extra=lambda embeddings: self._loss(embeddings, used, share))

    def after_step(self, step: int, ranks: Ranks) -> None:
        """Put the unreliable cells of the step's photos into the bank, of all processes in one order."""
        found = {
            key: each for own in ranks.gather({k: v.cpu() for k, v in self.found.items()}) for key, each in own.items()
        }
        new = [found[key].to(self.bank.device) for key in sorted(found)]
        self.bank = torch.cat([self.bank, *new])[-self.settings.bank :]
        self.found = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the bank."""
        return {"bank": self.bank}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set the bank."""
        self.bank = state_dict["bank"].to(self.bank.device)

    def _loss(self, embeddings: Tensor, used: Sequence[TrainingSample], share: float) -> Tensor:
        """Return the loss, summed over the photos with pseudo-labels."""
        channels, _ = split(self.student.sam.mask_decoder, embeddings)
        total = embeddings.sum() * 0
        with autocast(embeddings.device.type, "fp32"):
            for number, sample in enumerate(used):
                if is_pseudo(sample):
                    total = total + self._of_photo(channels[number].float(), sample, share)
        return self.settings.weight * total

    def _of_photo(self, features: Tensor, sample: TrainingSample, share: float) -> Tensor:
        """Return the mean loss of a photo's masks on its embedding (C, g, g); and note its unreliable cells."""
        random = self.student.random("contrast", sample)
        cells = Cells.of(sample, features.shape[1:])
        flat = features.flatten(1).T
        unreliable = cells.unreliable(share)
        fixed = flat.detach()
        noted = unreliable.nonzero()[:, 0]
        order = torch.randperm(len(noted), generator=random)[: self.settings.banked].to(noted.device)
        self.found[sample.id.epoch, sample.id.index] = fixed[noted[order]]
        losses = []
        for mask, certainty in zip(cells.masks, cells.certainty, strict=True):
            sure = certainty > self.settings.certainty
            anchors = flat[mask & sure]
            negatives = torch.cat([fixed[unreliable & ~mask & sure], self.bank])
            if len(anchors) and len(negatives):
                losses.append(self._contrast(anchors, negatives, random))
        return torch.stack(losses).mean() if losses else flat.sum() * 0

    def _contrast(self, anchors: Tensor, negatives: Tensor, random: torch.Generator) -> Tensor:
        """Return the loss of one mask, whose sure cells are ``anchors`` (N, C)."""
        count, settings = len(anchors), self.settings
        chosen = torch.randint(count, (settings.anchors,), generator=random).to(anchors.device)
        others = torch.randint(len(negatives), (settings.anchors, settings.negatives), generator=random)
        z = F.normalize(anchors[chosen], dim=1)
        positive = F.normalize(anchors.detach().mean(0), dim=0)
        against = F.normalize(negatives, dim=1)[others.to(anchors.device)]
        similar = torch.cat([(z @ positive)[:, None], torch.einsum("ac,anc->an", z, against)], 1)
        wanted = torch.zeros(settings.anchors, dtype=torch.int64, device=anchors.device)
        return F.cross_entropy(similar / settings.temperature, wanted)


@dataclass(frozen=True)
class Cells:
    """A photo's K masks on the grid of its embedding, flat: ``masks`` bool (K, N), ``certainty`` float (K, N), both of
    what a cell shows on average, and ``valid`` bool (N,), of cells that show the photo alone."""

    masks: Tensor
    certainty: Tensor
    valid: Tensor

    @classmethod
    def of(cls, sample: TrainingSample, size: torch.Size) -> Cells:
        """Return the cells of a sample on a grid of ``size``."""
        valid = torch.zeros(1, *sample.masks.shape[1:], device=sample.masks.device)
        valid[:, : sample.valid[0], : sample.valid[1]] = 1
        certainty = torch.ones_like(sample.masks, dtype=torch.float32) if sample.certainty is None else sample.certainty

        def mean(values: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(values[:, None].float(), (size[0], size[1])).flatten(1)

        inside = mean(valid)[0] == 1
        return cls((mean(sample.masks) >= 0.5) & inside, mean(certainty), inside)

    def unreliable(self, share: float) -> Tensor:
        """Return the cells of whose labels one is among the least certain ``share`` of the photo, bool (N,)."""
        least = self.certainty.amin(0)
        count = int(share * int(self.valid.sum()))
        if not count:
            return torch.zeros_like(self.valid)
        limit = least[self.valid].sort().values[count - 1]
        return self.valid & (least <= limit) & (least < 1)
