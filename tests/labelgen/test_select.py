"""A selection has exactly the masks that pass its filter, and copies no data."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from chosen import MAPS, Finished, image_of, labelgen, median_of, problems, rows_of, seen
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.commands import FAILED
from sum_factory.shared.errors import InputError, ShardError
from sum_factory.shared.shards.dataset import DATASET
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.store.storage import Storage


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "selection"


def test_selection_has_the_masks_that_pass_and_no_other(refined: Finished, out: Path) -> None:
    least = median_of(refined[0], "stability")
    summary = select(str(refined[0]), str(out), Filter(min_stability=least, min_area=20))
    passing = [row for row in rows_of(refined[0]) if row["stability"] >= least and row["area"] >= 20]
    selection = open_shards(str(out))
    assert 0 < len(passing) < refined[1].masks
    assert summary.masks == len(passing)
    assert [mask[:3] for mask in seen(selection)] == [(r["image"], r["stability"], r["predicted_iou"]) for r in passing]
    assert set(seen(selection)) < set(seen(ShardSet.open(str(refined[0]))))
    assert {image.key for _, image in selection.walk()} == {row["image"] for row in passing}
    assert selection.dataset.image_count == summary.images == len({row["image"] for row in passing})


def test_selection_is_small_and_copies_no_data(refined: Finished, out: Path) -> None:
    select(str(refined[0]), str(out), Filter(min_stability=median_of(refined[0], "stability")))
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith("rows/")} == {DATASET}
    rows = pq.read_table(out / "rows" / "000000.parquet")
    assert rows.schema.names == ["image_index", "mask"]


def test_maps_and_masks_of_a_selection_stay_together(refined: Finished, out: Path) -> None:
    most = median_of(refined[0], "mean_u", MAPS)
    select(str(refined[0]), str(out), Filter(max_mean_u=most))
    selection, whole = open_shards(str(out)), ShardSet.open(str(refined[0]))
    compared = 0
    for number, image in selection.walk():
        there, original = image_of(whole, image.key)
        all_rows = whole.uncertainty(there)[original.index]
        rows = selection.uncertainty(number)[image.index]
        assert [row.mask for row in rows] == list(range(len(image.masks)))
        assert all(row.mean_u is not None and row.mean_u <= np.float32(most) for row in rows)
        wanted = [row for row in all_rows if row.mean_u is not None and row.mean_u <= np.float32(most)]
        assert [row.mean_u for row in rows] == [row.mean_u for row in wanted]
        for ours, theirs in zip(
            selection.read_uncertainty(number, rows), whole.read_uncertainty(there, wanted), strict=True
        ):
            assert ours is not None
            assert theirs is not None
            np.testing.assert_array_equal(ours.u, theirs.u)
            assert ours.refined is not None
            assert theirs.refined is not None
            np.testing.assert_array_equal(ours.refined, theirs.refined)
        picked = [row.mask for row in wanted]
        for ours, theirs in zip(
            selection.read_label_logits(number, image, range(len(rows))),
            whole.read_label_logits(there, original, picked),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
            compared += 1
    assert 0 < compared < refined[1].masks


def test_images_are_chosen_by_patterns_and_by_a_list(finished: Finished, out: Path, tmp_path: Path) -> None:
    select(str(finished[0]), str(out), Filter(images=("sub/*", "photo0")))
    assert {image.key for _, image in open_shards(str(out)).walk()} == {
        "photo0", "sub/photo1", "sub/photo3", "sub/photo5",
    }  # fmt: skip
    keys = tmp_path / "keys.txt"
    keys.write_text("photo0\nsub/photo3\n")
    select(str(finished[0]), str(tmp_path / "listed"), Filter(image_list=keys, images=("sub/*",)))
    assert [image.key for _, image in open_shards(str(tmp_path / "listed")).walk()] == ["sub/photo3"]


def test_key_that_no_image_has_is_named_and_nothing_is_written(finished: Finished, out: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("photo0\nphoto77\n")
    with pytest.raises(InputError, match=r"keys\.txt: 1 of its keys are not in .*'photo77'"):
        select(str(finished[0]), str(out), Filter(image_list=keys))
    assert not out.exists()


def test_mask_without_a_map_is_not_certain(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], add_maps: Callable[..., RunSummary], out: Path
) -> None:
    shards = tmp_path / "shards"
    label(own_photos, shards)
    (own_photos / "photo0.jpg").unlink()
    add_maps(shards, source="entropy")
    select(str(shards), str(out), Filter(max_mean_u=1.0, layer="entropy"))
    assert "photo0" in {image.key for _, image in ShardSet.open(str(shards)).walk()}
    assert "photo0" not in {image.key for _, image in open_shards(str(out)).walk()}


def test_half_made_layer_is_not_filtered_on(own_refined: Path, out: Path) -> None:
    (own_refined / "manifest" / MAPS / "000001.parquet").unlink()
    with pytest.raises(ShardError, match=r"unit 1 has no maps in uncertainty/refinement yet"):
        select(str(own_refined), str(out), Filter(max_mean_u=0.5))


def test_filter_that_nothing_passes_is_refused(finished: Finished, out: Path) -> None:
    with pytest.raises(ShardError, match="nothing passes the filter"):
        select(str(finished[0]), str(out), Filter(min_area=10**9))
    assert not out.exists()


def test_same_filter_again_does_nothing_and_another_is_refused(
    finished: Finished, out: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    least = median_of(finished[0], "stability")
    assert select(str(finished[0]), str(out), Filter(min_stability=least)).written
    before = snapshot(out)
    assert not select(str(finished[0]), str(out), Filter(min_stability=least)).written
    with pytest.raises(ShardError, match=r"(?s)another selection.*min_stability.*--out"):
        select(str(finished[0]), str(out), Filter(images=("sub/*",)))
    assert snapshot(out) == before


def test_of_two_at_once_the_second_is_refused_and_the_first_is_whole(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the other selection never take the place of those that ``dataset.json`` names."""
    bounds = [median_of(finished[0], column) for column in ("stability", "predicted_iou")]
    filters = [Filter(min_stability=bounds[0]), Filter(min_predicted_iou=bounds[1])]
    writing, created = threading.Event(), threading.Event()
    write, create = Storage.write, Storage.create

    def late(self: Storage, name: str, data: bytes) -> None:
        if threading.current_thread().name == "second":  # it found no selection, and writes when there is one
            writing.set()
            created.wait(5)
        write(self, name, data)

    def slow(self: Storage, name: str, data: bytes) -> bool:
        if threading.current_thread().name == "first":
            writing.wait(1)
        done = create(self, name, data)
        created.set()
        return done

    monkeypatch.setattr(Storage, "write", late)
    monkeypatch.setattr(Storage, "create", slow)
    refused = []

    def run(chosen: Filter) -> None:
        try:
            select(str(finished[0]), str(out), chosen)
        except ShardError as error:
            refused.append(str(error))

    names = ("first", "second")
    threads = [threading.Thread(target=run, args=(f,), name=name) for f, name in zip(filters, names, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["is another selection" in message for message in refused] == [True]
    assert problems(out) == []


def test_selection_into_a_shard_set_is_refused(own_shards: Path, finished: Finished) -> None:
    with pytest.raises(ShardError, match="is a shard set; give another --out"):
        select(str(finished[0]), str(own_shards), Filter(images=("sub/*",)))


def test_filter_is_evaluated_once(own_refined: Path, out: Path) -> None:
    """Units that are labelled later are not in a selection: it is what it was."""
    manifest = own_refined / "manifest" / MASKS / "000002.parquet"
    kept = manifest.read_bytes()
    manifest.unlink()
    select(str(own_refined), str(out), Filter(min_area=1))
    before = seen(open_shards(str(out)))
    manifest.write_bytes(kept)
    assert seen(open_shards(str(out))) == before
    assert len(before) < len(seen(ShardSet.open(str(own_refined))))


def test_nothing_is_labelled_into_a_selection(
    refined: Finished, photos: Path, out: Path, loose_options: list[str]
) -> None:
    select(str(refined[0]), str(out), Filter(images=("sub/*",)))
    for command in (
        ("run", "--images", str(photos), *loose_options),
        ("uncertainty", "--source", "entropy", "--device", "cpu"),
    ):
        refused = labelgen(command[0], "--shards", str(out), *command[1:])
        assert refused.exit_code == FAILED
        assert "of a selection, which nothing is written into" in refused.output


def test_layer_that_nothing_asks_is_refused(refined: Finished, out: Path) -> None:
    refused = labelgen("select", "--shards", str(refined[0]), "--out", str(out), "--layer", "refinement")
    assert refused.exit_code == FAILED
    assert "give --max-mean-u too" in refused.output
