"""Checkpoints of a training run: written aside, synced, renamed; the last few and the best are kept.

OUT/checkpoints/000500/weights.safetensors    a SUM checkpoint, see shared/sam/checkpoint.py
OUT/checkpoints/000500/training.pt            the optimizer's state
OUT/checkpoints/000500/state.json             the step, what decided the result, and the score of the validation
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from sum_factory.shared.errors import CheckpointError, StorageError
from sum_factory.shared.precision import Resolved
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import to_safetensors
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.store.canonical_json import to_json
from sum_factory.shared.store.storage import TEMPORARY_PREFIX
from sum_factory.trainer.run.sharding import part_of, parts_of_state

TRAINING, STATE = "training.pt", "state.json"
REMEDY = "Give the same settings and data to go on with this run, or another --out folder for another."


class Stateful(Protocol):
    """What can give its state and be set to it again, as optimizers can."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go back to a state that ``state_dict`` gave."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints below the folder of a run."""

    out: Path
    keep: int = 2
    processes: int = 1
    """How many processes share each step. It is recorded because sums in another order differ in the last bits."""
    precision_option: str = "--precision {0} (or --set precision={0})"
    """The option that asks for the precision ``{0}``, for the message that refuses another one."""

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.out / "checkpoints"

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are there, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"{step:06d}"

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Any],
        identity: Mapping[str, Any],
        header: Mapping[str, Any],
        score: float | None = None,
    ) -> Path:
        """Write the checkpoint of ``step`` and remove those that are no longer kept.

        ``moments`` are the optimizer's state, ``identity`` is what decided the result, ``header`` goes with the
        weights, ``score`` is that of a validation. Raises ``StorageError``.
        """
        with Stage(f"saving step {step}"):
            buffer = io.BytesIO()
            torch.save(moments, buffer)
            files = {
                WEIGHTS_FILE: to_safetensors(weights, {**header, "step": step}),
                TRAINING: buffer.getvalue(),
                STATE: to_json({"step": step, "identity": identity, "score": score, "processes": self.processes}),
            }
            return self._write(step, files)

    def _write(self, step: int, files: Mapping[str, bytes]) -> Path:
        """Write the files of a checkpoint aside, and rename their folder into place."""
        aside = self.folder / f"{TEMPORARY_PREFIX}{step:06d}"
        target = self.path(step)
        try:
            for left in self.folder.glob(f"{TEMPORARY_PREFIX}*"):  # by a run that died while it wrote
                shutil.rmtree(left)
            aside.mkdir(parents=True)
            for name, data in files.items():
                _write_synced(aside / name, data)
            if target.exists():
                shutil.rmtree(target)
            os.rename(aside, target)
            _sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise StorageError(
                f"cannot write {target}: {error.strerror or error}; check the path and the free space"
            ) from error
        self._prune()
        return target

    def load(self, step: int, weights: Mapping[str, Tensor], optimizer: Stateful) -> None:
        """Bring ``weights`` (in place) and optimizer to the state of ``step``.

        Raises ``CheckpointError`` if a file is damaged.
        """
        folder = self.path(step)
        try:
            with Stage(f"reading the checkpoint of step {step}"):
                _load(folder, weights, optimizer)
        except Exception as error:  # on damaged bytes the decoders raise whatever they run into
            silent = isinstance(error, pickle.UnpicklingError) or not str(error)  # PyTorch advises to load it unsafely
            reason = type(error).__name__ if silent else str(error).splitlines()[0]
            raise CheckpointError(
                f"{folder}: damaged ({reason}); delete this folder, and the run goes on from the one before"
            ) from error

    def processes_of(self, steps: int) -> int | None:
        """Return how many processes wrote the checkpoint that a run of ``steps`` goes on from; None if that is unknown.

        Raises ``CheckpointError`` if it is damaged.
        """
        present = [step for step in self.steps() if step <= steps]
        return self._state(present[-1]).get("processes") if present else None

    def find(self, steps: int, identity: Mapping[str, Any], precision: Resolved | None = None) -> int:
        """Return the step of the checkpoint that a run of ``steps`` goes on from; 0 if there is none.

        Raises ``SettingsDifferError`` if its run has another ``identity``; the message names what differs, and gives
        the reason for the ``precision`` if that is given and differs. Raises ``CheckpointError`` if the checkpoint is
        damaged, or if there are only checkpoints beyond ``steps``.
        """
        there = self.steps()
        present = [step for step in there if step <= steps]
        if there and not present:
            raise CheckpointError(
                f"{self.out}: is at step {there[-1]} already, past the {steps} that are asked for; "
                "ask for more, or give another --out folder"
            )
        if not present:
            return 0
        recorded = self._state(present[-1])["identity"]
        if precision is not None:
            precision.require_recorded(str(self.out), recorded.get("precision"), self.precision_option)
        require_same("settings or data", str(self.out), recorded, json.loads(json.dumps(identity)), REMEDY)
        return present[-1]

    def resume(
        self,
        steps: int,
        weights: Mapping[str, Tensor],
        optimizer: Stateful,
        identity: Mapping[str, Any],
        precision: Resolved | None = None,
    ) -> int:
        """Load the checkpoint that ``find`` returns, if any; return its step. Raises as ``find`` and ``load``."""
        step = self.find(steps, identity, precision)
        if step:
            self.load(step, weights, optimizer)
        return step

    def best(self) -> int | None:
        """Return the step with the highest score, the first if several have it; None if no checkpoint has a score."""
        scores = {step: self._state(step)["score"] for step in self.steps()}
        scored = {step: score for step, score in scores.items() if score is not None}
        return max(scored, key=lambda step: (scored[step], -step)) if scored else None

    def _state(self, step: int) -> dict[str, Any]:
        path = self.path(step) / STATE
        try:
            state: dict[str, Any] = json.loads(path.read_text())
            if not (isinstance(state, dict) and {"step", "identity", "score"} <= state.keys()):
                raise ValueError("it does not say which run it is of")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); delete its folder, and the run goes on from the one before"
            ) from error
        return state

    def _prune(self) -> None:
        kept = {*self.steps()[-self.keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                aside = self.folder / f"{TEMPORARY_PREFIX}{step:06d}"  # none that is in part there keeps its name
                os.rename(self.path(step), aside)
                shutil.rmtree(aside)


def _load(folder: Path, weights: Mapping[str, Tensor], optimizer: Stateful) -> None:
    """Bring ``weights`` (in place) and optimizer to the state in ``folder``."""
    stored = load_file(folder / WEIGHTS_FILE)
    if stored.keys() != weights.keys():
        raise ValueError(f"its tensors are not those of this model: {sorted(stored.keys() ^ weights.keys())[:3]}")
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(part_of(stored[name], value))
    moments = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(parts_of_state(moments, optimizer) if isinstance(optimizer, Optimizer) else moments)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
