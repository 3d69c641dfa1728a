"""Several models in one pass, in portions: against each alone, and killed and gone on with."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sum_factory.shared.errors import SettingsDifferError, StorageError
from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.hq import add_hq
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.sets import LabelMapsSettings
from sum_factory.trainer.evaluation import evaluation as module
from sum_factory.trainer.evaluation import run
from sum_factory.trainer.evaluation.evaluation import Evaluation, ModelChoice, evaluate
from sum_factory.trainer.evaluation.run import evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.run.distributed import ALONE, Ranks

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 64, window_size=2, prompt_dim=32, decoder_mlp_dim=32)
PROTOCOLS = (Protocol("point", 2), Protocol("box", 2))


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def models() -> dict[str, LoadedSam]:
    """A SAM, the same with a task prompt, the same as HQ-SAM, and one whose encoder has other weights."""
    torch.manual_seed(0)
    sam = build_architecture(TINY)
    table = TaskPrompt(32)
    with torch.no_grad():
        table.weight.normal_(0, 0.5)
    sharper, other = deepcopy(sam), deepcopy(sam)
    add_hq(sharper)
    with torch.no_grad():
        next(other.image_encoder.parameters()).add_(0.1)
    return {
        "sam": LoadedSam(sam, TINY, "a"),
        "sum": LoadedSam(deepcopy(sam), TINY, "b", table, ("unspecified", "part")),
        "hq": LoadedSam(sharper.eval(), TINY, "c"),
        "other": LoadedSam(other, TINY, "d"),
    }


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelMapsSettings, ...]:
    """Two sets of label maps, of five photos in all."""
    made = []
    for name, count in (("first", 3), ("second", 2)):
        folder = tmp_path_factory.mktemp(name)
        for place in ("images", "labels"):
            (folder / place).mkdir()
        for number in range(count):
            random = np.random.default_rng(number)
            labels = np.zeros((40 + number, 50), np.uint8)
            labels[5:20, 5:25], labels[25:38, 10:45] = 1, 2
            pixels = random.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
        made.append(
            LabelMapsSettings(
                kind="label-maps", images=folder / "images", labels=folder / "labels", task="part", name=name
            )
        )
    return tuple(made)


@pytest.fixture
def chosen(
    models: dict[str, LoadedSam], sets: tuple[LabelMapsSettings, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Evaluation:
    """An evaluation of all models, a photo a portion."""
    monkeypatch.setattr(module, "PORTION_PHOTOS", 1)
    monkeypatch.setattr(module, "draw_rounds", lambda _: [])  # takes most of the time, and has tests of its own
    monkeypatch.setattr(module, "load_weights", lambda weights, *_: models[weights])
    choices = {name: ModelChoice(name) for name in models}
    return Evaluation(choices, sets, PROTOCOLS, str(tmp_path / "out"), device="cpu")


def files_of(evaluation: Evaluation) -> dict[str, bytes]:
    found = Path(evaluation.out)
    return {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()}


def test_models_in_one_pass_score_as_alone_and_share_encoders(
    chosen: Evaluation, models: dict[str, LoadedSam], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = dict.fromkeys(models, 0)
    loaded: list[int] = []

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    load = run._load

    def read(opened: Any, index: int) -> Any:
        loaded.append(index)
        return load(opened, index)

    handles = [each.sam.image_encoder.patch_embed.register_forward_hook(count(name)) for name, each in models.items()]
    with monkeypatch.context() as patch:
        patch.setattr(run, "_load", read)
        evaluate(chosen)
    for handle in handles:
        handle.remove()
    assert loaded == [0, 1, 2, 0, 1]
    assert sorted(runs.values()) == [0, 0, 3, 3]  # the photos of the second set are among those of the first
    rows = pq.read_table(Path(chosen.out) / "masks.parquet").to_pylist()
    for name, model in models.items():
        alone = [row for each in evaluate_sets(model, chosen.sets, PROTOCOLS) for row in each.rows.to_pylist()]
        assert [{"model": name, **row} for row in alone] == [row for row in rows if row["model"] == name]


def test_killed_evaluation_goes_on_and_ends_with_the_same_files(
    chosen: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = evaluate(chosen)
    killed = replace(chosen, out=str(tmp_path / "killed"))
    photos = module.evaluate_photo
    for survivors in (2, 1):
        count = 0

        def dying(*arguments: Any, most: int = survivors) -> Any:
            nonlocal count
            count += 1
            if count > most:
                raise KilledError
            return photos(*arguments)

        monkeypatch.setattr(module, "evaluate_photo", dying)
        with pytest.raises(KilledError):
            evaluate(killed)
    assert len(list((tmp_path / "killed" / "portions").iterdir())) == 3
    assert not (tmp_path / "killed" / "masks.parquet").exists()
    done: list[int] = []
    monkeypatch.setattr(module, "evaluate_photo", lambda *a: (done.append(1), photos(*a))[1])
    assert evaluate(killed) == text
    assert len(done) == 2
    assert files_of(killed) == files_of(chosen)


@dataclass(frozen=True)
class Separate(Ranks):
    """A process of several that never meets the others."""

    def gather(self, own: Any) -> list[Any]:
        return [own]

    def wait(self) -> None:
        return


def test_processes_share_the_portions_and_make_the_same_files(chosen: Evaluation, tmp_path: Path) -> None:
    evaluate(chosen)
    shared = replace(chosen, out=str(tmp_path / "shared"))
    both = [module._Run(shared, Separate(rank, 2, ALONE.device)) for rank in (0, 1)]
    made: list[int] = []
    for each in both:
        each.agree()
        listed = Storage(shared.out)
        each.folder = type("Early", (), {"names": lambda *_: [], "write": listed.write})()  # listed before either wrote
        each.do_missing()
        made.append(len(listed.names("portions")))
        each.folder = listed
    assert made == [3, 5]  # photos 0 and 2 of the first set and 0 of the second, then the others
    both[0].report()
    assert files_of(shared) == files_of(chosen)


def test_other_settings_are_refused_by_name(chosen: Evaluation, models: dict[str, LoadedSam], tmp_path: Path) -> None:
    few = replace(chosen, models={"sam": ModelChoice("sam")}, protocols=(Protocol(rounds=1),))
    evaluate(few)
    before = files_of(few)
    for changes, said in (
        ({"seed": 3}, "seed: there 0, asked for 3"),
        ({"protocols": (Protocol(rounds=2),)}, r"protocols\.0\.rounds: there 1, asked for 2"),
        ({"models": {"sam": ModelChoice("other")}}, r"models\.sam\.sha256: there a, asked for d"),
        ({"sets": few.sets[:1]}, r"sets\.second\.task: there part, asked for \(not set\)"),
    ):
        with pytest.raises(SettingsDifferError, match=said):
            evaluate(replace(few, **changes))
    assert files_of(few) == before


def test_damaged_portion_is_named(chosen: Evaluation) -> None:
    few = replace(chosen, models={"sam": ModelChoice("sam")}, protocols=(Protocol(rounds=1),))
    evaluate(few)
    (Path(few.out) / "portions" / "001-0000000.parquet").write_bytes(b"no parquet")
    with pytest.raises(StorageError, match=r"001-0000000\.parquet: missing, or no portion"):
        evaluate(few)


def test_summary_tells_of_each_model(chosen: Evaluation) -> None:
    evaluate(replace(chosen, protocols=(Protocol(rounds=1),)))
    summary = json.loads((Path(chosen.out) / "summary.json").read_text())
    assert [each["weights"]["sha256"] for each in summary["models"].values()] == ["a", "b", "c", "d"]
    assert summary["sets"][1]["prompted_task"] == {"sam": None, "sum": "part", "hq": None, "other": None}
    assert [each["model"] for each in summary["results"]] == ["sam", "sum", "hq", "other"]
