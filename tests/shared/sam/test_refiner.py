"""A refiner's file holds its weights and knows its SAM; a refiner decodes as upstream's modules do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import HEADER, LoadedSam, file_sha256, identify_weights, load_sam
from sum_factory.shared.sam.refiner import Refiner, identify_refiner, load_refiner, save_refiner


@pytest.fixture(scope="module")
def loaded() -> LoadedSam:
    return load_sam()


@pytest.fixture
def saved(loaded: LoadedSam, tmp_path: Path) -> tuple[Path, Refiner]:
    """A file of a refiner, and the refiner."""
    refiner = Refiner.copy_of(loaded.sam)
    with torch.no_grad():
        refiner.mask_decoder.iou_token.weight += 1
    save_refiner(tmp_path / "refiner.safetensors", refiner, loaded, {"steps": 3})
    return tmp_path / "refiner.safetensors", refiner


def test_weights_come_back_and_sam_keeps_its_own(saved: tuple[Path, Refiner], loaded: LoadedSam) -> None:
    path, refiner = saved
    back = load_refiner(path, loaded)
    for name, value in refiner.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert not torch.equal(back.mask_decoder.iou_token.weight, loaded.sam.mask_decoder.iou_token.weight)
    assert not back.training
    assert back.sha256 == file_sha256(path)
    assert identify_refiner(path, identify_weights()) == {"sha256": file_sha256(path)}


def test_refiner_of_another_sam_is_refused_by_both(saved: tuple[Path, Refiner], loaded: LoadedSam) -> None:
    other = LoadedSam(loaded.sam, loaded.architecture, "f" * 64)
    with pytest.raises(
        CheckpointError, match=r"refiner\.safetensors: this refiner was trained for a vit_micro with SHA-256"
    ):
        load_refiner(saved[0], other)
    with pytest.raises(CheckpointError, match="give the SAM that it was trained for"):
        identify_refiner(saved[0], {"model_type": "vit_b", "sha256": "f" * 64})


def write_foreign(path: Path, kind: str, saved: Path) -> None:
    """Write a file that is no refiner in one of several ways."""
    whole = saved.read_bytes()
    if kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not weights")
    elif kind == "sam":
        save_file(load_sam().sam.state_dict(), path)
    elif kind == "header is a list":
        save_file(load_file(saved), path, {HEADER: "[]"})
    elif kind == "no sam in the header":
        save_file(load_file(saved), path, {HEADER: '{"kind": "refiner"}'})


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "sam", "header is a list", "no sam in the header", "missing"])
def test_file_that_is_no_refiner_is_named(
    kind: str, saved: tuple[Path, Refiner], loaded: LoadedSam, tmp_path: Path
) -> None:
    path = tmp_path / "foreign.safetensors"
    write_foreign(path, kind, saved[0])
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: .*(train it again|`trainer refiner`)"):
        load_refiner(path, loaded)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: .*(train it again|`trainer refiner`)"):
        identify_refiner(path, identify_weights())


def test_refiner_that_lacks_a_weight_is_named(saved: tuple[Path, Refiner], loaded: LoadedSam) -> None:
    path, refiner = saved
    del refiner.mask_decoder.iou_token
    save_refiner(path, refiner, loaded, {})
    with pytest.raises(CheckpointError, match=r"refiner\.safetensors: .*iou_token"):
        load_refiner(path, loaded)


@torch.no_grad()
def test_refining_is_upstreams_single_output_for_point_box_and_mask(tiny_sam: Sam) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    refiner = Refiner.copy_of(tiny_sam)
    embeddings = tiny_sam.image_encoder(random(2, 3, 128, 128))
    points, corners = 64 + 20 * random(3, 2), 64 + 20 * random(3, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    s, index = 5 * random(3, 32, 32), torch.tensor([1, 0, 1])
    r = refiner.refine(embeddings, index, points, boxes, s)
    assert r.shape == (3, 32, 32)
    for k in range(3):
        sparse, dense = tiny_sam.prompt_encoder(
            points=(points[k][None, None], torch.ones(1, 1)), boxes=boxes[k][None], masks=s[k][None, None]
        )
        expected, _ = tiny_sam.mask_decoder(
            embeddings[index[k]][None], tiny_sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
        )
        torch.testing.assert_close(r[k], expected[0, 0], rtol=1e-5, atol=1e-6)
