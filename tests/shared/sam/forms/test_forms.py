"""Whatever form people hold SAM's weights in, the same model comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import nn

from sum_factory.shared.sam.checkpoint import HEADER, bytes_of, load_sam, read_weights
from sum_factory.shared.sam.forms.reading import read_content
from weight_files import FORMS, TINY, State, folder_of, named_by_hugging_face, sum_of_its_authors


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
