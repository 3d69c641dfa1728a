"""What U2PL computes, against upstream's modules one mask at a time, and against formulas written out here."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from lessons import assert_same, certain, gradients, student_of
from sum_factory.shared.errors import SettingsError
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.methods.addition import Addition
from sum_factory.trainer.methods.u2pl import U2pl, U2plSettings
from sum_factory.trainer.run.distributed import ALONE, Ranks


def u2pl(sam: Sam, **changes: Any) -> U2pl:
    return U2pl(student_of(sam), U2plSettings(**{"anchors": 5, "negatives": 3, "unreliable": 0.5, **changes}))


def test_contrastive_loss_of_weight_0_leaves_vanilla(sam: Sam, samples: list[TrainingSample]) -> None:
    sampled = [dataclasses.replace(sample, sampling=None) for sample in samples]
    vanilla = gradients(sam, Addition(student_of(sam), None).lesson(certain(samples, None), 1))
    assert_same(gradients(sam, u2pl(sam, weight=0).lesson(sampled, 1)), vanilla)
    assert gradients(sam, u2pl(sam).lesson(sampled, 1))[0] > vanilla[0]


def test_contrastive_loss_is_the_published_formula(
    sam: Sam, samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    addition = u2pl(sam, temperature=0.5)
    addition.bank = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
    drawn: list[Tensor] = []
    randint = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: drawn.append(randint(*a, **k)) or drawn[-1])
    lesson = addition.lesson(samples[1:2], 1)
    assert lesson is not None
    assert lesson.extra is not None
    features = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(6))
    found = float(lesson.extra(features))
    flat, sample = features[0].flatten(1).T, samples[1]
    assert sample.certainty is not None
    c = sample.certainty.view(2, 4, 4, 4, 4).mean((2, 4)).flatten(1)
    inside = sample.masks.float().view(2, 4, 4, 4, 4).mean((2, 4)).flatten(1) >= 0.5
    least = c.amin(0)
    unreliable = least <= least.sort().values[7]  # half of 16
    losses = []
    for k in range(2):
        sure = c[k] > 0.3
        anchors, negatives = flat[inside[k] & sure], torch.cat([flat[unreliable & ~inside[k] & sure], addition.bank])
        of_anchors = []
        for a, others in zip(drawn[2 * k].tolist(), drawn[2 * k + 1].tolist(), strict=True):
            near = (F.cosine_similarity(anchors[a], anchors.mean(0), 0) / 0.5).exp()
            far = sum((F.cosine_similarity(anchors[a], negatives[n], 0) / 0.5).exp() for n in others)
            of_anchors.append(-(near / (near + far)).log())
        losses.append(torch.stack(of_anchors).mean())
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert float(u2pl(sam, weight=3.0).settings.weight) == 3.0


def test_bank_is_the_same_however_photos_are_dealt(sam: Sam, samples: list[TrainingSample]) -> None:
    features = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(6))

    def seen(addition: U2pl, numbers: list[int]) -> dict[Any, Tensor]:
        for number in numbers:
            lesson = addition.lesson([samples[1 + number]], 1)
            assert lesson is not None
            assert lesson.extra is not None
            lesson.extra(features[number][None])
        return dict(addition.found)

    one = u2pl(sam, bank=6)
    seen(one, [1, 0])
    one.after_step(1, ALONE)
    first, second = u2pl(sam, bank=6), u2pl(sam, bank=6)
    dealt = [seen(second, [1]), seen(first, [0])]

    class Two(Ranks):
        def gather(self, own: Any) -> list[Any]:
            return dealt

    for each in (first, second):
        each.after_step(1, Two(0, 2, torch.device("cpu")))
        assert torch.equal(each.bank, one.bank)
    assert len(one.bank) == 6
    assert one.found == {}


def test_encoder_that_is_not_trained_is_refused(sam: Sam) -> None:
    frozen = copy.deepcopy(sam)
    frozen.image_encoder.requires_grad_(False)
    with pytest.raises(SettingsError, match="leaves the image encoder as it is"):
        u2pl(frozen)
    assert u2pl(frozen, weight=0).settings.weight == 0
