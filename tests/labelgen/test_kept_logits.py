"""``labelgen run --keep-logits`` stores what SAM said of each mask, and maps of uncertainty are made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from click.testing import CliRunner
from scipy.special import entr, expit

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.repair import QUARANTINE, diagnose, take_back
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.logits import encode_logits
from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.images import decode_image
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.shared.shards.dataset import DATASET, LOGITS
from sum_factory.shared.shards.encodings.tar_layer import tar_path
from sum_factory.shared.shards.manifest import manifest_path, write_manifest
from sum_factory.shared.shards.sam_outputs import read_full_logits
from sum_factory.shared.shards.shard_set import MASKS, ImageRows, ShardSet
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Problems = Callable[[Path], list[str]]
Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def kept(photos: Path, label: Label, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set of a run that kept the logits, which no test may change."""
    shards = tmp_path_factory.mktemp("kept") / "shards"
    label(photos, shards, keep_logits=True)
    return shards


@pytest.fixture
def own_kept(kept: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to change."""
    return shutil.copytree(kept, tmp_path / "own_kept")


def labels_again(photos: Path, settings: AutomaskSettings, image: PhotoFile) -> GeneratedMasks:
    """Label an image as a run does, but for its file of the shard set."""
    generator = LabelGenerator(move_to_device(load_sam().sam, Runtime("cpu")), settings)
    return generator.label(decode_image(Path(image.url).read_bytes(), image.key))


def test_logits_are_those_of_the_masks_as_half_floats_padding_included(
    kept: Path, photos: Path, loose: AutomaskSettings
) -> None:
    shards = ShardSet.open(str(kept))
    for number, image in shards.walk():
        labels = labels_again(photos, loose, shards.unit(number).images[image.index])
        found = read_full_logits(shards, number, image)
        assert len(found) == len(labels) > 0
        for k, logits in enumerate(found):
            assert logits is not None
            np.testing.assert_array_equal(logits, labels.logits[k].astype(np.float16).astype(np.float32))
            label = decode_label(shards.label_blobs(number, image)[k])
            np.testing.assert_array_equal(logits[: label.shape[0], : label.shape[1]] > 0, label > 0)


def test_zarr_holds_the_same_logits_and_gives_the_same_maps(
    own_kept: Path, photos: Path, label: Label, add_maps: Label, tmp_path: Path, problems: Problems
) -> None:
    label(photos, tmp_path / "zarr", keep_logits=True, encoding="zarr")
    tars, arrays = ShardSet.open(str(own_kept)), ShardSet.open(str(tmp_path / "zarr"))
    for number, image in tars.walk():
        picked = range(image.first, image.first + len(image.masks))
        assert tars.reader(LOGITS).blobs(number, picked) == arrays.reader(LOGITS).blobs(number, picked)
    for shards in (own_kept, tmp_path / "zarr"):
        add_maps(shards, source="entropy", use_kept=(LOGITS,))
    np.testing.assert_array_equal(means_of(own_kept, "entropy"), means_of(tmp_path / "zarr", "entropy"))
    assert problems(tmp_path / "zarr") == []


def test_logits_of_cleaned_masks_agree_with_their_labels(
    photos: Path, label: Label, loose: AutomaskSettings, tmp_path: Path, problems: Problems
) -> None:
    cleaning = replace(loose, min_mask_region_area=60)
    label(photos, tmp_path / "s", keep_logits=True, automask=cleaning)
    shards, edited = ShardSet.open(str(tmp_path / "s")), 0
    for number, image in shards.walk():
        edited += len(labels_again(photos, cleaning, shards.unit(number).images[image.index]).cleaned)
        for logits, data in zip(
            read_full_logits(shards, number, image), shards.label_blobs(number, image), strict=True
        ):
            expected = decode_label(data)
            assert logits is not None
            np.testing.assert_array_equal(logits[: expected.shape[0], : expected.shape[1]] > 0, expected > 0)
    assert edited > 0, "this is about masks that a clean-up edits"
    assert problems(tmp_path / "s") == []


def test_logits_kept_later_are_those_of_one_pass(
    own_shards: Path, photos: Path, kept: Path, label: Label, snapshot: Snapshot, problems: Problems
) -> None:
    label(photos, own_shards, keep_logits=True)
    assert snapshot(own_shards) == snapshot(kept)
    assert problems(own_shards) == []


def test_maps_of_one_pass_do_not_depend_on_what_is_kept(
    photos: Path, label: Label, refiner: str, refined: tuple[Path, RunSummary], tmp_path: Path, snapshot: Snapshot
) -> None:
    label(photos, tmp_path / "both", keep_logits=True, refiner=refiner)
    both, alone = snapshot(tmp_path / "both"), snapshot(refined[0])
    assert {name for name in alone if "refinement" in name}
    assert {name: both[name] for name in alone if name != DATASET} == {
        name: digest for name, digest in alone.items() if name != DATASET
    }


def naive_maps(
    shards: ShardSet, number: int, image: ImageRows, refiner: str, logits: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return |sigmoid(s) - sigmoid(r)| of an image's masks from s (K, S, S), (K, S, S), with upstream's modules."""
    loaded = load_sam()
    predictor = segment_anything.SamPredictor(loaded.sam)
    predictor.set_image(decode_image(Path(shards.unit(number).images[image.index].url).read_bytes(), ""))
    own = load_refiner(Path(refiner), loaded)
    maps = []
    for row, s in zip(image.masks, torch.from_numpy(logits), strict=True):
        size = (image.height, image.width)
        point = np.array([[row["point_x"], row["point_y"]]], np.float64)
        box = np.array([[row["box_x"], row["box_y"], row["box_x"] + row["box_w"], row["box_y"] + row["box_h"]]])
        coords = torch.from_numpy(predictor.transform.apply_coords(point, size)).float()[None]
        corners = torch.from_numpy(predictor.transform.apply_boxes(box, size)).float()
        with torch.no_grad():
            sparse, dense = own.prompt_encoder(
                points=(coords, torch.ones(1, 1, dtype=torch.int)), boxes=corners, masks=s[None, None]
            )
            r, _ = own.mask_decoder(
                image_embeddings=predictor.features,
                image_pe=own.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        maps.append((s.double().sigmoid() - r[0, 0].double().sigmoid()).abs().numpy())
    return np.stack(maps)


def test_refined_maps_are_those_of_the_kept_logits(own_kept: Path, refiner: str, add_maps: Label) -> None:
    """The refiner sees the halves, padding included, and nothing else of the mask: against upstream's modules."""
    assert add_maps(own_kept, refiner, use_kept=(LOGITS,)).unknown == 0
    shards = ShardSet.open(str(own_kept))
    for number, image in shards.walk():
        logits = np.stack([one for one in read_full_logits(shards, number, image) if one is not None])
        expected = naive_maps(shards, number, image, refiner, logits)
        rows = shards.uncertainty(number)[image.index]
        for k, (row, found) in enumerate(zip(rows, shards.read_uncertainty(number, rows), strict=True)):
            assert found is not None
            height, width = found.u.shape
            np.testing.assert_allclose(found.u, expected[k, :height, :width], atol=0.02 + 1e-4)
            height, width = image.frame(k, shards.input_side).photo_cells
            assert row.mean_u == pytest.approx(expected[k, :height, :width].mean(), abs=1e-5)


def means_of(shards: Path, layer: str) -> npt.NDArray[np.float64]:
    """Return the mean of each map of a shard set, NaN where there is none."""
    opened = ShardSet.open(str(shards))
    rows = [row for n in opened.committed() for image in opened.uncertainty(n, layer) for row in image]
    return np.array([np.nan if row.mean_u is None else row.mean_u for row in rows])


@pytest.mark.parametrize("source", ["confidence", "entropy"])
def test_maps_of_kept_logits_are_those_of_logits_in_full_but_for_the_rounding(
    own_kept: Path, photos: Path, loose: AutomaskSettings, add_maps: Label, source: str
) -> None:
    """Of s off by |s| / 2048 at most: sigmoid'(s) |s| is below 0.224, and that of the entropy in bits below 0.637."""
    steepest = {"confidence": 2 * 0.224, "entropy": 0.637}[source]
    s = np.linspace(-60, 60, 1_200_001)
    p = 1 / (1 + np.exp(-s))
    slope = {"confidence": 2 * p * (1 - p), "entropy": np.abs(s) / np.log(2) * p * (1 - p)}[source]
    assert 0.99 * steepest < (slope * np.abs(s)).max() < steepest
    add_maps(own_kept, source=source, use_kept=(LOGITS,))
    shards, expected = ShardSet.open(str(own_kept)), []
    for number, image in shards.walk():
        labels = labels_again(photos, loose, shards.unit(number).images[image.index])
        for logits, frame in zip(labels.logits.astype(np.float64), labels.frames, strict=True):
            height, width = frame.photo_cells
            p, q = expit(logits[:height, :width]), expit(-logits[:height, :width])
            bits = (entr(p) + entr(q)) / np.log(2)
            expected.append((1 - np.abs(2 * p - 1) if source == "confidence" else bits).mean())
    np.testing.assert_allclose(means_of(own_kept, source), expected, atol=steepest / 2048 + 1e-6)


def test_maps_without_a_refiner_need_neither_photos_nor_the_encoder(
    own_photos: Path, label: Label, add_maps: Label, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    label(own_photos, tmp_path / "s", keep_logits=True)
    shutil.rmtree(own_photos)
    encoder_calls: list[int] = request.getfixturevalue("encoder_calls")
    for source in ("confidence", "entropy"):
        summary = add_maps(tmp_path / "s", source=source, use_kept=(LOGITS,))
        assert (summary.unknown, summary.errors) == (0, ())
    assert encoder_calls == []


def test_layer_of_maps_names_the_logits_that_it_is_of(
    own_shards: Path, photos: Path, label: Label, add_maps: Label
) -> None:
    add_maps(own_shards, source="entropy")
    label(photos, own_shards, keep_logits=True)
    assert add_maps(own_shards, source="entropy").units_done == 0
    with pytest.raises(SettingsDifferError, match=r"(?s)logits: there \(not set\), asked for.*--use-kept"):
        add_maps(own_shards, source="entropy", use_kept=(LOGITS,))
    add_maps(own_shards, source="entropy", use_kept=(LOGITS,), layer_name="of-kept")
    assert add_maps(own_shards, source="entropy", use_kept=(LOGITS,), layer_name="of-kept").units_done == 0


def test_layer_that_is_not_there_cannot_be_used(own_shards: Path, add_maps: Label) -> None:
    with pytest.raises(ShardError, match=r"own_shards: no layer logits .*labelgen run` with --keep-logits"):
        add_maps(own_shards, source="entropy", use_kept=(LOGITS,))


def test_mask_that_does_not_come_out_again_has_no_logits_and_is_decoded_again(
    own_shards: Path, photos: Path, label: Label, add_maps: Label, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ShardSet.label_blobs
    monkeypatch.setattr(
        ShardSet, "label_blobs", lambda self, number, image: [b"another", *original(self, number, image)[1:]]
    )
    label(photos, own_shards, keep_logits=True)
    monkeypatch.undo()
    assert problems(own_shards) == []
    records = [ShardSet.open(str(own_shards)).manifest(n, LOGITS)[1] for n in range(3)]
    assert sum(record.unknown for record in records) == 6
    assert add_maps(own_shards, source="entropy", use_kept=(LOGITS,)).unknown < 6
    gone = shutil.copytree(own_shards, own_shards.parent / "gone")
    monkeypatch.setattr("sum_factory.shared.shards.originals.digest", lambda data: "changed")
    summary = add_maps(gone, source="entropy", use_kept=(LOGITS,), layer_name="without-photos")
    assert (summary.unknown, len(summary.errors)) == (6, 6)
    assert problems(gone) == []


def test_photo_that_is_gone_leaves_its_logits_unknown(
    own_shards: Path, photos: Path, label: Label, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.shared.shards.originals.digest", lambda data: "changed")
    assert len(label(photos, own_shards, keep_logits=True).errors) == 6
    assert problems(own_shards) == []
    records = [ShardSet.open(str(own_shards)).manifest(n, LOGITS)[1] for n in range(3)]
    assert all(record.unknown == record.masks > 0 for record in records)


def test_unit_without_logits_is_refused(own_kept: Path, add_maps: Label) -> None:
    (own_kept / manifest_path(LOGITS, 1)).unlink()
    with pytest.raises(ShardError, match=r"manifest/logits/000001.parquet: missing.*--keep-logits"):
        add_maps(own_kept, source="entropy", use_kept=(LOGITS,))


def test_logits_of_other_masks_are_found_and_not_given_out(own_kept: Path, problems: Problems) -> None:
    opened = ShardSet.open(str(own_kept))
    manifest = (own_kept / manifest_path(MASKS, 0)).read_bytes()
    (own_kept / manifest_path(MASKS, 0)).unlink()
    assert any(f"{manifest_path(MASKS, 0)}: missing" in problem for problem in problems(own_kept))
    (own_kept / manifest_path(MASKS, 0)).write_bytes(manifest)
    table, record = ShardSet.open(str(own_kept)).manifest(0, LOGITS)
    forged = write_manifest(table.replace_schema_metadata(None), replace(record, masks_sha256="0" * 64))
    opened.storage.write(manifest_path(LOGITS, 0), forged)
    assert any(manifest_path(LOGITS, 0) in problem for problem in problems(own_kept))
    with pytest.raises(ShardError, match="of other masks"):
        ShardSet.open(str(own_kept)).reader(LOGITS).rows(0)


def test_logits_that_do_not_agree_with_the_label_are_found(
    photos: Path, label: Label, tmp_path: Path, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.labelgen.kept.encode_logits", lambda logits: encode_logits(-logits))
    label(photos, tmp_path / "s", keep_logits=True)
    assert all("logits/00000" in p and "its logits and its label do not agree" in p for p in problems(tmp_path / "s"))
    assert len(problems(tmp_path / "s")) == 3


def test_logits_go_with_their_masks_and_both_come_again(
    own_kept: Path, kept: Path, photos: Path, label: Label, snapshot: Snapshot, problems: Problems
) -> None:
    path = own_kept / tar_path(MASKS, 1)
    path.write_bytes(path.read_bytes()[:-1024])
    shards = ShardSet.open(str(own_kept))
    diagnosis = diagnose(shards)
    assert [(one.layer, one.unit) for one in diagnosis.broken] == [(LOGITS, 1), (MASKS, 1)]
    assert diagnosis.commands() == "`labelgen run`"
    take_back(shards.storage, diagnosis.broken)
    label(photos, own_kept, keep_logits=True)
    shutil.rmtree(own_kept / QUARANTINE)
    assert snapshot(own_kept) == snapshot(kept)
    assert problems(own_kept) == []


def test_logits_alone_are_taken_back_and_come_again(
    own_kept: Path, kept: Path, photos: Path, label: Label, snapshot: Snapshot
) -> None:
    (own_kept / tar_path(LOGITS, 2)).unlink()
    shards = ShardSet.open(str(own_kept))
    diagnosis = diagnose(shards)
    assert [(one.layer, one.unit) for one in diagnosis.broken] == [(LOGITS, 2)]
    take_back(shards.storage, diagnosis.broken)
    label(photos, own_kept, keep_logits=True)
    shutil.rmtree(own_kept / QUARANTINE)
    assert snapshot(own_kept) == snapshot(kept)


@pytest.mark.parametrize("fail_at", [MASKS, LOGITS])
def test_run_that_died_between_layers_ends_with_the_same_bytes(
    photos: Path,
    label: Label,
    kept: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
    fail_at: str,
) -> None:
    create = Storage.create

    def die(self: Storage, name: str, data: bytes) -> bool:
        if name == manifest_path(fail_at, 1):
            raise KeyboardInterrupt
        return create(self, name, data)

    monkeypatch.setattr(Storage, "create", die)
    with pytest.raises(KeyboardInterrupt):
        label(photos, tmp_path / "s", keep_logits=True)
    monkeypatch.undo()
    label(photos, tmp_path / "s", keep_logits=True)
    assert snapshot(tmp_path / "s") == snapshot(kept)


def test_unlisted_logits_are_named(own_kept: Path, problems: Problems) -> None:
    dataset = ShardSet.open(str(own_kept)).dataset
    (own_kept / DATASET).write_bytes(replace(dataset, layers={MASKS: dataset.layers[MASKS]}).to_json())
    assert any(f"{own_kept}/manifest/logits: a layer that" in problem for problem in problems(own_kept))


def test_left_over_logits_are_removed(own_kept: Path) -> None:
    (own_kept / manifest_path(LOGITS, 0)).unlink()
    arguments = ["gc", "--shards", str(own_kept), "--older-than", "0"]
    assert f"removed {tar_path(LOGITS, 0)}" in CliRunner().invoke(main, arguments).output
    assert not (own_kept / tar_path(LOGITS, 0)).exists()


def test_damage_is_found(own_kept: Path, problems: Problems) -> None:
    path = own_kept / tar_path(LOGITS, 1)
    whole = path.read_bytes()
    for at in range(1, len(whole), len(whole) // 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        assert any(f"{path}: " in problem for problem in problems(own_kept))
        path.write_bytes(whole[:at])
        assert any(f"{path}: " in problem for problem in problems(own_kept))


def test_command_keeps_logits_and_photos(photos: Path, loose_options: list[str], tmp_path: Path, kept: Path) -> None:
    arguments = ["run", "--images", str(photos), "--shards", str(tmp_path / "s"), "--keep-photos", "--keep-logits"]
    result = CliRunner().invoke(main, [*arguments, *loose_options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s" / tar_path(LOGITS, 2)).read_bytes() == (kept / tar_path(LOGITS, 2)).read_bytes()
    status = CliRunner().invoke(main, ["status", "--shards", str(tmp_path / "s")])
    assert "layer logits (tar): 3 of 3 units" in status.output
