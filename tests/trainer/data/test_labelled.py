"""Training reads what labelling wrote: shards of the packaged model, with an uncertainty layer of a refiner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sum_factory.labelgen.run import RunSummary, add_uncertainty
from sum_factory.labelgen.run_settings import UncertaintyRunSettings
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import Refiner, save_refiner
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=256, stride=4, masks=100, seed=0)


@pytest.fixture(scope="module", params=["tar", "zarr"])
def shards(
    request: pytest.FixtureRequest,
    photos: Path,
    label: Callable[..., RunSummary],
    tmp_path_factory: pytest.TempPathFactory,
) -> ShardSet:
    """The labelled photos in each encoding, with the layer of a refiner that differs a little from SAM."""
    folder = tmp_path_factory.mktemp("labelled")
    url = folder / "shards"
    label(photos, url, encoding=request.param)
    sam = load_sam()
    refiner = Refiner.copy_of(sam.sam)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in refiner.mask_decoder.parameters():
            parameter += 0.05 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    save_refiner(folder / "refiner.safetensors", refiner, sam, {})
    path = str(folder / "refiner.safetensors")
    settings = UncertaintyRunSettings(str(url), path, encoding=request.param, runtime=Runtime("cpu"))
    add_uncertainty(settings, lambda _: None)
    return ShardSet.open(str(url))


def load_all(shards: ShardSet, method: str) -> list[TrainingSample]:
    pseudo = PseudoSet(shards, "refinement", METHODS[method], SETTINGS)
    return [pseudo.load(index, SampleId("pseudo", 0, index)).on(torch.device("cpu")) for index in range(len(pseudo))]


def test_targets_and_certainty_are_what_labelling_wrote(shards: ShardSet) -> None:
    raw, refined, sure = (load_all(shards, method) for method in ("sum", "mask-refinement", "vanilla"))
    walked = [(number, image) for number, image in shards.walk() if image.masks]
    assert [sample.key for sample in raw] == [image.key for _, image in walked]
    doubted = 0
    for (number, image), doubtful, cleaned, trusted in zip(walked, raw, refined, sure, strict=True):
        everything = list(range(len(image.masks)))
        rows = shards.uncertainty(number)[image.index]
        known = [row.mask for row in rows if row.u_valid]
        labels = shards.read_label_logits(number, image, everything)
        maps = [each for each in shards.read_uncertainty(number, rows) if each is not None]
        assert len(trusted) == len(labels)
        assert len(doubtful) == len(maps) == len(known)
        assert doubtful.skipped == len(labels) - len(maps)
        height, width = doubtful.valid
        for place, (k, found) in enumerate(zip(known, maps, strict=True)):
            assert torch.equal(trusted.masks[k, :height, :width], torch.from_numpy(labels[k][:height, :width] > 0))
            assert torch.equal(doubtful.masks[place], trusted.masks[k])
            assert doubtful.certainty is not None
            u = torch.from_numpy(found.u[:height, :width])
            assert torch.equal(doubtful.certainty[place, :height, :width], 1 - u)
            doubted += int((u > 0).any())
        if len(cleaned) == len(maps):
            for place, found in enumerate(maps):
                assert found.refined is not None
                expected = torch.from_numpy(found.refined[:height, :width] > 0)
                assert torch.equal(cleaned.masks[place, :height, :width], expected)
    assert doubted > 0
