"""Checkpoints: whole or not there, few, the best among them, and equal to the bit when loaded."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sum_factory.shared.errors import CheckpointError, SettingsDifferError, StorageError
from sum_factory.shared.sam.checkpoint import read_header
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.trainer.run import checkpoints as module
from sum_factory.trainer.run.checkpoints import STATE, TRAINING, Checkpoints

IDENTITY = {"seed": 0, "loss": {"theta": 0.6}, "betas": (0.9, 0.999)}


def make_run(seed: int = 0) -> tuple[nn.Linear, torch.optim.AdamW]:
    """Return a model and an optimizer that has taken some steps."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}], lr=0.01)
    for _ in range(3 + seed):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def save(
    checkpoints: Checkpoints, number: int, score: float | None = None, seed: int = 0
) -> tuple[nn.Linear, torch.optim.AdamW]:
    model, optimizer = make_run(seed)
    path = checkpoints.save(number, model.state_dict(), optimizer.state_dict(), IDENTITY, {"kind": "test"}, score)
    assert path == checkpoints.path(number)
    return model, optimizer


def test_a_checkpoint_says_how_many_processes_shared_its_steps(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).processes_of(9) is None
    save(Checkpoints(tmp_path, keep=9, processes=3), 5)
    save(Checkpoints(tmp_path, keep=9), 7)
    assert [Checkpoints(tmp_path).processes_of(steps) for steps in (4, 5, 6, 7)] == [None, 3, 3, 1]
    path = Checkpoints(tmp_path).path(5) / STATE
    state = json.loads(path.read_text())
    del state["processes"]  # as before they said it
    path.write_text(json.dumps(state))
    assert Checkpoints(tmp_path).processes_of(5) is None


def test_loaded_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = save(Checkpoints(tmp_path), 7)
    other, other_optimizer = make_run(seed=1)
    Checkpoints(tmp_path).load(7, other.state_dict(), other_optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert json.dumps(other_optimizer.state_dict(), default=str) == json.dumps(optimizer.state_dict(), default=str)
    for _ in range(2):
        step(model, optimizer)
        step(other, other_optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_folder_holds_weights_optimizer_and_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 12, score=0.5)
    assert checkpoints.path(12) == tmp_path / "checkpoints" / "000012"
    assert {path.name for path in checkpoints.path(12).iterdir()} == {WEIGHTS_FILE, TRAINING, STATE}
    assert read_header(checkpoints.path(12) / WEIGHTS_FILE) == {"kind": "test", "step": 12}
    state = json.loads((checkpoints.path(12) / STATE).read_text())
    assert state == {"step": 12, "score": 0.5, "identity": json.loads(json.dumps(IDENTITY)), "processes": 1}


def test_crash_before_the_rename_leaves_no_visible_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 2)
    assert checkpoints.steps() == [1]
    save(checkpoints, 3)
    assert checkpoints.steps() == [1, 3]
    assert {path.name for path in checkpoints.folder.iterdir()} == {"000001", "000003"}


def test_files_are_synced_before_they_become_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(old: Any, new: Any) -> None:
        events.append(f"rename to {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(module.os, "fsync", synced)
    monkeypatch.setattr(module.os, "rename", renamed)
    save(Checkpoints(tmp_path), 5)
    assert sorted(events[:3]) == sorted([WEIGHTS_FILE, TRAINING, STATE])
    assert events[3:] == ["rename to 000005", "checkpoints"]


def test_full_disk_is_a_storage_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(StorageError, match=r"000002: No space left on device; check the path and the free space"):
            save(checkpoints, 2)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["000001"]


def test_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    scores = {1: 0.3, 2: 0.9, 3: 0.9, 4: None, 5: 0.5, 6: None}
    there = []
    for number, score in scores.items():
        save(checkpoints, number, score)
        there.append(checkpoints.steps())
    assert there == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert checkpoints.best() == 2
    assert {path.name for path in checkpoints.folder.iterdir()} == {"000002", "000005", "000006"}


def test_without_scores_there_is_no_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.best() is None
    assert checkpoints.steps() == []
    for number in (1, 2):
        save(checkpoints, number)
    assert checkpoints.steps() == [2]
    assert checkpoints.best() is None


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 3, seed=0)
    model, _ = save(checkpoints, 3, seed=2)
    other, optimizer = make_run(1)
    checkpoints.load(3, other.state_dict(), optimizer)
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TRAINING])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "missing"])
def test_damaged_file_names_its_folder_and_what_to_do(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4)
    path = checkpoints.path(4) / name
    data = path.read_bytes()
    damaged = {"cut": data[: len(data) // 2], "garbage": b"\x80\x02garbage" * 50, "empty": b""}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    model, optimizer = make_run(1)
    with pytest.raises(CheckpointError, match=r"checkpoints/000004: damaged .*delete this folder, and the run goes on"):
        checkpoints.resume(9, model.state_dict(), optimizer, IDENTITY)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_state_names_its_file_and_what_to_do(tmp_path: Path, content: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 4)
    (checkpoints.path(4) / STATE).write_text(content)
    model, optimizer = make_run(1)
    with pytest.raises(CheckpointError, match=r"000004/state\.json: damaged .*delete its folder"):
        checkpoints.resume(9, model.state_dict(), optimizer, IDENTITY)


def test_run_goes_on_from_the_one_before_when_the_last_is_deleted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first, _ = save(checkpoints, 2, seed=0)
    save(checkpoints, 4, seed=3)
    shutil.rmtree(checkpoints.path(4))
    model, optimizer = make_run(1)
    assert checkpoints.resume(9, model.state_dict(), optimizer, IDENTITY) == 2
    assert torch.equal(model.weight, first.weight)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    other = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match=r"its tensors are not those of this model: .*0\.bias"):
        checkpoints.load(1, other.state_dict(), torch.optim.AdamW(other.parameters()))
    wider = nn.Linear(5, 3)
    with pytest.raises(CheckpointError, match="000001: damaged"):
        checkpoints.load(1, wider.state_dict(), torch.optim.AdamW(wider.parameters()))


def test_nothing_to_resume_is_step_0_and_changes_nothing(tmp_path: Path) -> None:
    model, optimizer = make_run()
    before = copy.deepcopy(model.state_dict())
    assert Checkpoints(tmp_path / "new").resume(5, model.state_dict(), optimizer, IDENTITY) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "new").exists()


def test_run_of_another_identity_is_refused_with_the_name_of_what_differs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    model, optimizer = make_run(1)
    before = copy.deepcopy(model.state_dict())
    for changed, expected in (
        ({**IDENTITY, "seed": 3}, r"  seed: there 0, asked for 3"),
        ({**IDENTITY, "loss": {"theta": 0.5}}, r"  loss: there \{'theta': 0\.6\}, asked for \{'theta': 0\.5\}"),
        ({**IDENTITY, "more": 1}, r"  more: there \(not set\), asked for 1"),
    ):
        with pytest.raises(SettingsDifferError, match=expected):
            checkpoints.resume(5, model.state_dict(), optimizer, changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert checkpoints.resume(5, model.state_dict(), optimizer, dict(reversed(IDENTITY.items()))) == 1


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (checkpoints.folder / "notes").mkdir()
    assert checkpoints.steps() == [1]
