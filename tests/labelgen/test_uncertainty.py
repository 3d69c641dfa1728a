"""Maps of uncertainty are what upstream's own modules give, one mask at a time; what cannot be known is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from scipy.special import entr, expit
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.labelgen import uncertainty as uncertainty_module
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.labelgen.uncertainty import CropBox, Embed, MaskToRefine, UncertaintyMaker, UncertaintyMap
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.codecs.label import decode_label, encode_label
from sum_factory.shared.codecs.uncertainty import decode_uncertainty, encode_uncertainty, refined_label
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import Refiner

Image = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

SIZES = {"landscape": (200, 346), "portrait": (260, 150), "square": (64, 64), "tiny strip": (40, 13)}
MASKS = AutomaskSettings(
    points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, max_area_share=2.0
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    """The packaged model: random weights would hardly tell one point or box from another."""
    return load_sam().sam


@pytest.fixture(scope="module")
def refiner(sam: Sam) -> Refiner:
    """A refiner whose opinions differ from SAM's."""
    refiner = Refiner.copy_of(sam).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean()
    return refiner


def photo(size: tuple[int, int]) -> Image:
    """Return a scene, cut and scaled to ``size``."""
    height, width = size
    scene = make_scene(0, 5).image
    share = min(256 / height, 256 / width)
    cut = scene[: round(height * share), : round(width * share)]
    return np.ascontiguousarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def stored(labels: GeneratedMasks) -> list[MaskToRefine]:
    """Return the masks as a shard set would give them back."""
    masks = []
    for k, frame in enumerate(labels.frames):
        rows, columns = frame.interpolation_cells
        x, y, width, height = labels.boxes[k].tolist()
        point = (float(np.float32(labels.points[k, 0])), float(np.float32(labels.points[k, 1])))
        label = encode_label(labels.logits[k, :rows, :columns])
        masks.append(MaskToRefine(frame, point, (x, y, x + width, y + height), int(labels.areas[k]), label))
    return masks


def embedder(sam: Sam, image: Image) -> Embed:
    """Return a function that gives upstream's embedding of a crop of ``image``."""

    @cache
    def embed(box: CropBox) -> Tensor:
        predictor = segment_anything.SamPredictor(sam)
        predictor.set_image(image[box[1] : box[3], box[0] : box[2]])
        features: Tensor = predictor.features
        return features

    return embed


@torch.no_grad()
def naive(sam: Sam, refiner: Refiner, embed: Embed, mask: MaskToRefine) -> tuple[Logits, Logits]:
    """Return s and r of one mask on the whole square, by upstream's predictor, prompt encoder and mask decoder."""
    x0, y0, x1, y1 = mask.frame.crop_box
    size = (y1 - y0, x1 - x0)
    transform = segment_anything.SamPredictor(sam).transform
    point = transform.apply_coords(np.array([[mask.point[0] - x0, mask.point[1] - y0]]), size)
    prompt = (torch.from_numpy(point).float()[None], torch.ones(1, 1))
    outputs = decode(sam, embed(mask.frame.crop_box), prompt, None, None, True)
    label = decode_label(mask.label) > 0
    rows, columns = label.shape
    ious = []
    for output in outputs:
        signs = output[:rows, :columns] > 0
        ious.append((signs & label).sum() / (signs | label).sum())
    s = outputs[int(np.argmax(ious))].copy()
    for row in range(rows):
        for column in range(columns):
            s[row, column] = abs(s[row, column]) * (1 if label[row, column] else -1)
    box = np.array([[mask.box[0] - x0, mask.box[1] - y0, mask.box[2] - x0, mask.box[3] - y0]])
    boxes = torch.from_numpy(transform.apply_boxes(box, size)).float()
    r = decode(refiner, embed(mask.frame.crop_box), prompt, boxes, torch.from_numpy(s)[None, None], False)
    return s, r[0]


def decode(
    model: Sam | Refiner, embedding: Tensor, points: tuple[Tensor, Tensor], boxes: Any, masks: Any, several: bool
) -> Logits:
    """Decode one prompt with upstream's modules; return the logits of its outputs."""
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=masks)
    logits, _ = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=several,
    )
    return np.array(logits[0].numpy())


@pytest.fixture
def unquantised(monkeypatch: pytest.MonkeyPatch) -> list[Logits]:
    """The maps that are given to the codec in this test, as they were before it."""
    maps: list[Logits] = []

    def encode(u: Logits, refined: bytes = b"") -> bytes:
        maps.append(u)
        return encode_uncertainty(u, refined)

    monkeypatch.setattr(uncertainty_module, "encode_uncertainty", encode)
    return maps


def assert_maps_are_naive(
    sam: Sam, refiner: Refiner, image: Image, masks: list[MaskToRefine], maps: list[Logits], batch: int = 64
) -> None:
    """Check values before the codec, the mean, and what the codec makes of them."""
    embed = embedder(sam, image)
    made = UncertaintyMaker(sam, refiner, UncertaintySettings(), batch).make(masks, embed)
    assert len(made) == len(maps) == len(masks) > 0
    doubt = 0.0
    for mask, one in zip(masks, made, strict=True):
        s, r = naive(sam, refiner, embed, mask)
        rows, columns = mask.frame.interpolation_cells
        expected = np.abs(expit(s.astype(np.float64)) - expit(r.astype(np.float64)))
        height, width = mask.frame.photo_cells
        assert one.mean_u == pytest.approx(expected[:height, :width].mean(), abs=1e-4)
        nearest = min(float(np.abs(u - expected[:rows, :columns]).max()) for u in maps if u.shape == (rows, columns))
        assert nearest < 1e-3
        decoded = decode_uncertainty(one.blob)
        assert np.abs(decoded.u - expected[:rows, :columns]).max() < 0.021
        assert decoded.refined is not None
        certain = np.abs(r[:rows, :columns]) > 1e-3
        np.testing.assert_array_equal((decoded.refined > 0)[certain], (r[:rows, :columns] > 0)[certain])
        steps = refined_label(one.blob)[8]
        assert steps == encode_label(decoded.refined)[8]  # which follows from the signs
        doubt = max(doubt, float(expected.max()))
    assert doubt > 0.1


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_maps_are_those_of_upstreams_modules_whatever_the_size(
    sam: Sam, refiner: Refiner, size: tuple[int, int], unquantised: list[Logits]
) -> None:
    image = photo(size)
    masks = stored(LabelGenerator(sam, MASKS).label(image))[::2]
    assert_maps_are_naive(sam, refiner, image, masks, unquantised)


def test_maps_of_crops_are_made_on_their_own_embedding_and_frame(
    sam: Sam, refiner: Refiner, unquantised: list[Logits]
) -> None:
    image = photo((240, 346))
    settings = replace(MASKS, points_per_side=2, crop_n_layers=1, crop_nms_thresh=1.0)
    masks = stored(LabelGenerator(sam, settings).label(image))[::6]
    assert len({mask.frame.crop_box for mask in masks}) > 2
    assert_maps_are_naive(sam, refiner, image, masks, unquantised, batch=3)


def test_labels_that_a_clean_up_edited_turn_the_logits(sam: Sam, refiner: Refiner, unquantised: list[Logits]) -> None:
    image = photo((200, 346))
    masks = stored(LabelGenerator(sam, MASKS).label(image))
    edited = []
    for mask in masks:
        label = decode_label(mask.label)
        label[5:9, 6:12] *= -1
        if (label > 0).sum() > 100:  # else hardly anything of the mask is left to recognise
            edited.append(replace(mask, label=encode_label(label)))
    assert_maps_are_naive(sam, refiner, image, edited, unquantised)


def test_mean_is_over_the_cells_that_show_the_photo(sam: Sam, refiner: Refiner) -> None:
    mask = stored(LabelGenerator(sam, MASKS).label(photo((200, 256))))[0]
    assert mask.frame.photo_cells != mask.frame.interpolation_cells  # else the others tests could not tell them apart


def make(
    sam: Sam, refiner: Refiner | None, embed: Embed, masks: list[MaskToRefine], **settings: Any
) -> list[UncertaintyMap]:
    return UncertaintyMaker(sam, refiner, UncertaintySettings(**settings), 64).make(masks, embed)


@pytest.fixture(scope="module")
def embed(sam: Sam) -> Embed:
    """Gives the embeddings of a photo."""
    return embedder(sam, photo((200, 346)))


@pytest.fixture(scope="module")
def masks(sam: Sam) -> list[MaskToRefine]:
    """Masks of that photo."""
    return stored(LabelGenerator(sam, MASKS).label(photo((200, 346))))[::2]


def test_batch_changes_rounding_only(sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine]) -> None:
    means = {}
    for batch in (64, 1, 5):
        maker = UncertaintyMaker(sam, refiner, UncertaintySettings(), batch)
        means[batch] = [one.mean_u for one in maker.make(masks, embed)]
    assert means[1] == pytest.approx(means[64], abs=1e-5)
    assert means[5] == pytest.approx(means[64], abs=1e-5)
    assert len(set(means[64])) > 3


def test_label_that_no_output_has_is_unknown(
    sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine]
) -> None:
    strange = [replace(masks[0], label=encode_label(-decode_label(masks[0].label))), *masks[1:3]]
    made = make(sam, refiner, embed, strange)
    assert [one.is_known for one in made] == [False, True, True]
    assert made[0].blob == b""
    assert made[0].mean_u is None


def test_empty_label_is_unknown(sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine]) -> None:
    empty = encode_label(np.full(masks[0].frame.interpolation_cells, -1, np.float32))
    assert not make(sam, refiner, embed, [replace(masks[0], label=empty)])[0].is_known


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refined_logits_that_are_not_finite_are_unknown(
    sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine], value: float
) -> None:
    broken = deepcopy(refiner)
    with torch.no_grad():
        broken.mask_decoder.output_hypernetworks_mlps[0].layers[-1].bias.fill_(value)
    made = make(sam, broken, embed, masks)
    assert {one.is_known for one in made} == {False}
    assert {one.blob for one in made} == {b""}


def test_one_broken_mask_does_not_spoil_its_batch(
    sam: Sam,
    refiner: Refiner,
    embed: Embed,
    masks: list[MaskToRefine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = make(sam, refiner, embed, masks)
    refine = Refiner.refine

    def break_one(self: Refiner, *args: Tensor) -> Tensor:
        r = refine(self, *args)
        r[1, -1, -1] = torch.nan
        return r

    monkeypatch.setattr(Refiner, "refine", break_one)
    made = make(sam, refiner, embed, masks)
    assert [k for k, one in enumerate(made) if not one.is_known] == [1]
    assert [one for k, one in enumerate(made) if k != 1] == [one for k, one in enumerate(expected) if k != 1]


def test_small_masks_are_certain_by_decree_and_their_own_refined_label(
    sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine]
) -> None:
    at_1024 = [mask.area * (1024 / 346) ** 2 for mask in masks]
    threshold = int(np.median(at_1024)) + 1
    plain = make(sam, refiner, embed, masks)
    made = make(sam, refiner, embed, masks, min_refine_area=threshold)
    small = [area < threshold for area in at_1024]
    assert 0 < sum(small) < len(masks)
    for mask, is_small, one, before in zip(masks, small, made, plain, strict=True):
        if is_small:
            assert (one.is_known, one.mean_u) == (True, 0.0)
            assert refined_label(one.blob) == mask.label
            assert not decode_uncertainty(one.blob).u.any()
        else:
            assert one.mean_u == pytest.approx(before.mean_u, abs=1e-5)


def test_mask_of_exactly_the_least_area_is_refined(
    sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine]
) -> None:
    mask = replace(masks[0], area=346**2)  # 1024 * 1024 pixels of a photo that is 1024 long
    refined, decreed = (make(sam, refiner, embed, [mask], min_refine_area=least)[0] for least in (1024**2, 1024**2 + 1))
    assert refined.mean_u != 0.0
    assert decreed.mean_u == 0.0


def test_crops_are_embedded_once_and_only_those_with_masks_to_refine(
    sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine]
) -> None:
    embedded = []

    def listed(box: CropBox) -> Tensor:
        embedded.append(box)
        return embed(box)

    other = replace(masks[0], frame=Frame(256, (10, 10, 190, 180)))
    maker = UncertaintyMaker(sam, refiner, UncertaintySettings(), 2)
    assert len(maker.make([masks[0], other, *masks[1:]], listed)) == len(masks) + 1
    assert embedded == [(0, 0, 346, 200), (10, 10, 190, 180)]
    embedded.clear()
    assert maker.make([], listed) == []
    all_small = UncertaintyMaker(sam, refiner, UncertaintySettings(min_refine_area=10**9), 2)
    assert len(all_small.make(masks, listed)) == len(masks)
    assert embedded == []


FORMULAS: Mapping[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "confidence": lambda p: 1 - np.abs(2 * p - 1),
    "entropy": lambda p: (entr(p) + entr(1 - p)) / np.log(2),
}


@pytest.mark.parametrize("source", FORMULAS)
def test_sources_without_a_refiner_read_sams_own_logits(
    sam: Sam, refiner: Refiner, embed: Embed, masks: list[MaskToRefine], source: str
) -> None:
    for mask, one in zip(masks, make(sam, None, embed, masks, source=source), strict=True):
        s, _ = naive(sam, refiner, embed, mask)
        rows, columns = mask.frame.interpolation_cells
        expected = FORMULAS[source](expit(s[:rows, :columns].astype(np.float64)))
        decoded = decode_uncertainty(one.blob)
        assert decoded.refined is None
        assert np.abs(decoded.u - expected).max() < 0.021
        height, width = mask.frame.photo_cells
        assert one.mean_u == pytest.approx(expected[:height, :width].mean(), abs=1e-4)
