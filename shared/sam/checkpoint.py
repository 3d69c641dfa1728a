"""Load SAM's weights: official ``.pth`` files, safetensors, SUM's own, and the ``vit_micro`` that ships here.

A SUM checkpoint is a SAM with one more tensor, the table of the task prompt, and a header that says how it was made.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
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


def load_sam(weights: str = PACKAGED, model_type: str | None = None) -> LoadedSam:
    """Load ``weights``: a path to a ``.pth`` or ``.safetensors`` file, or "vit_micro" for the packaged ones.

    The model type is read off the weights' names and shapes; ``model_type`` only checks it. Files are unpickled
    with ``weights_only``: nothing in them is run. Raises ``CheckpointError`` for a missing, truncated or foreign file,
    and if any name or shape does not fit.
    """
    with _located(weights) as path:
        state = read_state(path)
        table = state.pop(STATE_KEY, None)
        architecture = identify(_shapes(state), path, model_type)
        with NothingDrawn():
            sam = build_architecture(architecture)
        sam.load_state_dict({name: value.float() for name, value in state.items()})
        prompt = None if table is None else _task_prompt(table, architecture, path)
        trained = tuple(read_header(path).get("trained_tasks", ()))
        return LoadedSam(sam, architecture, file_sha256(path), prompt, trained)


def identify_weights(weights: str = PACKAGED, model_type: str | None = None) -> dict[str, object]:
    """Return what a shard set records of ``weights``, without building the model. Raises as ``load_sam``."""
    with _located(weights) as path:
        shapes = read_shapes(path)
        shapes.pop(STATE_KEY, None)
        return _identity(identify(shapes, path, model_type), file_sha256(path))


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


def _identity(architecture: SamArchitecture, sha256: str) -> dict[str, object]:
    return {"model_type": architecture.name, "image_size": architecture.image_size, "sha256": sha256}


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


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.pth`` or ``.safetensors`` file. Raises ``CheckpointError``."""
    with _refused_if_damaged(path):
        return load_file(path) if path.suffix == ".safetensors" else _map_pickle(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors by their names, without reading the tensors. Raises as ``read_state``."""
    with _refused_if_damaged(path):
        if path.suffix != ".safetensors":
            return _shapes(_map_pickle(path))
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _map_pickle(path: Path) -> dict[str, Tensor]:
    mmap = zipfile.is_zipfile(path)  # files of PyTorch before 1.6 are none, and cannot be mapped
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a flat dictionary of named tensors, as SAM's official files are")
    return dict(state)


@contextmanager
def _refused_if_damaged(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected SAM weights (.pth or .safetensors), or {PACKAGED!r}")
    try:
        yield
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged, cut short ({path.stat().st_size} bytes) or no file of weights ({reason}); "
            "download it again"
        ) from error


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
