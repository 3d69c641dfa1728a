"""A run that is killed, overtaken or doubled: what it leaves is sound, and the same command makes the same bytes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sum_factory.labelgen import plan
from sum_factory.labelgen.labeler import Labeler
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.storage import TEMPORARY_PREFIX, Storage

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Finished = tuple[Path, RunSummary]


def without_temporaries(files: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if not Path(name).name.startswith(TEMPORARY_PREFIX)}


def problems(shards: Path) -> list[str]:
    return [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems]


KILLED = """
import os, signal
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def at(owner, name, due, when="before"):
    original = getattr(owner, name)
    def replacement(*args, **kwargs):
        if due(args) and when == "before":
            die()
        result = original(*args, **kwargs)
        if due(args) and when == "after":
            die()
        return result
    setattr(owner, name, replacement)

def written(*ends):
    return lambda args: any(str(arg).endswith(ends) for arg in args)

def committed(layer):
    return lambda args: (args[0].layer.name, args[0].unit.number) == (layer, 1)

"""
"""What has a run end with SIGKILL, before one of the points."""

POINTS = {
    "planning": 'at(Storage, "write", written("units/000001.json"))',
    "planned": 'at(Storage, "write", written("units/000001.json"), "after")',
    "labelling": 'at(UnitWriter, "commit", committed("masks"))',
    "describing": 'at(os, "link", written("label/zarr.json"))',
    "writing masks": 'at(os, "replace", written("masks/000001.tar", "label/c.1.0.0"))',
    "masks written": 'at(os, "replace", written("masks/000001.tar", "label/c.1.0.0"), "after")',
    "writing manifest of masks": 'at(os, "link", written("masks/000001.parquet"))',
    "manifest of masks written": 'at(os, "link", written("masks/000001.parquet"), "after")',
    "adding the layer": 'at(Storage, "write", written("dataset.json"))',
    "making maps": 'at(UnitWriter, "commit", committed("uncertainty/refinement"))',
    "writing photos": 'at(os, "replace", written("jpeg/c.1.0"))',
    "writing maps": 'at(os, "replace", written("refinement/000001.tar", "u/c.1.0.0"))',
    "between maps and refined masks": 'at(os, "replace", written("u/c.1.0.0"), "after")',
    "maps written": 'at(os, "replace", written("refinement/000001.tar", "refined/c.1.0.0"), "after")',
    "writing manifest of maps": 'at(os, "link", written("refinement/000001.parquet"))',
    "manifest of maps written": 'at(os, "link", written("refinement/000001.parquet"), "after")',
}

OF_MASKS = ("planning", "planned", "labelling", "writing masks", "masks written", "writing manifest of masks",
            "manifest of masks written")  # fmt: skip
OF_MAPS = ("adding the layer", "making maps", "writing maps", "maps written", "writing manifest of maps",
           "manifest of maps written")  # fmt: skip
IN_ZARR = ("describing", "masks written", "writing photos", "writing maps", "between maps and refined masks")
"""Where arrays differ from tars: they have metadata, and several files per unit."""


@pytest.fixture
def two_photos(three_photos: Path) -> Path:
    """A folder of two photos, which make a unit that is finished and one that the kill hits."""
    (three_photos / "photo4.png").unlink()
    return three_photos


@pytest.fixture
def run_killed(forks: Any, tmp_path: Path) -> Callable[..., None]:
    """``run_killed(points, command)`` runs ``labelgen`` once for each point, on a set of its name, killed there."""

    def run_killed(points: tuple[str, ...], command: list[str]) -> None:
        for point in points:
            shards, said = tmp_path / "killed" / point, tmp_path / "said"
            process = forks.begin(said, [*command, f"--shards={shards}"], KILLED + POINTS[point])
            assert forks.end(process) == -signal.SIGKILL, (point, said.read_text())

    return run_killed


def require_part_of(whole: dict[str, str], shards: Path, point: str, snapshot: Snapshot) -> None:
    """Check that what a killed run left are some whole files of the undisturbed run, and nothing else."""
    left = without_temporaries(snapshot(shards))
    assert {name: left[name] for name in left if name != "dataset.json"} == {
        name: whole[name] for name in left if name != "dataset.json"
    }, point
    assert len(left) < len(whole), point


def test_run_killed_anywhere_ends_bit_identical(
    two_photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot, loose: AutomaskSettings,
    loose_options: list[str], refiner: str, run_killed: Callable[..., None],
) -> None:  # fmt: skip
    options = [f"--images={two_photos}", *loose_options, "--unit-size=1", "--points-per-side=1"]
    points = (*OF_MASKS, "adding the layer", "making maps")
    run_killed(points, ["run", *options, f"--refiner={refiner}"])
    again = {"automask": replace(loose, points_per_side=1), "unit_size": 1, "refiner": refiner}
    label(two_photos, tmp_path / "undisturbed", **again)
    whole = snapshot(tmp_path / "undisturbed")
    for point in points:
        shards = tmp_path / "killed" / point
        require_part_of(whole, shards, point, snapshot)
        label(two_photos, shards, **again)
        assert without_temporaries(snapshot(shards)) == whole, point
        assert problems(shards) == [], point


def test_run_into_zarr_killed_anywhere_ends_bit_identical(
    two_photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot, loose: AutomaskSettings,
    loose_options: list[str], refiner: str, run_killed: Callable[..., None],
) -> None:  # fmt: skip
    options = [f"--images={two_photos}", *loose_options, "--unit-size=1", "--points-per-side=1", "--encoding=zarr"]
    run_killed(IN_ZARR, ["run", *options, f"--refiner={refiner}", "--keep-photos"])
    again = {"automask": replace(loose, points_per_side=1), "unit_size": 1, "refiner": refiner}
    label(two_photos, tmp_path / "undisturbed", **again, encoding="zarr", keep_photos=True)
    whole = snapshot(tmp_path / "undisturbed")
    for point in IN_ZARR:
        shards = tmp_path / "killed" / point
        require_part_of(whole, shards, point, snapshot)
        label(two_photos, shards, **again, encoding="zarr", keep_photos=True)
        assert without_temporaries(snapshot(shards)) == whole, point
        assert problems(shards) == [], point


def test_layer_whose_making_was_killed_anywhere_ends_bit_identical(
    finished: Finished, tmp_path: Path, snapshot: Snapshot, refined: Finished, refiner: str, add_maps: Label,
    run_killed: Callable[..., None],
) -> None:  # fmt: skip
    for point in OF_MAPS:
        shutil.copytree(finished[0], tmp_path / "killed" / point)
    run_killed(OF_MAPS, ["uncertainty", f"--refiner={refiner}", "--device=cpu"])
    whole = snapshot(refined[0])
    for point in OF_MAPS:
        shards = tmp_path / "killed" / point
        require_part_of(whole, shards, point, snapshot)
        add_maps(shards, refiner)
        assert without_temporaries(snapshot(shards)) == whole, point


# Two runs at once


def test_two_processes_on_one_shard_set_both_succeed(
    photos: Path, finished: Finished, tmp_path: Path, snapshot: Snapshot, loose_options: list[str], forks: Any
) -> None:
    command = ["run", f"--images={photos}", f"--shards={tmp_path}/shards", *loose_options]
    both = [forks.begin(tmp_path / "said", command) for _ in range(2)]
    assert [forks.end(process) for process in both] == [0, 0], (tmp_path / "said").read_text()
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def interrupt_once(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, what: Callable[[], object], folder: str = ""
) -> list[str]:
    """Have ``what`` happen right before the first call of ``owner.name``; the list says when it has happened.

    With ``folder``, it is the first call whose first argument lies in that folder of the shard set.
    """
    original, happened = getattr(owner, name), []

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not happened and (not folder or args[1].startswith(folder)):
            happened.append(name)
            what()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, replacement)
    return happened


@pytest.mark.parametrize(
    ("owner", "name"),
    [(plan, "cut"), (Storage, "create"), (Storage, "write"), (UnitWriter, "commit")],
    ids=["while planning", "before the plan is written", "while the plan is written", "before a unit is written"],
)
def test_run_overtaken_by_another_ends_bit_identical(
    photos: Path, refined: Finished, tmp_path: Path, label: Label, snapshot: Snapshot, refiner: str,
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str,
) -> None:  # fmt: skip
    shards = tmp_path / "shards"
    overtaken = interrupt_once(monkeypatch, owner, name, lambda: label(photos, shards, refiner=refiner))
    label(photos, shards, refiner=refiner)
    assert overtaken
    assert snapshot(shards) == snapshot(refined[0])


@pytest.mark.parametrize("with_maps", [False, True])
def test_units_that_another_run_commits_before_their_turn_are_reported_as_they_are(
    own_photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot, refiner: str, monkeypatch: pytest.MonkeyPatch,
    with_maps: bool,
) -> None:  # fmt: skip
    (own_photos / "bad.jpg").write_bytes(b"")
    shards, options = tmp_path / "shards", {"unit_size": 4, "refiner": refiner if with_maps else None}
    first: list[RunSummary] = []
    interrupt_once(monkeypatch, Labeler, "label_unit", lambda: first.append(label(own_photos, shards, **options)))
    second = label(own_photos, shards, **options)
    assert replace(second, images_per_second=0) == replace(first[0], images_per_second=0)
    assert (second.units_done, len(second.errors)) == (2, 1)
    label(own_photos, tmp_path / "undisturbed", **options)
    assert snapshot(shards) == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(plan, "cut"), (Storage, "create")],
    ids=["while planning", "before the plan is written"],
)
def test_run_overtaken_by_one_of_other_images_is_refused_and_does_no_harm(
    photos: Path, three_photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str,
) -> None:  # fmt: skip
    shards = tmp_path / "shards"
    interrupt_once(monkeypatch, owner, name, lambda: label(three_photos, shards))
    with pytest.raises(SettingsDifferError, match="'sub/photo1'"):
        label(photos, shards)
    label(three_photos, tmp_path / "undisturbed")
    assert snapshot(shards) == snapshot(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("write", "masks/"), ("create", "manifest/masks/"), ("write", "uncertainty/"), ("create", "manifest/uncertainty")],
    ids=["before the masks are written", "before their manifest is", "before the maps are", "before their manifest"],
)
@pytest.mark.parametrize("maps_too", [True, False])
def test_runs_that_read_an_image_differently_leave_a_sound_shard_set(
    three_photos: Path, tmp_path: Path, label: Label, refiner: str, monkeypatch: pytest.MonkeyPatch, name: str,
    folder: str, maps_too: bool,
) -> None:  # fmt: skip
    photo, elsewhere = three_photos / "photo2.jpg", tmp_path / "elsewhere.jpg"
    listed = list(list_photos([str(three_photos)]))
    monkeypatch.setattr("sum_factory.labelgen.run.list_photos", lambda sources, reserve, passed_over: listed)

    def overtake() -> None:
        photo.rename(elsewhere)
        label(three_photos, tmp_path / "shards", unit_size=3, refiner=refiner if maps_too else None)
        elsewhere.rename(photo)

    overtaken = interrupt_once(monkeypatch, Storage, name, overtake, folder)
    label(three_photos, tmp_path / "shards", unit_size=3, refiner=refiner)
    assert overtaken
    assert problems(tmp_path / "shards") == []
