"""Device, precision and compilation change where and how a SAM runs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from segment_anything.modeling import Sam

from sum_factory.shared.exactness import Exactness
from sum_factory.shared.sam.runtime import Embedder, Runtime, move_to_device, pick_device, resize


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    """A landscape photo of noise."""
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def recorded_dtypes(part: torch.nn.Module, run: Callable[[], Any]) -> set[torch.dtype]:
    """Return the dtypes of what the linear layers of ``part`` of a model gave while ``run`` ran."""
    seen: set[torch.dtype] = set()
    layers = [module for module in part.modules() if isinstance(module, torch.nn.Linear)]
    handles = [layer.register_forward_hook(lambda _layer, _inputs, output: seen.add(output.dtype)) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (64, 64), (300, 7)])
def test_fp32_embedding_is_upstreams(tiny_sam: Sam, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    upstream = segment_anything.SamPredictor(tiny_sam)
    upstream.set_image(image)
    assert torch.equal(Embedder(tiny_sam).embed(image), upstream.features)


def test_embedding_of_a_crop_is_upstreams(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    upstream, ours = segment_anything.SamPredictor(tiny_sam), Embedder(tiny_sam)
    upstream.set_image(image[5:40, 20:80])
    resized = resize(image, tiny_sam.image_encoder.img_size)
    assert torch.equal(ours.embed_crop(image, (20, 5, 80, 40), resized), upstream.features)
    assert torch.equal(ours.embed_crop(image, (0, 0, 90, 60), resized), ours.embed(image))


def test_bf16_runs_the_encoder_in_bfloat16(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    embedder = Embedder(tiny_sam, precision="bf16")
    assert recorded_dtypes(tiny_sam.image_encoder, lambda: embedder.embed(image)) == {torch.bfloat16}


def test_bf16_features_are_fp32_numbers_close_to_those_of_fp32(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    exact, rough = Embedder(tiny_sam).embed(image), Embedder(tiny_sam, precision="bf16").embed(image)
    assert rough.dtype == torch.float32
    assert rough.isfinite().all()
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_bf16_leaves_the_weights_alone(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    before = deepcopy(tiny_sam.state_dict())
    Embedder(tiny_sam, precision="bf16").embed(image)
    after = tiny_sam.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == torch.float32 for name, value in before.items())


def test_only_the_encoder_is_compiled_and_only_if_asked(
    tiny_sam: Sam, image: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_nothing(function: Any, *_: Any, **__: Any) -> Any:
        compiled.append(function.__self__)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    sam = deepcopy(tiny_sam)
    assert move_to_device(sam, Runtime("cpu")) is sam
    assert compiled == []
    assert move_to_device(sam, Runtime("cpu", compile=True)) is sam
    assert compiled == [sam.image_encoder]
    torch.testing.assert_close(Embedder(sam).embed(image), Embedder(tiny_sam).embed(image), rtol=1e-5, atol=1e-5)


def test_model_is_placed_on_the_device_that_was_named(tiny_sam: Sam) -> None:
    assert move_to_device(deepcopy(tiny_sam), Runtime("meta")).device == torch.device("meta")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_picks_the_best_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device() == pick_device("auto") == torch.device(expected)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")


def test_only_exactness_counts_as_a_setting_that_changes_results() -> None:
    assert Runtime("cpu").settings() == Runtime("cuda", compile=True).settings()
    found = [Runtime("cpu", level).settings() for level in get_args(Exactness)]
    assert all(one not in found[:k] for k, one in enumerate(found))
