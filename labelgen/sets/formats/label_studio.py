"""Label Studio: tasks with the masks as predictions, which people accept or correct."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from sum_factory.labelgen.sets.formats.format import LABEL, NO_PIXEL, ExportedImage, ExportedMask, Format, Head
from sum_factory.shared.annotations.brush import encode_brush

FROM, TO = "label", "image"
"""The names of the tags, of labels and of the picture, in the labelling configuration of the project."""
SERVED = "/data/local-files/?d="
"""Where Label Studio serves files from that lie in the folder that it was told of."""


class LabelStudioWriter:
    """Writes a list of tasks. Photos are named as Label Studio's local storage serves them, from ``root``.

    The parts of a mask are regions below the first of them.
    """

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self.file, self.head, self.tasks = file, head, 0
        file.write(b"[")

    def add(self, image: ExportedImage) -> None:
        """Write the task of a photo."""
        regions = [region for mask in image.masks for region in self._regions(mask, image)]
        task = {
            "data": {"image": f"{SERVED}{quote(image.name)}", "file_name": image.name, "key": image.key},
            "predictions": [{"model_version": self.head.made_by, "result": regions}],
        }
        self.file.write((b",\n" if self.tasks else b"\n") + json.dumps(task).encode())
        self.tasks += 1

    def close(self) -> None:
        """End the list."""
        self.file.write(b"\n]\n")

    def _regions(self, mask: ExportedMask, image: ExportedImage) -> Iterator[dict[str, Any]]:
        own = f"mask{mask.index}"
        if not mask.pixels.any():
            self.head.lost[NO_PIXEL] += 1
        elif self.head.shapes == "bitmaps":
            brush = {"format": "rle", "rle": encode_brush(mask.pixels), "brushlabels": [LABEL]}
            yield _region(own, "brushlabels", brush, mask, image)
        else:
            percent = 100 / np.array([image.width, image.height])
            for number, part in enumerate(mask.parts):
                points = (part.cut_open * percent).round(4).tolist()
                value: dict[str, Any] = {"points": points, "closed": True, "polygonlabels": [LABEL]}
                region = _region(own if number == 0 else f"{own}-{number}", "polygonlabels", value, mask, image)
                yield region if number == 0 else region | {"parentID": own}


def _region(number: str, kind: str, value: dict[str, Any], mask: ExportedMask, image: ExportedImage) -> dict[str, Any]:
    score = mask.scores.get("predicted_iou")
    return {
        "id": number,
        "type": kind,
        "from_name": FROM,
        "to_name": TO,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": value,
        **({} if score is None else {"score": score}),
    }


FORMAT = Format(("polygons", "bitmaps"), file=LabelStudioWriter, suffix=".json")
