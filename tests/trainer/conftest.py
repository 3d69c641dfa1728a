"""What tests of training share: a tiny SAM as a file, two human sets, and shards whose every value is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sum_factory.shared.codecs.label import encode_label
from sum_factory.shared.codecs.uncertainty import encode_uncertainty
from sum_factory.shared.images import digest
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture
from sum_factory.shared.sam.checkpoint import to_safetensors
from sum_factory.shared.sam.upstream import Sam
from sum_factory.shared.shards.dataset import DATASET, Dataset, Layer, Unit, uncertainty_layer, unit_path
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.shard_set import MASKS
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer import launch, training
from sum_factory.trainer.data.sets import FolderPairsSettings, LabelMapsSettings, SetSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import log as log_module
from sum_factory.trainer.run.settings import CheckpointSettings

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
"""That of ``tiny_sam``."""
SIDE = TINY.image_size

Map = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs train in the process of the tests, whose ``tiny`` no other knows."""
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs draw neither curves nor samples, and make no automatic masks at their end, all of which takes longer
    than their steps; tests of these do so."""
    monkeypatch.setattr(log_module, "draw_curves", lambda lines: b"")
    monkeypatch.setattr(training, "SHOWN", 0)
    monkeypatch.setattr(training, "judge_closing", lambda *_: None)


@pytest.fixture(scope="session")
def tiny_file(tiny_sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of ``tiny_sam``."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(to_safetensors(tiny_sam.state_dict(), {}))
    return path


@pytest.fixture
def tiny_weights(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of these weights, which ``load_sam`` knows how to load meanwhile."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    return str(tiny_file)


def paint(seed: int, height: int, width: int, masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return RGB pixels on which each mask has a colour of its own."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for mask in masks:
        pixels[mask] += random.integers(60, 190, 3, dtype=np.uint8)
    return pixels


def ellipse(height: int, width: int, centre: tuple[float, float], radii: tuple[float, float]) -> Map:
    """Return a function that is positive inside an ellipse: ``centre`` and ``radii`` are rows, columns."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    distance = np.hypot((rows + 0.5 - centre[0]) / radii[0], (columns + 0.5 - centre[1]) / radii[1])
    return np.asarray((1 - distance) * 6, np.float32)


HUMAN_SIZES = [(96, 128), (128, 90), (64, 64), (150, 200), (70, 33)]


@pytest.fixture(scope="session")
def human_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos with a salient mask each (``salient``), and label maps of two or three parts (``part``)."""
    folder = tmp_path_factory.mktemp("human")
    for kind in ("images", "salient", "part"):
        (folder / kind).mkdir()
    for seed, (height, width) in enumerate(HUMAN_SIZES):
        body = ellipse(height, width, (height * 0.5, width * 0.45), (height * 0.35, width * 0.3)) > 0
        left = body & (np.arange(width) < width * 0.45)
        spot = ellipse(height, width, (height * 0.5, width * 0.6), (height * 0.1, width * 0.1)) > 0
        parts = np.where(body, 1, 0) + left
        if seed % 2:
            parts[spot] = 3
        masks = np.stack([parts == value for value in np.unique(parts)[1:]])
        name = f"photo{seed}.png"
        Image.fromarray(paint(seed, height, width, masks)).save(folder / "images" / name)
        Image.fromarray(body.astype(np.uint8) * np.uint8(255)).save(folder / "salient" / name)
        Image.fromarray(parts.astype(np.uint8)).save(folder / "part" / name)
    return folder


@pytest.fixture(scope="session")
def human_sets(human_folder: Path) -> tuple[SetSettings, ...]:
    """The salient masks and the parts of these photos, as a recipe describes them."""
    images = human_folder / "images"
    return (
        FolderPairsSettings("folder-pairs", images, human_folder / "salient", "salient", name="salient"),
        LabelMapsSettings("label-maps", images, human_folder / "part", "part", name="part"),
    )


@dataclass(frozen=True)
class KnownMask:
    """One mask of the known shards: label logits, map and refined logits on ``Frame.interpolation_cells``."""

    frame: Frame
    logits: Map
    u: Map
    refined: Map
    u_valid: bool


@dataclass(frozen=True)
class KnownShards:
    """A shard set made by hand, and what is in it: for each unit, for each image with masks, its key and its masks."""

    folder: Path
    photos: Path
    units: list[list[tuple[str, list[KnownMask]]]]

    @property
    def url(self) -> str:
        """Where the shards lie."""
        return str(self.folder)

    @property
    def masks(self) -> dict[str, list[KnownMask]]:
        """The masks of each image that has any."""
        return {key: masks for unit in self.units for key, masks in unit if masks}


UNIT_SIZES = [3, 2, 3, 1]
PSEUDO_SIZES = [(96, 128), (128, 80), (64, 64), (41, 128), (200, 150), (128, 128), (90, 77), (120, 128), (128, 101)]
EMPTY, FAILED, UNKNOWN_ALL = 2, 4, 5
"""Numbers of the images without masks, unreadable, and without any known map."""


def make_masks(number: int, height: int, width: int) -> list[KnownMask]:
    """Return two to four masks; the second one's map is unknown, the last of image 7 was found in a crop."""
    random = np.random.default_rng(100 + number)
    made = []
    for k in range(2 + number % 3):
        crop = (width // 4, 0, width, height // 2) if number == 7 and k == 2 else (0, 0, width, height)
        frame = Frame(SIDE, crop)
        rows, columns = frame.interpolation_cells
        centre = rows * random.uniform(0.3, 0.7), columns * random.uniform(0.3, 0.7)
        radii = rows * random.uniform(0.15, 0.3), columns * random.uniform(0.15, 0.3)
        logits = ellipse(rows, columns, centre, radii)
        refined = ellipse(rows, columns, (centre[0], centre[1] + 1.5), radii)
        u = (random.integers(0, 26, (rows, columns)) / np.float32(25)).astype(np.float32)
        made.append(KnownMask(frame, logits, u, refined, u_valid=k != 1 and number != UNKNOWN_ALL))
    return made


def mask_columns(masks: list[KnownMask]) -> dict[str, list[Any]]:
    """Return the columns of the masks layer; training reads the crop boxes alone."""
    crops = np.array([mask.frame.crop_box for mask in masks]).T.tolist()
    ones = ("box_x", "box_y", "box_w", "box_h", "area", "point_x", "point_y", "predicted_iou", "stability")
    columns = {name: [1] * len(masks) for name in ones}
    return {**columns, **dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), crops, strict=True))}


@pytest.fixture(scope="session")
def known_shards(tmp_path_factory: pytest.TempPathFactory) -> KnownShards:
    """Nine photos in four units, with masks and a layer ``refinement``, which no test may change."""
    return make_known(tmp_path_factory.mktemp("known"), "tar")


@pytest.fixture(scope="session")
def known_in_zarr(tmp_path_factory: pytest.TempPathFactory) -> KnownShards:
    """The same shard set in Zarr, which no test may change."""
    return make_known(tmp_path_factory.mktemp("known_in_zarr"), "zarr")


def make_known(folder: Path, encoding: str) -> KnownShards:
    """Make the known photos and shards in ``folder``."""
    photos, shards = folder / "photos", folder / "shards"
    photos.mkdir()
    images, truth = [], []
    for number, (height, width) in enumerate(PSEUDO_SIZES):
        masks = [] if number in (EMPTY, FAILED) else make_masks(number, height, width)
        full = [(mask.frame.upsample(_tensor(mask.logits)[None])[0] > 0).numpy() for mask in masks if whole(mask)]
        path = photos / f"shot{number}.png"
        Image.fromarray(paint(number, height, width, np.array(full, bool).reshape(-1, height, width))).save(path)
        images.append(PhotoFile(path.stem, str(path), size=path.stat().st_size))
        truth.append(masks)
    starts = np.cumsum([0, *UNIT_SIZES])
    units = [Unit(n, tuple(images[starts[n] : starts[n + 1]])) for n in range(len(UNIT_SIZES))]
    write_shards(shards, units, truth, encoding)
    grouped = [[(images[i].key, truth[i]) for i in range(starts[n], starts[n + 1])] for n in range(len(units))]
    return KnownShards(shards, photos, grouped)


@pytest.fixture(scope="session")
def known_halves(known_shards: KnownShards, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The units 0 and 1, and 2 and 3, of the known shards, as two shard sets that no test may change."""
    folder, units = tmp_path_factory.mktemp("halves"), known_shards.units
    truth = [known_shards.masks.get(f"shot{number}", []) for number in range(len(PSEUDO_SIZES))]
    planned = [Unit.from_json((known_shards.folder / unit_path(n)).read_bytes(), "") for n in range(len(units))]
    for name, half in (("one", planned[:2]), ("two", planned[2:])):
        write_shards(folder / name, [Unit(n, unit.images) for n, unit in enumerate(half)], truth, "tar")
    return str(folder / "one"), str(folder / "two")


def whole(mask: KnownMask) -> bool:
    """Whether a mask was found in the whole photo."""
    return mask.frame.crop_box[:2] == (0, 0)


def write_shards(folder: Path, units: list[Unit], truth: list[list[KnownMask]], encoding: str) -> None:
    """Write the shard set with both its layers."""
    storage = Storage(str(folder))
    sam = {"model_type": "tiny", "image_size": SIDE, "sha256": "0" * 64}
    layers = {
        MASKS: Layer(MASKS, encoding, {}, {"sam": sam}),
        uncertainty_layer("refinement"): Layer(uncertainty_layer("refinement"), encoding, {}, {"refiner": "known"}),
    }
    dataset = Dataset(3, (), 0, layers).with_units([(unit.id, len(unit.images)) for unit in units])
    storage.write(DATASET, dataset.to_json())
    write_shared_files(storage)
    for unit in units:
        storage.write(unit_path(unit.number), unit.to_json())
        digests = {image.key: digest(Path(image.url).read_bytes()) for image in unit.images}
        writers = [UnitWriter(dataset, layer, unit, digests) for layer in layers.values()]
        for index in range(len(unit.images)):
            number = int(unit.images[index].key.removeprefix("shot"))
            size, masks = PSEUDO_SIZES[number], truth[number]
            if number == FAILED:
                for writer in writers:
                    writer.add_failure(index, "a photo that nobody could read")
                continue
            labels = [encode_label(mask.logits) for mask in masks]
            maps = [encode_uncertainty(m.u, encode_label(m.refined)) if m.u_valid else b"" for m in masks]
            means = [float(m.u.mean()) if m.u_valid else None for m in masks]
            known = {"mean_u": means, "u_valid": [m.u_valid for m in masks]}
            writers[0].add_image(index, size, labels, mask_columns(masks) if masks else {}, {})
            writers[1].add_image(index, size, maps, known, {})
        record, _ = writers[0].commit(storage)
        writers[1].commit(storage, record.data_sha256)


def _tensor(values: Map) -> Any:
    import torch

    return torch.from_numpy(values)


@pytest.fixture
def make_recipe(
    tiny_weights: str, human_sets: tuple[SetSettings, ...], known_shards: KnownShards
) -> Callable[..., Recipe]:
    """``make_recipe(**changes)`` is a run of six steps of four photos in three rounds, a checkpoint every two."""

    def make_recipe(**changes: Any) -> Recipe:
        settings: dict[str, Any] = {
            "human": human_sets,
            "shards": known_shards.url,
            "sam": tiny_weights,
            "steps": 6,
            "batch": 4,
            "micro_batch": 4,
            "masks": 3,
            "rounds": 3,
            "optimizer": OptimizerSettings(learning_rate=1e-3, clip_norm=10.0),
            "checkpoint": CheckpointSettings(every=2, keep=2),
            "device": "cpu",
            "precision": "fp32",
            "data_threads": 2,
        }
        return Recipe(**{**settings, **changes})

    return make_recipe


def lattice(shift: list[float], size: list[int], first: int, count: int) -> list[tuple[int, int]]:
    """Return points of a mask's lattice, x and y."""
    plastic = ((9 + math.sqrt(69)) / 18) ** (1 / 3) + ((9 - math.sqrt(69)) / 18) ** (1 / 3)
    points = []
    for number in range(first, first + count):
        x, y = (shift[0] + number / plastic) % 1, (shift[1] + number / plastic**2) % 1
        points.append((int(x * size[1]), int(y * size[0])))
    return points


@pytest.fixture(scope="session")
def naive_points() -> Callable[..., list[tuple[int, int]]]:
    """``naive_points(logits, shift, size, side)`` are the points of one mask, by its logits (h, w)."""

    from torch.nn import functional as F

    def naive_points(logits: Any, shift: list[float], size: list[int], side: int) -> list[tuple[int, int]]:
        """Return the points of one mask by its logits (h, w): three quarters nearest to 0 of three times as many, and a
        quarter wherever the lattice goes on."""
        count = max(1, round(112 * 112 * side * side / 1024 / 1024))
        full = F.interpolate(logits[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
        looked_at = lattice(shift, size, 0, 3 * count)
        kept = round(0.75 * count)
        nearest = sorted(looked_at, key=lambda place: abs(float(full[place[1], place[0]])))[:kept]
        return nearest + lattice(shift, size, 3 * count, count - kept)

    return naive_points
