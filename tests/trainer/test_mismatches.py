"""Recipe, shards and weights that do not fit each other: each pair is one error that names what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sum_factory.shared.errors import CheckpointError, InputError, SettingsError, ShardError, SumError
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam, to_safetensors
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.shared.shards.dataset import Layer
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.export import export_plain_sam
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.training import prepared
from sum_factory.trainer.variants import prepare, trainable, variants
from sum_factory.trainer.variants.load import load_any
from sum_factory.trainer.variants.trained_weights import header_of_trained

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
SMALL = replace(TINY, name="small", image_size=64)

Change = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def architectures() -> Iterator[None]:
    """Have both be known."""
    with pytest.MonkeyPatch.context() as context:
        context.setitem(ARCHITECTURES, "tiny", TINY)
        context.setitem(ARCHITECTURES, "small", SMALL)
        yield


@pytest.fixture(scope="module")
def files(tiny_file: Path, architectures: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of weights by what they are."""
    folder, plain = tmp_path_factory.mktemp("files"), str(tiny_file)

    def write(name: str, state: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        (folder / name).write_bytes(to_safetensors(state, header))

    def part(name: str, kind: str, **changed: Any) -> None:
        loaded, settings = load_sam(plain), variants()[kind].settings()
        header = {**header_of_trained(kind, settings, plain, loaded), "trained_tasks": [], **changed}
        prepare(loaded.sam, kind, settings, 0)
        write(name, dict(trainable(loaded.sam)), header)

    write("small", build_architecture(SMALL).state_dict(), {})
    for variant in ("hq", "adapter"):
        part(variant, variant)
    part("moved", "adapter", base={"place": "/nowhere", "sha256": "0" * 64, "model_type": "tiny"})
    part("without base", "adapter", base={})
    part("without tasks", "adapter", trained_tasks=None)
    part("of another version", "adapter", variant_settings={"depth": 3})
    part("wider", "adapter", variant_settings={"width": 7})
    part("of the future", "adapter", variant="prefix")
    export_plain_sam(str(folder / "hq"), folder / "public hq")
    whole = torch.load(folder / "public hq", weights_only=True)
    decoder = {name.removeprefix("mask_decoder."): value for name, value in whole.items() if "mask_decoder." in name}
    torch.save(decoder, folder / "decoder of hq")
    state = load_sam(plain).sam.state_dict()
    write("sum", {**state, STATE_KEY: torch.zeros(4, 32)}, {"trained_tasks": list(TASKS[:2])})
    write("short table", {**state, STATE_KEY: torch.zeros(3, 32)}, {"trained_tasks": []})
    write("other tasks", {**state, STATE_KEY: torch.zeros(4, 32)}, {"trained_tasks": ["dogs"]})
    return {"plain": plain, **{path.name: str(path) for path in folder.iterdir()}}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sam": "small"}, ShardError, r"made at an input of 128 pixels, and the model to be trained takes 64"),
        ({"sam": "adapter"}, CheckpointError, "what the variant adapter trained, without the SAM that it sits on"),
        ({"sam": "public hq"}, CheckpointError, "HQ-SAM's, and training starts from a SAM"),
        ({"sam": "public hq", "variant": "hq"}, CheckpointError, "HQ-SAM's, and training starts from a SAM"),
        ({"sam": "decoder of hq", "variant": "hq"}, CheckpointError, "HQ-SAM's, and training starts from a SAM"),
        ({"sam": "sum", "method": "vanilla"}, CheckpointError, "has a task prompt, which vanilla does without"),
        ({"sam": "short table"}, CheckpointError, r"task_prompt.weight has shape \(3, 32\), expected \(4, 32\)"),
        ({"sam": "other tasks"}, CheckpointError, r"says it was trained for \['dogs'\]"),
        ({"uncertainty": "other"}, ShardError, "no layer 'uncertainty/other'; there are masks, uncertainty/refinement"),
        ({"method": "sum-confidence-uncer"}, ShardError, "no layer 'uncertainty/confidence'; there are masks"),
        ({"shards": None}, InputError, "the method sum trains on pseudo-labels: give --shards"),
        ({"shards": "/nowhere"}, ShardError, "nowhere"),
        (
            {"device": "abacus"},
            SettingsError,
            "device 'abacus': there is none; expected auto, cpu, cuda, cuda:1 or mps",
        ),
    ],
)
def test_run_is_refused_before_its_first_step(
    make_recipe: Callable[..., Recipe],
    files: dict[str, str],
    tmp_path: Path,
    change: Change,
    error: type[SumError],
    message: str,
) -> None:
    changed = {name: files.get(value, value) if name == "sam" else value for name, value in change.items()}
    with pytest.raises(error, match=message), prepared(make_recipe(**changed), tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 3}, "1, 2 or 4"),
        ({"variant_settings": {"rank": 3}}, "variant_settings of full: unknown key rank; there are none"),
        ({"variant": "adapter", "variant_settings": {"width": "wide"}}, "variant_settings of adapter: width"),
        ({"human": ()}, "at least 1 item"),
        ({"mix": {"human": 1, "pseudo": 0}}, "no pseudo-labels, which the method sum is about; give human-only"),
        ({"mix": {"human": 0, "pseudo": 1}}, "no photos with human masks"),
    ],
)
def test_recipe_is_refused_that_contradicts_itself(
    make_recipe: Callable[..., Recipe], change: Change, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe(**change)


@pytest.mark.parametrize(
    ("method", "source"),
    [("sum", "confidence"), ("mask-refinement", "confidence"), ("sum-confidence-uncer", "entropy")],
)
def test_maps_of_another_source_than_the_methods_are_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, source: str
) -> None:
    """A layer may have any name; what its maps are is what it was made by."""
    recorded = ShardSet.layer

    def layer(self: ShardSet, name: str = "masks") -> Layer:
        return replace(recorded(self, name), settings={"source": source} if "/" in name else {})

    monkeypatch.setattr(ShardSet, "layer", layer)
    recipe = make_recipe(method=method, uncertainty="refinement")
    with pytest.raises(ShardError, match=f"layer 'refinement' are of the source {source}, and this method is about"):
        prepared(recipe, tmp_path / "out").__enter__()


@pytest.mark.parametrize(
    ("weights", "sam", "message"),
    [
        ("plain", "small", "sits on no other SAM; leave --sam out"),
        ("public hq", "plain", "sits on no other SAM; leave --sam out"),
        ("adapter", "small", "sits on a tiny with SHA-256 .*; give the SAM that it was trained on as --sam"),
        ("moved", None, "sits on a tiny that cannot be loaded .*; give it as --sam"),
        ("without base", None, "its header does not say on which SAM it sits"),
        ("without base", "plain", "its header does not say on which SAM it sits"),
        ("without tasks", None, "its header does not say on which SAM it sits and which tasks"),
        ("of another version", None, "settings that the variant adapter does not know: depth"),
        ("wider", None, "its tensors are not those of the variant adapter"),
        ("of the future", None, "of the variant 'prefix', which this software does not know; there are adapter"),
        ("decoder of hq", None, "the decoder of HQ-SAM alone; give the SAM that it sits on as --sam"),
        ("decoder of hq", "small", r"sits on another SAM than .*small: .* differs; give that one as --sam"),
    ],
)
def test_weights_are_refused_that_do_not_fit(
    files: dict[str, str], weights: str, sam: str | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_any(files[weights], sam and files[sam])


def test_decoder_of_hq_in_half_precision_fits_its_sam(files: dict[str, str], tmp_path: Path) -> None:
    """What rounding changes is no other SAM."""
    state = {name: value.half() for name, value in torch.load(files["decoder of hq"], weights_only=True).items()}
    torch.save(state, tmp_path / "half.pth")
    loaded = load_any(str(tmp_path / "half.pth"), files["plain"])
    assert torch.equal(loaded.sam.mask_decoder.hf_token.weight, state["hf_token.weight"].float())


def test_output_of_hq_is_refused_for_others(files: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"no HQ-SAM, which alone has an output hq\+sam; leave --hq-output out"):
        load_any(files["plain"], hq_output="hq+sam")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_device_that_is_not_there_is_refused(
    make_recipe: Callable[..., Recipe], human_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="device cuda: PyTorch finds 0 of these here"):
        prepared(make_recipe(device="cuda"), tmp_path).__enter__()
