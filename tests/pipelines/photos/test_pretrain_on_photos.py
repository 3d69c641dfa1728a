"""Pre-training on scenes and photos: batches follow from their step, and another corpus is another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sum_factory.pipelines.microworld.batches import Batch, load_batch
from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.pretrain import DEVICE, Pretraining, draw_corpus, identity_of, main, pretrain
from sum_factory.pipelines.microworld.pretrain_settings import PHOTO_SETTINGS, PretrainSettings
from sum_factory.pipelines.photos.corpus import open_photos
from sum_factory.shared.errors import InputError, SettingsDifferError
from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.run.distributed import ALONE, Ranks
from sum_factory.trainer.run.log import read_log

SMALL = replace(PHOTO_SETTINGS, scenes=2, steps=2, warmup=1, images=1, masks=2, photos=2, photo_masks=3, rounds=2)
SMALL_MODEL = replace(
    ARCHITECTURES["vit_micro"],
    encoder_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    prompt_dim=32,
    decoder_mlp_dim=64,
    stem_channels=(8, 16, 24),
)


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """``vit_micro`` is a small model of its kind."""
    monkeypatch.setitem(ARCHITECTURES, "vit_micro", SMALL_MODEL)


def test_a_batch_is_scenes_and_photos_of_its_step_which_ranks_share(photo_set: SetSettings, tmp_path: Path) -> None:
    photos = open_photos(tmp_path / "photos", [photo_set], Coarseness())
    corpus = draw_corpus(SMALL, tmp_path / "corpus", 1)
    settings = replace(SMALL, images=2, photos=2)
    whole = load_batch(corpus, settings, 0, ALONE, photos)
    assert len(whole.images) == 4
    of_photos = whole.image_index >= 2
    assert not whole.empty[of_photos].any()
    assert whole.empty[~of_photos].sum() == 2
    assert all(1 <= (whole.image_index == b).sum() <= settings.photo_masks for b in (2, 3))
    plain = load_batch(corpus, replace(settings, photos=0), 0, ALONE)
    assert torch.equal(plain.images, whole.images[:2])
    assert torch.equal(plain.targets, whole.targets[~of_photos])
    for rank in range(2):
        own = load_batch(corpus, settings, 0, Ranks(rank, 2, DEVICE), photos)
        assert torch.equal(own.images, whole.images[[rank, rank + 2]])
    seen = [load_batch(corpus, settings, step, ALONE, photos).images[2:] for step in (0, 1, 2)]
    assert torch.equal(seen[0], whole.images[2:])
    assert not torch.equal(seen[0], seen[2])


def test_run_on_photos_ends_and_is_refused_with_other_photos(photo_set: SetSettings, tmp_path: Path) -> None:
    weights = pretrain(SMALL, tmp_path, 1, photo_sets=[photo_set])
    assert weights.exists()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    assert pretrain(SMALL, tmp_path, 1, photo_sets=[photo_set]) == weights
    with pytest.raises(SettingsDifferError):
        pretrain(SMALL, tmp_path, 1, photo_sets=[replace(photo_set, limit=3)])
    with pytest.raises(InputError, match="each step takes 9 with masks, and there are 4"):
        pretrain(replace(SMALL, photos=9), tmp_path, 1, photo_sets=[photo_set])
    with pytest.raises(InputError, match="each step takes 2 with masks, and there are 0"):
        pretrain(SMALL, tmp_path / "none", 1)


def test_runs_of_earlier_versions_go_on_with_the_identity_that_they_have() -> None:
    later = {"photos", "photo_masks", "fed_output"}
    assert not later & identity_of(PretrainSettings(), 1).keys()
    assert {"photos", "fed_output"} <= identity_of(SMALL, 1).keys()


def test_rounds_go_on_from_the_best_output_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round's mask prompt is the output of highest IoU with the target, whatever the model believes."""
    from sum_factory.pipelines.microworld import pretrain as module

    seen = {}
    for fed in ("best", "predicted"):
        settings = replace(SMALL, images=2, corrected_share=1.0, damaged_share=0.0, photos=0, fed_output=fed)
        run, batch = (
            Pretraining(settings, ALONE),
            load_batch(draw_corpus(SMALL, tmp_path / "corpus", 1), settings, 0, ALONE),
        )
        outputs: list[torch.Tensor] = []
        decode = module.decode_prompts

        def recorded(sam, embedding, index, prompts, positions, outputs=outputs, decode=decode):  # type: ignore[no-untyped-def]
            outputs.append((*decode(sam, embedding, index, prompts, positions), prompts))  # type: ignore[arg-type]
            return outputs[-1][:2]

        monkeypatch.setattr(module, "decode_prompts", recorded)
        leaf = torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        run.interact(batch, leaf, 2, 0.0, torch.Generator().manual_seed(0))
        monkeypatch.setattr(module, "decode_prompts", decode)
        seen[fed] = (batch, outputs)
    batch, outputs = seen["best"]
    assert isinstance(batch, Batch)
    kept = ~batch.empty
    logits = outputs[0][0][kept][:, 1:].detach()
    large = torch.nn.functional.interpolate(logits.float(), (128, 128), mode="bilinear", align_corners=False) > 0
    overlap = (large & batch.targets[kept][:, None]).sum((2, 3)) / (large | batch.targets[kept][:, None]).sum((2, 3))
    best = logits[torch.arange(len(logits)), overlap.argmax(1)].float()
    assert torch.equal(outputs[1][2].mask_logits[:, 0], best)
    assert not torch.equal(seen["predicted"][1][1][2].mask_logits, outputs[1][2].mask_logits)


def test_command_says_what_is_wrong_with_the_suite(tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").write_text("sets: []\n")
    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--photos", str(tmp_path / "photos.yaml")])
    assert result.exit_code == 1
    assert "sets: expected one set at least" in result.output
