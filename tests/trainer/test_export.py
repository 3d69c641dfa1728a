"""SUM checkpoints in software that knows plain SAM: upstream's registry and predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import WEIGHTS, load_sam, to_safetensors
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer.export import export_plain_sam


@pytest.fixture(scope="module")
def sum_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SUM checkpoint of a random ViT-B in the folder of a run; the vector of "unspecified" is zero."""
    folder = tmp_path_factory.mktemp("run")
    with torch.device("meta"):
        empty = sam_model_registry["vit_b"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in empty.items()}
    table = torch.randn(len(TASKS), 256, generator=generator)
    table[0] = 0
    header = {"kind": "sum", "model_type": "vit_b", "trained_tasks": list(TASKS)}
    (folder / WEIGHTS).write_bytes(to_safetensors({**state, STATE_KEY: table}, header))
    return folder


def test_exported_checkpoint_predicts_in_upstream_as_ours_does(sum_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.pth"
    export_plain_sam(str(sum_checkpoint), out)  # the folder of a run
    loaded = load_sam(str(sum_checkpoint / WEIGHTS))
    upstream = sam_model_registry["vit_b"](checkpoint=out)
    ours, theirs = loaded.sam.state_dict(), upstream.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())

    with_task, plain = SamPredictor(loaded.sam), SamPredictor(upstream)
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1))
    for predictor in (with_task, plain):  # equal weights encode equally, and slowly
        predictor.original_size, predictor.input_size = (48, 64), (768, 1024)
        predictor.features, predictor.is_image_set = embedding, True
    vector = loaded.task_vector("unspecified")
    assert vector is not None
    with_task.features = embedding + vector[None, :, None, None]
    point = np.array([[30.0, 20.0]]), np.array([1])
    for several in (True, False):
        found = with_task.predict(*point, multimask_output=several, return_logits=True)
        expected = plain.predict(*point, multimask_output=several, return_logits=True)
        for a, b in zip(found, expected, strict=True):
            assert np.array_equal(a, b)
            assert a.std() > 0 or a.size == 1
    salient = loaded.task_vector("salient")
    assert salient is not None
    with_task.features = embedding + salient[None, :, None, None]
    assert not np.allclose(with_task.predict(*point)[2], plain.predict(*point)[2], atol=1e-3)


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        export_plain_sam(str(tmp_path), tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
