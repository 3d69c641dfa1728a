"""What tests of evaluation runs share: sets of all three layouts, and tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from sum_factory.shared.sam.architecture import build_architecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.task_prompt import TaskPrompt
from tiny_world import SIZES, TINY, shapes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos with masks as folder pairs, label maps and COCO. Tests that change it make their own files."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("images", "masks", "labels"):
        (folder / name).mkdir()
    entries, annotations = [], []
    for number, (key, (height, width)) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        masks = shapes(key)
        Image.fromarray(pixels).save(folder / "images" / f"{key}.png")
        Image.fromarray(masks[0].astype(np.uint8) * 255).save(folder / "masks" / f"{key}.png")
        labels = (masks * np.array([10, 20, 30])[:, None, None]).sum(0).astype(np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{key}.png")
        entries.append({"id": number, "file_name": f"{key}.png", "height": height, "width": width})
        for mask in (masks[2], np.zeros_like(masks[0]), masks[1]):  # the middle one cannot be prompted
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            annotations.append({"id": len(annotations), "image_id": number, "segmentation": segmentation})
    (folder / "instances.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def plain() -> LoadedSam:
    """A random SAM with a loud decoder: as it is initialised, all prompts would give nearly the same mask."""
    torch.manual_seed(2)
    sam = build_architecture(TINY)
    with torch.no_grad():
        for name, parameter in sam.mask_decoder.named_parameters():
            if parameter.dim() > 1 and "hypernetworks" not in name:
                parameter *= 3
    return LoadedSam(sam, TINY, "digest")


@pytest.fixture(scope="module")
def prompted(plain: LoadedSam) -> LoadedSam:
    """The same SAM with a task prompt, trained for salient objects and, as in every run, without a task."""
    table = TaskPrompt(32)
    with torch.no_grad():
        table.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return LoadedSam(plain.sam, TINY, "digest", table, ("unspecified", "salient"))
