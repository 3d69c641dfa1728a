"""Whatever form people hold SAM's weights in, the same model comes of it; what is no SAM is refused by its name."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture
from sum_factory.shared.sam.checkpoint import HEADER, bytes_of, load_sam, read_weights, to_safetensors
from sum_factory.shared.sam.forms import hub
from sum_factory.shared.sam.forms.reading import read_content

State = dict[str, Tensor]

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
"""That of ``tiny_sam``."""


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``load_sam`` know the architecture meanwhile."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture
def state(tiny_sam: Sam) -> State:
    """The weights of upstream's own classes, under its own names."""
    return {name: value.clone() for name, value in tiny_sam.state_dict().items()}


def named_by_hugging_face(state: State) -> State:
    """Rename upstream's weights as the Hugging Face libraries do, part by part."""
    renamed = {}
    for name, value in state.items():
        first, *parts = name.split(".")
        if first == "image_encoder":
            first = "vision_encoder"
            if parts[0] == "blocks":
                parts[0] = "layers"
                if parts[2] in ("norm1", "norm2"):
                    parts[2] = "layer_" + parts[2]
            elif parts[0] == "patch_embed":
                parts[1] = "projection"
            elif parts[0] == "neck":
                parts[1] = ["conv1", "layer_norm1", "conv2", "layer_norm2"][int(parts[1])]
        elif first == "prompt_encoder":
            if parts[0] == "pe_layer":
                renamed["shared_image_embedding.positional_embedding"] = value.clone()
                parts = ["shared_embedding", "positional_embedding"]
            elif parts[0] == "point_embeddings":
                parts[0] = "point_embed"
            elif parts[0] == "mask_downscaling":
                layers = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
                parts[:2] = ["mask_embed", layers[parts[1]]]
        elif parts[0] == "output_upscaling":
            parts[:2] = [{"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}[parts[1]]]
        elif parts[0] in ("iou_prediction_head", "output_hypernetworks_mlps"):
            layer = {"0": ["proj_in"], "1": ["layers", "0"], "2": ["proj_out"]}[parts[-2]]
            parts = [*parts[:-3], *layer, parts[-1]]
        elif parts[0] == "transformer":
            parts = [re.sub(r"^norm(?=\d|_final)", "layer_norm", part) for part in parts]
        renamed[".".join([first, *parts])] = value
    return renamed


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def by_part(state: State) -> dict[str, State]:
    """Return a dictionary of each part of the model, as some programs save it."""
    parts: dict[str, State] = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = value
    return parts


def torch_file(make: Callable[[State], Any], name: str = "a.pth") -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(make(state), folder / name)
        return folder / name

    return write


def safetensors_file(name: str) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        save_file(state, folder / name)
        return folder / name

    return write


def folder_of(*files: str, config: bool = True) -> Callable[[State, Path], Path]:
    """Write weights as a folder of the Hugging Face libraries; of several files, with an index."""

    def write(state: State, folder: Path) -> Path:
        state = named_by_hugging_face(state)
        if config:
            told = {"model_type": "sam", "vision_config": {"hidden_act": "gelu"}, "mask_decoder_config": {}}
            (folder / "config.json").write_text(json.dumps(told))
        weight_map = {key: files[k % len(files)] for k, key in enumerate(state)}
        for name in files:
            part = {key: value for key, value in state.items() if weight_map[key] == name}
            if name.endswith(".bin"):
                torch.save(part, folder / name)
            else:
                save_file(part, folder / name)
        if len(files) > 1:
            whole = "pytorch_model.bin" if files[0].endswith(".bin") else "model.safetensors"
            (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return write


def checkpoint_of_a_run(state: State, folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder


def without_tied_key(state: State) -> State:
    renamed = named_by_hugging_face(state)
    del renamed["prompt_encoder.shared_embedding.positional_embedding"]
    return renamed


PIXELS = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
}
ADAM = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}

FORMS: dict[str, Callable[[State, Path], Path]] = {
    "official": torch_file(lambda state: state),
    "of data parallelism": torch_file(lambda state: prefixed(state, "module.")),
    "compiled": torch_file(lambda state: prefixed(state, "_orig_mod.")),
    "a part compiled": torch_file(
        lambda state: {
            name.replace("image_encoder.", "image_encoder._orig_mod."): value for name, value in state.items()
        }
    ),
    "a member": torch_file(lambda state: prefixed(state, "sam.")),
    "a member of what is trained in parallel": torch_file(lambda state: prefixed(state, "module.sam_model.")),
    "with an optimizer": torch_file(lambda state: {"model": state, "optimizer": ADAM, "epoch": 3}),
    "of Lightning": torch_file(
        lambda state: {"state_dict": prefixed(state, "model."), "epoch": 1, "optimizer_states": [ADAM]}
    ),
    "wrapped twice": torch_file(lambda state: {"checkpoint": {"model_state_dict": prefixed(state, "module.")}}),
    "a moving average": torch_file(lambda state: {"ema": state, "steps": 7}),
    "by part": torch_file(by_part),
    "with constants": torch_file(lambda state: {**state, **PIXELS}),
    "safetensors": safetensors_file("a.safetensors"),
    "safetensors called .pth": safetensors_file("a.pth"),
    "safetensors called nothing": safetensors_file("weights"),
    "a pickle called .safetensors": torch_file(lambda state: state, "a.safetensors"),
    "of an old PyTorch": lambda state, folder: (
        torch.save(state, folder / "a.pth", _use_new_zipfile_serialization=False),
        folder / "a.pth",
    )[1],
    "the folder of a run": checkpoint_of_a_run,
    "Hugging Face": torch_file(named_by_hugging_face),
    "Hugging Face, the tied key once": torch_file(without_tied_key),
    "Hugging Face, wrapped": torch_file(lambda state: {"model": prefixed(named_by_hugging_face(state), "module.")}),
    "Hugging Face, a folder": folder_of("model.safetensors"),
    "Hugging Face, a folder without its config": folder_of("model.safetensors", config=False),
    "Hugging Face, an old folder": folder_of("pytorch_model.bin"),
    "Hugging Face, cut up": folder_of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "Hugging Face, an old folder, cut up": folder_of("pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(form: str, state: State, tmp_path: Path) -> None:
    read = read_weights(str(FORMS[form](state, tmp_path)))
    assert read.architecture is TINY
    assert sorted(read.state) == sorted(state)
    assert [name for name, value in state.items() if not torch.equal(read.state[name], value)] == []
    (tmp_path / "plain").mkdir()
    assert read.identity == read_weights(str(FORMS["official"](state, tmp_path / "plain"))).identity


def test_other_numbers_are_another_identity(state: State, tmp_path: Path) -> None:
    before = read_weights(str(FORMS["official"](state, tmp_path))).sha256
    state["prompt_encoder.no_mask_embed.weight"][0, 0] += 1e-6
    assert read_weights(str(FORMS["Hugging Face"](state, tmp_path))).sha256 != before


def test_hugging_faces_weights_run_as_upstream_does_with_its_own_epsilon(
    tiny_sam: Sam, state: State, tmp_path: Path
) -> None:
    loaded = load_sam(str(FORMS["Hugging Face, a folder"](state, tmp_path))).sam
    norms = [each for each in loaded.mask_decoder.modules() if isinstance(each, nn.LayerNorm)]
    assert len(norms) == 9
    assert {norm.eps for norm in norms} == {1e-5}
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    points = (torch.tensor([[[60.0, 40.0]]]), torch.ones(1, 1, dtype=torch.int))
    outputs = []
    for sam in (tiny_sam, loaded):
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=torch.randn(1, 1, 32, 32).sign() * 3)
            position = sam.prompt_encoder.get_dense_pe()
            _, unmasked = sam.prompt_encoder(points=points, boxes=None, masks=None)
            embedding = sam.image_encoder(image)
            outputs.append((embedding, sparse, sam.mask_decoder(embedding, position, sparse, unmasked, True)))
            assert dense.shape == unmasked.shape
    for found, expected in ((outputs[1][0], outputs[0][0]), *zip(outputs[1][2], outputs[0][2], strict=True)):
        assert torch.equal(found, expected)
        assert found.std() > 0


HQ = {
    "hf_token.weight": (1, 32),
    "hf_mlp.layers.2.bias": (4,),
    "compress_vit_feat.3.weight": (32, 4, 2, 2),
    "embedding_encoder.0.weight": (32, 8, 2, 2),
    "embedding_maskfeature.1.bias": (8,),
    "task_prompt_tokens.1.weight": (4, 32),
}
HQ_OF_HUGGING_FACE = ("hq_token.weight", "hq_mask_mlp.layers.0.bias", "compress_vit_conv1.weight", "mask_norm.bias")


@pytest.mark.parametrize("names", ["official", "Hugging Face"])
def test_hq_sams_own_tensors_are_left_out_and_it_is_said(
    names: str, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = state if names == "official" else named_by_hugging_face(state)
    own = HQ if names == "official" else dict.fromkeys(HQ_OF_HUGGING_FACE, (2, 2))
    more = {f"mask_decoder.{name}": torch.ones(shape) for name, shape in own.items()}
    torch.save({**given, **more}, tmp_path / "sam_hq.pth")
    read = read_weights(str(tmp_path / "sam_hq.pth"))
    assert all(torch.equal(read.state[name], value) for name, value in state.items())
    assert read.state.keys() == state.keys()
    told = capsys.readouterr().err
    assert (
        f"sam_hq.pth: weights of HQ-SAM: the SAM in it is used, which its training leaves as it was; its {len(own)}"
        in told
    )


def sum_of_its_authors(state: State, rows: Tensor) -> State:
    """Return weights as SUM's authors save them: a tensor of the prompt encoder for each task."""
    vectors = {f"prompt_encoder.task_prompt_embedding.{k}.weight": row[None].clone() for k, row in enumerate(rows)}
    return {**state, **vectors}


def test_sums_published_weights_prompt_as_their_authors_model_does(state: State, tmp_path: Path) -> None:
    rows = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    torch.save(sum_of_its_authors(state, rows), tmp_path / "sum.pth")
    loaded = load_sam(str(tmp_path / "sum.pth"))
    assert loaded.trained_tasks == ("unspecified", "salient", "entity")
    for k, task in enumerate(("unspecified", "salient", "entity", "unspecified")):
        vector = loaded.task_vector(("unspecified", "salient", "entity", "part")[k])
        assert vector is not None
        assert torch.equal(vector, rows[k if k < 3 else 0]), task
    # the authors add the vector of task 0 to the embedding of a mask prompt, in every later round
    authors = load_sam(str(FORMS["official"](state, tmp_path))).sam.prompt_encoder
    masks = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = authors.mask_downscaling(masks) + rows[0].view(1, -1, 1, 1)
        _, dense = loaded.sam.prompt_encoder(points=None, boxes=None, masks=masks)
    assert torch.allclose(dense, expected, atol=1e-6)


def test_task_prompt_that_was_never_trained_is_none(state: State, tmp_path: Path) -> None:
    torch.save(sum_of_its_authors(state, torch.zeros(4, 32)), tmp_path / "sum.pth")
    loaded = load_sam(str(tmp_path / "sum.pth"))
    assert loaded.task_prompt is None
    assert loaded.sha256 == read_weights(str(FORMS["official"](state, tmp_path))).sha256


def test_table_without_a_header_has_the_tasks_that_are_not_zero(state: State, tmp_path: Path) -> None:
    table = torch.zeros(4, 32)
    table[2] = 1
    torch.save({"model": {**state, "task_prompt.weight": table}}, tmp_path / "a.pth")
    assert read_weights(str(tmp_path / "a.pth")).trained_tasks == ("unspecified", "entity")


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


@pytest.fixture
def model_on_the_hub(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of ``huggingface_hub`` with one model, owner/sam, and no connection; return the model's folder."""
    from huggingface_hub import constants

    repository, commit = tmp_path / "hub" / "models--owner--sam", "0123456789abcdef0123456789abcdef01234567"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    folder_of("model-1-of-2.safetensors", "model-2-of-2.safetensors")(state, folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("given", ["owner/sam", "hf://owner/sam", "owner/sam@main"])
def test_model_of_the_hub_is_found_by_its_id(given: str, model_on_the_hub: Path, state: State) -> None:
    read = read_weights(given)
    assert read.path == model_on_the_hub
    assert all(torch.equal(read.state[name], value) for name, value in state.items())


def test_folder_of_that_name_goes_before_the_hub(model_on_the_hub: Path, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    with pytest.raises(CheckpointError, match=r"owner/sam: no such file"):
        read_weights("owner/sam")


@pytest.mark.parametrize("given", ["nobody/sam", "hf://nobody/sam"])
def test_model_that_cannot_be_had_is_told_of_as_neither_here_nor_there(given: str, model_on_the_hub: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{given}: neither a file or folder here, nor a model on the Hugging"):
        read_weights(given)


@pytest.mark.parametrize(
    ("given", "is_id"),
    [
        ("facebook/sam-vit-base", True),
        ("facebook/sam-vit-base@v1.0", True),
        ("weights/sam_vit_b_01ec64.pth", False),
        ("weights/model.safetensors", False),
        ("/weights/sam", False),
        ("runs/sum/last", False),
        ("sam_vit_b.pth", False),
    ],
)
def test_ids_are_told_from_paths(given: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id(given) is is_id


def test_hub_answers_are_told_by_what_they_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        raise OSError("Connection refused")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"owner/sam@v2: could not be fetched .* \(Connection refused\)"):
        read_weights("owner/sam@v2")
    assert asked == [("config.json", "v2")]
    with pytest.raises(CheckpointError, match="no id on the Hugging Face hub; expected owner/name"):
        read_weights("hf://sam")


def test_all_files_are_of_the_commit_of_the_first(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "f" * 40
    folder = tmp_path / "cache" / commit
    folder.mkdir(parents=True)
    folder_of("pytorch_model.bin")(state, folder)
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        if not (folder / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert read_weights("owner/sam").architecture is TINY
    assert asked[0] == ("config.json", None)
    assert {revision for _, revision in asked[1:]} == {commit}


def test_bytes_of_weights_are_those_of_their_files(state: State, tmp_path: Path) -> None:
    path = FORMS["official"](state, tmp_path)
    assert bytes_of(str(path)) == path.stat().st_size
    (tmp_path / "model").mkdir()
    parts = folder_of("a.safetensors", "b.safetensors")(state, tmp_path / "model")
    assert bytes_of(str(parts)) == sum(each.stat().st_size for each in parts.glob("?.safetensors"))
    assert bytes_of("vit_micro") == 0


def test_header_is_read_whatever_a_file_is_called(state: State, tmp_path: Path) -> None:
    from sum_factory.shared.sam.checkpoint import read_header

    (tmp_path / "a.bin").write_bytes(save(state, {HEADER: json.dumps({"step": 3})}))
    assert read_header(tmp_path / "a.bin") == {"step": 3}
    torch.save(state, tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_safetensors_are_known_whatever_byte_the_length_of_their_header_begins_with(first: int, tmp_path: Path) -> None:
    """0x80 begins a pickle, and 0x50 a zip."""
    path = tmp_path / "weights.pth"
    weights = {"number": torch.ones(1)}
    (data,) = (
        data for length in range(256) if (data := save(weights, {"note": "x" * length}))[0] == first and length % 8 == 0
    )
    path.write_bytes(data)
    assert read_content(path).content.keys() == weights.keys()


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
