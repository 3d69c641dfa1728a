"""Masks made of codes on the training device, against a naive version: one mask at a time, floats, on the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.codecs.codes import Codes, map_tables
from sum_factory.shared.codecs.fast import decode_labels
from sum_factory.shared.codecs.label import decode_label, encode_label
from sum_factory.shared.codecs.uncertainty import decode_u
from sum_factory.shared.placement import Frame
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.batch import collate
from sum_factory.trainer.data.coded import CodedSample, look_up
from sum_factory.trainer.data.grid import BEYOND, valid_cells
from sum_factory.trainer.data.pseudo import UNSPECIFIED, PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.target import Target

CPU = torch.device("cpu")
METHOD_NAMES = ["vanilla", "mask-refinement", "sum", "sum-no-ua-sampling"]


def naive_grid(values: npt.NDArray[np.float32], frame: Frame, whole: Frame, stride: int, outside: float) -> Tensor:
    """Bring the values (h, w) of one mask to the loss grid, (G, G)."""
    side, (height, width) = whole.side, whole.input_size
    rows, columns, cells = -(-height // stride), -(-width // stride), side // 4
    result = torch.zeros(side // stride, side // stride)
    if frame == whole:
        padded = np.pad(values, ((0, cells - values.shape[0]), (0, cells - values.shape[1])), mode="edge")
        square = torch.from_numpy(padded)[None, None]
        if stride < 4:
            square = F.interpolate(square, (side // stride, side // stride), mode="bilinear", align_corners=False)
        result[:rows, :columns] = square[0, 0, :rows, :columns]
        return result
    x0, y0, x1, y1 = frame.crop_box
    photo = torch.zeros(whole.crop_size)
    photo[y0:y1, x0:x1] = frame.upsample(torch.from_numpy(values)[None])[0] - outside
    photo += outside
    scaled = F.interpolate(photo[None, None], (height, width), mode="bilinear", align_corners=False, antialias=True)
    padded = np.pad(scaled[0, 0].numpy(), ((0, -height % stride), (0, -width % stride)), mode="edge")
    means = padded.reshape(rows, stride, columns, stride).mean((1, 3), dtype=np.float32)
    result[:rows, :columns] = torch.from_numpy(means)
    return result


def naive_sample(
    coded: CodedSample, labels: list[npt.NDArray[np.float32]], maps: list[npt.NDArray[np.float32]] | None
) -> TrainingSample:
    """Make the sample of decoded labels and maps, mask by mask."""
    masks, certainty, coverage, pixels = [], [], [], []
    for k, label in enumerate(labels):
        frame = Frame.crop(coded.whole.side, coded.crops[k])
        exact = naive_grid(label, frame, coded.whole, 1, BEYOND) > 0
        shares = naive_shares(exact, coded.whole, coded.stride)
        mask = shares >= 0.5
        if coded.target == "bits":
            mask = naive_grid(label, frame, coded.whole, coded.stride, BEYOND) > 0
        if mask.any():
            masks.append(mask)
            coverage.append(shares)
            pixels.append(exact)
            if maps is not None:
                certainty.append(1 - naive_grid(maps[k], frame, coded.whole, coded.stride, 0.0))
    side, cells = coded.whole.side, coded.whole.side // coded.stride
    c = torch.stack(certainty) if certainty else torch.zeros(0, cells, cells)
    none = {"coverage": torch.zeros(0, cells, cells), "points": torch.zeros(0, side, side, dtype=torch.bool)}
    return TrainingSample(
        coded.id,
        coded.key,
        coded.image,
        torch.stack(masks) if masks else torch.zeros(0, cells, cells, dtype=torch.bool),
        c if maps is not None and coded.needs_certainty else None,
        c if maps is not None and coded.sampling_by_certainty else None,
        coded.valid,
        coded.task,
        coded.skipped + len(labels) - len(masks),
        (torch.stack(coverage) if masks else none["coverage"]) if coded.target == "coverage" else None,
        (torch.stack(pixels) if masks else none["points"]) if coded.target == "points" else None,
    )


def naive_shares(exact: Tensor, whole: Frame, stride: int) -> Tensor:
    """Return the share of each cell of the loss grid that a mask on SAM's input covers, (G, G)."""
    height, width = whole.input_size
    padded = np.pad(exact[:height, :width].numpy(), ((0, -height % stride), (0, -width % stride)), mode="edge")
    rows, columns = padded.shape[0] // stride, padded.shape[1] // stride
    result = torch.zeros(whole.side // stride, whole.side // stride)
    result[:rows, :columns] = torch.from_numpy(padded.reshape(rows, stride, columns, stride).mean((1, 3)))
    return result


def require_same(found: TrainingSample, expected: TrainingSample) -> None:
    """Compare two samples, tensors bit for bit."""
    for field in dataclasses.fields(TrainingSample):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other, field.name


def naive_samples(
    url: str, method: str, stride: int, target: Target = "bits"
) -> list[tuple[CodedSample, TrainingSample]]:
    """Load all samples of a shard set, and make each of the blobs as they are stored besides."""
    layer = "refinement" if METHODS[method].needs_uncertainty else None
    shards = ShardSet.open(url)
    pseudo = PseudoSet(shards, layer, METHODS[method], SampleSettings(128, stride, 30, 0, target))
    loaded = [pseudo.load(index, SampleId("pseudo", 0, index)) for index in range(len(pseudo))]
    made = []
    images = [(number, image) for number, image in shards.walk() if image.masks]
    for coded, (number, image) in zip(loaded, images, strict=True):
        labels = [decode_label(blob) for blob in shards.label_blobs(number, image)]
        maps = None
        if layer is not None:
            rows = [row for row in shards.uncertainty(number)[image.index] if row.u_valid]
            found = [each for each in shards.read_uncertainty(number, rows) if each is not None]
            blobs = shards.reader(f"uncertainty/{layer}").blobs(number, [row.row for row in rows])
            maps = [decode_u(blob) for blob in blobs]
            labels = [labels[row.mask] for row in rows]
            if METHODS[method].pseudo_labels == "refined":
                labels = [each.refined for each in found if each.refined is not None]
        made.append((coded, naive_sample(coded, labels, maps)))
    return made


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_samples_are_those_of_the_naive_version_bit_for_bit(known_shards: Any, method: str, stride: int) -> None:
    compared = naive_samples(known_shards.url, method, stride)
    assert any(len(np.unique(coded.crops, axis=0)) > 1 for coded, _ in compared)  # of a crop and of the whole photo
    assert any(len(expected) == 0 for _, expected in compared) == (method != "vanilla")
    for coded, expected in compared:
        require_same(coded.on(CPU), expected)


@pytest.mark.parametrize(("target", "stride"), [("coverage", 2), ("coverage", 4), ("points", 4)])
def test_samples_of_other_targets_are_those_of_the_naive_version_bit_for_bit(
    known_shards: Any, target: Target, stride: int
) -> None:
    compared = naive_samples(known_shards.url, "sum", stride, target)
    for coded, expected in compared:
        require_same(coded.on(CPU), expected)
    exact = [sample.coverage if target == "coverage" else sample.pixel_masks for _, sample in compared]
    assert all(each is not None for each in exact)
    assert target == "points" or any(bool(((each > 0) & (each < 1)).any()) for each in exact if each is not None)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_batches_are_those_of_the_naive_version_bit_for_bit(known_shards: Any, tiny_sam: Sam, stride: int) -> None:
    compared = naive_samples(known_shards.url, "sum", stride)
    found = collate([coded.on(CPU) for coded, _ in compared], tiny_sam, stride, 7)
    expected = collate([sample for _, sample in compared], tiny_sam, stride, 7)
    assert found is not None
    assert expected is not None
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.tasks, expected.tasks)
    assert found.counts == expected.counts
    for field in ("masks", "valid", "certainty", "sampling", "image_index"):
        assert torch.equal(getattr(found.targets, field), getattr(expected.targets, field)), field


def random_labels(seed: int, frames: list[Frame]) -> list[bytes]:
    """Return a label a frame: smooth logits, of some masks so few positive cells that an upsampled grid has none."""
    random = np.random.default_rng(seed)
    made = []
    for k, frame in enumerate(frames):
        rows, columns = frame.interpolation_cells
        coarse = torch.from_numpy(random.normal(0, 5, (1, 1, 6, 6)).astype(np.float32))
        logits = F.interpolate(coarse, (rows, columns), mode="bicubic")[0, 0].numpy()
        if k % 4 == 3:
            logits = np.full((rows, columns), -8, np.float32)
            logits[rows // 2, columns // 3] = 0.25
        made.append(encode_label(logits))
    return made


SIZES = {
    "landscape": (683, 1024),
    "portrait": (1500, 1000),
    "square": (512, 512),
    "odd": (301, 977),
    "thin": (40, 1001),
}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("name", SIZES)
def test_masks_of_a_large_photo_and_of_several_crops_are_those_of_the_naive_version(name: str, stride: int) -> None:
    height, width = SIZES[name]
    whole = Frame.whole(256, height, width)
    crops = [Frame.crop(256, (0, 0, width * 2 // 3, height)), Frame.crop(256, (width // 3, height // 4, width, height))]
    frames = [whole, crops[0], whole, whole, crops[1], whole, crops[0], crops[1]]
    encoded = random_labels(height + width, frames)
    random = np.random.default_rng(3)
    labels = decode_labels(encoded).codes()
    grid = (10 * random.integers(0, 26, labels.grid.shape)).astype(np.uint8)
    maps = Codes(grid, map_tables(len(frames)), labels.sizes)
    coded = CodedSample(
        SampleId("pseudo", 0, 0),
        name,
        torch.zeros(3, *whole.input_size, dtype=torch.uint8),
        labels,
        maps,
        np.array([frame.crop_box for frame in frames], np.int64),
        whole,
        stride,
        needs_certainty=True,
        sampling_by_certainty=True,
        valid=valid_cells(whole, stride),
        task=UNSPECIFIED,
        skipped=3,
    )
    expected = naive_sample(coded, [decode_label(blob) for blob in encoded], [maps.values(k) for k in range(8)])
    require_same(coded.on(CPU), expected)
    assert len(expected) > 0
    assert stride == 4 or expected.skipped > 3  # a lone cell that only just is positive is gone on a finer grid


def test_values_looked_up_are_those_of_the_codes() -> None:
    frames = [Frame.whole(256, 200, 300)] * 5
    codes = decode_labels(random_labels(0, frames)).codes()
    assert torch.equal(look_up(codes, np.array([0, 3, 1]), CPU), torch.from_numpy(codes.all_values()[[0, 3, 1]]))
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    maps = Codes(np.repeat(every, 2, 0), map_tables(2), np.array([[16, 16]] * 2))
    assert torch.equal(look_up(maps, np.arange(2), CPU), torch.from_numpy(maps.all_values()))


def test_sample_carries_one_byte_a_cell(known_shards: Any) -> None:
    """A quarter of what its floats take at stride 4, and nothing that grows with the loss grid."""
    sizes = set()
    for stride in (1, 4):
        pseudo = PseudoSet(
            ShardSet.open(known_shards.url), "refinement", METHODS["sum"], SampleSettings(128, stride, 30, 0)
        )
        coded = pseudo.load(0, SampleId("pseudo", 0, 0))
        assert coded.maps is not None
        assert coded.labels.grid.dtype == coded.maps.grid.dtype == np.uint8
        sizes.add((coded.labels.grid.nbytes, coded.maps.grid.nbytes))
    rows, columns = Frame.whole(128, 96, 128).interpolation_cells
    assert sizes == {(len(coded.crops) * rows * columns,) * 2}
