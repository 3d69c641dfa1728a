"""What ``labelgen export`` writes, read by the software that it is for, which is installed into a folder for this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sum_factory.labelgen.importing.run import import_masks
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.sets.export import export, full_size_masks
from sum_factory.labelgen.sets.export_settings import ExportSettings
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.masks import iou
from sum_factory.shared.shards.shard_set import ShardSet

pytestmark = pytest.mark.long
Mask = npt.NDArray[np.bool_]
SIZE = (240, 320)
PACKAGES = {
    "labelme": ["labelme==5.11.4", "imgviz", "loguru", "natsort", "osam", "cmap"],
    "label-studio": ["label-studio-sdk==2.1.2", "ijson", "xmljson", "lxml", "nltk", "appdirs", "ujson", "pyjwt",
                     "jsonschema", "datamodel-code-generator", "jsf", "requests-mock"],
    "ultralytics": ["ultralytics==8.4.190"],
    "datumaro": ["datumaro==1.12.0", "attrs", "imagesize", "orjson", "ruamel.yaml", "shapely", "json-stream",
                 "json-stream-rs-tokenizer", "defusedxml"],
}  # fmt: skip
"""What is installed, without what is here anyway."""
NO_WINDOWS = """
import json, sys
from unittest.mock import MagicMock
import numpy as np
for name in ("PyQt5", "PyQt5.QtCore", "PyQt5.QtGui", "PyQt5.QtWidgets", "PyQt5.Qt"):
    sys.modules[name] = MagicMock()  # files are read without windows
"""
LABELME = f"""{NO_WINDOWS}
from labelme._label_file import LabelFile
from labelme.utils.shape import shapes_to_label
file = LabelFile(sys.argv[1])
assert (file.imageData is not None) and all(shape["label"] == "object" for shape in file.shapes)
masks = []
for group in dict.fromkeys(shape["group_id"] if shape["group_id"] is not None else f"alone {{k}}"
                           for k, shape in enumerate(file.shapes)):
    own = [shape for k, shape in enumerate(file.shapes) if group in (shape["group_id"], f"alone {{k}}")]
    masks.append(shapes_to_label({SIZE}, own, {{"object": 1}})[0] > 0)
np.save(sys.argv[2], masks)
"""
LABEL_STUDIO = f"""
import json, sys
import numpy as np
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import decode_rle
from pycocotools import mask as coco_mask
(task,) = json.load(open(sys.argv[1]))
results = task["predictions"][0]["result"]
if sys.argv[3] == "bitmaps":
    masks = [decode_rle(each["value"]["rle"]).reshape(*{SIZE}, 4)[..., 3] > 0 for each in results]
else:
    config = ('<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">'
              '<Label value="object"/></PolygonLabels></View>')
    accepted = {{"id": 1, "data": task["data"], "annotations": [{{"id": 1, "completed_by": 1, "result": results}}]}}
    json.dump([accepted], open(sys.argv[2] + ".tasks", "w"))
    converter = Converter(config=config, project_dir=None, download_resources=False)
    converter.convert_to_coco(sys.argv[2] + ".tasks", sys.argv[2] + ".folder", is_dir=False)
    found = json.load(open(sys.argv[2] + ".folder/result.json"))["annotations"]
    assert len(found) == len(results)
    by_mask = {{}}
    for region, annotation in zip(results, found):
        by_mask.setdefault(region.get("parentID", region["id"]), []).extend(annotation["segmentation"])
    masks = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(each, *{SIZE}))) > 0 for each in by_mask.values()]
np.save(sys.argv[2], masks)
"""
ULTRALYTICS = f"""
import sys
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygon2mask
told = check_det_dataset(sys.argv[1], autodownload=False)
dataset = YOLODataset(img_path=told["train"], data=told, task="segment", augment=False, imgsz=320)
(label,) = dataset.labels
assert label["shape"] == {SIZE}
masks = [polygon2mask({SIZE}, [segment * {SIZE[::-1]}]) > 0 for segment in label["segments"]]
np.save(sys.argv[2], masks)
"""
DATUMARO = """
import sys
import numpy as np
from datumaro.components.dataset import Dataset
from datumaro.components.annotation import AnnotationType
(item,) = Dataset.import_from(sys.argv[1], "cvat")
from pycocotools import mask as coco_mask
by_group = {}
for number, each in enumerate(item.annotations):
    if each.type == AnnotationType.polygon:
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([each.points], SIZE[0], SIZE[1]))) > 0
    else:
        drawn = each.image > 0
    group = each.group or f"alone {number}"
    by_group[group] = by_group.get(group, False) | drawn
np.save(sys.argv[2], list(by_group.values()))
""".replace("SIZE", str(SIZE))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A shard set of one photo: a disc, a ring with an island in it, two parts one of which has a hole."""
    folder = tmp_path_factory.mktemp("formats")
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    radius = np.hypot(y - 112, x - 122)
    parts = (abs(y - 60) < 40) & (abs(x - 60) < 45) & ~((abs(y - 60) < 15) & (abs(x - 60) < 20))
    parts |= (abs(y - 170) < 30) & (abs(x - 250) < 50)
    masks = [radius < 45, (radius < 95) & (radius > 65) | (radius < 30), parts]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / "a.jpg")
    told = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": k, "image_id": 1, "segmentation": encode_rle(mask)} for k, mask in enumerate(masks)],
    }
    (folder / "a.json").write_text(json.dumps(told))
    import_masks(
        ImportSettings("coco", (str(folder / "a.json"),), (str(folder / "a.jpg"),), str(folder / "shards")),
        lambda line: None,
    )
    return ShardSet.open(str(folder / "shards"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of other software."""
    folder = tmp_path_factory.mktemp("packages")
    wanted = [name for names in PACKAGES.values() for name in names]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *wanted]
    subprocess.run(command, check=True)
    return folder


def read_by(script: str, given: Path, packages: Path, out: Path, *more: str) -> list[Mask]:
    """Run a script that saves what a library reads; in a process of its own, which alone sees the packages."""
    paths = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "YOLO_CONFIG_DIR": str(out), "HOME": str(out)}
    command = [sys.executable, "-c", script, str(given), str(out / "masks.npy"), *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(np.load(out / "masks.npy"))


@pytest.mark.parametrize(
    ("format", "shapes", "script", "given"),
    [
        ("labelme", "polygons", LABELME, "out/a.json"),
        ("labelme", "bitmaps", LABELME, "out/a.json"),
        ("label-studio", "polygons", LABEL_STUDIO, "out"),
        ("label-studio", "bitmaps", LABEL_STUDIO, "out"),
        ("yolo", "polygons", ULTRALYTICS, "out/data.yaml"),
        ("cvat", "polygons", DATUMARO, "out/00000.xml"),
        ("cvat", "bitmaps", DATUMARO, "out/00000.xml"),
    ],
)
def test_masks_are_those_that_its_software_reads(
    shards: ShardSet, packages: Path, tmp_path: Path, format: str, shapes: str, script: str, given: str
) -> None:
    several = 10 if format == "cvat" else None
    settings = ExportSettings(format, shapes, max_images_per_file=several)  # type: ignore[arg-type]
    export(shards, tmp_path / "out", settings)
    if format == "cvat":  # Datumaro looks for the photos
        (tmp_path / "out/images").mkdir()
        shutil.copy(Path(shards.storage.url).with_name("a.jpg"), tmp_path / "out/images")
    found = read_by(script, tmp_path / given, packages, tmp_path, shapes)
    ((number, image),) = shards.walk()
    expected = list(full_size_masks(shards, number, image))
    assert len(found) == len(expected)
    least = 1 if shapes == "bitmaps" else 0.95  # each library draws boundaries in its own way, to whole pixels
    assert min(map(iou, found, expected)) >= least


def test_voc_is_read_by_torchvision(shards: ShardSet, tmp_path: Path) -> None:
    from torchvision.datasets import VOCDetection, VOCSegmentation

    export(shards, tmp_path / "VOCdevkit/VOC2012", ExportSettings("voc"))
    ((photo, classes),) = VOCSegmentation(str(tmp_path), "2012", "train")
    ((_, boxes),) = VOCDetection(str(tmp_path), "2012", "train")
    ((number, image),) = shards.walk()
    masks = list(full_size_masks(shards, number, image))
    assert photo.size == SIZE[::-1]
    assert np.array_equal(np.asarray(classes), np.logical_or.reduce(masks))
    assert len(boxes["annotation"]["object"]) == len(masks)
