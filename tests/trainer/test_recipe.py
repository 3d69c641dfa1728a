"""A recipe's defaults are the paper's, and its identity is what decides the result."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from sum_factory.shared import precision
from sum_factory.shared.precision import Hardware
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, SetSettings
from sum_factory.trainer.interactive import InteractiveSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import CacheSettings, Recipe
from sum_factory.trainer.refiner import RefinerRecipe
from sum_factory.trainer.run.settings import CheckpointSettings, ValidationSettings
from sum_factory.trainer.target import Target

HUMAN: tuple[SetSettings, ...] = (FolderPairsSettings("folder-pairs", Path("a"), Path("b"), "salient"),)
PLAIN = Recipe(human=HUMAN, precision="fp32")


def test_defaults_are_the_papers() -> None:
    recipe = Recipe(human=HUMAN)
    assert (recipe.method, recipe.variant) == ("sum", "full")
    assert (recipe.steps, recipe.batch, recipe.masks, recipe.rounds, recipe.box_share) == (6000, 40, 30, 7, 0.5)
    assert (recipe.streams, recipe.fed_output) == (Mix(1, 1), "predicted")
    loss = {"focal_weight": 20, "dice_weight": 1, "iou_weight": 1, "alpha": 0.25, "gamma": 2, "theta": 0.6}
    assert asdict(recipe.loss) == {**loss, "certainty_exponent": 1, "epsilon": 1, "temperature": 1}
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.layer_decay) == (1e-5, 0.8)
    assert (optimizer.schedule, optimizer.warmup, optimizer.task_prompt_scale) == ("constant", 0, 1)


def test_rounds_are_played_as_the_method_says() -> None:
    for method, continuous in (("sum", False), ("sum-continuous-tp", True), ("vanilla", False)):
        recipe = Recipe(human=HUMAN, method=method, rounds=4, box_share=0.3, fed_output="best")
        expected = InteractiveSettings(4, 0.3, "best", "interactive", continuous, recipe.loss)
        assert recipe.interactive == expected


@pytest.mark.parametrize(
    ("method", "named", "layer"),
    [
        ("sum", None, "refinement"),
        ("sum", "hq", "hq"),
        ("sum-confidence-uncer", None, "confidence"),
        ("mask-refinement", None, "refinement"),
        ("vanilla", None, None),
        ("vanilla", "hq", None),
        ("human-only", None, None),
    ],
)
def test_layer_is_the_methods_unless_another_is_named(method: str, named: str | None, layer: str | None) -> None:
    assert Recipe(human=HUMAN, method=method, uncertainty=named).layer == layer


@pytest.mark.parametrize("mix", [None, Mix(1, 1), Mix(2, 1), Mix(2, 3), Mix(3, 0)])
def test_steps_have_the_human_photos_of_their_mix_and_no_others_without_pseudo_labels(mix: Mix | None) -> None:
    """Without a mix, or with one of human photos alone, these fill the batch."""
    for step in range(10):
        slots = range(step * 7, step * 7 + 7)
        human = 7 if mix is None else sum(mix.locate(slot)[0] == "human" for slot in slots)
        for method in ("human-only", "model-merging"):
            assert Recipe(human=HUMAN, method=method, mix=mix, batch=7).photos_of(step) == human
        if mix is None or mix.pseudo:
            assert Recipe(human=HUMAN, method="vanilla", mix=mix, batch=7).photos_of(step) == 7
    assert Recipe(human=HUMAN, method="vanilla").streams == Mix(1, 1)


def test_steps_without_any_photo_are_refused() -> None:
    assert Recipe(human=HUMAN, method="human-only", mix=Mix(1, 2), batch=3).photos_of(5) == 1
    assert Recipe(human=HUMAN, method="vanilla", mix=Mix(1, 2), batch=2).photos_of(5) == 2
    with pytest.raises(ValidationError, match="some steps of 2 photos have none with human masks"):
        Recipe(human=HUMAN, method="human-only", mix=Mix(1, 2), batch=2)


def test_runs_that_had_human_photos_in_place_of_others_are_not_gone_on_with_fewer() -> None:
    """Such a run recorded the mix that it passed over."""
    human = Recipe(human=HUMAN, method="human-only", precision="fp32")
    before = {"human": 1, "pseudo": 1}
    assert human.identity()["mix"] == replace(human, mix=Mix(1, 0)).identity()["mix"] == before
    fewer = replace(human, mix=Mix(1, 1)).identity()
    assert fewer["mix"] == before
    assert fewer != human.identity() == replace(human, mix=Mix(1, 0)).identity()
    assert PLAIN.identity() == replace(PLAIN, mix=Mix(1, 1)).identity()


CHANGES_NOTHING: dict[str, Any] = {
    "human": (CocoSettings("coco", Path("c"), Path("d"), "entity"),),
    "shards": "elsewhere",
    "cache": CacheSettings(limit_gb=3),
    "photos_from": {"/old": "/new"},
    "sam": "other.pth",
    "uncertainty": "hq",
    "validation": ValidationSettings(HUMAN),
    "checkpoint": CheckpointSettings(every=7),
    "device": "cuda",
    "data_threads": 9,
    "tracker": "mlflow",
    "activation_checkpointing": True,
    "fsdp": True,
    "steps": 7000,
}
"""Paths are not what is trained on: the run records ids of the data, the layers and the weights beside these."""
CHANGES_THE_RESULT: dict[str, Any] = {
    "method": "vanilla",
    "method_settings": {"weight": 2.0},
    "variant": "decoder",
    "variant_settings": {"rank": 3},
    "mix": Mix(2, 1),
    "batch": 20,
    "micro_batch": 2,
    "masks": 29,
    "masks_at_once": 3,
    "rounds": 6,
    "box_share": 0.4,
    "fed_output": "best",
    "first_prompts": "hq",
    "stride": 2,
    "target": "points",
    "loss": {"theta": 0.5},
    "optimizer": {"learning_rate": 1e-4},
    "seed": 1,
    "precision": "bf16",
}


def test_every_setting_is_known_to_change_the_result_or_not_to() -> None:
    fields = set(asdict(Recipe(human=HUMAN, precision="fp32")))
    assert fields == CHANGES_NOTHING.keys() | CHANGES_THE_RESULT.keys()
    assert not CHANGES_NOTHING.keys() & CHANGES_THE_RESULT.keys()


@pytest.mark.parametrize("name", CHANGES_NOTHING)
def test_identity_leaves_out_what_does_not_change_the_result(name: str) -> None:
    assert replace(PLAIN, **{name: CHANGES_NOTHING[name]}).identity() == PLAIN.identity()


@pytest.mark.parametrize("name", CHANGES_THE_RESULT)
def test_identity_holds_what_changes_the_result(name: str) -> None:
    having: dict[str, Any] = {"variant_settings": {"variant": "lora"}, "method_settings": {"method": "u2pl"}}
    plain = replace(PLAIN, **having.get(name, {}))  # the full variant and SUM have no settings
    assert replace(plain, **{name: CHANGES_THE_RESULT[name]}).identity() != plain.identity()


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_identity_holds_what_the_precision_comes_to(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(has_bf16, "a machine"))
    recipe = Recipe(human=HUMAN, device="cpu")
    assert recipe.precision == "auto"
    assert recipe.identity() == replace(recipe, precision=expected).identity()
    assert recipe.identity()["precision"] == expected
    refiner = RefinerRecipe(human=HUMAN, device="cpu")
    assert refiner.precision == refiner.identity()["precision"] == "fp32"
    assert replace(refiner, precision="auto").identity()["precision"] == expected


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_number_of_steps_counts_where_the_rate_depends_on_it(schedule: Any) -> None:
    falling = Recipe(human=HUMAN, optimizer=OptimizerSettings(schedule=schedule))
    assert falling.identity() != replace(falling, steps=7000).identity()


def test_unknown_method_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValidationError, match=r"no such method; there are human-only, vanilla, .*sum-confidence-uncer"):
        Recipe(human=HUMAN, method="som")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", "lora-and-more"),
        ("human", ()),
        ("stride", 3),
        ("target", "coverages"),
        ("steps", 0),
        ("batch", 0),
        ("box_share", 1.5),
        ("fed_output", "worst"),
        ("mix", {"human": 0, "pseudo": 0}),
        ("mix", {"human": -1, "pseudo": 1}),
        ("loss", {"tetha": 0.5}),
        ("loss", {"theta": 2}),
        ("loss", {"theta": 1}),
        ("optimizer", {"layer_decay": 0}),
        ("rounds", 0),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Recipe(**{"human": HUMAN, name: value})


@pytest.mark.parametrize("type_", [Recipe, RefinerRecipe])
@pytest.mark.parametrize(
    ("target", "stride", "problem"),
    [
        (
            "authors",
            2,
            r"authors is a bit per cell of SAM's low resolution, a stride of 4, and the stride is 2; give str",
        ),
        ("coverage", 1, r"coverage is finer than labels are: .*one pixel of SAM's input; give a stride of 2 or 4"),
    ],
)
def test_target_that_its_stride_does_not_have_is_refused(type_: Any, target: str, stride: int, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        type_(human=HUMAN, target=target, stride=stride)
    assert type_(human=HUMAN, target="points", stride=stride).target == "points"


@pytest.mark.parametrize("type_", [Recipe, RefinerRecipe])
def test_target_is_what_runs_differ_in_and_that_of_the_authors_is_bits_on_their_grid(type_: Any) -> None:
    identities = {target: type_(human=HUMAN, target=target).identity() for target in get_args(Target)}
    assert identities["authors"] == identities["bits"]
    assert len({str(identity) for identity in identities.values()}) == len(identities) - 1


def test_recipe_survives_the_way_through_json() -> None:
    adapter = TypeAdapter(Recipe)
    recipe = Recipe(human=HUMAN, mix=Mix(2, 1), validation=ValidationSettings(HUMAN))
    assert adapter.validate_json(adapter.dump_json(recipe)) == recipe


def test_steps_count_where_the_method_depends_on_them() -> None:
    for method, counts in (("vanilla", False), ("u2pl", True), ("u2pl-entropy", True)):
        recipe = replace(PLAIN, method=method)
        assert (recipe.identity() != replace(recipe, steps=7000).identity()) == counts
