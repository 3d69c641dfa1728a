"""Export a shard set to other formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sum_factory.labelgen.sets.file_names import names_of
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import at_full_size as at_full_size
from sum_factory.shared.progress import track
from sum_factory.shared.shards.originals import original_of
from sum_factory.shared.shards.shard_set import ImageRows, ShardSet
from sum_factory.shared.store.local_files import whole_file


def full_size_masks(shards: ShardSet, unit: int, image: ImageRows) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the masks of an image at the photo's own size, bool (H, W), one at a time."""
    for k, logits in enumerate(shards.read_label_logits(unit, image, list(range(len(image.masks))))):
        yield at_full_size(logits, image.frame(k, shards.input_side), image.height, image.width) > 0


def export_coco(shards: ShardSet, out: Path) -> tuple[int, int]:
    """Write all committed masks as COCO instances with compressed RLE; return the numbers of images and masks.

    A ``file_name`` is relative to the folder that ``info`` calls ``root``, as ``trainer`` reads it. The file is written
    aside, one annotation at a time, and renamed: it is whole or absent. Raises ``StorageError``.
    """
    originals: list[PhotoFile] = []
    images: list[dict[str, Any]] = []
    count = 0
    with whole_file(out) as file:
        file.write(b'{"categories": [{"id": 1, "name": "object"}],\n"annotations": [')
        for number in track(shards.committed(), "exporting", "unit"):
            planned = shards.unit(number).images
            for image in shards.images(number):
                if image.error is not None:
                    continue
                original = original_of(shards, planned[image.index])
                originals.append(replace(original, url=without_credentials(original.url)))
                images.append(_image_entry(image, originals[-1], len(images) + 1))
                for row, mask in zip(image.masks, full_size_masks(shards, number, image), strict=True):
                    count += 1
                    file.write(b",\n" if count > 1 else b"\n")
                    file.write(json.dumps(_annotation(row, mask, count, len(images))).encode())
        root, names = names_of(originals)
        for entry, name in zip(images, names, strict=True):
            entry["file_name"] = name
        info = {"description": "pseudo-labels of a frozen SAM, made by labelgen", "root": root}
        file.write(f'],\n"images": {json.dumps(images)},\n"info": {json.dumps(info)}}}\n'.encode())
    return len(images), count


def _image_entry(image: ImageRows, original: PhotoFile, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": "",
        "key": image.key,
        "source": printable(original.url),
        "height": image.height,
        "width": image.width,
    }


def _annotation(row: dict[str, Any], mask: npt.NDArray[np.bool_], number: int, image_number: int) -> dict[str, Any]:
    """Return a COCO annotation; its box and area are those of the exported mask, in COCO's own convention.

    A mask that was imported without SAM's scores has none.
    """
    rle = encode_rle(mask)
    scores = {"predicted_iou": row["predicted_iou"], "stability_score": row["stability"]}
    box = [float(value) for value in coco_mask.toBbox(rle)]
    return {
        "id": number,
        "image_id": image_number,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": rle,
        "area": int(coco_mask.area(rle)),
        "bbox": box,
        **{name: score for name, score in scores.items() if score is not None},
        "point_coords": [[row["point_x"], row["point_y"]]],
        "crop_box": [row["crop_x0"], row["crop_y0"], row["crop_x1"] - row["crop_x0"], row["crop_y1"] - row["crop_y0"]],
    }
