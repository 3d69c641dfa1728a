"""Maps of a shard set are read at random; damaged ones, or such of other masks, are never given out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sum_factory.labelgen import plan
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Problems = Callable[[Path], list[str]]
Refined = tuple[Path, RunSummary]

TAR, MANIFEST = "uncertainty/refinement/000001.tar", "manifest/uncertainty/refinement/000001.parquet"


def test_chosen_maps_are_read_alone_and_in_the_order_asked(refined: Refined) -> None:
    shards = ShardSet.open(str(refined[0]))
    assert shards.uncertainty_layers == ("refinement",)
    number, images = 1, shards.images(1)
    rows = shards.uncertainty(number, "refinement")
    assert [len(of_image) for of_image in rows] == [len(image.masks) for image in images]
    of_image = max(rows, key=len)
    whole = shards.read_uncertainty(number, of_image, "refinement")
    picked = [of_image[-1], of_image[0]]
    for one, expected in zip(shards.read_uncertainty(number, picked, "refinement"), (whole[-1], whole[0]), strict=True):
        np.testing.assert_array_equal(one.u, expected.u)
        np.testing.assert_array_equal(one.refined, expected.refined)
    alone = shards.read_uncertainty(number, picked, "refinement", refined=False)
    np.testing.assert_array_equal(alone[0].u, whole[-1].u)
    assert [one.refined for one in alone] == [None, None]
    assert shards.read_uncertainty(number, [], "refinement") == []


def test_blobs_that_lie_far_apart_are_read_one_by_one(refined: Refined, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet.open(str(refined[0]))
    rows = [row for of_image in shards.uncertainty(0) for row in of_image]
    expected = shards.read_uncertainty(0, rows)
    monkeypatch.setattr("sum_factory.shared.shards.reader.LARGEST_SPAN", 1)
    for one, other in zip(shards.read_uncertainty(0, rows), expected, strict=True):
        np.testing.assert_array_equal(one.u, other.u)


def test_layer_that_is_not_there_is_named(refined: Refined, finished: Refined) -> None:
    with pytest.raises(ShardError, match=r"no layer 'uncertainty/other'; there are masks, uncertainty/refinement"):
        ShardSet.open(str(refined[0])).layer("uncertainty/other")
    with pytest.raises(ShardError, match=r"uncertainty/refinement/000000\.parquet: missing"):
        ShardSet.open(str(finished[0])).uncertainty(0)


def test_damaged_blob_is_not_given_out(own_refined: Path) -> None:
    shards = ShardSet.open(str(own_refined))
    rows = max(shards.uncertainty(1), key=len)
    data = bytearray((own_refined / TAR).read_bytes())
    places = shards.reader("uncertainty/refinement").rows(1)
    data[int(places["offset"][rows[0].row] + places["length"][rows[0].row]) - 1] ^= 1
    (own_refined / TAR).write_bytes(data)
    with pytest.raises(ShardError, match=r"refinement/000001\.tar: the blob at byte \d+ fails its checksum"):
        shards.read_uncertainty(1, rows)
    (own_refined / TAR).unlink()
    with pytest.raises(ShardError, match=r"refinement/000001\.tar: missing"):
        shards.read_uncertainty(1, rows)


def test_maps_of_masks_that_were_made_anew_and_differ_are_not_given_out(
    own_refined: Path, own_photos: Path, label: Label, refiner: str, problems: Problems,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    prepare = plan.prepare

    def prepare_and_change(*args: Any, **kwargs: Any) -> Any:
        planned = prepare(*args, **kwargs)
        (own_photos / "photo4.png").write_bytes(b"")
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_change)
    (own_refined / "manifest/masks/000001.parquet").unlink()
    assert len(label(own_photos, own_refined).errors) == 1
    with pytest.raises(ShardError, match=r"refinement/000001\.parquet: its maps are of other masks"):
        ShardSet.open(str(own_refined)).uncertainty(1)
    (problem,) = problems(own_refined)
    assert (
        f"{own_refined}/{MANIFEST}: its maps are of other masks than those that are there; `labelgen repair`" in problem
    )
