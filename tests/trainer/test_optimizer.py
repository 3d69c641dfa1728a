"""Learning rates, weight decay and schedules, against the published rule for ViTs and naive formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.refiner import Refiner
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.trainer.optimizer import OptimizerSettings, layer_scale, make_optimizer, schedule, set_learning_rate
from sum_factory.trainer.run.settings import NoSettings
from sum_factory.trainer.variants import prepare


@pytest.fixture(scope="module", params=["vit_micro", "vit_b"])
def empty(request: pytest.FixtureRequest) -> tuple[Sam, int]:
    """A SAM without memory for its weights, and how many blocks its encoder has."""
    architecture = ARCHITECTURES[request.param]
    with torch.device("meta"):
        return build_architecture(architecture), architecture.encoder_depth


def vit_decay(name: str, rate: float, layers: int) -> float:
    """The rule of detectron2's ``get_vit_lr_decay_rate``, for SAM's names."""
    layer = layers + 1
    if name.startswith("image_encoder"):
        if ".pos_embed" in name or ".patch_embed" in name:
            layer = 0
        elif ".blocks." in name and ".residual." not in name:
            layer = int(name[name.find(".blocks.") :].split(".")[2]) + 1
    return rate ** (layers + 1 - layer)


def test_layers_decay_as_published(empty: tuple[Sam, int]) -> None:
    sam, depth = empty
    scales = {}
    for name, _ in sam.named_parameters():
        scales[name] = layer_scale(name, depth, 0.8)
        assert scales[name] == pytest.approx(vit_decay(name, 0.8, depth)), name
    last = f"image_encoder.blocks.{depth - 1}.attn.qkv.weight"
    assert scales[last] == pytest.approx(0.8)
    assert scales["image_encoder.blocks.0.norm1.bias"] == pytest.approx(0.8**depth)
    assert scales["image_encoder.pos_embed"] == pytest.approx(0.8 ** (depth + 1))
    assert scales["image_encoder.neck.0.weight"] == scales["mask_decoder.iou_token.weight"] == 1


def groups_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the group of each trainable parameter, which must be in exactly one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), "task_prompt")
            assert name not in found
            found[name] = group
    return found


def test_every_trainable_parameter_is_in_one_group_with_its_scale_and_decay(empty: tuple[Sam, int]) -> None:
    sam, depth = empty
    groups = groups_by_name(make_optimizer(sam, None, OptimizerSettings()), sam)
    assert groups.keys() == {name for name, p in sam.named_parameters() if p.requires_grad}
    for name, parameter in sam.named_parameters():
        assert groups[name]["scale"] == pytest.approx(vit_decay(name, 0.8, depth)), name
        vector = parameter.dim() == 1
        assert groups[name]["weight_decay"] == (0.0 if vector else 0.01), name
    vectors = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert {"image_encoder.blocks.0.norm1.weight", "mask_decoder.transformer.layers.0.norm1.bias"} <= vectors
    assert {"image_encoder.pos_embed", "mask_decoder.mask_tokens.weight"}.isdisjoint(vectors)


def test_task_prompt_has_its_own_scale_and_no_weight_decay(tiny_sam: Sam) -> None:
    sam, prompt = copy.deepcopy(tiny_sam), TaskPrompt(32)
    optimizer = make_optimizer(sam, prompt, OptimizerSettings(weight_decay=0.5, task_prompt_scale=30))
    group = groups_by_name(optimizer, sam)["task_prompt"]
    assert group["params"] == [prompt.weight]
    assert (group["weight_decay"], group["scale"]) == (0, 30)
    with torch.no_grad():
        prompt.weight.fill_(1)
    set_learning_rate(optimizer, OptimizerSettings(), 0, 10)
    optimizer.step()
    assert torch.equal(prompt.weight, torch.ones(4, 32))


def test_decoder_variant_gives_the_encoder_neither_gradients_nor_a_group(empty: tuple[Sam, int]) -> None:
    sam, _ = empty
    try:
        prepare(sam, "decoder", NoSettings(), 0)
        groups = groups_by_name(make_optimizer(sam, None, OptimizerSettings()), sam)
    finally:
        prepare(sam, "full", NoSettings(), 0)
    assert groups.keys() == {n for n, _ in sam.named_parameters() if not n.startswith("image_encoder.")}


def test_refiner_learns_at_one_rate(tiny_sam: Sam) -> None:
    refiner = Refiner.copy_of(tiny_sam)
    groups = groups_by_name(make_optimizer(refiner, None, OptimizerSettings()), refiner)
    assert groups.keys() == {name for name, _ in refiner.named_parameters()}
    assert {group["scale"] for group in groups.values()} == {1.0}


def test_every_parameter_has_a_gradient_from_the_start() -> None:
    linear = nn.Linear(3, 2)
    make_optimizer(linear, None, OptimizerSettings())
    assert all(p.grad is not None and not p.grad.any() for p in linear.parameters())


def test_adamw_takes_the_step_that_its_authors_describe() -> None:
    """One parameter, two steps, written out: decoupled decay, corrected moments, the group's own rate."""
    linear = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        linear.weight.fill_(2.0)
    settings = OptimizerSettings(learning_rate=0.1, weight_decay=0.2, schedule="linear")
    optimizer = make_optimizer(linear, None, settings)
    weight, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -1.5)):
        rate = set_learning_rate(optimizer, settings, step, 4)
        assert rate == pytest.approx(0.1 * (1 - step / 4))
        linear.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight -= rate * 0.2 * weight
        weight -= rate * (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        assert linear.weight.item() == pytest.approx(weight, rel=1e-5)


def test_rate_of_each_group_is_scaled() -> None:
    with torch.device("meta"):
        sam = build_architecture(ARCHITECTURES["vit_micro"])
    settings = OptimizerSettings(learning_rate=1e-3)
    optimizer = make_optimizer(sam, None, settings)
    assert set_learning_rate(optimizer, settings, 5, 10) == 1e-3
    groups = groups_by_name(optimizer, sam)
    assert groups["mask_decoder.iou_token.weight"]["lr"] == 1e-3
    assert groups["image_encoder.blocks.3.mlp.lin1.weight"]["lr"] == pytest.approx(1e-3 * 0.8**3)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_rate_warms_up_in_equal_steps_then_follows_its_curve(kind: Any) -> None:
    settings = OptimizerSettings(schedule=kind, warmup=4)
    curve = [schedule(settings, step, 24) for step in range(24)]
    assert curve[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert curve[4] == pytest.approx(1)
    for step in range(4, 24):
        done = (step - 4) / 20
        expected = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[kind]
        assert curve[step] == pytest.approx(expected)
    assert min(curve) > 0


def test_stepped_rate_falls_to_a_tenth_for_the_last_sixth() -> None:
    curve = [schedule(OptimizerSettings(schedule="step"), step, 12) for step in range(12)]
    assert curve == [1] * 10 + [0.1] * 2


def test_rate_starts_at_once_without_warm_up() -> None:
    assert schedule(OptimizerSettings(schedule="cosine"), 0, 10) == 1
    assert schedule(OptimizerSettings(schedule="linear"), 0, 1) == 1
