"""Samples and streams: the same for everybody who asks, in whatever way they are loaded."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.placement import Frame
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.coded import Sample
from sum_factory.trainer.data.grid import coverage_on_grid, masks_on_grid, valid_cells
from sum_factory.trainer.data.human import FolderPairs, HumanSample
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample, load_human, pick
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.data.stream import HumanStream, MixedStream, PseudoStream
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.target import Target

SETTINGS = SampleSettings(side=128, stride=4, masks=2, seed=5)
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """A set of one photo with masks made up."""

    masks: Any
    image: Any
    task: int = 2
    keys: Sequence[str] = ("made up",)

    def load(self, index: int) -> HumanSample:
        return HumanSample(
            self.keys[index], self.image, self.task, len(self.masks), lambda numbers: self.masks[list(numbers)]
        )


def id_of(index: int = 0, epoch: int = 0) -> SampleId:
    return SampleId("human", epoch, index)


@pytest.fixture
def stripes() -> MadeUp:
    """Ten masks, stripes of eight rows, of a photo of 80 x 100 pixels."""
    masks = np.zeros((10, 80, 100), bool)
    for k in range(10):
        masks[k, 8 * k : 8 * k + 8] = True
    return MadeUp(masks, np.zeros((80, 100, 3), np.uint8))


def test_at_most_so_many_masks_are_picked_in_their_order(stripes: MadeUp) -> None:
    sizes = []
    for masks in (1, 3, 10, 30):
        grid = dataclasses.replace(SETTINGS, masks=masks)
        picked = pick(10, grid, id_of())
        assert len(set(picked.tolist())) == len(picked) == min(masks, 10)
        assert picked.tolist() == sorted(picked.tolist())
        sample = load_human(stripes, 0, id_of(), grid)
        expected = masks_on_grid(stripes.masks[picked], Frame.whole(128, 80, 100), 4)
        assert torch.equal(sample.masks, expected)
        sizes.append(len(sample))
    assert sizes == [1, 3, 10, 10]
    assert pick(0, SETTINGS, id_of()).shape == (0,)


def test_pick_depends_on_seed_stream_epoch_and_sample_alone() -> None:
    grid = dataclasses.replace(SETTINGS, masks=5)
    picked = pick(40, grid, id_of()).tolist()
    assert pick(40, dataclasses.replace(grid, stride=1), id_of()).tolist() == picked
    others = [
        pick(40, dataclasses.replace(grid, seed=6), id_of()),
        pick(40, grid, SampleId("pseudo", 0, 0)),
        pick(40, grid, id_of(epoch=1)),
        pick(40, grid, id_of(index=1)),
    ]
    assert all(other.tolist() != picked for other in others)


def test_each_mask_is_as_likely_as_any_other() -> None:
    grid = dataclasses.replace(SETTINGS, masks=3)
    counts = np.bincount(np.concatenate([pick(10, grid, id_of(index)) for index in range(2000)]), minlength=10)
    assert np.abs(counts - 600).max() < 6 * np.sqrt(2000 * 0.3 * 0.7)


def test_human_sample_is_trusted_everywhere_and_knows_its_task_and_valid_cells(stripes: MadeUp) -> None:
    sample = load_human(stripes, 0, id_of(), SETTINGS)
    assert (sample.certainty, sample.sampling, sample.task, sample.skipped) == (None, None, 2, 0)
    assert sample.image.shape == (3, 102, 128)
    assert sample.valid == valid_cells(Frame.whole(128, 80, 100), 4) == (26, 32)
    assert sample.key == "made up"


@pytest.mark.parametrize("target", ["coverage", "points"])
def test_human_sample_has_what_its_target_compares_with(stripes: MadeUp, target: Target) -> None:
    masks = stripes.masks[:3].copy()
    masks[1] = False  # has no cell, and is left out of all that the sample has
    settings = dataclasses.replace(SETTINGS, masks=9, target=target)
    sample = load_human(dataclasses.replace(stripes, masks=masks), 0, id_of(), settings)
    frame, seen = Frame.whole(128, 80, 100), masks[[0, 2]]
    assert torch.equal(sample.masks, masks_on_grid(seen, frame, 4))
    found = sample.on(torch.device("cpu"))
    if target == "coverage":
        assert found.pixel_masks is None
        assert found.coverage is not None
        assert torch.equal(found.coverage, coverage_on_grid(seen, frame, 4))
    else:
        assert found.coverage is None
        assert found.pixel_masks is not None
        assert torch.equal(found.pixel_masks, masks_on_grid(seen, frame, 1))


def test_mask_without_a_cell_is_left_out_and_counted(stripes: MadeUp) -> None:
    masks = stripes.masks[:3].copy()
    masks[0] = False
    masks[1] = False
    masks[1, 40, 50] = True  # one pixel of 80 x 100 is no half of a cell
    sample = load_human(dataclasses.replace(stripes, masks=masks), 0, id_of(), dataclasses.replace(SETTINGS, masks=9))
    assert (len(sample), sample.skipped) == (1, 2)
    none = load_human(dataclasses.replace(stripes, masks=masks[:2]), 0, id_of(), SETTINGS)
    assert (len(none), none.skipped) == (0, 2)


def test_photo_too_thin_for_sam_is_named() -> None:
    thin = MadeUp(np.ones((1, 1, 600), bool), np.zeros((1, 600, 3), np.uint8))
    with pytest.raises(ImageError, match="made up: 600 x 1 is too thin for SAM"):
        load_human(thin, 0, id_of(), SETTINGS)


@pytest.fixture
def human(human_sets: tuple[SetSettings, ...]) -> HumanStream:
    return HumanStream([open_set(each) for each in human_sets], SETTINGS)


@pytest.fixture
def pseudo(known_shards: Any) -> PseudoStream:
    return PseudoStream(PseudoSet(ShardSet.open(known_shards.url), "refinement", METHODS["sum"], SETTINGS))


def test_sets_follow_one_another_in_the_stream(human: HumanStream) -> None:
    loaded = [human.load(index, id_of(index)) for index in range(10)]
    assert [sample.key for sample in loaded] == [f"photo{n}" for n in range(5)] * 2
    assert [sample.task for sample in loaded] == [1] * 5 + [3] * 5
    with pytest.raises(IndexError):
        human.load(10, id_of(10))


def test_orders_name_what_is_in_the_stream(human: HumanStream, pseudo: PseudoStream) -> None:
    assert human.order.groups == (10,)
    assert pseudo.order.groups == (2, 1, 3, 1)
    assert human.order.seed == pseudo.order.seed == 5
    assert human.sets[0].keys is human.sets[0].keys, "a list of all keys for every sample would be slow"
    fewer = HumanStream([*human.sets[:1]], SETTINGS)
    swapped = HumanStream([*human.sets[::-1]], SETTINGS)
    assert len({human.order.identity, fewer.order.identity, swapped.order.identity}) == 3


def mixed(human: HumanStream, pseudo: PseudoStream, **changes: Any) -> MixedStream:
    settings: dict[str, Any] = {"mix": Mix(2, 1), "batch": 5, **changes}
    return MixedStream({"human": human, "pseudo": pseudo}, **settings)


def assert_same(found: Sequence[Sample], expected: Sequence[Sample]) -> None:
    """Compare samples, tensors bit for bit."""
    assert [sample.id for sample in found] == [sample.id for sample in expected]
    for a, b in zip(*([sample.on(CPU) for sample in each] for each in (found, expected)), strict=True):
        for field in dataclasses.fields(TrainingSample):
            left, right = getattr(a, field.name), getattr(b, field.name)
            assert torch.equal(left, right) if isinstance(left, Tensor) else left == right


def place_of(sample: Sample) -> tuple[str, int, int]:
    return sample.id.stream, sample.id.epoch, sample.id.index


def test_samples_do_not_depend_on_threads_resumption_or_ranks(human: HumanStream, pseudo: PseudoStream) -> None:
    expected = [[mixed(human, pseudo).load(slot) for slot in range(5 * step, 5 * step + 5)] for step in range(6)]
    for threads, ahead in ((1, 0), (1, 3), (4, 1)):
        stream = mixed(human, pseudo, threads=threads, steps_ahead=ahead)
        loaded = list(stream.steps(0, 6))
        assert len(loaded) == 6
        for found, wanted in zip(loaded, expected, strict=True):
            assert_same(found, wanted)
    for found, wanted in zip(mixed(human, pseudo).steps(4, 6), expected[4:], strict=True):
        assert_same(found, wanted)
    shares = [list(mixed(human, pseudo, rank=rank, ranks=2).steps(0, 6)) for rank in range(2)]
    for step, wanted in enumerate(expected):
        assert_same(sorted(shares[0][step] + shares[1][step], key=place_of), sorted(wanted, key=place_of))
        pseudo_of = [sum(sample.id.stream == "pseudo" for sample in share[step]) for share in shares]
        assert abs(pseudo_of[0] - pseudo_of[1]) <= 1


def test_streams_are_mixed_as_asked_and_pass_over_all_samples(human: HumanStream, pseudo: PseudoStream) -> None:
    drawn = [sample.id for step in mixed(human, pseudo).steps(0, 6) for sample in step]
    assert [each.stream for each in drawn] == ["human", "human", "pseudo"] * 10
    for name, count in (("human", 10), ("pseudo", 7)):
        of_stream = [each for each in drawn if each.stream == name]
        assert sorted(each.index for each in of_stream if each.epoch == 0) == list(range(count))
        assert [each.epoch for each in of_stream] == sorted(each.epoch for each in of_stream)
        assert max(each.epoch for each in of_stream) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_the_other_stream_each_step_has_the_same_human_photos(
    human: HumanStream, pseudo: PseudoStream, ranks: int
) -> None:
    both, alone = (
        [
            [sample.id for share in step for sample in share if sample.id.stream == "human"]
            for step in zip(
                *(
                    MixedStream(streams, Mix(2, 1), 5, rank, ranks).steps(0, 6)  # type: ignore[arg-type]
                    for rank in range(ranks)
                ),
                strict=True,
            )
        ]
        for streams in ({"human": human, "pseudo": pseudo}, {"human": human})
    )
    assert both == alone
    assert {len(step) for step in alone} == {3, 4}


def test_photo_without_usable_masks_is_a_sample_without_masks(human: HumanStream, pseudo: PseudoStream) -> None:
    loaded = [sample.on(CPU) for step in mixed(human, pseudo, mix=Mix(0, 1), batch=7).steps(0, 1) for sample in step]
    counts = {sample.key: (len(sample), sample.skipped) for sample in loaded}
    assert len(counts) == 7
    assert counts["shot5"] == (0, 4)


def test_sample_that_cannot_be_read_stops_the_stream_and_is_named(human_folder: Path, tmp_path: Path) -> None:
    """It is not replaced by another, which would pair one photo with the masks of the next."""
    folder = shutil.copytree(human_folder, tmp_path / "human")
    stream = HumanStream([FolderPairs(folder / "images", folder / "salient", 1)], SETTINGS)
    list(MixedStream({"human": stream}, Mix(1, 0), 5).steps(0, 1))  # the set is sound when it is opened
    for name, content, message in (
        ("images/photo3.png", b"no image", r"photo3\.png: not an image"),
        ("salient/photo3.png", b"", r"salient/photo3\.png: the file is empty"),
    ):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ImageError, match=message):
            list(MixedStream({"human": stream}, Mix(1, 0), 5).steps(0, 1))
        (folder / name).write_bytes(before)
    (folder / "images" / "photo1.png").unlink()
    with pytest.raises(InputError, match=r"photo1\.png: cannot be read"):
        list(MixedStream({"human": stream}, Mix(1, 0), 5).steps(0, 1))


def test_stream_that_is_left_leaves_no_threads(human: HumanStream, pseudo: PseudoStream) -> None:
    before = set(threading.enumerate())
    steps = mixed(human, pseudo).steps(0, 100)
    next(steps)
    assert set(threading.enumerate()) - before
    steps.close()
    assert set(threading.enumerate()) <= before, "those of other tests may have ended meanwhile"


def test_no_more_is_loaded_ahead_than_asked_for(human: HumanStream, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = MixedStream.load

    def counted(self: MixedStream, slot: int) -> Sample:
        loaded.append(slot)
        return load(self, slot)

    monkeypatch.setattr(MixedStream, "load", counted)
    steps = MixedStream({"human": human}, Mix(1, 0), 2, steps_ahead=2).steps(0, 50)
    next(steps)
    steps.close()
    assert max(loaded) < 2 * 3


def test_label_map_without_masks_is_a_sample_without_masks(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.zeros((30, 40, 3) if kind == "images" else (30, 40), np.uint8)).save(
            tmp_path / kind / "a.png"
        )
    from sum_factory.trainer.data.human import LabelMaps

    sample = load_human(LabelMaps(tmp_path / "images", tmp_path / "labels", 3), 0, id_of(), SETTINGS)
    assert len(sample) == 0
    assert sample.masks.shape == (0, 32, 32)
