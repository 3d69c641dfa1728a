"""A folder that `datasets` loads: Parquet with photos and masks in it, and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sum_factory.labelgen.sets.formats.format import ExportedImage, ExportedMask, Format, Head, write_new
from sum_factory.labelgen.sets.formats.png import png_of
from sum_factory.shared.masks import box_of

IMAGES_PER_FILE = 500
HELD_BYTES = 64 << 20
"""Bytes of photos and masks that are held before they are written as a row group."""
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_OF_PHOTO: dict[str, tuple[pa.DataType, dict[str, str]]] = {
    "image": (_PICTURE, {"_type": "Image"}),
    "key": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "source": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "height": (pa.int32(), {"dtype": "int32", "_type": "Value"}),
    "width": (pa.int32(), {"dtype": "int32", "_type": "Value"}),
}
_FLOAT: tuple[pa.DataType, dict[str, Any]] = (pa.float32(), {"dtype": "float32", "_type": "Value"})
_FLOATS: tuple[pa.DataType, dict[str, Any]] = (pa.list_(_FLOAT[0]), {"feature": _FLOAT[1], "_type": "Sequence"})
_OF_MASK: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
    "masks": (_PICTURE, {"_type": "Image"}),
    "boxes": _FLOATS,
    "points": _FLOATS,
    "crop_boxes": _FLOATS,
    "predicted_iou": _FLOAT,
    "stability_score": _FLOAT,
}
"""Columns by Arrow's types and by the words of `datasets`: one value per photo, or a list with one per mask."""


class HuggingFaceWriter:
    """Writes ``data/train-00000-of-00003.parquet`` and so on, and ``README.md``. ``image`` is there if photos are."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head
        self.per_file = head.settings.max_images_per_file or IMAGES_PER_FILE
        self.file: pq.ParquetWriter | None = None
        self.rows: list[dict[str, Any]] = []
        self.held = self.files = self.in_file = self.images = self.masks = 0

    def add(self, image: ExportedImage) -> None:
        """Write a photo and its masks."""
        row = _row(image)
        self.rows.append(row)
        pictures = [*row["masks"], *([row["image"]] if "image" in row else [])]
        self.held += sum(len(picture["bytes"]) for picture in pictures)
        self.images, self.masks, self.in_file = self.images + 1, self.masks + len(row["masks"]), self.in_file + 1
        if self.held >= HELD_BYTES or self.in_file == self.per_file:
            self._flush("image" in row)
        if self.in_file == self.per_file:
            self._end_file()

    def close(self) -> None:
        """End the files, name them by their number, and write the card."""
        with_photos = self.head.settings.photos != "none"
        if self.rows or not self.files:
            self._flush(with_photos)
        self._end_file()
        for number in range(self.files):
            path = self._path(number)
            path.rename(path.with_name(f"train-{number:05d}-of-{self.files:05d}.parquet"))
        write_new(self.folder, "README.md", self._card().encode())

    def _path(self, number: int) -> Path:
        return self.folder / "data" / f"{number:05d}"

    def _flush(self, with_photos: bool) -> None:
        schema = _schema(with_photos)
        if self.file is None:
            path = self._path(self.files)
            path.parent.mkdir(exist_ok=True)
            self.file = self.head.stack.enter_context(pq.ParquetWriter(path, schema))
        self.file.write_table(pa.Table.from_pylist(self.rows, schema))
        self.rows, self.held = [], 0

    def _end_file(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file, self.files, self.in_file = None, self.files + 1, 0

    def _card(self) -> str:
        layer, sam = self.head.layer, self.head.layer.weights["sam"]
        settings = "\n".join(f"| `{name}` | {value} |" for name, value in layer.settings.items())
        return CARD.format(
            images=self.images,
            masks=self.masks,
            model=sam["model_type"],
            sha256=sam["sha256"],
            software=layer.provenance.get("software", "sum-factory"),
            settings=settings,
            size=_size_category(self.images),
        )


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
task_categories:
- mask-generation
- image-segmentation
size_categories:
- {size}
---

# Masks of a frozen Segment Anything model

{images:,} photos with {masks:,} masks, which nobody has checked: pseudo-labels. Made by {software}.

    from datasets import load_dataset

    row = load_dataset("PATH OF THIS FOLDER", split="train")[0]

| column | what it holds |
|---|---|
| `image` | the photo, if the masks were exported with photos |
| `key`, `source` | the name of the photo in the shard set, and where it lay |
| `height`, `width` | its size in pixels, which all masks have, too |
| `masks` | a picture per mask: 255 in it, 0 elsewhere; masks may overlap |
| `boxes` | x, y, width and height of each mask in pixels |
| `points` | x and y of the point that SAM was given |
| `crop_boxes` | x, y, width and height of the crop that the mask was found in |
| `predicted_iou`, `stability_score` | SAM's scores of each mask; null where it was imported without |

## How the masks were made

SAM: `{model}`, SHA-256 of its weights `{sha256}`.

| setting | value |
|---|---|
{settings}

## Licence

The photos are under the licences that they came with, which this card does not know: look them up before you publish or
train. SAM's weights are published under Apache 2.0; other weights may come with terms for what is made with them.
"""


def _size_category(images: int) -> str:
    """Return the words that the hub has for so many rows."""
    for most, words in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if images < most:
            return words
    return "1M<n<10M" if images < 10**7 else "10M<n<100M"


def _schema(with_photos: bool) -> pa.Schema:
    of_photo = {name: told for name, told in _OF_PHOTO.items() if with_photos or name != "image"}
    types = {name: kind for name, (kind, _) in of_photo.items()}
    types |= {name: pa.list_(kind) for name, (kind, _) in _OF_MASK.items()}
    features: dict[str, Any] = {name: words for name, (_, words) in of_photo.items()}
    features |= {name: {"feature": words, "_type": "Sequence"} for name, (_, words) in _OF_MASK.items()}
    told = json.dumps({"info": {"features": features}})
    return pa.schema(list(types.items()), metadata={"huggingface": told})


def _row(image: ExportedImage) -> dict[str, Any]:
    row: dict[str, Any] = {"key": image.key, "source": image.source, "height": image.height, "width": image.width}
    if image.copy is not None:
        photo = image.copy()
        row["image"] = {"bytes": photo.data, "path": f"{image.stem}{photo.suffix}"}
    found = [_of_mask(mask) for mask in image.masks]
    return row | {name: [each[name] for each in found] for name in _OF_MASK}


def _of_mask(mask: ExportedMask) -> dict[str, Any]:
    x0, y0, x1, y1 = box_of(mask.pixels)
    has_pixels = bool(mask.pixels.any())
    return {
        "masks": {"bytes": png_of(mask.pixels), "path": f"{mask.index}.png"},
        "boxes": [x0, y0, x1 - x0 + has_pixels, y1 - y0 + has_pixels],
        "points": [mask.row["point_x"], mask.row["point_y"]],
        "crop_boxes": mask.crop,
        "predicted_iou": mask.scores.get("predicted_iou"),
        "stability_score": mask.scores.get("stability_score"),
    }


FORMAT = Format(("bitmaps",), folder=HuggingFaceWriter, photos="copy", is_split=True)
