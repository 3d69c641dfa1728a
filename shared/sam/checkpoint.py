"""SAM's weights, loaded: official files, whatever other form people hold them in, SUM's own, and the ``vit_micro`` that
ships here.

A SUM checkpoint is a SAM with one more tensor, the table of the task prompt, and a header that says how it was made.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from sum_factory.shared import progress
from sum_factory.shared.errors import CheckpointError, SettingsError
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.architecture import (
    ARCHITECTURES,
    NothingDrawn,
    SamArchitecture,
    build_architecture,
    meta_state,
)
from sum_factory.shared.sam.forms.convert import to_official
from sum_factory.shared.sam.forms.hub import fetch, is_hub_id
from sum_factory.shared.sam.forms.reading import HEADER as HEADER
from sum_factory.shared.sam.forms.reading import read_content
from sum_factory.shared.sam.forms.reading import read_header as read_header
from sum_factory.shared.sam.settings import PACKAGED, TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.shared.sam.upstream import Sam

NO_MASK = "prompt_encoder.no_mask_embed.weight"
"""What every prompt without a mask has as its dense embedding: added to the image embedding, as a task's vector is."""
TRAINED_WEIGHTS = "part"
"""Kind, in the header, of a file that holds what was trained without the SAM that it sits on."""


@dataclass(frozen=True)
class LoadedSam:
    """A SAM in fp32 on the CPU, in eval mode; what it is; and the digest of its weights (``SamWeights.sha256``).

    ``task_prompt`` is None for plain SAM, ``trained_tasks`` names the tasks whose vectors were trained. ``task`` is the
    one whose vector is part of the weights already, if there is one. ``file_sha256`` is what earlier versions recorded.
    """

    sam: Sam
    architecture: SamArchitecture
    sha256: str
    task_prompt: TaskPrompt | None = None
    trained_tasks: tuple[str, ...] = ()
    task: str | None = None
    file_sha256: str = ""

    @property
    def identity(self) -> dict[str, object]:
        """What is recorded of the weights in what is made with them."""
        return _identity(self.architecture, self.sha256, self.task)

    def require_recorded(self, recorded: Mapping[str, Any], weights: str) -> None:
        """Raise ``CheckpointError`` if ``weights``, where this was loaded from, are not those that are recorded."""
        if recorded["sha256"] not in {self.sha256, self.file_sha256}:
            raise CheckpointError(
                f"{weights}: on {socket.gethostname()} these are other weights ({self.sha256[:12]}) than those "
                f"that are recorded ({recorded['sha256'][:12]}); give every machine the same"
            )

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
    """SAM's weights, read once, under their official names and in fp32.

    ``sha256`` is the digest of names and numbers (``digest_of``): the same in whatever form a file holds them.
    ``file_sha256`` is that of the file, which earlier versions recorded in its place. ``task`` is the task whose vector
    was folded into ``state``, if one was.
    """

    path: Path
    state: Mapping[str, Tensor]
    architecture: SamArchitecture
    sha256: str
    task_table: Tensor | None = None
    trained_tasks: tuple[str, ...] = ()
    task: str | None = None
    file_sha256: str = ""

    @property
    def identity(self) -> dict[str, object]:
        """What a shard set records of the weights."""
        return _identity(self.architecture, self.sha256, self.task)

    def identity_beside(self, recorded: Mapping[str, Any] | None) -> dict[str, object]:
        """Return the identity to compare with one that is recorded, which may be that of an earlier version."""
        if recorded is not None and recorded.get("sha256") == self.file_sha256:
            return {**self.identity, "sha256": self.file_sha256}
        return self.identity

    def for_task(self, task: str | None) -> SamWeights:
        """Return the weights of a plain SAM that does for every prompt what these do for ``task`` in the first round.

        The vector that training added to the image embedding goes into what every prompt without a mask adds to it,
        which is exact. Without a task prompt, and for None, they are these. Raises ``SettingsError`` for a task that
        the weights were never trained for.
        """
        if task in (None, self.task):
            return self
        if self.task_table is None:
            if task == TASKS[0]:
                return self
            raise SettingsError(
                f"{self.path}: these weights have no task prompt, so the task {task!r} means nothing to them; leave "
                "the task out, or give weights that were trained with one"
            )
        if task not in {TASKS[0], *self.trained_tasks}:
            raise SettingsError(
                f"{self.path}: these weights were never trained for the task {task!r}; give one of those that they "
                f"were trained for: {', '.join(self.trained_tasks) or TASKS[0]}"
            )
        vector = self.task_table[TASKS.index(task)]
        folded = {**self.state, NO_MASK: self.state[NO_MASK] + vector}
        return replace(self, state=folded, task_table=None, trained_tasks=(), task=task)


def _identity(architecture: SamArchitecture, sha256: str, task: str | None) -> dict[str, object]:
    named = {"model_type": architecture.name, "image_size": architecture.image_size, "sha256": sha256}
    return named if task is None else {**named, "task": task}


def read_weights(weights: str = PACKAGED, model_type: str | None = None) -> SamWeights:
    """Read ``weights``: the path of a file or folder, an id on the Hugging Face hub, or "vit_micro", which ships here.

    Which form they have, and of which model they are, is told by their names and shapes; ``model_type`` only checks it.
    Nothing in a file is run. Raises ``CheckpointError`` for what is missing, damaged, not finite or of another model,
    and if any name or shape does not fit.
    """
    with _located(weights) as path:
        where = str(path)
        read = read_content(path)
        _require_whole(read.header, where)
        official = to_official(read, where)
        architecture = identify({name: tuple(value.shape) for name, value in official.state.items()}, where, model_type)
        table = official.task_table
        if table is not None and table.shape != (len(TASKS), architecture.prompt_dim):
            expected = (len(TASKS), architecture.prompt_dim)
            raise CheckpointError(f"{where}: {STATE_KEY} has shape {tuple(table.shape)}, expected {expected}")
        for note in official.notes:
            progress.SPEAKER.say(f"{where}: {note}")
        digest = digest_of(official.state, table, official.trained_tasks)
        return SamWeights(
            path, official.state, architecture, digest, table, official.trained_tasks, file_sha256=read.sha256
        )


def load_sam(weights: str | SamWeights = PACKAGED, model_type: str | None = None, task: str | None = None) -> LoadedSam:
    """Load ``weights``, as ``read_weights`` takes them, or what that has read.

    With a ``task``, the model is a plain SAM that does for every prompt what the weights do for it
    (``SamWeights.for_task``). The model takes over the tensors of what was read, which is to be used for nothing else
    then. Raises as ``read_weights`` and ``for_task``.
    """
    read = (read_weights(weights, model_type) if isinstance(weights, str) else weights).for_task(task)
    with NothingDrawn():
        sam = build_architecture(read.architecture)
    sam.load_state_dict(read.state, assign=True)
    prompt = None
    if read.task_table is not None:
        prompt = TaskPrompt(read.architecture.prompt_dim)
        prompt.load_state_dict({"weight": read.task_table})
    return LoadedSam(sam, read.architecture, read.sha256, prompt, read.trained_tasks, read.task, read.file_sha256)


def identify_weights(weights: str = PACKAGED, model_type: str | None = None) -> dict[str, object]:
    """Return what a shard set records of ``weights``, without building the model. Raises as ``load_sam``."""
    return read_weights(weights, model_type).identity


def _require_whole(header: Mapping[str, Any], where: str) -> None:
    """Raise ``CheckpointError`` for what a variant trained, without the SAM that it sits on."""
    if header.get("kind") == TRAINED_WEIGHTS:
        raise CheckpointError(
            f"{where}: what the variant {header.get('variant')} trained, without the SAM that it sits on; "
            "make one file of both with `trainer export`"
        )


def bytes_of(weights: str) -> int:
    """Return how many bytes the files of ``weights`` have; 0 for what ships here or is not there."""
    path = fetch(weights) if is_hub_id(weights) else Path(weights)
    files_in = [each for ending in ("*.safetensors", "*.bin") for each in path.glob(ending)]
    return sum(each.stat().st_size for each in ([path] if path.is_file() else files_in))


def digest_of(state: Mapping[str, Tensor], table: Tensor | None = None, trained_tasks: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 that stands for weights: of their names, shapes and numbers in fp32, in the order of names.

    The task prompt counts too, if there is one. Neither the file nor the form in which it holds them does.
    """
    tensors = dict(state) if table is None else {**state, STATE_KEY: table}
    told = [[name, list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps([told, list(trained_tasks)]).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


@contextmanager
def _located(weights: str) -> Iterator[Path]:
    """Give the path of what ``weights`` names, and tell people while it is being read."""
    with Stage(f"reading the weights {weights}"):
        if weights == PACKAGED:
            with as_file(files("sum_factory.shared.sam") / "weights" / f"{PACKAGED}.safetensors") as path:
                yield path
        elif weights in ARCHITECTURES:
            raise CheckpointError(f"{weights}: its weights do not ship here; give the path of SAM's official .pth file")
        elif is_hub_id(weights):
            with Stage("fetching them from the Hugging Face hub"):
                path = fetch(weights)
            yield path
        else:
            yield Path(weights)


def to_safetensors(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Return weights as the bytes of a safetensors file; ``header`` is JSON that says how they were made."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    return bytes(save(tensors, {HEADER: json.dumps(header, sort_keys=True)}))


def identify(shapes: Mapping[str, tuple[int, ...]], where: str, model_type: str | None = None) -> SamArchitecture:
    """Find the architecture whose weights have these names and shapes, all of them and no others.

    Raises ``CheckpointError`` if there is none, naming what does not fit the one that shares most tensors with them, or
    if it is not ``model_type``.
    """
    if model_type is not None and model_type not in ARCHITECTURES:
        raise CheckpointError(f"{model_type!r} is no model type; there are {', '.join(ARCHITECTURES)}")
    for name, architecture in ARCHITECTURES.items():
        if _differences(shapes, architecture):
            continue
        if model_type in (None, name):
            return architecture
        raise CheckpointError(f"{where}: these are weights of {name}, not of {model_type}; leave the model type out")
    closest = model_type or max(ARCHITECTURES, key=lambda name: _shared(shapes, ARCHITECTURES[name]))
    listed = _differences(shapes, ARCHITECTURES[closest])
    shown = "; ".join(listed[:5]) + (f"; and {len(listed) - 5} more" if len(listed) > 5 else "")
    raise CheckpointError(f"{where}: these weights do not fit {closest}, the closest model: {shown}")


def _shared(shapes: Mapping[str, tuple[int, ...]], architecture: SamArchitecture) -> int:
    """Count the tensors of an architecture that are there in their right shapes."""
    return sum(shapes.get(name) == tuple(value.shape) for name, value in meta_state(architecture).items())


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
