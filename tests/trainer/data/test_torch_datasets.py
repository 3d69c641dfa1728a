"""Datasets for other people's loops: what is in an item, in which order items come, and who gets which."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader

from sum_factory.shared.errors import SumError
from sum_factory.shared.placement import resized_size
from sum_factory.trainer import HumanDataset, ShardDataset, ShuffledDataset

SIDE = 128
"""Of the input of the SAM that the known shards are of."""


def on_input(grid: Any, height: int, width: int) -> Any:
    """Bring a grid of the low resolution to the pixels of SAM's input that show a photo."""
    padded = F.pad(
        torch.from_numpy(grid)[None, None],
        (0, SIDE // 4 - grid.shape[1], 0, SIDE // 4 - grid.shape[0]),
        mode="replicate",
    )
    rows, columns = resized_size(height, width, SIDE)
    return F.interpolate(padded, (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0, :rows, :columns]


def items_of(dataset: Any, **options: Any) -> list[Any]:
    return list(DataLoader(dataset, batch_size=None, **options))


def test_item_of_shards_has_photo_labels_and_certainty(known_shards: Any) -> None:
    dataset = ShardDataset(known_shards.url)
    usable = {key: [m for m in masks if m.u_valid] for key, masks in known_shards.masks.items()}
    assert len(dataset) == len(known_shards.masks)
    for index in range(len(dataset)):
        item = dataset[index]
        original = Image.open(known_shards.photos / f"{item['key']}.png")
        width, height = original.size
        rows, columns = resized_size(height, width, SIDE)
        assert item["image"].shape == (3, rows, columns)
        assert item["task"] == "unspecified"
        masks = usable[item["key"]]
        assert item["masks"].shape == item["certainty"].shape == (len(masks), rows, columns)
        photo = original.resize((columns, rows), Image.Resampling.BILINEAR)
        assert np.array_equal(item["image"].permute(1, 2, 0), np.asarray(photo))
        for mask, drawn, certainty in zip(masks, item["masks"], item["certainty"], strict=True):
            if mask.frame.crop_box[:2] == (0, 0):
                expected = on_input(mask.logits, height, width)
                assert (drawn == (expected > 0)).float().mean() > 0.995  # labels keep magnitudes in steps
                assert torch.allclose(certainty, 1 - on_input(mask.u, height, width), atol=0.021)


def test_layer_that_is_asked_for_is_read_or_refused(known_shards: Any) -> None:
    plain = ShardDataset(known_shards.url, uncertainty=None)
    assert sum(len(plain[index]["masks"]) for index in range(len(plain))) == sum(map(len, known_shards.masks.values()))
    assert bool((plain[0]["certainty"] == 1).all())
    with pytest.raises(SumError, match="no layer"):
        ShardDataset(known_shards.url, uncertainty="other")
    with pytest.raises(IndexError):
        plain[len(plain)]


def test_human_masks_come_as_they_are_and_beside_labels(human_folder: Path, known_shards: Any) -> None:
    settings = {"kind": "folder-pairs", "images": human_folder / "images", "masks": human_folder / "salient"}
    human = HumanDataset({**settings, "task": "salient"}, side=SIDE)
    both = ConcatDataset([human, ShardDataset(known_shards.url)])
    assert len(both) == 5 + len(known_shards.masks)
    item = human[0]  # 96 x 128: as large as the input
    exact = np.asarray(Image.open(human_folder / "salient" / "photo0.png")) > 0
    assert item["task"] == "salient"
    assert np.array_equal(item["masks"][0], exact)
    with pytest.raises(SumError, match="task"):
        HumanDataset({**settings, "task": "other"}, side=SIDE)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_once_whoever_reads(known_shards: Any, workers: int) -> None:
    dataset = ShardDataset(known_shards.url, masks=1)
    keys = sorted(known_shards.masks)
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    ranks = [ShuffledDataset(dataset, 3, rank, 2, even=False) for rank in range(2)]
    loaders = [DataLoader(each, batch_size=None, **options) for each in ranks]
    epochs = []
    for epoch in range(2):
        for each in ranks:
            each.set_epoch(epoch)  # reaches workers that are there already
        of_ranks = [[item["key"] for item in loader] for loader in loaders]
        assert sorted(of_ranks[0] + of_ranks[1]) == keys
        assert [len(each) for each in of_ranks] == [len(each) for each in ranks]
        epochs.append(of_ranks)
    assert epochs[0] != epochs[1]
    alone = [item["key"] for item in ShuffledDataset(dataset, 3, 0, 2, even=False)]
    assert epochs[0][0] == alone, "workers change nothing of a rank's order where batches are single items"


def test_ranks_get_as_many_items_each(known_shards: Any) -> None:
    dataset = ShardDataset(known_shards.url)
    count = len(dataset)
    assert count % 3, "or the test would say nothing"
    of_ranks = [[item["key"] for item in ShuffledDataset(dataset, 0, rank, 3)] for rank in range(3)]
    assert {len(each) for each in of_ranks} == {count // 3}
    assert len({key for each in of_ranks for key in each}) == count - count % 3
    with pytest.raises(SumError, match="rank 3 of 3"):
        ShuffledDataset(dataset, 0, 3, 3)


def test_masks_are_drawn_anew_each_epoch_and_the_same_again(known_shards: Any) -> None:
    dataset = ShardDataset(known_shards.url, uncertainty=None, masks=1)
    drawn = []
    for epoch in (0, 1, 2, 3, 0):
        dataset.set_epoch(epoch)
        drawn.append([dataset[index]["masks"] for index in range(len(dataset))])
    assert all(torch.equal(one, again) for one, again in zip(drawn[0], drawn[4], strict=True))
    assert any(not torch.equal(one, other) for each in drawn[1:4] for one, other in zip(drawn[0], each, strict=True))


def test_copy_of_a_dataset_opens_its_files_anew(known_shards: Any) -> None:
    dataset = ShardDataset(known_shards.url)
    dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert again._opened is None
    assert torch.equal(again[0]["masks"], dataset[0]["masks"])
