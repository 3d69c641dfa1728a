"""What is no SAM is refused by its name."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from segment_anything.modeling import Sam

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import HEADER, read_weights, to_safetensors
from weight_files import FORMS, State, folder_of, named_by_hugging_face, prefixed, sum_of_its_authors

REFUSED = {
    "SAM 2": ["image_encoder.trunk.blocks.0.norm1.weight", "sam_mask_decoder.iou_token.weight"],
    "SAM 2 ": ["vision_encoder.backbone.blocks.0.attn.qkv.weight", "prompt_encoder.no_mask_embed.weight"],
    "SAM 3": ["detector.backbone.vision_backbone.trunk.pos_embed", "tracker.sam_mask_decoder.iou_token.weight"],
    "MobileSAM": ["image_encoder.patch_embed.seq.0.c.weight", "prompt_encoder.no_mask_embed.weight"],
    "MobileSAM ": ["image_encoder.layers.1.blocks.0.attn.qkv.weight", "mask_decoder.hf_token.weight"],
    "EfficientSAM": ["image_encoder.blocks.0.norm1.weight", "prompt_encoder.invalid_points.weight"],
    "EfficientViT-SAM": ["image_encoder.backbone.input_stem.op_list.0.conv.weight"],
    "adapters": ["image_encoder.blocks.0.Adapter.D_fc1.weight", "prompt_encoder.no_mask_embed.weight"],
    "adapters, such as .*w_a_000": ["w_a_000", "w_b_000"],
    "a mask decoder alone": ["transformer.layers.0.norm1.weight", "iou_token.weight", "mask_tokens.weight"],
    "a mask decoder alone, told by": ["prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"],
    "an image encoder alone": ["image_encoder.blocks.0.norm1.weight"],
    "no weights of a Segment Anything Model, but 2 tensors, such as .*fc.weight": ["fc.weight", "fc.bias"],
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("wrapped", [False, True])
def test_other_models_are_refused_by_their_names(what: str, wrapped: bool, tmp_path: Path) -> None:
    content: Any = {name: torch.ones(2) for name in REFUSED[what]}
    torch.save({"model": prefixed(content, "module.")} if wrapped else content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{what.strip()}"):
        read_weights(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("kind", ["sam2", "sam3_video", "clip"])
def test_folder_of_another_model_is_refused_by_its_type(kind: str, state: State, tmp_path: Path) -> None:
    folder_of("model.safetensors")(state, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"a model of type '{kind}', says its config.json"):
        read_weights(str(tmp_path))


def test_folder_of_a_model_that_is_built_otherwise_is_refused(state: State, tmp_path: Path) -> None:
    folder_of("model.safetensors")(state, tmp_path)
    told = {"model_type": "sam", "mask_decoder_config": {"num_attention_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"mask_decoder_config\.num_attention_heads 4; the official .* has 8"):
        read_weights(str(tmp_path))


def test_width_that_no_model_has_shows_what_does_not_fit_the_closest(state: State, tmp_path: Path) -> None:
    state["image_encoder.pos_embed"] = torch.zeros(1, 8, 8, 12)
    with pytest.raises(
        CheckpointError, match=r"do not fit tiny, the closest model: image_encoder\.pos_embed has shape"
    ):
        read_weights(str(FORMS["Hugging Face"](state, tmp_path)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["official", "safetensors", "Hugging Face, a folder"])
def test_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor(
    value: float, form: str, state: State, tmp_path: Path
) -> None:
    name = "mask_decoder.iou_token.weight"
    state[name][0, 3] = value
    with pytest.raises(CheckpointError, match=rf"{name} has 1 of 32 numbers that are infinite or not a number"):
        read_weights(str(FORMS[form](state, tmp_path)))


def test_double_that_is_too_large_for_fp32_is_refused(state: State, tmp_path: Path) -> None:
    name = "mask_decoder.iou_token.weight"
    state[name] = torch.full((1, 32), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=f"{name} has 32 of 32 numbers that are infinite"):
        read_weights(str(FORMS["official"](state, tmp_path)))


def test_quantised_weights_are_refused(state: State, tmp_path: Path) -> None:
    name = "image_encoder.blocks.0.attn.qkv.weight"
    state[name] = (state[name] * 100).to(torch.int8)
    with pytest.raises(CheckpointError, match=rf"{name} is of torch\.int8, expected floating-point numbers"):
        read_weights(str(FORMS["safetensors"](state, tmp_path)))


def test_two_models_in_a_file_are_refused_by_where_they_lie(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "model_ema": prefixed(state, "module.")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 models, under model, model_ema\.module; save the one"):
        read_weights(str(tmp_path / "a.pth"))


def test_tensor_beside_the_model_in_its_dictionary_is_named(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": {**prefixed(state, "model."), "head.weight": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"do not fit tiny, the closest model: state_dict\.head\.weight is not exp"
    ):
        read_weights(str(tmp_path / "a.pth"))


def test_tied_keys_that_differ_are_refused(state: State, tmp_path: Path) -> None:
    renamed = named_by_hugging_face(state)
    renamed["shared_image_embedding.positional_embedding"] += 1
    torch.save(renamed, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"positional_embedding differs from another tensor"):
        read_weights(str(tmp_path / "a.pth"))


def test_other_constants_than_sams_are_refused(state: State, tmp_path: Path) -> None:
    torch.save({**state, "pixel_mean": torch.zeros(3, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"pixel_mean is \[0\.0, 0\.0, 0\.0\], in SAM \[123\.675, 116\.28, 103\.53\]"
    ):
        read_weights(str(tmp_path / "a.pth"))


def test_incomplete_task_prompt_is_refused(state: State, tmp_path: Path) -> None:
    given = sum_of_its_authors(state, torch.ones(4, 32))
    del given["prompt_encoder.task_prompt_embedding.2.weight"]
    torch.save(given, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="the task prompt is incomplete"):
        read_weights(str(tmp_path / "a.pth"))


def test_header_of_nonsense_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors({**state, "task_prompt.weight": torch.ones(4, 32)}, {"trained_tasks": ["cats"]}))
    with pytest.raises(CheckpointError, match=r"trained for \['cats'\]; the tasks are unspecified, salient"):
        read_weights(str(path))
    path.write_bytes(save(state, {HEADER: "[1]"}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged.*expected a JSON object as sum_factory"):
        read_weights(str(path))


def test_refiner_is_told_from_a_sam(state: State, tmp_path: Path) -> None:
    halves = {name: value for name, value in state.items() if not name.startswith("image_encoder.")}
    (tmp_path / "refiner.safetensors").write_bytes(to_safetensors(halves, {"kind": "refiner", "sam": {}}))
    with pytest.raises(CheckpointError, match="the weights of a refiner, not of a SAM; give it as --refiner"):
        read_weights(str(tmp_path / "refiner.safetensors"))


NO_WEIGHTS = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 375042383\n",
    "a web page in place of weights": b"<!DOCTYPE html><html><body>Sign in</body></html>",
}


@pytest.mark.parametrize("what", NO_WEIGHTS)
@pytest.mark.parametrize("name", ["a.pth", "model.safetensors"])
def test_what_is_often_found_in_place_of_weights_is_named(what: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NO_WEIGHTS[what])
    with pytest.raises(CheckpointError, match=rf"{name}: {what}"):
        read_weights(str(tmp_path / name))


@pytest.mark.parametrize(
    ("member", "what"),
    [("efficientsam_s.pt", "a zip archive of other files; unpack it"), ("a/constants.pkl", "a TorchScript program")],
)
def test_archive_of_something_else_is_named(member: str, what: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr(member, b"...")
    with pytest.raises(CheckpointError, match=rf"a\.pt: {what}"):
        read_weights(str(tmp_path / "a.pt"))


def test_whole_model_saved_as_an_object_is_refused_with_what_to_do(tiny_sam: Sam, tmp_path: Path) -> None:
    torch.save(tiny_sam, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"holds Python objects \(segment_anything.*Sam\).*`model\.state_dict\(\)`"
    ):
        read_weights(str(tmp_path / "a.pth"))


def test_index_may_name_no_file_outside_its_folder(state: State, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    folder_of("a.safetensors", "b.safetensors")(state, model)
    (tmp_path / "c.safetensors").write_bytes((model / "b.safetensors").read_bytes())
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("b.safetensors", "../c.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"index\.json: names '\.\./c\.safetensors', which is no file of its own fold"
    ):
        read_weights(str(model))


def test_missing_part_and_missing_tensor_are_named(state: State, tmp_path: Path) -> None:
    folder_of("a.safetensors", "b.safetensors")(state, tmp_path)
    content = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(save({"x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"index\.json: \S+ is not in b\.safetensors"):
        read_weights(str(tmp_path))
    (tmp_path / "b.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"b\.safetensors: damaged, cut short"):
        read_weights(str(tmp_path))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: no such file"):
        read_weights(str(tmp_path))


def test_damaged_bytes_give_no_traceback(state: State, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for form in ("official", "of an old PyTorch", "safetensors"):
        path = FORMS[form](state, tmp_path)
        data = bytearray(path.read_bytes())
        for _ in range(40):
            damaged = bytearray(data)
            for place in torch.randint(0, min(len(data), 3000), (3,), generator=generator).tolist():
                damaged[place] ^= 1 + int(torch.randint(0, 255, (), generator=generator))
            path.write_bytes(damaged)
            with suppress(CheckpointError):  # anything else fails the test
                read_weights(str(path))


def test_two_tensors_for_one_name_are_refused(state: State, tmp_path: Path) -> None:
    name = "mask_decoder.iou_token.weight"
    torch.save({**state, f"module.{name}": state[name] + 1}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"two different tensors that stand for mask_decoder\.iou_token\.weight"):
        read_weights(str(tmp_path / "a.pth"))
    torch.save({**state, f"module.{name}": state[name].clone()}, tmp_path / "b.pth")
    expected = read_weights(str(FORMS["safetensors"](state, tmp_path))).sha256
    assert read_weights(str(tmp_path / "b.pth")).sha256 == expected


def test_constants_of_another_shape_are_refused(state: State, tmp_path: Path) -> None:
    torch.save({**state, "pixel_mean": torch.zeros(4)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"pixel_mean is \[0\.0, 0\.0, 0\.0, 0\.0\], in SAM"):
        read_weights(str(tmp_path / "a.pth"))
