"""Files of COCO with what people put into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import CocoSettings, open_set

HEIGHT, WIDTH = 30, 40
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]
Record = dict[str, Any]


def image(number: int = 1, name: str = "a.png", **more: Any) -> Record:
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **more}


def annotation(segmentation: Any = SQUARE, number: int = 1, **more: Any) -> Record:
    return {"id": number, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


def save_photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def opened(
    folder: Path, annotations: list[Record], images: list[Record] | None = None, more: Any = None, **changes: Any
) -> HumanSet:
    content = {"images": images or [image()], "annotations": annotations, **(more or {})}
    (folder / "coco.json").write_text(json.dumps(content))
    if images is None:
        save_photo(folder / "images" / "a.png")
    return open_set(CocoSettings("coco", folder / "coco.json", folder / "images", "entity", **changes))


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> Record:
    return {"size": list(size), "counts": counts}


def encoded(mask: npt.NDArray[np.bool_]) -> str:
    return str(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


def square() -> npt.NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:15] = True
    return mask
