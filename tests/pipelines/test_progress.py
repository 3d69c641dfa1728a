"""What takes long in the pipelines tells how it is getting on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sum_factory.pipelines.bench.shards import interleave
from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.corpus import open_corpus
from sum_factory.pipelines.microworld.pretrain import pretrain
from sum_factory.pipelines.microworld.pretrain_settings import PretrainSettings
from sum_factory.pipelines.microworld.scene import World
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.progress import Speaker

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture) -> list[str]:
    """Return the lines on stderr; there is nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_scenes_that_are_drawn_are_counted_and_those_that_are_there_are_not(
    tmp_path: Path, eager: Speaker, capsys: Capture
) -> None:
    write_sets(tmp_path / "human", 5, 2)
    assert "drawing scenes of human: 2 of 2 scenes" in told(capsys)[-1]
    write_sets(tmp_path / "human", 5, 3)
    assert "drawing scenes of human: 1 of 1 scenes" in told(capsys)[-1]


def test_corpus_and_pre_training_tell_of_scenes_and_steps(tmp_path: Path, eager: Speaker, capsys: Capture) -> None:
    open_corpus(tmp_path / "corpus", 0, 2, World(), Coarseness(), 1)
    assert told(capsys)[-1].startswith("drawing the corpus: 2 of 2 scenes")
    settings = PretrainSettings(steps=2, scenes=4, images=2, masks=2)
    pretrain(settings, tmp_path / "out", 1)
    lines = told(capsys)
    assert any(line.startswith("pre-training: 1 of 2 steps, loss ") and " s/step, " in line for line in lines)
    assert os.path.exists(tmp_path / "out" / "vit_micro.safetensors")


def test_benchmark_tells_which_part_it_is_at(eager: Speaker, capsys: Capture) -> None:
    interleave({"ours": lambda item: None, "theirs": lambda item: None}, 2, 3)
    lines = told(capsys)
    assert any(line.startswith("warming ours up: 2 of 2 items") for line in lines)
    assert any(line.startswith("loading by ours, theirs: 3 of 3 repeats") for line in lines)
