"""A corpus of six scenes for the tests of pre-training."""

from __future__ import annotations

from pathlib import Path

import pytest

from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.corpus import Corpus, open_corpus
from sum_factory.pipelines.microworld.scene import World

SEED, SCENES = 5, 6


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that corpus, which no test may change."""
    folder = tmp_path_factory.mktemp("pretraining") / "corpus"
    open_corpus(folder, SEED, SCENES, World(), Coarseness(), workers=1)
    return folder


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    """That corpus, opened again."""
    return open_corpus(corpus_folder, SEED, SCENES, World(), Coarseness(), workers=1)
