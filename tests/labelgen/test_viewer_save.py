"""What is saved on the page is the selection that `labelgen select` makes, less what was rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.labelgen.viewer.catalog import Catalog
from sum_factory.labelgen.viewer.save import Wanted, save
from sum_factory.shared.errors import SettingsError, ShardError
from sum_factory.shared.shards.selection.opened import Selection, open_shards
from sum_factory.shared.shards.shard_set import ShardSet

Refined = tuple[Path, RunSummary]


def saved(shards: Path, out: Path, layer: str | None = "refinement", **wanted: Any) -> Selection:
    """Save, and return the selection as every command reads it."""
    catalog = Catalog(lambda: open_shards(str(shards)), layer)
    summary = save(catalog, Wanted.model_validate({"out": str(out), **wanted}))
    selection = open_shards(str(out))
    assert isinstance(selection, Selection)
    assert summary.masks == sum(len(image.masks) for _, image in selection.walk())
    return selection


def masks_of(shards: ShardSet) -> list[tuple[str, float, bytes]]:
    return [
        (image.key, row["stability"], blob)
        for number, image in shards.walk()
        for row, blob in zip(image.masks, shards.label_blobs(number, image), strict=True)
    ]


def median(shards: Path, column: str) -> float:
    return float(np.median([row[column] for _, image in ShardSet.open(str(shards)).walk() for row in image.masks]))


@pytest.mark.parametrize(
    ("conditions", "options"),
    [
        ({}, {}),
        ({"patterns": ["sub/*", "photo0"]}, {"images": ("sub/*", "photo0")}),
        ({"stability": ["stability", None]}, {"min_stability": "stability"}),
        ({"area": ["area", 1000]}, {"min_area": "area", "max_area": 1000}),
        ({"mean_u": [None, 0.1], "layer": "refinement"}, {"max_mean_u": 0.1}),
    ],
)
def test_saved_is_what_select_makes(
    refined: Refined, tmp_path: Path, conditions: dict[str, Any], options: dict[str, Any]
) -> None:
    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [told(each) for each in value]
        found = median(refined[0], value) if value in ("stability", "area") else value
        return int(found) if value == "area" else found

    bounds = {name: told(value) for name, value in conditions.items()}
    filter = Filter(**{name: told(value) for name, value in options.items()})
    select(str(refined[0]), str(tmp_path / "theirs"), filter)
    ours, theirs = saved(refined[0], tmp_path / "ours", conditions=bounds), open_shards(str(tmp_path / "theirs"))
    assert isinstance(theirs, Selection)
    assert ours.plan.id == theirs.plan.id
    assert masks_of(ours) == masks_of(theirs)


def test_what_is_rejected_is_left_out(refined: Refined, tmp_path: Path) -> None:
    whole = ShardSet.open(str(refined[0]))
    (first, image), (second, other) = next((n, i) for n, i in whole.walk() if len(i.masks) > 1), list(whole.walk())[-1]
    left_out = [first, image.index, 1]
    ours = saved(refined[0], tmp_path / "ours", rejected=[[second, other.index]], rejected_masks=[left_out])
    expected = [mask for mask in masks_of(whole) if mask[0] != other.key]
    expected.remove((image.key, image.masks[1]["stability"], whole.label_blobs(first, image)[1]))
    assert masks_of(ours) == expected
    assert ours.plan.filter == {"rejected": 1, "rejected_masks": 1}


def test_picked_photos_alone_are_taken(refined: Refined, tmp_path: Path) -> None:
    whole = list(ShardSet.open(str(refined[0])).walk())
    picked = [whole[1], whole[4]]
    ours = saved(refined[0], tmp_path / "ours", picked=[[number, image.index] for number, image in picked])
    assert [(image.key, len(image.masks)) for _, image in ours.walk()] == [(i.key, len(i.masks)) for _, i in picked]


def test_a_selection_can_be_chosen_from_again(refined: Refined, tmp_path: Path) -> None:
    bound = median(refined[0], "stability")
    saved(refined[0], tmp_path / "first", conditions={"patterns": ["sub/*"]})
    twice = saved(tmp_path / "first", tmp_path / "second", conditions={"stability": [bound, None]})
    at_once = saved(refined[0], tmp_path / "once", conditions={"stability": [bound, None], "patterns": ["sub/*"]})
    assert masks_of(twice) == masks_of(at_once)


def test_nothing_chosen_or_no_maps_is_refused(own_refined: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nothing passes the filter"):
        saved(own_refined, tmp_path / "none", conditions={"area": [1e9, None]})
    (own_refined / "manifest/uncertainty/refinement/000001.parquet").unlink()
    with pytest.raises(ShardError, match="unit 1 has no maps in uncertainty/refinement yet"):
        saved(own_refined, tmp_path / "none", conditions={"mean_u": [None, 0.5], "layer": "refinement"})
    with pytest.raises(SettingsError, match="unit 0 has no mask 999 of image 0"):
        saved(own_refined, tmp_path / "none", rejected_masks=[[0, 0, 999]])
    assert not (tmp_path / "none").exists()


def test_photos_without_masks_are_kept_as_select_keeps_them(
    own_photos: Path, label: Callable[..., RunSummary], tmp_path: Path
) -> None:
    (own_photos / "photo2.jpg").write_bytes(b"no photo")
    label(own_photos, tmp_path / "shards")
    select(str(tmp_path / "shards"), str(tmp_path / "theirs"), Filter(images=("photo*",)))
    ours = saved(tmp_path / "shards", tmp_path / "ours", None, conditions={"patterns": ["photo*"]})
    theirs = open_shards(str(tmp_path / "theirs"))
    assert isinstance(theirs, Selection)
    assert ours.plan.id == theirs.plan.id
    assert "photo2" in {image.key for _, image in ours.walk()}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", "Invalid JSON"),
        (b'{"out": " "}', "no folder is named"),
        (b'{"out": "x", "odd": 1}', "odd: Extra inputs"),
        (b'{"out": "x", "conditions": {"area": [1]}}', "conditions.area"),
    ],
)
def test_what_is_no_wish_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        Wanted.parse(data)
