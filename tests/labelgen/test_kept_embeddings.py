"""``labelgen run --keep-embeddings`` stores what the image encoder made, and refiners work without photos."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from click.testing import CliRunner

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.kept import keep_embeddings
from sum_factory.labelgen.read_ahead import LoadedPhoto, load_photo
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.convert import convert
from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.repair import QUARANTINE, diagnose, take_back
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import InputError, SettingsDifferError, SettingsError, ShardError
from sum_factory.shared.images import decode_image
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import Refiner, load_refiner
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, OUTPUTS, Layer
from sum_factory.shared.shards.encodings.tar_layer import tar_path
from sum_factory.shared.shards.kinds import comparable
from sum_factory.shared.shards.manifest import crop_of, manifest_path
from sum_factory.shared.shards.sam_outputs import kept_crops, read_embedding, read_full_logits
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

Label = Callable[..., RunSummary]
Problems = Callable[[Path], list[str]]
Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def cropping(loose: AutomaskSettings) -> AutomaskSettings:
    """Settings with which masks are also looked for in four crops of a photo."""
    return replace(loose, crop_n_layers=1)


@pytest.fixture(scope="module", params=["tar", "zarr"])
def kept(
    request: pytest.FixtureRequest,
    photos: Path,
    label: Label,
    cropping: AutomaskSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The shard set of a run with crops that kept logits and embeddings, which no test may change."""
    shards = tmp_path_factory.mktemp("kept") / "shards"
    settings = {"automask": cropping, "encoding": request.param}
    label(photos, shards, keep_logits=True, keep_embeddings=True, **settings)
    return shards


@pytest.fixture
def own_kept(kept: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to change."""
    return shutil.copytree(kept, tmp_path / "own_kept")


def encoding_of(shards: Path) -> str:
    return ShardSet.open(str(shards)).layer(MASKS).encoding


def means_of(shards: Path, layer: str = "refinement") -> npt.NDArray[np.float64]:
    """Return the mean of each map of a shard set, NaN where there is none."""
    opened = ShardSet.open(str(shards))
    rows = [row for n in opened.committed() for image in opened.uncertainty(n, layer) for row in image]
    return np.array([np.nan if row.mean_u is None else row.mean_u for row in rows])


def test_embeddings_are_upstreams_of_the_crops_of_the_masks(kept: Path, problems: Problems) -> None:
    shards, predictor = ShardSet.open(str(kept)), segment_anything.SamPredictor(load_sam().sam)
    crops_seen = set()
    for number, image in shards.walk():
        pixels = decode_image(Path(shards.unit(number).images[image.index].url).read_bytes(), image.key)
        crops = list(dict.fromkeys(map(crop_of, image.masks)))
        assert list(kept_crops(shards, number, image.index)) == crops
        for x0, y0, x1, y1 in crops:
            predictor.set_image(pixels[y0:y1, x0:x1])
            found = read_embedding(shards, number, image.index, (x0, y0, x1, y1))
            assert found is not None
            # the encoder here is not upstream's to the last bit, so that a value may be rounded the other way
            np.testing.assert_allclose(found, predictor.features[0].numpy(), rtol=2**-10, atol=2e-5)
        crops_seen.add(len(crops))
        assert read_embedding(shards, number, image.index, (0, 0, 1, 1)) is None
    assert max(crops_seen) > 1, "this is about crops"
    assert problems(kept) == []


def test_embeddings_kept_later_are_those_of_one_pass(
    kept: Path, photos: Path, label: Label, cropping: AutomaskSettings, tmp_path: Path, snapshot: Snapshot
) -> None:
    settings = {"automask": cropping, "encoding": encoding_of(kept)}
    label(photos, tmp_path / "s", **settings)
    label(photos, tmp_path / "s", keep_embeddings=True, **settings)
    label(photos, tmp_path / "s", keep_logits=True, **settings)
    later, at_once = snapshot(tmp_path / "s"), snapshot(kept)
    assert {name for name, digest in at_once.items() if later.get(name) != digest} <= {"dataset.json"}
    assert label(photos, tmp_path / "s", keep_logits=True, keep_embeddings=True, **settings).units_done == 0


def test_refiner_needs_neither_photos_nor_the_encoder(
    own_photos: Path,
    label: Label,
    cropping: AutomaskSettings,
    refiner: str,
    add_maps: Label,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    label(own_photos, tmp_path / "s", keep_logits=True, keep_embeddings=True, automask=cropping)
    shutil.rmtree(own_photos)
    encoder_calls: list[int] = request.getfixturevalue("encoder_calls")
    for name, layers in (("both", OUTPUTS), ("encoder-only", (EMBEDDINGS,))):
        summary = add_maps(tmp_path / "s", refiner, use_kept=layers, layer_name=name)
        assert (summary.units_done, summary.unknown, summary.errors) == (3, 0, ())
    assert encoder_calls == []
    assert np.abs(means_of(tmp_path / "s", "both") - means_of(tmp_path / "s", "encoder-only")).max() < 0.01


def test_maps_of_kept_layers_are_those_that_the_refiner_makes_of_the_halves(
    own_kept: Path, refiner: str, add_maps: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes into the refiner is what rounding makes of what upstream computes; what comes out is the map."""
    given: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
    original = Refiner.refine

    def spied(self: Refiner, embeddings: Any, index: Any, points: Any, boxes: Any, logits: Any) -> Any:
        r = original(self, embeddings, index, points, boxes, logits)
        given.append((embeddings.numpy(), logits.numpy()))
        return r

    monkeypatch.setattr(Refiner, "refine", spied)
    assert add_maps(own_kept, refiner, use_kept=OUTPUTS).unknown == 0
    assert given
    for embeddings, logits in given:
        np.testing.assert_array_equal(embeddings, embeddings.astype(np.float16))
        np.testing.assert_array_equal(logits, logits.astype(np.float16))


def test_maps_differ_from_those_of_the_run_by_what_rounding_does(
    photos: Path, label: Label, loose: AutomaskSettings, refiner: str, add_maps: Label, tmp_path: Path
) -> None:
    """The same refiner over upstream's embedding, in full and in halves: u may move as far as it does there."""
    label(photos, tmp_path / "s", keep_logits=True, keep_embeddings=True, refiner=refiner)
    add_maps(tmp_path / "s", refiner, use_kept=OUTPUTS, layer_name="kept")
    shards, loaded = ShardSet.open(str(tmp_path / "s")), load_sam()
    predictor, own = segment_anything.SamPredictor(loaded.sam), load_refiner(Path(refiner), loaded)
    bounds = []
    for number, image in shards.walk():
        predictor.set_image(decode_image(Path(shards.unit(number).images[image.index].url).read_bytes(), ""))
        s = torch.from_numpy(np.stack([one for one in read_full_logits(shards, number, image) if one is not None]))
        prompts = [
            (row["point_x"], row["point_y"], row["box_x"], row["box_y"], row["box_x"] + row["box_w"],
             row["box_y"] + row["box_h"])
            for row in image.masks
        ]  # fmt: skip
        coords = predictor.transform.apply_coords(np.array(prompts).reshape(-1, 3, 2), (image.height, image.width))
        at = torch.from_numpy(coords).float()
        index = torch.zeros(len(s), dtype=torch.int64)
        with torch.no_grad():
            of_full, of_halves = (
                own.refine(one, index, at[:, 0], at[:, 1:].reshape(-1, 4), s).sigmoid()
                for one in (predictor.features, predictor.features.half().float())
            )
        bounds += (of_full - of_halves).abs().flatten(1).mean(1).tolist()
    difference = np.abs(means_of(tmp_path / "s", "kept") - means_of(tmp_path / "s"))
    # sigmoid(s) itself is off by 0.224 / 2048 at most; a refiner that gets rounded s answers as slightly differently
    assert difference.max() < 4 * max(bounds) + 4 * 0.224 / 2048


def test_layer_of_maps_names_the_embeddings_that_it_is_of(own_kept: Path, refiner: str, add_maps: Label) -> None:
    encoding = encoding_of(own_kept)
    add_maps(own_kept, refiner, encoding=encoding, use_kept=(LOGITS,))
    with pytest.raises(SettingsDifferError, match=r"(?s)embeddings: there \(not set\), asked for.*--use-kept"):
        add_maps(own_kept, refiner, encoding=encoding, use_kept=OUTPUTS)


def test_photo_that_is_gone_leaves_no_embedding_and_its_masks_unknown(
    own_shards: Path, photos: Path, label: Label, refiner: str, add_maps: Label, problems: Problems,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def gone(image: PhotoFile, *how: Any) -> LoadedPhoto:
        if image.key == "photo2":
            raise InputError("photo2: gone")
        return load_photo(image, *how)

    monkeypatch.setattr("sum_factory.labelgen.read_ahead.load_photo", gone)
    assert label(photos, own_shards, keep_embeddings=True).errors == ("photo2: gone",)
    assert problems(own_shards) == []
    status = CliRunner().invoke(main, ["status", "--shards", str(own_shards)])
    assert "no embeddings of photo2: photo2: gone" in status.output
    summary = add_maps(own_shards, refiner, use_kept=(EMBEDDINGS,), layer_name="without")
    assert summary.errors == ("photo2: gone",)
    assert summary.unknown == sum(len(i.masks) for _, i in ShardSet.open(str(own_shards)).walk() if i.key == "photo2")
    monkeypatch.undo()
    assert add_maps(own_shards, refiner, use_kept=(EMBEDDINGS,), layer_name="with").unknown == 0


def test_layers_go_with_their_masks_and_all_come_again(
    own_kept: Path, kept: Path, photos: Path, label: Label, cropping: AutomaskSettings, snapshot: Snapshot
) -> None:
    shards = ShardSet.open(str(own_kept))
    path = own_kept / shards.data_files(1, MASKS)[0]
    path.write_bytes(path.read_bytes()[:-1])
    diagnosis = diagnose(ShardSet.open(str(own_kept)))
    assert [(one.layer, one.unit) for one in diagnosis.broken] == [(EMBEDDINGS, 1), (LOGITS, 1), (MASKS, 1)]
    take_back(shards.storage, diagnosis.broken)
    label(photos, own_kept, keep_logits=True, keep_embeddings=True, automask=cropping, encoding=encoding_of(kept))
    shutil.rmtree(own_kept / QUARANTINE)
    assert snapshot(own_kept) == snapshot(kept)


def test_damage_is_found_and_never_read(own_kept: Path, refiner: str, add_maps: Label, problems: Problems) -> None:
    shards = ShardSet.open(str(own_kept))
    path = own_kept / shards.data_files(1, EMBEDDINGS)[0]
    row = shards.manifest(1, EMBEDDINGS)[0].to_pylist()[0]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    assert any(f"{path}: " in problem for problem in problems(own_kept))
    with pytest.raises(ShardError, match="fails its checksum"):
        add_maps(own_kept, refiner, use_kept=OUTPUTS)


def test_embeddings_of_other_crops_are_found(
    photos: Path, label: Label, cropping: AutomaskSettings, tmp_path: Path, problems: Problems,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "sum_factory.labelgen.kept.keep_embeddings",
        lambda size, crops, embed: keep_embeddings(size, list(crops)[::-1], embed),
    )
    label(photos, tmp_path / "s", keep_embeddings=True, automask=cropping)
    found = problems(tmp_path / "s")
    assert found
    assert all("are not those of the crops of its masks" in problem for problem in found)


def test_tar_reads_as_documented(photos: Path, label: Label, loose: AutomaskSettings, tmp_path: Path) -> None:
    label(photos, tmp_path / "s", keep_embeddings=True)
    with tarfile.open(tmp_path / "s" / tar_path(EMBEDDINGS, 0)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    meta = json.loads(members["photo0.json"])
    assert "crop_box" not in meta
    assert [len(members["photo0.embeddings"])] == meta["length"]
    assert io.BytesIO(members["photo0.embeddings"]).read(6) == bytes([192, 0, 16, 0, 16, 0])


def test_converted_layers_are_those_that_a_run_makes(
    kept: Path, photos: Path, label: Label, cropping: AutomaskSettings, tmp_path: Path, snapshot: Snapshot
) -> None:
    other = {"tar": "zarr", "zarr": "tar"}[encoding_of(kept)]
    assert convert(str(kept), str(tmp_path / "converted"), other, lambda line: None).problems == ()
    label(photos, tmp_path / "made", keep_logits=True, keep_embeddings=True, automask=cropping, encoding=other)
    converted, made = snapshot(tmp_path / "converted"), snapshot(tmp_path / "made")
    assert converted.keys() == made.keys()
    assert {name for name in made if converted[name] != made[name]} <= {"dataset.json"}


def test_views_leave_out_what_sam_put_out(own_kept: Path, tmp_path: Path) -> None:
    select(str(own_kept), str(tmp_path / "view"), Filter(images=("photo*",)))
    assert {*OUTPUTS}.isdisjoint(open_shards(str(tmp_path / "view")).dataset.layers)
    with pytest.raises(SettingsError, match="cannot offer logits or embeddings"):
        merge([str(own_kept), str(own_kept)], str(tmp_path / "merged"), layers=(LOGITS,))


def test_maps_of_kept_layers_compare_across_shard_sets() -> None:
    ours, theirs = (Layer("uncertainty/a", "tar", {"masks": id, "logits": id}, {}) for id in ("0a", "0b"))
    decoded = Layer("uncertainty/a", "tar", {"masks": "0a"}, {})
    assert comparable(ours) == comparable(theirs)
    assert comparable(ours) != comparable(decoded)


def test_command_keeps_and_uses_all(photos: Path, loose_options: list[str], refiner: str, tmp_path: Path) -> None:
    keep = ["--keep-photos", "--keep-logits", "--keep-embeddings"]
    arguments = ["--shards", str(tmp_path / "s")]
    run = CliRunner().invoke(main, ["run", "--images", str(photos), *arguments, *keep, *loose_options])
    assert run.exit_code == 0, run.output
    use = ["--use-kept", "logits", "--use-kept", "embeddings", "--device", "cpu"]
    maps = CliRunner().invoke(main, ["uncertainty", *arguments, "--refiner", refiner, *use])
    assert maps.exit_code == 0, maps.output
    status = CliRunner().invoke(main, ["status", *arguments])
    assert "layer embeddings (tar): 3 of 3 units, 6 images, 6 embeddings, 0 errors" in status.output
    assert (tmp_path / "s" / manifest_path(EMBEDDINGS, 2)).exists()
