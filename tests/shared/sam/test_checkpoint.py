"""Weights load exactly or not at all, nothing in a file of weights is run, and every refusal says why."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import segment_anything
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import LoadedSam, file_sha256, identify_weights, load_sam, read_weights

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sam, Path]]:
    """Upstream's own ViT-B with random weights, read back from a .pth by upstream's own loader, and that file."""
    path = tmp_path_factory.mktemp("official") / "sam_vit_b.pth"
    with torch.device("meta"):
        empty = segment_anything.sam_model_registry["vit_b"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    torch.save({name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in empty.items()}, path)
    yield segment_anything.sam_model_registry["vit_b"](checkpoint=path), path
    path.unlink()


@pytest.fixture(scope="module")
def loaded(vit_b: tuple[Sam, Path]) -> LoadedSam:
    """What ``load_sam`` makes of that file."""
    return load_sam(str(vit_b[1]))


@pytest.fixture(scope="module")
def state() -> State:
    """A state dict of ``vit_micro`` with random weights."""
    torch.manual_seed(1)
    result: State = build_architecture(ARCHITECTURES["vit_micro"]).state_dict()
    return result


def saved(state: Any, path: Path) -> str:
    """Save ``state`` as official checkpoints are; return the path."""
    torch.save(state, path)
    return str(path)


def test_official_file_loads_every_number(vit_b: tuple[Sam, Path], loaded: LoadedSam) -> None:
    upstream, ours = vit_b[0].state_dict(), loaded.sam.state_dict()
    assert loaded.architecture.name == "vit_b"
    assert list(ours) == list(upstream)
    assert [name for name in upstream if not torch.equal(ours[name], upstream[name])] == []


def test_official_file_decodes_as_with_upstreams_loader(vit_b: tuple[Sam, Path], loaded: LoadedSam) -> None:
    generator = torch.Generator().manual_seed(2)
    embedding = torch.randn(1, 256, 64, 64, generator=generator)
    points = (torch.tensor([[[300.5, 700.0]], [[12.0, 1000.0]]]), torch.ones(2, 1, dtype=torch.int))
    outputs = []
    for sam in (vit_b[0], loaded.sam):
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
            masks, iou = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
            outputs.append((sam.postprocess_masks(masks, (768, 1024), (75, 100)), iou))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert outputs[0][0].std() > 0


def test_official_file_encodes_as_with_upstreams_loader(vit_b: tuple[Sam, Path], loaded: LoadedSam) -> None:
    # One windowed block, patch embedding and neck: all of ViT-B takes ten seconds per image.
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    outputs = []
    for sam in (vit_b[0], loaded.sam):
        encoder = sam.image_encoder
        with torch.no_grad():
            tokens = encoder.patch_embed(image) + encoder.pos_embed[:, :14, :14]
            outputs.append(encoder.neck(encoder.blocks[0](tokens).permute(0, 3, 1, 2)))
    assert torch.equal(outputs[0], outputs[1])


def test_loaded_model_is_in_eval_mode_and_fp32(loaded: LoadedSam) -> None:
    assert not loaded.sam.training
    assert {parameter.dtype for parameter in loaded.sam.parameters()} == {torch.float32}


def test_digest_is_that_of_names_shapes_and_numbers_beside_that_of_the_file(
    vit_b: tuple[Sam, Path], loaded: LoadedSam
) -> None:
    assert loaded.sha256 == digest_by_hand(vit_b[0].state_dict())
    assert loaded.file_sha256 == hashlib.sha256(vit_b[1].read_bytes()).hexdigest()


def digest_by_hand(state: State) -> str:
    """Return the digest of plain SAM's weights, from its definition."""
    names = sorted(state)
    told = json.dumps([[[name, [*state[name].shape]] for name in names], []]).encode()
    return hashlib.sha256(told + b"".join(state[name].numpy().tobytes() for name in names)).hexdigest()


def test_digest_of_known_bytes_is_what_the_standard_says(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_right_model_type_is_accepted(state: State, tmp_path: Path) -> None:
    weights = saved(state, tmp_path / "a.pth")
    assert load_sam(weights, "vit_micro").architecture is ARCHITECTURES["vit_micro"]
    assert identify_weights(weights, "vit_micro") == {
        "model_type": "vit_micro",
        "image_size": 256,
        "sha256": digest_by_hand(state),
    }


def test_wrong_model_type_is_named_with_the_right_one(vit_b: tuple[Sam, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"sam_vit_b\.pth: these are weights of vit_b, not of vit_l"):
        load_sam(str(vit_b[1]), "vit_l")


def test_unknown_model_type_is_named_with_those_there_are(state: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'vit_x' is no model type; there are vit_micro, vit_b, vit_l, vit_h"):
        load_sam(saved(state, tmp_path / "a.pth"), "vit_x")


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_refused(state: State, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    size = int(path.stat().st_size * share)
    os.truncate(path, size)
    with pytest.raises(CheckpointError, match=rf"cut{suffix}: damaged, cut short \({size} bytes\)"):
        load_sam(str(path))


def test_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.pth"
    path.write_bytes(bytes(range(256)) * 50)
    with pytest.raises(CheckpointError, match=r"photo\.pth: damaged.*no file of weights"):
        load_sam(str(path))


def test_missing_keys_are_named(state: State, tmp_path: Path) -> None:
    name = "mask_decoder.iou_token.weight"
    without = {key: value for key, value in state.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"do not fit vit_micro, the closest model: {name} is missing$"):
        load_sam(saved(without, tmp_path / "a.pth"))


def test_extra_keys_are_named(state: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit vit_micro.*: hq_token\.weight is not expected$"):
        load_sam(saved({**state, "hq_token.weight": torch.zeros(1)}, tmp_path / "a.pth"))


def test_wrong_shapes_are_named_with_the_right_ones(state: State, tmp_path: Path) -> None:
    name = "prompt_encoder.no_mask_embed.weight"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(1, 5\), expected \(1, 192\)$"):
        load_sam(saved({**state, name: torch.zeros(1, 5)}, tmp_path / "a.pth"))


def test_many_differences_are_counted(state: State, tmp_path: Path) -> None:
    extra = {f"extra.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(CheckpointError, match=r"extra\.4 is not expected; and 4 more$"):
        load_sam(saved({**state, **extra}, tmp_path / "a.pth"))


def test_differences_are_from_the_model_type_that_was_asked_for(state: State, tmp_path: Path) -> None:
    without = {key: value for key, value in state.items() if key != "mask_decoder.iou_token.weight"}
    weights = saved(without, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="do not fit vit_l, the closest model"):
        load_sam(weights, "vit_l")


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, {"a": 1}, [torch.zeros(1)], torch.zeros(3)])
def test_foreign_content_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match="no weights of a Segment Anything Model"):
        load_sam(saved(content, tmp_path / "a.pth"))


class Touch:
    """Unpickling an instance creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.open, (str(self.path), os.O_CREAT))


def test_pickle_that_would_run_code_is_refused_and_does_not_run(state: State, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    weights = saved({**state, "x": Touch(trace)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: holds Python objects \(posix\.open\)"):
        load_sam(weights)
    assert not trace.exists()
    os.close(torch.load(weights, weights_only=False)["x"])  # the trap does work
    assert trace.exists()


def test_prefix_of_data_parallelism_does_not_make_a_vit_b_another_model(
    vit_b: tuple[Sam, Path], tmp_path: Path
) -> None:
    state = torch.load(vit_b[1], weights_only=True, mmap=True)
    weights = saved({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pth")
    read = read_weights(weights)
    assert read.architecture is ARCHITECTURES["vit_b"]
    assert all(torch.equal(read.state[name], value) for name, value in state.items())
    state.pop("mask_decoder.iou_token.weight")
    with pytest.raises(
        CheckpointError, match=r"do not fit vit_b, the closest model: mask_decoder\.iou_token.* is missing$"
    ):
        read_weights(saved({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pth"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_load_as_fp32_whatever_they_hold(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "a.safetensors"
    stored = {name: value.to(dtype).contiguous() for name, value in state.items()}
    save_file(stored, path)
    sam = load_sam(str(path)).sam
    for name, value in sam.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float()), name


def test_file_of_an_old_pytorch_loads(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    loaded = load_sam(str(path)).sam.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_packaged_weights_need_no_path() -> None:
    loaded = load_sam()
    assert loaded.architecture is ARCHITECTURES["vit_micro"]
    assert all(value.isfinite().all() for value in loaded.sam.state_dict().values())
    assert identify_weights()["sha256"] == loaded.sha256


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_name_of_an_official_model_explains_that_a_path_is_needed(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: its weights do not ship here; give the path of"):
        load_sam(name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        load_sam(str(tmp_path / "nowhere.pth"))


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no weights in this folder; expected weights\.safetensors, model\.safet"
    ):
        load_sam(str(tmp_path))
