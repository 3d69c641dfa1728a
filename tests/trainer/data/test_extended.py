"""A shard set that was extended is trained on as a whole; a run does not go on with one that grew meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sum_factory.shared.errors import ImageError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.data.stream import PseudoStream
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=256, stride=4, masks=1000, seed=0)


def opened(shards: Path) -> PseudoSet:
    return PseudoSet(ShardSet.open(str(shards)), None, METHODS["vanilla"], SETTINGS)


def labels_of(pseudo: PseudoSet) -> dict[str, torch.Tensor]:
    samples = [pseudo.load(index, SampleId("pseudo", 0, index)).on(torch.device("cpu")) for index in range(len(pseudo))]
    return {sample.key: sample.masks for sample in samples}


@pytest.mark.parametrize("encoding", ["tar", "zarr"])
def test_all_photos_of_an_extended_set_are_samples(
    own_photos: Path, tmp_path: Path, label: Callable[..., Any], encoding: str
) -> None:
    late = own_photos / "sub"
    late.rename(tmp_path / "late")
    label(own_photos, tmp_path / "shards", encoding=encoding)
    before = opened(tmp_path / "shards")
    first = labels_of(before)
    shutil.move(tmp_path / "late", late)
    label(own_photos, tmp_path / "shards", encoding=encoding, extend=True)
    after = opened(tmp_path / "shards")
    assert after.groups == (2, 1, 2, 1)
    found = labels_of(after)
    assert set(found) == {"photo0", "photo2", "photo4", "sub/photo1", "sub/photo3", "sub/photo5"}
    assert all(torch.equal(found[key], masks) for key, masks in first.items())
    assert before.identity != after.identity
    order = PseudoStream(after).order
    assert sorted(order.sample(position)[1] for position in range(6)) == list(range(6))


def test_photo_that_changed_since_it_was_labelled_is_not_trained_on(
    own_photos: Path, tmp_path: Path, label: Callable[..., Any]
) -> None:
    label(own_photos, tmp_path / "shards")
    pseudo = opened(tmp_path / "shards")
    path = own_photos / "photo2.jpg"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # of the same size
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match=r"photo2\.jpg: changed since it was labelled"):
        labels_of(pseudo)
