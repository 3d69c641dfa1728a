"""Pseudo-labels as training samples, against shards whose every value is known."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sum_factory.shared.errors import ImageError, InputError, ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=128, stride=4, masks=30, seed=0)
CELLS = 32
CPU = torch.device("cpu")


def open_pseudo(url: str, method: str, grid: SampleSettings = SETTINGS) -> PseudoSet:
    chosen = METHODS[method]
    layer = "refinement" if chosen.needs_uncertainty else None
    return PseudoSet(ShardSet.open(url), layer, chosen, grid)


def load_all(pseudo: PseudoSet, epoch: int = 0) -> dict[str, TrainingSample]:
    samples = [pseudo.load(index, SampleId("pseudo", epoch, index)).on(CPU) for index in range(len(pseudo))]
    return {sample.key: sample for sample in samples}


def in_frame(values: Any, known: Any) -> Tensor:
    """Put values on ``Frame.photo_cells`` into the square grid, 0 elsewhere."""
    rows, columns = known.frame.photo_cells
    grid = torch.zeros(CELLS, CELLS, dtype=torch.as_tensor(values).dtype)
    grid[:rows, :columns] = torch.as_tensor(values)[:rows, :columns]
    return grid


def is_whole(mask: Any) -> bool:
    """Whether a mask was found in the whole photo: its grid is that of the sample."""
    return bool(mask.frame.crop_box[:2] == (0, 0))


def test_vanilla_trains_on_all_labels_as_they_are_and_trusts_them(known_shards: Any) -> None:
    samples = load_all(open_pseudo(known_shards.url, "vanilla"))
    assert samples.keys() == known_shards.masks.keys()
    for key, masks in known_shards.masks.items():
        sample = samples[key]
        assert len(sample) == len(masks)
        assert (sample.certainty, sample.sampling, sample.skipped, sample.task) == (None, None, 0, 0)
        for k, mask in enumerate(masks):
            if is_whole(mask):
                assert torch.equal(sample.masks[k], in_frame(mask.logits > 0, mask))
                assert sample.valid == mask.frame.photo_cells


def test_certainty_is_one_minus_the_map(known_shards: Any) -> None:
    samples = load_all(open_pseudo(known_shards.url, "sum"))
    compared = 0
    for key, masks in known_shards.masks.items():
        sample = samples[key]
        known = [mask for mask in masks if mask.u_valid]
        assert len(sample) == len(known)
        if not known:
            continue
        assert sample.certainty is not None
        assert sample.sampling is not None
        for place, mask in enumerate(known):
            if not is_whole(mask):
                continue
            rows, columns = mask.frame.photo_cells
            expected = 1 - torch.from_numpy(mask.u[:rows, :columns])
            for found in (sample.certainty, sample.sampling):
                assert torch.allclose(found[place, :rows, :columns], expected, atol=1e-6)
            assert torch.equal(sample.masks[place], in_frame(mask.logits > 0, mask))
            compared += 1
    assert compared > 5


def test_mask_without_a_known_map_is_left_out_and_counted(known_shards: Any) -> None:
    """It is neither certain nor in: a photo of which no map is known gives no mask at all."""
    samples = load_all(open_pseudo(known_shards.url, "sum"))
    for key, masks in known_shards.masks.items():
        unknown = [mask for mask in masks if not mask.u_valid]
        assert samples[key].skipped == len(unknown) >= 1
        assert len(samples[key]) + samples[key].skipped == len(masks)
    empty = samples["shot5"]
    assert len(empty) == 0
    assert empty.masks.shape == (0, CELLS, CELLS)


@pytest.mark.parametrize(
    ("method", "loss", "sampling"),
    [
        ("vanilla", False, False),
        ("mask-refinement", False, False),
        ("sum-no-ua-sampling", True, False),
        ("sum-no-task-prompt", True, True),
        ("sum", True, True),
        ("sum-continuous-tp", True, True),
    ],
)
def test_methods_use_the_certainty_where_they_say(known_shards: Any, method: str, loss: bool, sampling: bool) -> None:
    sample = load_all(open_pseudo(known_shards.url, method))["shot0"]
    assert len(sample) > 0
    assert (sample.certainty is not None, sample.sampling is not None) == (loss, sampling)


def test_mask_refinement_trains_on_the_refined_masks(known_shards: Any) -> None:
    samples = load_all(open_pseudo(known_shards.url, "mask-refinement"))
    differ = 0
    for key, masks in known_shards.masks.items():
        known = [mask for mask in masks if mask.u_valid]
        assert len(samples[key]) == len(known)
        for place, mask in enumerate(known):
            if mask.frame.crop_box[:2] == (0, 0):
                assert torch.equal(samples[key].masks[place], in_frame(mask.refined > 0, mask))
                differ += not torch.equal(samples[key].masks[place], in_frame(mask.logits > 0, mask))
    assert differ > 5


def test_mask_of_a_crop_lies_in_its_crop(known_shards: Any) -> None:
    sample = load_all(open_pseudo(known_shards.url, "sum"))["shot7"]
    crop = known_shards.masks["shot7"][2]
    x0, y0, x1, y1 = crop.frame.crop_box
    height, width = 120, 128
    assert (x0, y0, x1, y1) == (32, 0, width, height // 2)
    full = torch.zeros(height, width, dtype=torch.bool)
    full[y0:y1, x0:x1] = crop.frame.upsample(torch.from_numpy(crop.logits)[None])[0] > 0
    expected = full.float().view(height // 4, 4, width // 4, 4).mean((1, 3)) >= 0.5
    found = sample.masks[-1, : height // 4]
    assert float((found & expected).sum() / (found | expected).sum()) > 0.95
    assert sample.certainty is not None
    outside = torch.ones(CELLS, CELLS, dtype=torch.bool)
    outside[y0 // 4 : y1 // 4, x0 // 4 : x1 // 4] = False
    assert (sample.certainty[-1][outside] == 1).all()
    assert float(sample.certainty[-1][~outside].mean()) < 0.7


def test_photo_is_scaled_as_upstream_scales_it(known_shards: Any) -> None:
    for key, sample in load_all(open_pseudo(known_shards.url, "vanilla")).items():
        with Image.open(known_shards.photos / f"{key}.png") as image:
            expected = ResizeLongestSide(128).apply_image(np.asarray(image))
        assert torch.equal(sample.image, torch.from_numpy(expected.transpose(2, 0, 1).copy()))


def test_images_without_masks_and_unreadable_ones_are_no_samples(known_shards: Any) -> None:
    pseudo = open_pseudo(known_shards.url, "sum")
    assert pseudo.groups == (2, 1, 3, 1)
    assert len(pseudo) == 7
    assert [pseudo.load(i, SampleId("pseudo", 0, i)).key for i in range(7)] == [
        "shot0", "shot1", "shot3", "shot5", "shot6", "shot7", "shot8",
    ]  # fmt: skip


def test_few_masks_are_picked_by_the_sample_alone(known_shards: Any) -> None:
    two = SampleSettings(side=128, stride=4, masks=2, seed=0)
    everything = load_all(open_pseudo(known_shards.url, "vanilla"))
    first = load_all(open_pseudo(known_shards.url, "vanilla", two))
    again = load_all(open_pseudo(known_shards.url, "vanilla", two))
    later = load_all(open_pseudo(known_shards.url, "vanilla", two), epoch=1)
    for key, sample in first.items():
        assert len(sample) == 2
        assert torch.equal(sample.masks, again[key].masks)
        assert all((everything[key].masks == mask).flatten(1).all(1).any() for mask in sample.masks)
        assert sample.skipped == 0
    assert any(not torch.equal(sample.masks, later[key].masks) for key, sample in first.items())


def test_certainty_goes_with_the_mask_that_is_picked(known_shards: Any) -> None:
    one = SampleSettings(side=128, stride=4, masks=1, seed=3)
    everything = load_all(open_pseudo(known_shards.url, "sum"))
    for key, sample in load_all(open_pseudo(known_shards.url, "sum", one)).items():
        if len(sample) == 0:
            continue
        all_of_it = everything[key]
        assert sample.certainty is not None
        assert all_of_it.certainty is not None
        (place,) = (all_of_it.masks == sample.masks).flatten(1).all(1).nonzero()[:, 0].tolist()
        assert torch.equal(sample.certainty[0], all_of_it.certainty[place])


def test_samples_at_a_finer_grid_keep_their_shape(known_shards: Any) -> None:
    coarse = load_all(open_pseudo(known_shards.url, "sum"))
    for stride in (1, 2):
        fine = load_all(open_pseudo(known_shards.url, "sum", SampleSettings(128, stride, 30, 0)))
        for key, sample in fine.items():
            height, width = sample.image.shape[1:]
            assert sample.valid == (-(-height // stride), -(-width // stride))
            assert sample.masks.shape[1:] == (128 // stride, 128 // stride)
            assert not sample.masks[:, sample.valid[0] :].any()
            assert not sample.masks[:, :, sample.valid[1] :].any()
            means = torch.nn.functional.avg_pool2d(sample.masks[:, None].float(), 4 // stride)[:, 0]
            if len(sample):
                assert float(((means > 0.5) != coarse[key].masks).float().mean()) < 0.02


def copied(known_shards: Any, tmp_path: Path) -> Path:
    return shutil.copytree(known_shards.folder, tmp_path / "shards")


def test_changed_photo_is_refused(known_shards: Any) -> None:
    pseudo = open_pseudo(known_shards.url, "sum")
    path = known_shards.photos / "shot3.png"
    before = path.read_bytes()
    try:
        path.write_bytes(before + b"\0")
        with pytest.raises(ImageError, match=r"shot3\.png: changed since it was labelled"):
            pseudo.load(2, SampleId("pseudo", 0, 2))
        path.unlink()
        with pytest.raises(InputError, match=r"shot3\.png: cannot be read"):
            pseudo.load(2, SampleId("pseudo", 0, 2))
    finally:
        path.write_bytes(before)


def test_missing_layer_is_refused_and_those_there_are_listed(known_shards: Any) -> None:
    shards = ShardSet.open(known_shards.url)
    with pytest.raises(ShardError, match=r"no layer 'uncertainty/other'; there are .*uncertainty/refinement"):
        PseudoSet(shards, "other", METHODS["sum"], SETTINGS)
    with pytest.raises(ShardError, match="reads an uncertainty layer, and none is named"):
        PseudoSet(shards, None, METHODS["sum"], SETTINGS)


def test_unit_that_the_layer_lacks_is_refused(known_shards: Any, tmp_path: Path) -> None:
    shards = copied(known_shards, tmp_path)
    (shards / "manifest" / "uncertainty" / "refinement" / "000002.parquet").unlink()
    with pytest.raises(ShardError, match=r"refinement/000002\.parquet: missing"):
        open_pseudo(str(shards), "sum")
    assert len(open_pseudo(str(shards), "vanilla")) == 7


@pytest.mark.parametrize("name", ["manifest/masks/000001.parquet", "manifest/uncertainty/refinement/000001.parquet"])
def test_damaged_manifest_is_refused_at_once(known_shards: Any, tmp_path: Path, name: str) -> None:
    shards = copied(known_shards, tmp_path)
    os.truncate(shards / name, (shards / name).stat().st_size // 2)
    with pytest.raises(ShardError, match=rf"{name}: damaged"):
        open_pseudo(str(shards), "sum")


@pytest.mark.parametrize("layer", ["masks", "uncertainty/refinement"])
def test_damaged_data_are_refused_when_they_are_read(known_shards: Any, tmp_path: Path, layer: str) -> None:
    shards = copied(known_shards, tmp_path)
    (tar,) = [path for path in shards.rglob("*000003*.tar") if layer in str(path)]
    tar.write_bytes(bytes(byte ^ 0x55 for byte in tar.read_bytes()))
    pseudo = open_pseudo(str(shards), "sum")
    pseudo.load(0, SampleId("pseudo", 0, 0))
    with pytest.raises(ShardError, match=r"000003.*fails its checksum; run `labelgen verify`"):
        pseudo.load(6, SampleId("pseudo", 0, 6))


@pytest.mark.parametrize("layer", ["masks", "uncertainty/refinement"])
@pytest.mark.parametrize("keep", [None, 0, -1])
def test_data_that_are_missing_or_cut_are_refused_at_once(
    known_shards: Any, tmp_path: Path, layer: str, keep: int | None
) -> None:
    copy = shutil.copytree(known_shards.url, tmp_path / "copy")
    path = copy / layer / "000000.tar"
    whole = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(whole[:keep])
    with pytest.raises(ShardError, match=rf"{layer}/000000\.tar: .* bytes, expected {len(whole)}"):
        open_pseudo(str(copy), "sum")


def test_layers_that_are_read_are_recorded(known_shards: Any) -> None:
    shards = ShardSet.open(known_shards.url)
    ids = {name: layer.id for name, layer in shards.dataset.layers.items()}
    assert open_pseudo(known_shards.url, "vanilla").layer_ids == {"masks": ids["masks"]}
    assert open_pseudo(known_shards.url, "sum").layer_ids == ids
    assert open_pseudo(known_shards.url, "vanilla").identity != open_pseudo(known_shards.url, "sum").identity


def test_other_units_make_another_set(known_shards: Any, tmp_path: Path) -> None:
    shards = copied(known_shards, tmp_path)
    before = open_pseudo(str(shards), "vanilla")
    (shards / "manifest" / "masks" / "000001.parquet").unlink()
    after = open_pseudo(str(shards), "vanilla")
    assert before.groups == (2, 1, 3, 1)  # as it was when it was opened
    assert after.groups == (2, 3, 1)
    assert after.identity != before.identity


def test_masks_of_another_input_size_are_refused(known_shards: Any) -> None:
    with pytest.raises(ShardError, match=r"input of 128 pixels.* 64"):
        open_pseudo(known_shards.url, "vanilla", SampleSettings(side=64, stride=4, masks=3, seed=0))
