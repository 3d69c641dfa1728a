"""What test files share: six tiny photos, settings that keep masks whatever the weights, a labelled shard set.

What takes long to import is imported by who uses it: the process that only hands tests to others needs none of it.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import shutil
import sys
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from sum_factory.shared import progress
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.precision import TOLD
from sum_factory.shared.progress import SPEAKER, Speaker

pytest.register_assert_rewrite(*(path.stem for path in (Path(__file__).parent / "support").iterdir()))

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import torch
    from segment_anything.modeling import Sam

    from sum_factory.labelgen.engine.stop import Stop
    from sum_factory.labelgen.progress import RunSummary
    from sum_factory.shared.sam.checkpoint import SamWeights

MANIFESTS = 512
"""Manifests of which is remembered what is in them."""

# Read when Triton is first imported: without a GPU, Python runs its kernels, on tensors in main memory.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples every time, and as slow as they like: what a test says must not depend on luck or load.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch finds none")


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what libraries and tests are made of: it is there until the end."""
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_told_before() -> None:
    """Progress is told of every so many seconds of a process: when a test begins, they begin."""
    SPEAKER._spoken = None


@pytest.fixture(scope="session", autouse=True)
def single_threaded() -> Iterator[None]:
    """Tiny tensors are faster on one thread, and much faster when other processes keep the cores busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def single_threaded_again() -> Iterator[None]:
    """Commands take the cores that are there: what is run after them in this process gets one thread again."""
    import torch

    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def told_of_emulation() -> Iterator[None]:
    """Nobody has to be told what bf16 costs here, which takes a second to find out."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(TOLD, "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Files need not outlive a loss of power: tests write some thousands, and a disk takes milliseconds for each.

    That files are synchronised, and when, is told by tests that look on.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def manifests_parsed_once() -> Iterator[None]:
    """The same bytes are parsed, and found to be as they should, once: thousands of tests read a few manifests."""
    from sum_factory.shared.shards import shard_set
    from sum_factory.shared.shards.manifest import UnitRecord
    from sum_factory.shared.shards.manifest_checks import Bounds

    parse, require = lru_cache(MANIFESTS)(shard_set.read_manifest), shard_set.require_rows
    sound: OrderedDict[int, tuple[pa.Table, list[Bounds]]] = OrderedDict()

    def parse_once(data: bytes, name: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, UnitRecord]:
        return parse(data, name, None if columns is None else tuple(columns))

    def require_once(table: pa.Table, bounds: Bounds) -> None:
        _, met = sound.setdefault(id(table), (table, []))  # which is kept, so that no other gets its id
        if bounds not in met:
            require(table, bounds)
            met.append(bounds)
        if len(sound) > MANIFESTS:
            sound.popitem(last=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_set, "read_manifest", parse_once)
        patch.setattr(shard_set, "require_rows", require_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def weights_read_once() -> Iterator[Callable[..., SamWeights]]:
    """A file of weights is read, and found to be sound, again only if it has changed; yields what does read it."""
    from sum_factory.labelgen import sam as of_labelgen
    from sum_factory.shared.sam import checkpoint

    read = checkpoint.read_weights
    known: dict[object, SamWeights] = {}

    def read_once(weights: str = checkpoint.PACKAGED, model_type: str | None = None) -> SamWeights:
        status = os.stat(weights) if os.path.isfile(weights) else None
        if status is None and weights != checkpoint.PACKAGED:
            return read(weights, model_type)
        key = (weights, model_type, status and (status.st_ino, status.st_size, status.st_mtime_ns))
        if key not in known:
            known[key] = read(weights, model_type)
        kept = known[key]  # whoever gets the tensors may train them
        table = None if kept.task_table is None else kept.task_table.clone()
        return replace(kept, state={name: value.clone() for name, value in kept.state.items()}, task_table=table)

    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoint, of_labelgen):
            patch.setattr(module, "read_weights", read_once)
        yield read


@pytest.fixture
def weights_read_again(weights_read_once: Callable[..., SamWeights], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read each time all the same: the test is about that."""
    for module in ("labelgen.sam", "shared.sam.checkpoint"):
        monkeypatch.setattr(f"sum_factory.{module}.read_weights", weights_read_once)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Speaker:
    """The one speaker of the test: it tells of every stage at once, whenever it advances and never else."""
    speaker = Speaker(timer=False)
    monkeypatch.setattr(progress, "SPEAKER", speaker)
    for name in ("FIRST_SECONDS", "EVERY_SECONDS"):
        monkeypatch.setattr(progress, name, 0.0)
    return speaker


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one: what a test states of a GPU is stated of a CPU as far as that goes."""
    import torch

    return torch.device(request.param)


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of an S3-compatible server on this machine, in another thread.

    The environment names it and its credentials, and nothing else of this machine's, for whoever reads ``s3://`` URLs:
    this process and those that it starts.
    """
    if sys.flags.dev_mode:
        pytest.skip("aiohttp in development mode refuses the server's doubled header")
    import moto.server

    one_put = threading.Lock()

    class Application(moto.server.DomainDispatcherApplication):  # type: ignore[misc]
        """Moto's server, whose threads would look whether an object is there, and then all put it."""

        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            with one_put if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
                return super().__call__(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as environment:
        environment.setattr(moto.server, "DomainDispatcherApplication", Application)
        server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        settings = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "NO_PROXY": "127.0.0.1",
        }
        for name, value in settings.items():
            environment.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ROLE_ARN"):
            environment.delenv(name, raising=False)
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str) -> Iterator[str]:
    """The URL of an empty bucket of the object store, the test's own."""
    import fsspec

    name = f"bucket-{uuid.uuid4().hex}"
    store = fsspec.filesystem("s3")
    store.mkdir(name)
    yield f"s3://{name}"
    store.rm(name, recursive=True)


@pytest.fixture(scope="session")
def upload() -> Callable[[Path, str], None]:
    """``upload(folder, url)`` copies every file below a folder to a URL."""
    import fsspec

    def upload(folder: Path, url: str) -> None:
        filesystem, root = fsspec.core.url_to_fs(url)
        for path in folder.rglob("*"):
            if path.is_file():
                filesystem.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())

    return upload


@pytest.fixture(scope="session")
def download() -> Callable[[str], dict[str, bytes]]:
    """``download(url)`` is every file below a URL, by its name there."""
    import fsspec

    def download(url: str) -> dict[str, bytes]:
        filesystem, root = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        root = root.strip("/")
        return {path.strip("/")[len(root) + 1 :]: filesystem.cat_file(path) for path in filesystem.find(root)}

    return download


def draw(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return RGB pixels with a few rectangles on a gradient."""
    import numpy as np

    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 2, columns * 2, rows + columns], axis=2).astype(np.uint8)
    for _ in range(4):
        top, left = random.integers(0, height - 8), random.integers(0, width - 8)
        pixels[top : top + height // 3, left : left + width // 3] = random.integers(0, 256, 3)
    return pixels


@pytest.fixture(scope="session")
def tiny_sam() -> Sam:
    """A SAM of upstream's classes with random weights: 128 px input, low-resolution grid of 32, milliseconds a call.

    Tests that change its weights copy it first.
    """
    import torch

    from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture

    torch.manual_seed(0)
    sam = build_architecture(
        SamArchitecture("tiny", 32, 2, 2, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
    )
    with torch.no_grad():  # upstream starts these at zero, where a bug in their use would not show
        for name, parameter in sam.image_encoder.named_parameters():
            if "pos" in name:
                parameter.normal_(0, 0.2)
    return sam


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six tiny photos. Tests that change it copy it first."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    sizes = [(48, 64), (64, 48), (40, 40), (33, 77), (90, 60), (64, 64)]
    for seed, (height, width) in enumerate(sizes):
        path = folder / ("sub" if seed % 2 else ".") / f"photo{seed}.{'jpg' if seed < 3 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw(seed, height, width)).save(path)
    return folder


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy of ``photos``, time stamps and all, for a test to change."""
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.fixture(scope="session")
def loose() -> AutomaskSettings:
    """Filters that let masks through whatever the weights are worth."""
    return AutomaskSettings(points_per_side=2, pred_iou_thresh=-1000.0, stability_score_thresh=0.0, max_area_share=2.0)


@pytest.fixture(scope="session")
def loose_options(loose: AutomaskSettings) -> list[str]:
    """``loose`` and units of two images as options of ``labelgen run``."""
    changed = ("points_per_side", "pred_iou_thresh", "stability_score_thresh", "max_area_share")
    options = [f"--{name.replace('_', '-')}={getattr(loose, name)}" for name in changed]
    return [*options, "--unit-size=2", "--device=cpu"]


@pytest.fixture(scope="session")
def label(loose: AutomaskSettings) -> Callable[..., RunSummary]:
    """``label(images, shards, **changes)`` labels in this process, with ``loose`` and units of two images."""
    from sum_factory.labelgen.run import run
    from sum_factory.labelgen.run_settings import RunSettings
    from sum_factory.shared.sam.runtime import Runtime

    def label(images: Path | str, shards: Path | str, stop: Stop | None = None, **changes: Any) -> RunSummary:
        settings = {"automask": loose, "unit_size": 2, "runtime": Runtime("cpu"), **changes}
        return run(RunSettings(images=(str(images),), shards=str(shards), **settings), stop=stop)

    return label


@pytest.fixture(scope="session")
def finished(
    photos: Path, label: Callable[..., RunSummary], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunSummary]:
    """The shard set of an undisturbed run over ``photos``, which no test may change, and the run's summary."""
    shards = tmp_path_factory.mktemp("finished") / "shards"
    return shards, label(photos, shards)


@pytest.fixture
def own_shards(finished: tuple[Path, RunSummary], tmp_path: Path) -> Path:
    """A copy of the finished shard set for a test to change."""
    return shutil.copytree(finished[0], tmp_path / "own_shards")


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """``snapshot(folder)`` gives the SHA-256 of every file below a folder, hidden ones too."""

    def snapshot(folder: Path) -> dict[str, str]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return snapshot
