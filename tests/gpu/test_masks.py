"""Automatic masks on a GPU are upstream's, come out equal twice, and fit into the memory that they may take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import segment_anything
import torch
from segment_anything.modeling import Sam

from sum_factory.labelgen.progress import RunSummary
from sum_factory.pipelines.bench.parts.agreement import compare
from sum_factory.pipelines.microworld.scene import make_scenes
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.lanes import take_cores
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.gpu.sizes import bound_memory
from sum_factory.shared.images import RgbImage
from sum_factory.shared.memory import BatchSize, to_host
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Embedder, Runtime, move_to_device
from sum_factory.shared.sam.settings import PACKAGED

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, bytes]]
POINTS = 6


@pytest.fixture(scope="module")
def scenes() -> list[RgbImage]:
    return [scene.image for scene in make_scenes(3, 0, 2)]


def generator_on(device: torch.device, settings: AutomaskSettings, **options: object) -> LabelGenerator:
    """Return the packaged model's generator as labelling uses it on a device."""
    sam = move_to_device(load_sam().sam, Runtime(str(device)))
    return LabelGenerator(sam, settings, lanes=take_cores(device, 1), **options)  # type: ignore[arg-type]


def test_exact_masks_are_upstreams(device: torch.device, scenes: list[RgbImage]) -> None:
    settings = settings_for(PACKAGED, points_per_side=POINTS, pred_iou_thresh=0.5, max_area_share=2.0)
    shared = {name: value for name, value in vars(settings).items() if name != "max_area_share"}
    upstream = segment_anything.SamAutomaticMaskGenerator(load_sam().sam.to(device), **shared)
    found = generator_on(device, settings, photos_per_batch=2).label_all([(image, None) for image in scenes])
    for image, labelled in zip(scenes, found, strict=True):
        agreement = compare(labelled, upstream.generate(image), settings)
        assert agreement.unexplained == []
        assert agreement.common > 0


@pytest.mark.gpu
def test_masks_of_a_gpu_are_those_of_the_cpu(scenes: list[RgbImage]) -> None:
    settings = settings_for(PACKAGED, points_per_side=POINTS)
    on_cpu, on_gpu = (generator_on(torch.device(name), settings).label(scenes[0]) for name in ("cpu", "cuda"))
    records = [
        {
            "segmentation": mask,
            "point_coords": [point.tolist()],
            "crop_box": [0, 0, *reversed(on_cpu.size)],
            "predicted_iou": float(iou),
            "stability_score": float(stability),
            "bbox": box.tolist(),
            "area": int(area),
        }
        for mask, point, iou, stability, box, area in zip(
            on_cpu.masks(),
            on_cpu.points,
            on_cpu.predicted_iou,
            on_cpu.stability,
            on_cpu.boxes,
            on_cpu.areas,
            strict=True,
        )
    ]
    assert compare(on_gpu, records, settings).unexplained == []


@pytest.mark.parametrize("exactness", ["exact", "fast"])
def test_two_runs_give_equal_bytes(
    device: torch.device, exactness: Exactness, photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot
) -> None:
    """Several batches in flight, in streams of their own, do not disturb each other."""
    made = []
    for name in ("one", "other"):
        label(photos, tmp_path / name, runtime=Runtime(str(device), exactness), photos_per_batch=2, unit_size=6)
        shutil.rmtree(tmp_path / name / "gpus", ignore_errors=True)
        made.append(snapshot(tmp_path / name))
    assert made[0] == made[1]


@pytest.mark.gpu
def test_labelling_takes_no_more_memory_than_it_may(
    photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total, share = torch.cuda.get_device_properties(0).total_memory, 0.05
    summary = label(photos, tmp_path / "shards", runtime=Runtime("cuda"), gpu_memory=share)
    bound_memory(torch.device("cuda"), 1.0)
    assert summary.errors == ()
    assert 0 < torch.cuda.max_memory_reserved() <= share * total
    assert summary.gpu_busy is not None
    assert 0 < summary.gpu_busy <= 1


@pytest.mark.gpu
def test_what_does_not_fit_is_halved_until_it_does(scenes: list[RgbImage]) -> None:
    """ViT-B decodes a grid in one go, and embeds 64 photos together, in a memory that is too small for either."""
    torch.manual_seed(0)
    sam = move_to_device(build_architecture(ARCHITECTURES["vit_b"]), Runtime("cuda"))
    settings = AutomaskSettings(points_per_side=16, pred_iou_thresh=-1000.0, stability_score_thresh=0.5)
    whole = torch.cuda.get_device_properties(0).total_memory
    try:
        bound_memory(torch.device("cuda"), min(1.0, 4 * 2**30 / whole))
        generator = LabelGenerator(sam, settings, 1024, photos_per_batch=64)
        generator.label_all([(scenes[0], None)])
        assert generator.batch.size < 1024
        assert generator.embedder.batch.size < 64
    finally:
        bound_memory(torch.device("cuda"), 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_encoder_of_a_gpu_is_upstreams(name: str) -> None:
    """At full size: windows of 14 that pad 64 x 64 tokens, and global blocks, by whatever fused kernel there is."""
    torch.manual_seed(0)
    plain = build_architecture(replace(ARCHITECTURES[name], encoder_depth=4, global_attention_blocks=(1, 3))).cuda()
    with torch.no_grad():
        for part, parameter in plain.image_encoder.named_parameters():
            if "pos" in part:
                parameter.normal_(0, 0.1)
        images = torch.randn(2, 3, 1024, 1024, device="cuda")
        ours = move_to_device(deepcopy(plain), Runtime("cuda"))
        torch.testing.assert_close(ours.image_encoder(images), plain.image_encoder(images), rtol=1e-4, atol=1e-4)


def test_embeddings_of_a_batch_are_those_of_each_photo(
    device: torch.device, tiny_sam: Sam, scenes: list[RgbImage]
) -> None:
    sam = move_to_device(deepcopy(tiny_sam), Runtime(str(device)))
    crops = [(image, (0, 0, image.shape[1], image.shape[0]), None) for image in scenes]
    together = Embedder(sam, batch=BatchSize(2)).embed_crops(crops)
    for image, embedding in zip(scenes, together, strict=True):
        torch.testing.assert_close(embedding.cpu(), Embedder(tiny_sam).embed(image), rtol=1e-4, atol=1e-4)


def test_what_is_brought_to_the_host_is_all_there(device: torch.device) -> None:
    there = torch.arange(1 << 20, device=device).float() * 3
    assert torch.equal(to_host(there), 3 * torch.arange(1 << 20).float())
