"""What tests of labelling share: refiners, and a shard set with the uncertainty layer of one of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

from sum_factory.labelgen import labeler
from sum_factory.labelgen.run import RunSummary, add_uncertainty
from sum_factory.labelgen.run_settings import UncertaintyRunSettings
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.shared.sam.checkpoint import SamWeights, load_sam
from sum_factory.shared.sam.point_decoder import PointDecoder
from sum_factory.shared.sam.refiner import Refiner, save_refiner
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.upstream import ImageEncoderViT
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify


@pytest.fixture(scope="session", autouse=True)
def unhindered_workers() -> Iterator[None]:
    """Ray's workers yield to everything else on the machine by default, and would starve on a busy one; and Ray's own
    processes are given half a minute to start."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")
        environment.setenv("RAY_gcs_server_port_wait_time_s", "300")
        yield


MADE: dict[str, Tensor] = {}
"""What networks made, by all that it depends on."""
SHARED: dict[tuple[object, ...], tuple[Any, tuple[Any, ...]]] = {}
"""What point decoders made, and of what, which stays alive: its ``id`` is part of the key."""
WEIGHTS_FILE: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()
"""Digests of networks' weights, and which version of each weight it was."""


@pytest.fixture(scope="module", autouse=True)
def photos_seen_once() -> Iterator[None]:
    """Networks and files of weights are remembered: hundreds of tests label the same six photos, and these take most.

    How they compute is tested in ``shared``; processes that a test starts compute for themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageEncoderViT, "forward", remembered(ImageEncoderViT.forward))
        patch.setattr(Refiner, "refine", remembered(Refiner.refine))
        for name in ("prepare", "decode", "masks"):
            patch.setattr(PointDecoder, name, shared(getattr(PointDecoder, name)))
        patch.setattr(labeler, "load_sam", loaded_once(labeler.load_sam))
        patch.setattr(labeler, "load_refiner", loaded_once(labeler.load_refiner))
        yield


def remembered(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a method of a network that computes the same thing once."""

    def remember(self: nn.Module, *inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() or any(one.device.type != "cpu" for one in inputs):
            return compute(self, *inputs)
        mode = f"{compute.__qualname__} {torch.is_autocast_enabled('cpu')} {torch.get_num_threads()}"
        key = digest_of(f"{mode} {digest_of_weights(self)}", inputs)
        if key not in MADE:
            MADE[key] = compute(self, *inputs)
        return MADE[key].clone()

    return remember


def shared(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of ``PointDecoder`` that computes the same thing once; nobody writes into what it returns."""

    def share(self: PointDecoder, *inputs: Any) -> Any:
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        mode = f"{compute.__qualname__} {torch.is_autocast_enabled('cpu')} {digest_of_weights(self.sam)}"
        key = (digest_of(mode, tensors), *(id(one) for one in inputs if not isinstance(one, Tensor)))
        if key not in SHARED:
            SHARED[key] = (compute(self, *inputs), inputs)
        return SHARED[key][0]

    return share


def loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that loads the weights of a file, or what was read of it, again only if they have changed."""
    loaded: dict[object, Any] = {}

    def load_once(weights: str | SamWeights, *of: Any) -> Any:
        if isinstance(weights, SamWeights):
            what: object = (weights.sha256, weights.file_sha256)
        else:
            status = os.stat(weights) if os.path.exists(weights) else None
            what = (weights, status and (status.st_ino, status.st_size, status.st_mtime_ns))
        key = (what, *map(str, of))
        if key not in loaded:
            loaded[key] = load(weights, *of)
        return loaded[key]

    return load_once


def digest_of(what: str, tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of a text and of every bit of some tensors."""
    found = hashlib.sha256(what.encode())
    for tensor in tensors:
        found.update(f"{tensor.shape} {tensor.dtype}".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def digest_of_weights(network: nn.Module) -> str:
    """Return the SHA-256 of a network's layers and weights."""
    weights = network.state_dict(keep_vars=True).values()
    versions = [(id(weight), weight.data_ptr(), weight._version) for weight in weights]
    known = WEIGHTS_FILE.get(network)
    if known is None or known[0] != versions:
        known = WEIGHTS_FILE[network] = (versions, digest_of(str(network), (weight.detach() for weight in weights)))
    return known[1]


class Forks:
    """Runs of ``labelgen`` in processes of their own, forked from one that has loaded the libraries."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server

    def ask(self, **call: Any) -> int:
        """Have the server do something."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(call) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def begin(self, output: Path, command: list[str], first: str = "") -> int:
        """Begin a command, whose output is added to a file; return its process.

        ``first`` is Python that runs in it before the command.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return self.ask(command=command, first=first, folder=os.getcwd(), environment=environment, output=str(output))

    def end(self, process: int) -> int:
        """Wait for a command; return its exit status, or the signal that killed it, less than 0."""
        return self.ask(wait=process)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs of ``labelgen`` in processes of their own."""
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipes, stdout=pipes, text=True, env=environment) as server:
        yield Forks(server)


@pytest.fixture
def three_photos(own_photos: Path) -> Path:
    """A folder with photo0, photo2 and photo4 alone, for a test to change."""
    shutil.rmtree(own_photos / "sub")
    return own_photos


@pytest.fixture(scope="session")
def make_refiner() -> Callable[[Path, int], str]:
    """``make_refiner(path, seed)`` saves a refiner: the packaged SAM's own weights, with noise on them."""

    def make_refiner(path: Path, seed: int) -> str:
        loaded = load_sam()
        refiner = Refiner.copy_of(loaded.sam)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in refiner.parameters():
                if parameter.numel() > 1:
                    parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        save_refiner(path, refiner, loaded, {"seed": seed})
        return str(path)

    return make_refiner


@pytest.fixture(scope="session")
def refiner(make_refiner: Callable[[Path, int], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a refiner of the packaged SAM."""
    return make_refiner(tmp_path_factory.mktemp("refiner") / "refiner.safetensors", 0)


@pytest.fixture(scope="session")
def other_refiner(make_refiner: Callable[[Path, int], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a refiner of the packaged SAM that disagrees with ``refiner``."""
    return make_refiner(tmp_path_factory.mktemp("refiner") / "other.safetensors", 1)


@pytest.fixture(scope="session")
def add_maps() -> Callable[..., RunSummary]:
    """``add_maps(shards, refiner, source, min_refine_area, say, **changes)`` adds an uncertainty layer."""

    def add_maps(
        shards: Path | str,
        refiner: str | None = None,
        source: str = "refinement",
        min_refine_area: int = 0,
        say: Callable[[str], None] = lambda line: None,
        **changes: Any,
    ) -> RunSummary:
        settings = {"runtime": Runtime("cpu"), "uncertainty": UncertaintySettings(source, min_refine_area), **changes}
        return add_uncertainty(UncertaintyRunSettings(str(shards), refiner, **settings), say)

    return add_maps


@pytest.fixture(scope="session")
def refined(
    photos: Path, label: Callable[..., RunSummary], refiner: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunSummary]:
    """The shard set of a run that labelled and refined in one pass, which no test may change, and its summary."""
    shards = tmp_path_factory.mktemp("refined") / "shards"
    return shards, label(photos, shards, refiner=refiner)


@pytest.fixture(scope="session")
def whole_in(
    photos: Path, label: Callable[..., RunSummary], refiner: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``whole_in(encoding)`` is the shard set of one pass that labelled, refined and kept the photos in an encoding.

    No test may change it.
    """

    @cache
    def whole_in(encoding: str) -> Path:
        shards = tmp_path_factory.mktemp(encoding) / "shards"
        label(photos, shards, refiner=refiner, keep_photos=True, encoding=encoding)
        return shards

    return whole_in


@pytest.fixture
def own_refined(refined: tuple[Path, RunSummary], tmp_path: Path) -> Path:
    """A copy of the refined shard set for a test to change."""
    return shutil.copytree(refined[0], tmp_path / "own_refined")


@pytest.fixture(scope="session")
def problems() -> Callable[[Path], list[str]]:
    """``problems(shards)`` is what ``verify`` finds."""
    return lambda shards: [p for check in verify(ShardSet.open(str(shards))) for p in check.problems]


@pytest.fixture
def encoder_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of what image encoders have been given in this test."""
    forward = ImageEncoderViT.forward
    calls: list[int] = []

    def counted(self: ImageEncoderViT, images: Tensor) -> Tensor:
        calls.append(len(images))
        encoded: Tensor = forward(self, images)
        return encoded

    monkeypatch.setattr(ImageEncoderViT, "forward", counted)
    return calls
