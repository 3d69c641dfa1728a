"""Training from a selection uses exactly the masks that were chosen, and records which selection it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.selection.opened import Selection, open_shards
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.training import open_stream

SETTINGS = SampleSettings(side=128, stride=4, masks=30, seed=0)
MOST = 0.5
"""Maps of random levels have means on both sides of it."""


def open_pseudo(url: str, method: str) -> PseudoSet:
    chosen = METHODS[method]
    return PseudoSet(open_shards(url), "refinement" if chosen.needs_uncertainty else None, chosen, SETTINGS)


def load_all(pseudo: PseudoSet) -> dict[str, TrainingSample]:
    samples = [pseudo.load(index, SampleId("pseudo", 0, index)).on(torch.device("cpu")) for index in range(len(pseudo))]
    return {sample.key: sample for sample in samples}


@pytest.fixture
def selection(known_shards: Any, tmp_path: Path) -> str:
    """The masks of the known shards whose map is known and has a mean of at most ``MOST``."""
    select(known_shards.url, str(tmp_path / "selection"), Filter(max_mean_u=MOST))
    return str(tmp_path / "selection")


def is_chosen(mask: Any) -> bool:
    return bool(mask.u_valid and np.float32(mask.u.mean()) <= np.float32(MOST))


@pytest.mark.parametrize("method", ["vanilla", "sum", "mask-refinement"])
def test_training_reads_exactly_the_chosen_masks(known_shards: Any, selection: str, method: str) -> None:
    everything, chosen = load_all(open_pseudo(known_shards.url, method)), load_all(open_pseudo(selection, method))
    expected = {key: [is_chosen(mask) for mask in masks] for key, masks in known_shards.masks.items()}
    assert chosen.keys() == {key for key, kept in expected.items() if any(kept)}
    assert 0 < sum(map(len, chosen.values())) < sum(map(len, everything.values()))
    for key, sample in chosen.items():
        in_set = [mask.u_valid or method == "vanilla" for mask in known_shards.masks[key]]
        kept = torch.tensor([keep for keep, there in zip(expected[key], in_set, strict=True) if there])
        assert torch.equal(sample.masks, everything[key].masks[kept])
        assert sample.skipped == 0
        for ours, theirs in (
            (sample.certainty, everything[key].certainty),
            (sample.sampling, everything[key].sampling),
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert torch.equal(ours, theirs[kept])
        assert torch.equal(sample.image, everything[key].image)


def test_selection_that_was_read_is_recorded(known_shards: Any, selection: str, tmp_path: Path) -> None:
    opened = open_shards(selection)
    assert isinstance(opened, Selection)
    pseudo = open_pseudo(selection, "sum")
    assert pseudo.recorded["selection"] == opened.plan.id
    assert "selection" not in open_pseudo(known_shards.url, "sum").recorded
    select(known_shards.url, str(tmp_path / "other"), Filter(max_mean_u=0.1 + MOST))
    other = open_pseudo(str(tmp_path / "other"), "sum")
    assert len({pseudo.identity, other.identity, open_pseudo(known_shards.url, "sum").identity}) == 3
    select(known_shards.url, str(tmp_path / "deeper" / "same"), Filter(max_mean_u=MOST))
    assert open_pseudo(str(tmp_path / "deeper" / "same"), "sum").identity == pseudo.identity


def test_recipe_takes_a_selection_where_it_takes_shards(make_recipe: Any, selection: str) -> None:
    stream = open_stream(make_recipe(shards=selection), 128, Ranks(0, 1, torch.device("cpu")))
    assert isinstance(stream.streams["pseudo"].pseudo.shards, Selection)


def test_unit_of_a_selection_that_is_gone_is_refused_at_once(known_shards: Any, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(known_shards.folder, tmp_path / "shards"))
    select(str(shards), str(tmp_path / "selection"), Filter(max_mean_u=MOST))
    (shards / "manifest" / "masks" / "000000.parquet").unlink()
    with pytest.raises(ShardError, match=r"manifest/masks/000000\.parquet: missing"):
        open_pseudo(str(tmp_path / "selection"), "vanilla")
