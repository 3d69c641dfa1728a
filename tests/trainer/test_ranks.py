"""Processes that share each step train as one process does; here most of them are threads of the tests' own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pytest
import torch
from segment_anything.modeling.image_encoder import Block
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import ProcessExitedException

from sum_factory.shared.errors import CheckpointError, InputError, SumError, WorkerError
from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.trainer import training as module
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.run import evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import distributed as ranks_module
from sum_factory.trainer.run import validation
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import ALONE, Ranks, join_ranks, run_on_ranks
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.loop import Run
from sum_factory.trainer.run.settings import CheckpointSettings, ValidationSettings
from sum_factory.trainer.run.sharding import gathered, is_sharded, part_of, parts_of_state, put_together, shard_blocks
from sum_factory.trainer.training import fit, make_model, open_stream, train_step

T = TypeVar("T")
MakeRecipe = Callable[..., Recipe]


@dataclass
class Meeting:
    """Where the threads meet, and what each has brought."""

    count: int
    brought: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._barrier = Barrier(self.count, timeout=600)

    def exchange(self, rank: int, own: Any) -> list[Any]:
        """Return what all have brought, in the order of their numbers."""
        self.brought[rank] = own
        self._barrier.wait()
        found = [self.brought[each] for each in range(self.count)]
        self._barrier.wait()
        return found

    def leave(self) -> None:
        """Have the others fail, too."""
        self._barrier.abort()


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """One of several threads that share each step. Sums are taken in the order of the numbers, in each thread."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def sum_tensor(self, values: Tensor) -> None:
        total = torch.stack(self.meeting.exchange(self.rank, values.clone())).sum(0)
        values.copy_(total)

    def gather(self, own: T) -> list[T]:
        return self.meeting.exchange(self.rank, own)


def on_threads(count: int, work: Callable[[Ranks], T]) -> list[T]:
    """Return what ``work`` returns in each of so many threads."""
    meeting = Meeting(count)

    def one(rank: int) -> T:
        try:
            return work(ThreadRanks(rank, count, torch.device("cpu"), meeting))
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


Outcome = tuple[list[dict[str, Any]], dict[str, Tensor]]


def trained(recipe: Recipe, ranks: Ranks) -> Outcome:
    """Take the recipe's steps; return what is logged, and the weights."""
    model = make_model(recipe, ranks)
    stream = open_stream(recipe, int(model.sam.image_encoder.img_size), ranks)
    steps = stream.steps(0, recipe.steps)
    values = [train_step(recipe, model, samples, step, ranks) for step, samples in enumerate(steps, 1)]
    return values, {name: value.clone() for name, value in model.weights.items()}


def assert_equal(found: Outcome, expected: Outcome) -> None:
    """The weights to the bit, what is logged but for the order in which fp64 numbers are added."""
    for line, other in zip(found[0], expected[0], strict=True):
        assert line.keys() == other.keys()
        assert all(line[name] == pytest.approx(other[name], rel=1e-12) for name in line)
    assert [name for name, value in expected[1].items() if not torch.equal(found[1][name], value)] == []


@pytest.mark.parametrize(
    "method",
    [
        "sum",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("human-only", "augseg-mixed-prompt", "u2pl", "sum-discrepancy-online", "self-distillation")
        ),
    ],
)
def test_weights_do_not_depend_on_the_number_of_ranks(make_recipe: MakeRecipe, method: str) -> None:
    """Photos have 1 to 3 masks here: a mean over those of a rank would not be that over all."""
    recipe = make_recipe(method=method, micro_batch=1, steps=2)
    alone = trained(recipe, ALONE)
    assert alone[0][0]["masks"] > alone[0][0]["photos"]
    for count in (2, 3):
        for outcome in on_threads(count, lambda ranks: trained(recipe, ranks)):
            assert_equal(outcome, alone)
    together = dataclasses.replace(recipe, micro_batch=2)
    for outcome in on_threads(2, lambda ranks: trained(together, ranks)):
        assert_equal(outcome, trained(together, ALONE))


def test_blocks_that_are_computed_again_change_no_bit(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(batch=2, micro_batch=1, steps=2, rounds=2)
    calls, forward = [0], Block.forward

    def counted(self: Any, x: Tensor) -> Any:
        calls[0] += 1
        return forward(self, x)

    monkeypatch.setattr(Block, "forward", counted)
    plain = trained(recipe, ALONE)
    once = calls[0]
    assert_equal(trained(dataclasses.replace(recipe, activation_checkpointing=True), ALONE), plain)
    assert calls[0] == 3 * once


def test_a_step_without_a_mask_ends_every_rank(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(steps=1)
    monkeypatch.setattr("sum_factory.trainer.methods.addition.collate", lambda *_: None)
    failed = []

    def work(ranks: Ranks) -> None:
        with pytest.raises(InputError, match="step 1: none of its 4 photos has a mask to train on"):
            trained(recipe, ranks)
        failed.append(ranks.rank)

    on_threads(2, work)
    assert sorted(failed) == [0, 1]


@pytest.fixture(scope="module")
def few(human_sets: tuple[SetSettings, ...]) -> tuple[SetSettings, ...]:
    return tuple(dataclasses.replace(each, limit=3) for each in human_sets)


def test_scores_do_not_depend_on_the_number_of_ranks(make_recipe: MakeRecipe, few: tuple[SetSettings, ...]) -> None:
    model = make_model(make_recipe(), ALONE)

    def scores(ranks: Ranks) -> list[Any]:
        found = evaluate_sets(model.as_loaded({"trained_tasks": []}), few, [Protocol(rounds=2)], ranks=ranks)
        return [(each.rows.to_pylist(), each.masks, each.empty) for each in found]

    alone = scores(ALONE)
    assert [len(rows) > 3 for rows, _, _ in alone] == [True, True]
    assert on_threads(2, scores) == [alone] * 2
    assert on_threads(4, scores) == [alone] * 4  # one of them has no photo


@pytest.mark.parametrize(("method", "rounds"), [("sum", 1), ("sum-continuous-tp", 3)])
def test_validation_tells_the_task_as_training_does(
    make_recipe: MakeRecipe, few: tuple[SetSettings, ...], monkeypatch: pytest.MonkeyPatch, method: str, rounds: int
) -> None:
    recipe = make_recipe(method=method, validation=ValidationSettings(few, every=1, rounds=3))
    model = make_model(recipe, ALONE)
    protocols: list[Protocol] = []

    def recorded(model: Any, sets: Any, given: list[Protocol], *others: Any, **named: Any) -> Iterator[Any]:
        protocols.extend(given)
        return evaluate_sets(model, sets, given, *others, **named)

    monkeypatch.setattr(validation, "evaluate_sets", recorded)
    found = module.validation_after(1, recipe, model, {"trained_tasks": ["salient"]}, ALONE)
    assert found is not None
    assert [(each.rounds, each.task_rounds) for each in protocols] == [(3, rounds)]


def trained_in_process(recipe: Recipe, out: Path, architecture: Any) -> Any:
    """Train in a process that ``run_on_ranks`` has started, which knows no ``tiny``."""
    torch.set_num_threads(1)
    ARCHITECTURES["tiny"] = architecture
    return fit(recipe, out, say=lambda _: None)


@pytest.mark.long
def test_two_processes_log_what_one_does_and_one_can_go_on_from_their_checkpoint(
    make_recipe: MakeRecipe, few: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    every = CheckpointSettings(every=1, keep=3)
    validation = ValidationSettings(few, every=2, rounds=2)
    recipe = make_recipe(micro_batch=1, rounds=2, steps=3, checkpoint=every, validation=validation)
    fit(recipe, tmp_path / "one", say=lambda _: None)
    arguments = (recipe, tmp_path / "two", ARCHITECTURES["tiny"])
    assert run_on_ranks(trained_in_process, arguments, 2, 2).steps == 3  # type: ignore[attr-defined]
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 2, 3]
    resumed = shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    shutil.rmtree(Checkpoints(resumed).path(3))
    fit(recipe, resumed, say=lambda _: None)
    for log in (two, read_log(resumed)):
        for line, expected in zip(log, one, strict=True):
            assert line.keys() == expected.keys()
            for name, value in line.items():
                assert value == pytest.approx(expected[name], rel=1e-12), name


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks("cpu") as ranks:
        assert ranks == ALONE
        assert ranks.leads
        assert ranks.sum_numbers([1.5, 2.0]) == [1.5, 2.0]
        assert ranks.gather("own") == ["own"]
        assert not distributed.is_initialized()


@contextmanager
def world_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """A process group of this process alone, which believes that there are two."""
    group = distributed.init_process_group
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        distributed,
        "init_process_group",
        lambda backend, timeout: group(backend, store=distributed.HashStore(), rank=0, world_size=1),
    )
    with join_ranks("cpu") as ranks:
        yield ranks


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), WorkerError),
        (distributed.DistBackendError("NCCL error: remote process exited"), WorkerError),
        (RuntimeError("the size of tensor a (2) must match"), RuntimeError),
        (InputError("a photo is gone"), InputError),
    ],
)
def test_who_loses_the_others_says_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    with pytest.raises(expected) as raised, world_of_one(monkeypatch):
        raise error
    assert not distributed.is_initialized()
    if expected is WorkerError:
        assert "process 0 of 2 has lost the others" in str(raised.value)
        assert "goes on from the last checkpoint" in str(raised.value)
    else:
        assert raised.value is error


@pytest.mark.parametrize(
    ("said", "killed", "expected"),
    [
        ([], True, "one of 2 training processes died"),
        ([WorkerError("lost the others")], True, "one of 2 training processes died"),
        ([WorkerError("lost the others"), InputError("a photo is gone")], False, "a photo is gone"),
        ([WorkerError("lost the others")], False, "lost the others"),
    ],
)
def test_the_first_cause_is_told(
    monkeypatch: pytest.MonkeyPatch, said: list[SumError], killed: bool, expected: str
) -> None:
    def spawn(function: Any, arguments: tuple[Any, ...], nprocs: int, join: bool) -> None:
        queue: SimpleQueue[object] = arguments[3]
        for error in said:
            queue.put(error)
        signal_name = "SIGKILL" if killed else None
        raise ProcessExitedException("ended", error_index=1, error_pid=1, exit_code=1, signal_name=signal_name)

    monkeypatch.setattr(ranks_module, "spawn", spawn)
    with pytest.raises(SumError, match=expected):
        run_on_ranks(fit, (), 2, 2)


def test_processes_that_see_different_checkpoints_do_not_train(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(steps=1)
    model = make_model(recipe, ALONE)
    monkeypatch.setattr(Ranks, "gather", lambda self, own: [own, 4])
    run = Run(Checkpoints(tmp_path), 1, 1, model.weights, model.optimizer, {}, {})
    with pytest.raises(CheckpointError, match=r"processes find checkpoints of different steps \(0, 4\); give an --out"):
        run.resume(module.agree_on_precision("fp32", ALONE))


def test_blocks_in_parts_train_as_whole_ones_and_their_checkpoint_is_whole(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(batch=2, micro_batch=1, rounds=2, steps=2)
    expected = trained(recipe, ALONE)
    with world_of_one(monkeypatch) as joined:
        assert joined.count == 2
        monkeypatch.setattr(ranks_module.Ranks, "sum_tensor", lambda self, values: None)
        monkeypatch.setattr(
            "torch.distributed.device_mesh.init_device_mesh", lambda kind, sizes: init_device_mesh(kind, (1,))
        )
        ranks = dataclasses.replace(joined, count=1)
        monkeypatch.setattr(module, "shard_blocks", lambda encoder, _: shard_blocks(encoder, joined))
        model = make_model(dataclasses.replace(recipe, fsdp=True), ranks)
        blocks = {name for name in model.weights if is_sharded(model.weights[name])}
        assert blocks == {name for name in expected[1] if ".blocks." in name}
        values = []
        for step, samples in enumerate(open_stream(recipe, 128, ranks).steps(0, 2), 1):
            values.append(train_step(recipe, model, samples, step, ranks))
        weights, moments = gathered(model.weights, ranks), gathered(model.optimizer.state_dict(), ranks)
        assert not any(map(is_sharded, weights.values()))
        for line, other in zip(values, expected[0], strict=True):
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
        for name, value in weights.items():
            assert torch.allclose(value, expected[1][name], atol=1e-6), name

        again = make_model(dataclasses.replace(recipe, fsdp=True), ranks)
        with torch.no_grad():
            for name, value in again.weights.items():
                value.copy_(part_of(weights[name], value))
        again.optimizer.load_state_dict(parts_of_state(moments, again.optimizer))
        plain = make_model(recipe, ALONE)
        plain.optimizer.load_state_dict(moments)
        for found in (again, plain):
            state = gathered(found.optimizer.state_dict(), ranks)["state"]
            assert state.keys() == moments["state"].keys()
            for number, each in state.items():
                assert all(torch.equal(each[name], value) for name, value in moments["state"][number].items())
        with put_together(model.sam.image_encoder), torch.no_grad():
            block = model.sam.image_encoder.blocks[0]
            assert not is_sharded(block.attn.qkv.weight)
            block(torch.zeros(1, 8, 8, 32))
            assert not is_sharded(block.attn.qkv.weight)
        assert is_sharded(block.attn.qkv.weight)
