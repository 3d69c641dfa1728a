"""Pre-training is a pure function of corpus, settings and step, also when it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sum_factory.pipelines.microworld.batches import Batch, load_batch
from sum_factory.pipelines.microworld.corpus import Corpus
from sum_factory.pipelines.microworld.pretrain import (
    DEVICE,
    Pretraining,
    checkpoints_of,
    export_weights,
    identity_of,
    make_optimizers,
    pretrain,
    train,
)
from sum_factory.pipelines.microworld.pretrain_settings import PretrainSettings
from sum_factory.shared import precision
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.precision import Hardware
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_FILE
from sum_factory.trainer.run.checkpoints import STATE
from sum_factory.trainer.run.distributed import ALONE, Ranks
from sum_factory.trainer.run.log import read_log

SMALL = PretrainSettings(
    scenes=6,
    world_seed=5,
    steps=4,
    warmup=2,
    images=2,
    masks=2,
    empty_prompts=1,
    rounds=2,
    corrected_share=1.0,
    single_round_steps=1,
    balanced_steps=3,
)
"""Four steps of two images; the first has one round, the others have two."""
SMALL_MODEL = replace(
    ARCHITECTURES["vit_micro"],
    encoder_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    prompt_dim=32,
    decoder_mlp_dim=64,
    stem_channels=(8, 16, 24),
)
"""Of the kind of ``vit_micro``, whose steps take seconds, most of them in the optimizer of its matrices."""


@contextmanager
def small_for_vit_micro() -> Iterator[None]:
    """Have ``vit_micro`` be the small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "vit_micro", SMALL_MODEL)
        yield


@pytest.fixture
def small_model() -> Iterator[None]:
    """``vit_micro`` is the small model in this test."""
    with small_for_vit_micro():
        yield


def state_of(run: Pretraining) -> dict[str, Tensor]:
    """Return a copy of a run's weights."""
    return {name: value.clone() for name, value in run.sam.state_dict().items()}


def take_steps(run: Pretraining, corpus: Corpus, numbers: range) -> list[dict[str, float]]:
    """Take these steps; return what they log."""
    return [run.train_step(load_batch(corpus, run.settings, number - 1, ALONE), number) for number in numbers]


@pytest.fixture(scope="module")
def straight(corpus: Corpus) -> list[dict[str, Tensor]]:
    """The weights before the first step and after every second one of an undisturbed run."""
    with small_for_vit_micro():
        run = Pretraining(SMALL, ALONE)
    states = [state_of(run)]
    for first in (1, 3):
        take_steps(run, corpus, range(first, first + 2))
        states.append(state_of(run))
    return states


@pytest.mark.usefixtures("small_model")
def test_run_that_died_and_goes_on_ends_bit_identical(
    straight: list[dict[str, Tensor]],
    corpus: Corpus,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It dies in step 4: step 3 is logged, and in no checkpoint."""
    taken: list[int] = []
    step = Pretraining.train_step

    def recorded(self: Pretraining, batch: Batch, number: int) -> dict[str, float]:
        if number == 4 and 4 not in taken:
            taken.append(4)
            raise KeyboardInterrupt
        taken.append(number)
        return step(self, batch, number)

    monkeypatch.setattr(Pretraining, "train_step", recorded)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, corpus_folder, tmp_path, save_every=2)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    train(SMALL, corpus_folder, tmp_path, save_every=2)
    assert taken == [1, 2, 3, 4, 3, 4]
    ended = load_file(checkpoints_of(tmp_path, 1).path(4) / WEIGHTS_FILE)
    assert [name for name, value in ended.items() if not torch.equal(value, straight[2][name])] == []
    assert ended.keys() == straight[2].keys()
    expected = take_steps(Pretraining(SMALL, ALONE), corpus, range(1, 5))
    assert read_log(tmp_path) == [{"step": number, **values} for number, values in enumerate(expected, 1)]


def test_steps_change_every_weight_but_the_random_frequencies(straight: list[dict[str, Tensor]]) -> None:
    before, after = straight[0], straight[2]
    unchanged = {name for name, value in before.items() if torch.equal(value, after[name])}
    # Buffers that upstream never trains, and the label that no prompt of ours has.
    assert unchanged <= {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.point_embeddings.0.weight",
        "pixel_mean",
        "pixel_std",
    }
    assert all(value.isfinite().all() for value in after.values())


def test_without_a_checkpoint_a_run_starts_at_the_first_step(tmp_path: Path) -> None:
    assert checkpoints_of(tmp_path, 1).find(SMALL.steps, identity_of(SMALL, 1)) == 0


def test_batches_depend_on_the_step_and_on_nothing_else(corpus: Corpus) -> None:
    batches = [load_batch(corpus, SMALL, step, ALONE) for step in (1, 1, 2)]
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].targets, batches[1].targets)
    assert not torch.equal(batches[0].images, batches[2].images)


def test_ranks_share_the_batch_of_one_process(corpus: Corpus) -> None:
    whole = load_batch(corpus, SMALL, 0, ALONE)
    for number in range(2):
        own = load_batch(corpus, SMALL, 0, Ranks(number, 2, DEVICE))
        assert torch.equal(own.images[0], whole.images[number])
        assert torch.equal(own.targets, whole.targets[whole.image_index == number])
        assert torch.equal(own.empty, whole.empty[whole.image_index == number])


def test_every_scene_is_shown_once_an_epoch_in_another_order(corpus: Corpus) -> None:
    def free_pixels(epoch: int) -> list[int]:
        """Return how many pixels are free of objects in each image of an epoch: turning does not change that."""
        batches = [load_batch(corpus, SMALL, 3 * epoch + step, ALONE) for step in range(3)]
        return [int(target.sum()) for batch in batches for target in batch.targets[batch.empty]]

    everything = sorted(int(corpus.empty_pixels(scene).sum()) for scene in range(6))
    assert len(set(everything)) == 6
    assert sorted(free_pixels(0)) == sorted(free_pixels(1)) == everything
    assert free_pixels(0) != free_pixels(1)


def test_targets_are_turned_as_their_image_is(corpus: Corpus) -> None:
    symmetries = set()
    for step in range(6):
        batch = load_batch(corpus, replace(SMALL, masks=8), step, ALONE)
        for b, image in enumerate(batch.images):
            targets = batch.targets[(batch.image_index == b) & ~batch.empty].numpy()
            matches = []
            for scene in range(len(corpus.images)):
                for turns in range(4):
                    for flip in (False, True):
                        masks = np.rot90(corpus.masks(scene), turns, (1, 2))
                        original = np.rot90(corpus.images[scene], turns)
                        if flip:
                            masks, original = masks[:, :, ::-1], original[:, ::-1]
                        known = {mask.tobytes() for mask in np.ascontiguousarray(masks)}
                        if all(target.tobytes() in known for target in np.ascontiguousarray(targets)):
                            matches.append((turns, flip, original))
            assert len(matches) == 1
            turns, flip, original = matches[0]
            symmetries.add((turns, flip))
            pairs = np.stack([image.permute(1, 2, 0).numpy().ravel(), original.ravel().astype(np.float32)])
            assert np.corrcoef(pairs)[0, 1] > 0.98  # brightness and colour are jittered
    assert len(symmetries) > 3


def test_every_weight_is_in_one_optimizer_and_only_matrices_decay() -> None:
    sam = build_architecture(ARCHITECTURES["vit_micro"])
    groups = make_optimizers(sam, None, SMALL, "fp32").groups
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(parameter) for parameter in sam.parameters()}
    for group in groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}


@pytest.mark.usefixtures("small_model")
def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    run = Pretraining(replace(SMALL, steps=100, warmup=10, decay=0.4, learning_rate=1.0), ALONE)
    rates = [run.learning_rate(step) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:61], 1)
    np.testing.assert_allclose(rates[60:], np.linspace(1, 0, 41), atol=1e-12)


def test_exported_weights_load_as_vit_micro(tmp_path: Path) -> None:
    sam = build_architecture(ARCHITECTURES["vit_micro"])
    export_weights(sam, tmp_path / "a.safetensors")
    loaded = load_sam(str(tmp_path / "a.safetensors"), "vit_micro").sam
    for name, value in sam.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name


@pytest.mark.usefixtures("small_model")
def test_training_logs_saves_and_exports(corpus_folder: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, steps=2)
    train(settings, corpus_folder, tmp_path, save_every=1)
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    exported = load_sam(str(tmp_path / "vit_micro.safetensors")).sam.state_dict()
    checkpoints = checkpoints_of(tmp_path, 1)
    assert checkpoints.steps() == [2]
    saved = load_file(checkpoints.path(2) / WEIGHTS_FILE)
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], value.half().float()) for name, value in saved.items())


def test_training_goes_on_from_given_weights() -> None:
    run = Pretraining(replace(SMALL, weights=PACKAGED), ALONE)
    packaged = load_sam(PACKAGED).sam.state_dict()
    assert all(torch.equal(value, packaged[name]) for name, value in run.sam.state_dict().items())


@pytest.mark.usefixtures("small_model")
def test_embeddings_come_to_hold_the_picture_and_the_run_resumes_with_its_head(corpus: Corpus, tmp_path: Path) -> None:
    settings = replace(SMALL, steps=12, warmup=1, picture_weight=5.0, scenes=2)
    run = Pretraining(settings, ALONE)
    errors = [line["picture"] for line in take_steps(run, corpus, range(1, 11))]
    assert sum(errors[-3:]) < 0.8 * sum(errors[:3])
    checkpoints, resumed = checkpoints_of(tmp_path, 1), Pretraining(settings, ALONE)
    checkpoints.save(10, run.weights, run.optimizers.state_dict(), {}, {})
    assert checkpoints.resume(12, resumed.weights, resumed.optimizers, {}) == 10
    assert take_steps(run, corpus, range(11, 12)) == take_steps(resumed, corpus, range(11, 12))
    assert any(name.startswith("head.") for name in run.weights)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in run.weights.items())


def test_corrections_go_on_from_damaged_targets_which_are_better_than_first_guesses(corpus: Corpus) -> None:
    settings = replace(SMALL, weights=PACKAGED, scenes=2, masks=4)
    batch = load_batch(corpus, settings, 0, ALONE)
    ious = []
    for share in (0.0, 1.0):
        run = Pretraining(replace(settings, damaged_share=share), ALONE)
        with torch.no_grad():
            embedding = run.sam.image_encoder((batch.images - run.sam.pixel_mean) / run.sam.pixel_std)
        played = [
            run.interact(batch, embedding.clone().requires_grad_(), 2, 1.0, torch.Generator().manual_seed(seed))
            for seed in range(3)
        ]
        ious.append([[log[f"iou_{number}"] for log in played] for number in (1, 2)])
    assert ious[0][0] == ious[1][0]
    assert sum(ious[1][1]) > sum(ious[0][1]) + 0.05


@pytest.mark.usefixtures("small_model")
def test_run_that_is_done_is_left_and_one_of_other_settings_refused(corpus_folder: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, steps=1)
    weights = pretrain(settings, tmp_path, 1, corpus_folder)
    written = weights.stat().st_mtime_ns
    assert pretrain(settings, tmp_path, 1, corpus_folder) == weights
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(SettingsDifferError, match="masks: there 2, asked for 3"):
        pretrain(replace(settings, masks=3), tmp_path, 1, corpus_folder)


def test_precision_is_recorded_as_what_it_came_to_and_another_refused_with_the_option(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, steps=1)
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(False, "a slow machine"))
    pretrain(settings, tmp_path, 1, corpus_folder)
    state = json.loads((checkpoints_of(tmp_path, 1).path(1) / STATE).read_text())
    assert state["identity"]["precision"] == "fp32"
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(True, "a fast machine"))
    named = r"there fp32, here it would be bf16 \(auto is bf16 on a fast machine\)\. Give --precision fp32 to go on"
    with pytest.raises(SettingsDifferError, match=named):
        pretrain(settings, tmp_path, 1, corpus_folder)
    pretrain(replace(settings, precision="fp32"), tmp_path, 1, corpus_folder)


@pytest.mark.usefixtures("small_model")
def test_a_step_in_bf16_is_near_that_in_fp32_and_another(corpus: Corpus) -> None:
    settings = replace(SMALL, images=1, masks=1)
    exact, rough = (
        take_steps(Pretraining(replace(settings, precision=name), ALONE), corpus, range(1, 2))[0]
        for name in ("fp32", "bf16")
    )
    assert exact["loss_1"] != rough["loss_1"] == pytest.approx(exact["loss_1"], rel=0.05)
