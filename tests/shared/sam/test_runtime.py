"""Device, precision and compilation change where and how a SAM runs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from shared.sam.runtime import Predictor, Runtime, pick_device, place


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


def test_fp32_predictor_equals_upstreams(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    ours, upstream = Predictor(tiny_sam), SamPredictor(tiny_sam)
    ours.set_image(image)
    upstream.set_image(image)
    assert torch.equal(ours.features, upstream.features)
    point = {"point_coords": np.array([[30, 20]]), "point_labels": np.array([1])}
    for a, b in zip(ours.predict(**point), upstream.predict(**point), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bf16_runs_the_encoder_in_bfloat16_and_the_rest_in_fp32(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    predictor = Predictor(tiny_sam, precision="bf16")

    def run() -> None:
        predictor.set_image(image)
        predictor.predict(np.array([[30, 20]]), np.array([1]))

    assert recorded_dtypes(tiny_sam.image_encoder, run) == {torch.bfloat16}
    assert recorded_dtypes(tiny_sam.mask_decoder, run) == {torch.float32}


def test_bf16_features_are_fp32_numbers_close_to_those_of_fp32(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    exact, rough = Predictor(tiny_sam), Predictor(tiny_sam, precision="bf16")
    exact.set_image(image)
    rough.set_image(image)
    assert rough.features.dtype == torch.float32
    assert rough.features.isfinite().all()
    assert not torch.equal(rough.features, exact.features)
    error = (rough.features - exact.features).norm() / exact.features.norm()
    assert error < 0.05


def test_bf16_leaves_the_weights_alone(tiny_sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    before = deepcopy(tiny_sam.state_dict())
    Predictor(tiny_sam, precision="bf16").set_image(image)
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
    assert place(sam, Runtime("cpu")) is sam
    assert compiled == []
    assert place(sam, Runtime("cpu", compile=True)) is sam
    assert compiled == [sam.image_encoder]
    plain, placed = Predictor(tiny_sam), Predictor(sam)
    plain.set_image(image)
    placed.set_image(image)
    torch.testing.assert_close(placed.features, plain.features, rtol=1e-5, atol=1e-5)


def test_model_is_placed_on_the_device_that_was_named(tiny_sam: Sam) -> None:
    assert place(deepcopy(tiny_sam), Runtime("meta")).device == torch.device("meta")


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


def test_only_precision_counts_as_a_setting_that_changes_results() -> None:
    assert Runtime("cpu").settings() == Runtime("cuda", compile=True).settings()
    assert Runtime("cpu", precision="bf16").settings() != Runtime("cpu").settings()
