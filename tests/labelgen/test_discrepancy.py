"""Maps without a refiner's opinion: how far two models differ in a label's box, and what a stored label says itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import entr, expit
from segment_anything import SamPredictor

from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.uncertainty import decode_uncertainty
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.shared.shards.dataset import uncertainty_layer
from sum_factory.shared.shards.originals import decode_original
from sum_factory.shared.shards.shard_set import ShardSet

AddMaps = Callable[..., RunSummary]
Refined = tuple[Path, RunSummary]


@pytest.fixture(scope="module")
def other_sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a SAM that differs from the packaged one in its encoder, too."""
    state, path = dict(load_sam().sam.state_dict()), tmp_path_factory.mktemp("other") / "other.safetensors"
    generator = torch.Generator().manual_seed(3)
    for name, value in state.items():
        state[name] = value + 0.02 * value.abs().mean() * torch.randn(value.shape, generator=generator)
    save_file(state, path)
    return str(path)


@pytest.fixture(scope="module")
def shards(
    refined: Refined, refiner: str, other_sam: str, add_maps: AddMaps, tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    """A shard set with layers of both kinds of discrepancy and of both sources that read labels."""
    folder = shutil.copytree(refined[0], tmp_path_factory.mktemp("compared") / "shards")
    add_maps(folder, refiner, "discrepancy", layer_name="decoders")
    add_maps(folder, None, "discrepancy", teacher=other_sam, layer_name="teacher")
    for source in ("label-confidence", "label-entropy"):
        add_maps(folder, None, source)
    return ShardSet.open(str(folder))


def stored(shards: ShardSet, layer: str, number: int) -> list[np.ndarray[Any, Any]]:
    """Return the maps of a unit's masks, in order."""
    reader = shards.reader(uncertainty_layer(layer))
    blobs = reader.blobs(number, list(range(len(reader.rows(number)))))
    return [decode_uncertainty(blob).u for blob in blobs]


def upstream_boxes(shards: ShardSet, model: Any, encoder: Any) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Yield for each mask its unit, and what upstream's modules make of its box: logits on the whole square."""
    for number in shards.committed("masks"):
        planned = shards.unit(number).images

        @cache
        def seen(index: int, crop: tuple[int, ...], planned: Any = planned, number: int = number) -> SamPredictor:
            x0, y0, x1, y1 = crop
            predictor = SamPredictor(encoder)
            photo = decode_original(shards, planned[index], shards.digests(number)[planned[index].key])
            predictor.set_image(photo[y0:y1, x0:x1])
            return predictor

        for image in shards.images(number):
            for row in image.masks:
                x0, y0, x1, y1 = (row[f"crop_{name}"] for name in ("x0", "y0", "x1", "y1"))
                predictor = seen(image.index, (x0, y0, x1, y1))
                left, top = row["box_x"] - x0, row["box_y"] - y0
                box = np.array([[left, top, left + row["box_w"], top + row["box_h"]]])
                corners = predictor.transform.apply_boxes(box, (y1 - y0, x1 - x0))
                sparse, dense = model.prompt_encoder(None, torch.from_numpy(corners).float(), None)
                logits, _ = model.mask_decoder(
                    predictor.features, model.prompt_encoder.get_dense_pe(), sparse, dense, False
                )
                yield number, logits[0, 0].numpy()


@torch.no_grad()
@pytest.mark.parametrize("layer", ["decoders", "teacher"])
def test_discrepancy_is_that_of_two_models_for_the_box(
    shards: ShardSet, layer: str, refiner: str, other_sam: str
) -> None:
    loaded, other = load_sam(), load_sam(other_sam).sam
    second = (load_refiner(refiner, loaded), loaded.sam) if layer == "decoders" else (other, other)
    maps = [each for number in shards.committed("masks") for each in stored(shards, layer, number)]
    pairs = zip(upstream_boxes(shards, loaded.sam, loaded.sam), upstream_boxes(shards, *second), strict=True)
    differ = 0.0
    for u, ((_, one), (_, two)) in zip(maps, pairs, strict=True):
        expected = np.abs(expit(one) - expit(two))[: u.shape[0], : u.shape[1]]
        assert np.abs(u - expected).max() < 0.021
        differ = max(differ, float(expected.max()))
    assert differ > 0.1


@pytest.mark.parametrize("source", ["label-confidence", "label-entropy"])
def test_label_sources_read_the_stored_labels(shards: ShardSet, source: str) -> None:
    for number in shards.committed("masks"):
        rows = len(shards.reader("masks").rows(number))
        labels = [decode_label(blob) for blob in shards.reader("masks").blobs(number, list(range(rows)))]
        for label, u in zip(labels, stored(shards, source, number), strict=True):
            p = expit(label.astype(np.float64))
            expected = 1 - np.abs(2 * p - 1) if source == "label-confidence" else (entr(p) + entr(1 - p)) / np.log(2)
            assert np.abs(u - expected).max() < 0.021
            assert u.max() > 0.1  # the boundary is in doubt


def test_label_sources_run_no_model_and_read_no_photo(
    refined: Refined, add_maps: AddMaps, tmp_path: Path, encoder_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("labels alone are read")

    for name in ("PointDecoder.decode", "decode_prompts"):
        monkeypatch.setattr(f"sum_factory.labelgen.uncertainty.{name}", fail)
    folder = shutil.copytree(refined[0], tmp_path / "shards")
    add_maps(folder, None, "label-confidence")
    assert encoder_calls == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"source": "discrepancy"}, "compares SAM with one other model: give --refiner .* or --teacher"),
        ({"source": "discrepancy", "refiner": "packaged", "teacher": "vit_micro"}, "one other model"),
        ({"source": "confidence", "teacher": "vit_micro"}, "uses no teacher"),
        ({"source": "label-entropy", "refiner": "packaged"}, "uses no refiner"),
    ],
)
def test_models_that_a_source_does_not_take_are_refused(
    refined: Refined, add_maps: AddMaps, refiner: str, arguments: dict[str, Any], named: str
) -> None:
    given = {name: refiner if value == "packaged" else value for name, value in arguments.items()}
    with pytest.raises(SettingsError, match=named):
        add_maps(refined[0], **given)
    assert ShardSet.open(str(refined[0])).uncertainty_layers == ("refinement",)
