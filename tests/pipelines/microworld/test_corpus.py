"""A corpus on disk holds the scenes that its settings name, and is not mistaken for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sum_factory.pipelines.microworld.coarse import Coarseness, coarse_masks
from sum_factory.pipelines.microworld.corpus import TARGET_SIDE, Corpus, open_corpus
from sum_factory.pipelines.microworld.scene import World, make_scene

SEED, SCENES = 5, 6


def test_images_are_the_scenes_in_order(corpus: Corpus) -> None:
    assert len(corpus.images) == SCENES
    for index in range(SCENES):
        np.testing.assert_array_equal(corpus.images[index], make_scene(SEED, index).image)


def test_masks_are_the_coarse_masks_at_half_the_side(corpus: Corpus) -> None:
    for index in range(SCENES):
        exact = coarse_masks(make_scene(SEED, index))
        shares = exact.reshape(len(exact), TARGET_SIDE, 2, TARGET_SIDE, 2).mean((2, 4))
        masks = corpus.masks(index)
        assert masks.dtype == bool
        np.testing.assert_array_equal(masks, shares >= 0.5)


def test_empty_pixels_are_those_of_no_object(corpus: Corpus) -> None:
    for index in range(SCENES):
        free = make_scene(SEED, index).entities == 0
        shares = free.reshape(TARGET_SIDE, 2, TARGET_SIDE, 2).mean((1, 3))
        np.testing.assert_array_equal(corpus.empty_pixels(index), shares >= 0.5)


def test_opening_again_draws_nothing(corpus_folder: Path, corpus: Corpus) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in corpus_folder.iterdir()}
    open_corpus(corpus_folder, SEED, SCENES, World(), Coarseness(), workers=1)
    assert {path.name: path.stat().st_mtime_ns for path in corpus_folder.iterdir()} == before


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": SEED + 1},
        {"count": SCENES + 1},
        {"world": replace(World(), grille_share=0.2)},
        {"coarseness": replace(Coarseness(), open=7)},
    ],
    ids=["seed", "count", "world", "coarseness"],
)
def test_corpus_of_other_settings_is_refused(corpus_folder: Path, changed: dict[str, Any]) -> None:
    settings = {"seed": SEED, "count": SCENES, "world": World(), "coarseness": Coarseness(), **changed}
    with pytest.raises(ValueError, match="holds a corpus drawn with other settings"):
        open_corpus(corpus_folder, **settings, workers=1)


def test_interrupted_drawing_is_begun_again(tmp_path: Path) -> None:
    aside = tmp_path / "corpus.partial"
    aside.mkdir()
    (aside / "images.npy").write_bytes(b"half")
    small = World(side=128)
    corpus = open_corpus(tmp_path / "corpus", 0, 1, small, Coarseness(), workers=1)
    np.testing.assert_array_equal(corpus.images[0], make_scene(0, 0, small).image)
    assert not aside.exists()
