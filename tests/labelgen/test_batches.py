"""Photos that the encoder takes together, and lanes as a GPU has them, give what one after the other gives."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from sum_factory.labelgen import coding, labeler
from sum_factory.labelgen import run as run_module
from sum_factory.labelgen.coding import LabelCoder, coding_processes
from sum_factory.labelgen.job import Job
from sum_factory.labelgen.kept import labels_of
from sum_factory.labelgen.progress import RunSummary
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.lanes import Lanes
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.gpu.clock import BusyClock
from sum_factory.shared.images import RgbImage
from sum_factory.shared.memory import BatchSize
from sum_factory.shared.sam.runtime import Embedder, Runtime, move_to_device
from sum_factory.shared.shards.shard_set import ShardSet

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, bytes]]
SIZES = [(60, 90), (90, 60), (64, 64), (33, 77), (128, 20)]


@pytest.fixture(scope="module")
def images() -> list[RgbImage]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def sam(tiny_sam: Sam) -> Sam:
    return move_to_device(deepcopy(tiny_sam), Runtime("cpu"))


def whole(image: RgbImage) -> tuple[RgbImage, tuple[int, int, int, int], None]:
    return image, (0, 0, image.shape[1], image.shape[0]), None


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_batches_of_any_size_give_upstreams_embeddings(
    tiny_sam: Sam, sam: Sam, images: list[RgbImage], batch: int
) -> None:
    found = Embedder(sam, batch=BatchSize(batch)).embed_crops([whole(image) for image in images])
    for image, embedding in zip(images, found, strict=True):
        torch.testing.assert_close(embedding, Embedder(tiny_sam).embed(image), rtol=1e-4, atol=1e-4)


def test_embedding_does_not_depend_on_what_is_embedded_with_it(sam: Sam, images: list[RgbImage]) -> None:
    embedder = Embedder(sam, batch=BatchSize(4))
    together = embedder.embed_crops([whole(image) for image in images])
    alone = [embedder.embed_crops([whole(image)])[0] for image in images]
    for one, other in zip(together, alone, strict=True):  # MKL on some processors adds by the row's place in the batch
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_encoder_takes_half_as_many_when_memory_runs_out(
    sam: Sam, images: list[RgbImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sizes = sam.image_encoder.forward, []

    def limited(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return forward(batch)  # type: ignore[no-any-return]

    monkeypatch.setattr(sam.image_encoder, "forward", limited)
    embedder = Embedder(sam, batch=BatchSize(8))
    assert len(embedder.embed_crops([whole(image) for image in images])) == len(images)
    assert (sizes, embedder.batch.size) == ([8, 4, 2, 2, 2], 2)


def test_photos_that_are_labelled_together_have_the_masks_of_each_alone(
    sam: Sam, images: list[RgbImage], loose: AutomaskSettings
) -> None:
    settings = AutomaskSettings(**{**vars(loose), "crop_n_layers": 1})
    clock = BusyClock()
    together = LabelGenerator(sam, settings, photos_per_batch=4, clock=clock).label_all(
        [(each, None) for each in images]
    )
    assert {"encoder", "decoder", "regions"} <= clock.take().by_stage.keys()
    alone = LabelGenerator(sam, settings)
    for image, labelled in zip(images, together, strict=True):
        expected = alone.label(image)
        assert len(labelled) == len(expected) > 0
        assert labelled.frames == expected.frames
        assert labelled.embeddings.keys() == expected.embeddings.keys()
        np.testing.assert_array_equal(labelled.points, expected.points)
        np.testing.assert_allclose(labelled.logits, expected.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [False, True])
def test_lanes_of_a_gpu_make_the_bytes_of_one(
    own_photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, bad: bool
) -> None:
    """Batches of three photos in several lanes that do not help each other, each prepared once, labels by processes."""
    if bad:
        (own_photos / "a.jpg").write_bytes(b"")
    options = {"photos_per_batch": 3, "unit_size": 4, "keep_photos": True}
    label(own_photos, tmp_path / "one", threads=1, **options)
    prepared: list[object] = []
    monkeypatch.setattr(labeler, "take_cores", lambda device, cores: Lanes(3, lambda: prepared.append(None)))
    monkeypatch.setattr(labeler, "coding_processes", lambda on_gpu, cores: 1)
    label(own_photos, tmp_path / "many", **options)
    assert prepared
    assert snapshot(tmp_path / "many") == snapshot(tmp_path / "one")
    errors = [image.error for unit in range(2) for image in ShardSet.open(str(tmp_path / "many")).images(unit)]
    assert len([error for error in errors if error]) == bad


def test_lanes_with_streams_of_their_own_do_not_help_each_other() -> None:
    lanes = Lanes(2, lambda: torch.set_num_threads(1))
    import threading

    [threads] = lanes.in_order(lambda _: lanes.spread(lambda _: threading.get_ident(), range(20)), [None])
    assert len(set(threads)) == 1


def test_labels_are_encoded_here_where_processes_ended(
    sam: Sam, images: list[RgbImage], loose: AutomaskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(coding.SPEAKER, "say", said.append)
    generated = LabelGenerator(sam, loose).label(images[0])
    coder = LabelCoder()

    def submit(*_: object) -> None:
        raise BrokenProcessPool

    coder._pool = SimpleNamespace(submit=submit)  # type: ignore[assignment]
    assert coder.encode(generated) == coder.encode(generated) == labels_of(generated)
    assert said == [coding.FALLEN_BACK]


@pytest.mark.parametrize(("on_gpu", "cores", "expected"), [(False, 64, 0), (True, 1, 0), (True, 6, 4), (True, 64, 8)])
def test_processes_encode_beside_a_gpu_alone(on_gpu: bool, cores: int, expected: int) -> None:
    assert coding_processes(on_gpu, cores) == expected


@pytest.mark.parametrize(
    ("changes", "share"),
    [({}, 0.9), ({"gpus_per_worker": 0.5}, 0.45), ({"gpus_per_worker": 2.0}, 0.9), ({"gpu_memory": 0.3}, 0.3)],
)
def test_workers_that_share_a_gpu_share_its_memory(
    photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], share: float
) -> None:
    seen: list[tuple[float, int | None, int | None]] = []

    def work(settings: object, job: Job, *_: object) -> None:
        seen.append((job.runtime.gpu_memory, job.photos_per_batch, job.points_per_batch))

    monkeypatch.setattr(run_module, "work", work)
    label(photos, tmp_path / "shards", **changes)
    assert seen == [(pytest.approx(share), None, None)]


def test_process_ends_when_the_one_is_killed_that_started_it() -> None:
    """It would wait for work for ever: all processes of a pool hold the end of the pipe that it waits at."""
    script = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from sum_factory.shared.parent_process import end_with_parent
pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    started = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    process = int(started.stdout)
    until = time.monotonic() + 60
    while time.monotonic() < until and is_running(process):
        time.sleep(0.05)
    assert not is_running(process)


def is_running(process: int) -> bool:
    """Whether there is such a process, and it has not ended without anybody asking how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
