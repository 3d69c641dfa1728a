"""Load SAM's weights: official ``.pth`` files, safetensors, SUM's own, and the ``vit_micro`` that ships here.

A SUM checkpoint is a SAM with one more tensor, the table of the task prompt, and a header that says how it was made.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.architecture import (
    ARCHITECTURES,
    NothingDrawn,
    SamArchitecture,
    build_architecture,
    meta_state,
)
from sum_factory.shared.sam.settings import PACKAGED, TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.shared.sam.upstream import Sam

WEIGHTS = "weights.safetensors"
"""The weights in a folder that training leaves: that of a checkpoint, or of a run."""
HEADER = "sum_factory"
"""Key of the JSON object that says, in the header of a safetensors file, how its weights were made."""


@dataclass(frozen=True)
class LoadedSam:
    """A SAM in fp32 on the CPU, in eval mode; what it is; and the SHA-256 of the file its weights came from.

    ``task_prompt`` is None for plain SAM, ``trained_tasks`` names the tasks whose vectors were trained.
    """

    sam: Sam
    architecture: SamArchitecture
    sha256: str
    task_prompt: TaskPrompt | None = None
    trained_tasks: tuple[str, ...] = ()

    def task_vector(self, task: str) -> Tensor | None:
        """Return the vector (C,) to add to the image embedding for ``task``; None for a model without a task prompt.

        A task that training never showed has no vector of its own: it is "unspecified".
        """
        if self.task_prompt is None:
            return None
        known = task if task in self.trained_tasks else TASKS[0]
        return self.task_prompt.weight[TASKS.index(known)].detach()


@dataclass(frozen=True)
class SamWeights:
    """A file of SAM's weights, which was read once: ``state`` and ``sha256`` are of the same bytes."""

    path: Path
    state: Mapping[str, Tensor]
    architecture: SamArchitecture
    sha256: str
    task_table: Tensor | None = None
    trained_tasks: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, object]:
        """What a shard set records of the weights."""
        named = {"model_type": self.architecture.name, "image_size": self.architecture.image_size}
        return {**named, "sha256": self.sha256}


class Readings:
    """Counts how often this process has read a file of weights, and how many bytes that were."""

    def __init__(self) -> None:
        self.times = self.bytes = 0

    def since(self, times: int = 0, size: int = 0) -> tuple[int, int]:
        """Return both, beyond what was counted before."""
        return self.times - times, self.bytes - size


READINGS = Readings()


def read_weights(weights: str = PACKAGED, model_type: str | None = None) -> SamWeights:
    """Read ``weights``: a path to a ``.pth`` or ``.safetensors`` file, or "vit_micro" for the packaged ones.

    The model type is read off the weights' names and shapes; ``model_type`` only checks it. Files are unpickled
    with ``weights_only``: nothing in them is run. Raises ``CheckpointError`` for a missing, truncated or foreign file,
    and if any name or shape does not fit.
    """
    with _located(weights) as path:
        data = _read_file(path)
        state = _parse(data, path)
        table = state.pop(STATE_KEY, None)
        architecture = identify({name: tuple(value.shape) for name, value in state.items()}, path, model_type)
        trained = tuple(_header_of(data, path).get("trained_tasks", ()))
        return SamWeights(path, state, architecture, hashlib.sha256(data).hexdigest(), table, trained)


def load_sam(weights: str | SamWeights = PACKAGED, model_type: str | None = None) -> LoadedSam:
    """Load ``weights``: a file, as ``read_weights`` takes it, or what that has read.

    The model takes over the tensors of what was read, which is to be used for nothing else then. Raises
    ``CheckpointError`` as ``read_weights``.
    """
    read = read_weights(weights, model_type) if isinstance(weights, str) else weights
    with NothingDrawn():
        sam = build_architecture(read.architecture)
    sam.load_state_dict({name: value.float() for name, value in read.state.items()}, assign=True)
    prompt = None if read.task_table is None else _task_prompt(read.task_table, read.architecture, read.path)
    return LoadedSam(sam, read.architecture, read.sha256, prompt, read.trained_tasks)


def identify_weights(weights: str = PACKAGED, model_type: str | None = None) -> dict[str, object]:
    """Return what a shard set records of ``weights``, without building the model. Raises as ``load_sam``."""
    return read_weights(weights, model_type).identity


@contextmanager
def _located(weights: str) -> Iterator[Path]:
    """Give the path of the file that ``weights`` names, and tell people while it is being read."""
    with Stage(f"reading the weights {weights}"):
        if weights == PACKAGED:
            with as_file(files("sum_factory.shared.sam") / "weights" / f"{PACKAGED}.safetensors") as path:
                yield path
        elif weights in ARCHITECTURES:
            raise CheckpointError(f"{weights}: its weights do not ship here; give the path of SAM's official .pth file")
        else:
            yield Path(weights)


def _task_prompt(table: Tensor, architecture: SamArchitecture, path: Path) -> TaskPrompt:
    prompt = TaskPrompt(architecture.prompt_dim)
    if table.shape != prompt.weight.shape:
        raise CheckpointError(
            f"{path}: {STATE_KEY} has shape {tuple(table.shape)}, expected {tuple(prompt.weight.shape)}"
        )
    prompt.load_state_dict({"weight": table.float()})
    return prompt


def to_safetensors(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return weights as the bytes of a safetensors file; ``header`` is JSON that says how they were made."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    return bytes(save(tensors, {HEADER: json.dumps(header, sort_keys=True)}))


def read_header(path: Path) -> dict[str, Any]:
    """Return what the header of a safetensors file says of how its weights were made; empty if it says nothing."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    return header


def _header_of(data: bytes, path: Path) -> dict[str, Any]:
    """Return the same as ``read_header`` of the bytes of a file whose tensors could be read."""
    if path.suffix != ".safetensors":
        return {}
    length = int.from_bytes(data[:8], "little")
    told: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(HEADER, "{}"))
    return told


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.pth`` or ``.safetensors`` file. Raises ``CheckpointError``."""
    return _parse(_read_file(path), path)


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected SAM weights (.pth or .safetensors), or {PACKAGED!r}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    READINGS.times, READINGS.bytes = READINGS.times + 1, READINGS.bytes + len(data)
    return data


def _parse(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged, cut short ({len(data)} bytes) or no file of weights ({reason}); download it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a flat dictionary of named tensors, as SAM's official files are")
    return dict(state)


def identify(shapes: Mapping[str, tuple[int, ...]], path: Path, model_type: str | None = None) -> SamArchitecture:
    """Find the architecture whose weights have these names and shapes, all of them and no others.

    Raises ``CheckpointError`` if there is none, or if it is not ``model_type``.
    """
    if model_type is not None and model_type not in ARCHITECTURES:
        raise CheckpointError(f"{model_type!r} is no model type; there are {', '.join(ARCHITECTURES)}")
    differences = {}
    for name, architecture in ARCHITECTURES.items():
        differences[name] = _differences(shapes, architecture)
        if differences[name]:
            continue
        if model_type in (None, name):
            return architecture
        raise CheckpointError(f"{path}: these are weights of {name}, not of {model_type}; leave the model type out")
    closest = model_type or min(differences, key=lambda name: len(differences[name]))
    listed = differences[closest]
    shown = "; ".join(listed[:5]) + (f"; and {len(listed) - 5} more" if len(listed) > 5 else "")
    raise CheckpointError(f"{path}: these weights do not fit {closest}, the closest model: {shown}")


def _differences(shapes: Mapping[str, tuple[int, ...]], architecture: SamArchitecture) -> list[str]:
    expected = {name: tuple(value.shape) for name, value in meta_state(architecture).items()}
    missing = [f"{name} is missing" for name in expected if name not in shapes]
    foreign = [f"{name} is not expected" for name in shapes if name not in expected]
    wrong = [
        f"{name} has shape {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    return missing + foreign + wrong


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. A process reads it once for that, while the file stays as it is."""
    status = path.stat()
    return _sha256_of(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=64)
def _sha256_of(path: Path, version: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
