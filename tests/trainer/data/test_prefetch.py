"""Units of remote shards are brought near before their samples are loaded: those of the next window, as far as there
is room, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.cache import COPY, Cache
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data import order as order_module
from sum_factory.trainer.data.order import Mix, Order
from sum_factory.trainer.data.prefetch import Prefetcher
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.data.sets import open_set
from sum_factory.trainer.data.stream import HumanStream, MixedStream, PseudoStream
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=128, stride=4, masks=2, seed=0)
PLENTY = 1 << 24
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a window be one unit of the four: then there are windows that come later."""
    monkeypatch.setattr(order_module, "WINDOW", 1)


@pytest.fixture
def remote(known_shards: Any, bucket: str, upload: Callable[[Path, str], None]) -> str:
    upload(known_shards.folder, f"{bucket}/shards")
    return f"{bucket}/shards"


@pytest.fixture
def data_reads(monkeypatch: pytest.MonkeyPatch, object_store: str) -> list[str]:
    """The data files that are read from the object store, in order."""
    store = fsspec.filesystem("s3")
    cat_file, names = store.cat_file, []

    def counted(path: str, *args: object, **kwargs: object) -> bytes:
        if path.endswith(".tar"):
            names.append(path.split("/shards/")[1])
        data: bytes = cat_file(path, *args, **kwargs)
        return data

    monkeypatch.setattr(store, "cat_file", counted)
    return names


def open_pseudo(url: str, cache: Cache | None, method: str = "vanilla") -> PseudoSet:
    layer = "refinement" if METHODS[method].needs_uncertainty else None
    return PseudoSet(ShardSet.open(url, cache), layer, METHODS[method], SETTINGS)


def order_of(pseudo: PseudoSet) -> Order:
    return PseudoStream(pseudo).order


def tars_of(order: Order, *windows: int) -> list[str]:
    """Return the masks of windows; every unit of the known shards has a mask, so groups are units."""
    return [f"masks/{group:06d}.tar" for window in windows for group in order.groups_of(window)]


def start_of(order: Order, window: int) -> int:
    return next(position for position in range(10_000) if order.window(position) == window)


def test_windows_are_those_of_the_order() -> None:
    order = Order("data", (3, 1, 4, 1, 5), 0)
    first = [0, 3, 4, 8, 9, 14]
    for position in range(3 * len(order)):
        epoch, index = order.sample(position)
        window = order.window(position)
        assert window // 5 == epoch
        assert any(first[group] <= index < first[group + 1] for group in order.groups_of(window))
    assert [order.window(position) for position in range(40)] == sorted(order.window(p) for p in range(40))


def test_window_after_the_one_that_is_reached_is_brought_and_no_other(
    remote: str, tmp_path: Path, data_reads: list[str]
) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", PLENTY))
    order = order_of(pseudo)
    prefetcher = Prefetcher(pseudo, order, last=len(order) - 1)
    assert data_reads == []
    expected: list[str] = []
    for window in range(4):
        prefetcher.reach(start_of(order, window))
        prefetcher.wait()
        expected = tars_of(order, *range(min(window + 2, 4)))
        assert data_reads == expected
    prefetcher.close()
    before = list(data_reads)
    for index in range(len(pseudo)):
        pseudo.load(index, SampleId("pseudo", 0, index))
    assert data_reads == before, "samples are read of the copies"


def test_stream_brings_nothing_that_its_steps_do_not_need(remote: str, tmp_path: Path, data_reads: list[str]) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", PLENTY))
    order = order_of(pseudo)
    samples_of_two = start_of(order, 2)
    stream = MixedStream({"pseudo": PseudoStream(pseudo)}, Mix(0, 1), 1, threads=1, steps_ahead=0)
    assert len(list(stream.steps(0, samples_of_two))) == samples_of_two
    assert set(data_reads) == set(tars_of(order, 0, 1))
    assert len(data_reads) == 2


def test_batches_without_a_sample_of_the_shards_do_not_end_it(
    remote: str, human_sets: Any, tmp_path: Path, data_reads: list[str]
) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", PLENTY))
    human = HumanStream([open_set(settings) for settings in human_sets], SETTINGS)
    mix, order = Mix(1, 1), order_of(pseudo)
    steps = 2 * len(order) + 1  # the last one, of one sample, is human
    stream = MixedStream({"human": human, "pseudo": PseudoStream(pseudo)}, mix, 1, threads=1, steps_ahead=0)
    prefetchers = stream._prefetchers(steps)
    assert mix.locate(steps - 1)[0] == "human"
    prefetchers["pseudo"].reach(0)
    prefetchers["pseudo"].wait()
    prefetchers["pseudo"].close()
    assert data_reads == tars_of(order, 0, 1)


def test_copies_take_the_room_that_is_told(
    known_in_zarr: Any, bucket: str, upload: Callable[[Path, str], None], tmp_path: Path
) -> None:
    """Each file of a unit has checksums of its own, so several take more room than one of as many bytes."""
    upload(known_in_zarr.folder, f"{bucket}/shards")
    pseudo = open_pseudo(f"{bucket}/shards", Cache(tmp_path / "cache", PLENTY), "sum")
    groups = range(len(pseudo.groups))

    def used() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "cache").glob(f"*{COPY}"))

    before = used()  # plans and manifests
    for group in groups:
        pseudo.bring(group, data=True)
    assert used() - before == sum(map(pseudo.bytes_of, groups))


def test_stream_that_is_resumed_begins_with_its_own_window(remote: str, tmp_path: Path, data_reads: list[str]) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", PLENTY))
    order = order_of(pseudo)
    at = start_of(order, 3)
    stream = MixedStream({"pseudo": PseudoStream(pseudo)}, Mix(0, 1), 1, threads=1, steps_ahead=0)
    list(stream.steps(at, at + 1))
    assert data_reads == tars_of(order, 3)


@pytest.mark.parametrize("method", [pytest.param("vanilla", marks=pytest.mark.long), "sum"])
def test_samples_are_the_same_with_and_without(known_shards: Any, remote: str, tmp_path: Path, method: str) -> None:
    loaded = []
    for url, cache in ((known_shards.url, None), (remote, Cache(tmp_path / "cache", PLENTY)), (remote, None)):
        stream = MixedStream({"pseudo": PseudoStream(open_pseudo(url, cache, method))}, Mix(0, 1), 3)
        loaded.append([sample.on(CPU) for step in stream.steps(0, 6) for sample in step])
    for others in loaded[1:]:
        for one, other in zip(loaded[0], others, strict=True):
            assert one.id == other.id
            assert torch.equal(one.masks, other.masks)
            assert torch.equal(one.image, other.image)


def test_nothing_is_brought_that_would_push_out_what_is_being_read(
    remote: str, tmp_path: Path, data_reads: list[str]
) -> None:
    """With room for one window and a little more: the next one stays away, and the limit holds."""
    whole = open_pseudo(remote, None)
    order = order_of(whole)
    sizes = [whole.bytes_of(order.groups_of(window)[0]) for window in range(2)]
    for limit, expected in ((sum(sizes), [0, 1]), (sum(sizes) - 1, [0]), (sizes[0] - 1, [])):
        folder = tmp_path / str(limit)
        pseudo = open_pseudo(remote, Cache(folder, limit))
        data_reads.clear()
        prefetcher = Prefetcher(pseudo, order, last=len(order) - 1)
        prefetcher.reach(0)
        prefetcher.wait()
        prefetcher.close()
        assert data_reads == tars_of(order, *expected)
        copies = [path.stat().st_size for path in folder.iterdir()] if folder.exists() else []
        assert sum(copies) <= limit


def test_damage_is_named_by_the_sample_that_needs_the_unit(remote: str, tmp_path: Path) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", PLENTY))
    order = order_of(pseudo)
    changed, lost = (tars_of(order, window)[0] for window in (1, 2))
    data = bytearray(Storage(remote).read(changed))
    data[700] ^= 1
    Storage(remote).write(changed, bytes(data))
    Storage(remote).delete(lost)
    prefetcher = Prefetcher(pseudo, order, last=len(order) - 1)
    for window in range(3):
        prefetcher.reach(start_of(order, window))
        prefetcher.wait()
    prefetcher.close()
    for window, message in ((1, f"{changed}: its bytes do not have the SHA-256"), (2, f"{lost}: missing")):
        _, index = order.sample(start_of(order, window))
        with pytest.raises(ShardError, match=message):
            pseudo.load(index, SampleId("pseudo", 0, index))


def test_rows_are_read_ahead_of_local_shards_too_and_nothing_is_copied(known_shards: Any, tmp_path: Path) -> None:
    pseudo = open_pseudo(known_shards.url, Cache(tmp_path / "cache", PLENTY))
    order = order_of(pseudo)
    assert pseudo.room is None
    prefetcher = Prefetcher(pseudo, order, last=len(order) - 1)
    prefetcher.reach(0)
    prefetcher.wait()
    prefetcher.close()
    read = pseudo.shards.reader().rows
    assert read.cache_info().currsize == 2  # type: ignore[attr-defined]
    assert not any(path.suffix == COPY for path in tmp_path.rglob("*"))


def test_fault_of_the_thread_itself_ends_the_stream(known_shards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PseudoSet, group: int, data: bool) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr(PseudoSet, "bring", broken)
    pseudo = open_pseudo(known_shards.url, None)
    prefetcher = Prefetcher(pseudo, order_of(pseudo), last=len(pseudo) - 1)
    prefetcher.reach(0)
    with pytest.raises(TypeError, match="a mistake"):
        prefetcher.wait()
    prefetcher.close()


def test_stream_that_is_left_leaves_no_thread(known_shards: Any) -> None:
    before = set(threading.enumerate())
    steps = MixedStream({"pseudo": PseudoStream(open_pseudo(known_shards.url, None))}, Mix(0, 1), 2).steps(0, 100)
    next(steps)
    steps.close()
    assert set(threading.enumerate()) <= before
