"""Every command of ``labelgen`` that can take long tells how it is getting on, on stderr alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.job import Begun, ImageDone, Lost, Notice, UnitReport
from sum_factory.labelgen.progress import ProgressReporter
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.progress import Speaker
from sum_factory.shared.shards.manifest import manifest_path

Finished = tuple[Path, RunSummary]
Label = Callable[..., RunSummary]


def labelgen(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def told(result: Result, *beginnings: str) -> None:
    """Check that a line of stderr begins so each time, and that stdout has results alone."""
    lines = result.stderr.splitlines()
    for beginning in beginnings:
        assert any(line.startswith(beginning) for line in lines), result.stderr
    assert not {*lines} & {*result.stdout.splitlines()}
    assert not any(beginning.split(":")[0] + ":" in result.stdout for beginning in beginnings)


@pytest.mark.usefixtures("weights_read_again")
def test_run_tells_of_every_stage(photos: Path, tmp_path: Path, loose_options: Sequence[str], eager: Speaker) -> None:
    shards = tmp_path / "shards"
    result = labelgen("run", "--images", photos, "--shards", shards, *loose_options)
    told(
        result,
        "listing images: 6 images",
        "reading the weights vit_micro: ",
        "labelling: 0 of 6 images, no unit begun yet, the models are being loaded",
        "labelling: 6 of 6 images, ",
    )
    assert "writing plans: 3 of 3 units" in result.stderr
    assert result.stdout.startswith("3 of 3 units labelled: 6 images, ")
    assert len(result.stdout.splitlines()) == 1
    maps = labelgen("uncertainty", "--shards", shards, "--source=entropy", "--device=cpu")
    told(maps, "reading the weights vit_micro: ", "labelling: 6 of 6 images, ")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("verify",), ("verifying: 0 units", "verifying: 3 of 3 units", "listing files: ")),
        (("repair",), ("verifying: 3 of 3 units",)),
        (("gc",), ("listing files: ",)),
        (("status",), ("reading manifests of masks: 3 of 3 units",)),
        (("export", "--out", "{out}/x.json"), ("exporting: 3 of 3 units",)),
        (("view", "--out", "{out}/x.html"), ("reading manifests: 6 images", "drawing: 6 of 6 images")),
        (("select", "--out", "{out}/view", "--min-area=1"), ("selecting: 3 of 3 units", "writing rows: ")),
        (
            ("convert", "--out", "{out}/arrays", "--encoding=zarr"),
            ("writing plans: 3 of 3 units", "converting: 3 of 3 units"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and "-" not in value[0] else "",
)
def test_command_tells_of_its_stages(
    command: tuple[str, ...], expected: tuple[str, ...], finished: Finished, tmp_path: Path, eager: Speaker
) -> None:
    options = [option.format(out=tmp_path) for option in command[1:]]
    result = labelgen(command[0], "--shards", finished[0], *options)
    assert result.exit_code == 0, result.output
    told(result, *expected)
    assert result.stdout


def test_merge_tells_of_each_source(
    own_photos: Path, finished: Finished, label: Label, tmp_path: Path, eager: Speaker
) -> None:
    only = own_photos / "other.png"
    shutil.move(own_photos / "photo0.jpg", only.with_suffix(".jpg"))
    for path in own_photos.rglob("photo*"):
        path.unlink()
    shards = shutil.copytree(finished[0], tmp_path / "shards")
    label(only.with_suffix(".jpg"), tmp_path / "other")
    result = labelgen("merge", shards, tmp_path / "other", "--keep=first", "--out", tmp_path / "all")
    assert result.exit_code == 0, result.output
    told(result, f"merging {shards}: 3 of 3 units", f"merging {tmp_path / 'other'}: 1 of 1 units")


def test_repair_tells_what_it_takes_back(own_shards: Path, eager: Speaker) -> None:
    (own_shards / manifest_path("masks", 1)).write_bytes(b"damaged")
    told(labelgen("repair", "--shards", own_shards), "taking back: 1 of 1 units")


def test_nothing_is_told_of_what_is_soon_done(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "FIRST_SECONDS", "EVERY_SECONDS":  # soon, also on a busy machine
        monkeypatch.setattr(f"sum_factory.shared.progress.{name}", 600.0)
    assert labelgen("verify", "--shards", finished[0]).stderr == ""


# What a run counts


def test_images_masks_and_errors_are_counted_and_a_lost_unit_is_not(
    eager: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_line() -> str:
        return capsys.readouterr().err.splitlines()[-1]

    with ProgressReporter(8) as reporter:
        assert last_line() == "labelling: 0 of 8 images, no unit begun yet, the models are being loaded"
        reporter.take(Notice("still waiting"))
        assert "no unit begun yet" in last_line()
        reporter.take(Begun(0, 1, "one"))
        assert last_line().startswith("labelling: 0 of 8 images, 0 masks, 0 errors")
        reporter.take(ImageDone(5))
        reporter.take(ImageDone(0, "a.jpg: not an image"))
        told = capsys.readouterr().err
        assert "skipped: a.jpg: not an image\n" in told
        assert "labelling: 2 of 8 images, 5 masks, 1 errors, " in told
        reporter.take(Lost(0, 1, "one", "killed"))
        told = capsys.readouterr().err
        assert "lost: the worker at unit 000000" in told
        assert told.splitlines()[-1].startswith("labelling: 0 of 8 images, 0 masks, 0 errors")
        reporter.take(UnitReport(0, 4, 9, ()))
        assert last_line().startswith("labelling: 4 of 8 images, 9 masks, 0 errors, ")
    assert last_line().startswith("labelling: 4 of 8 images, 9 masks, 0 errors, ")


def test_model_that_keeps_no_mask_on_the_first_photos_is_told_of_once_and_loudly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressReporter(100) as reporter:
        reporter.take(Begun(0, 1, "one"))
        for _ in range(31):
            reporter.take(ImageDone(0))
        reporter.take(ImageDone(0, "a.jpg: not an image"))  # nobody can find a mask in it
        assert "NO MASK" not in capsys.readouterr().err
        reporter.take(ImageDone(0))
        told = capsys.readouterr().err
        assert "NO MASK was kept on the first 32 photos: the weights (--sam) may be untrained, damaged or of" in told
        reporter.take(ImageDone(0))
        assert "NO MASK" not in capsys.readouterr().err
        reporter.take(UnitReport(0, 34, 0, ("a.jpg: not an image",)))
    assert "NO MASK was kept on any of 33 photos: the weights" in reporter.summary(1, 0, None, False).lines()
    assert "NO MASK" not in reporter.summary(2, 1, None, False).lines()  # another run may have found some


def test_nothing_is_told_of_a_model_that_keeps_a_mask(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter(100) as reporter:
        for number in range(50):
            reporter.take(ImageDone(int(number == 31)))
        reporter.take(UnitReport(0, 50, 1, ()))
    assert "NO MASK" not in capsys.readouterr().err + reporter.summary(1, 0, None, False).lines()


def test_keeping_photos_beside_masks_counts_the_masks_that_are_there(
    own_shards: Path, photos: Path, label: Label, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.labelgen.progress.FIRST_PHOTOS", 1)
    summary = label(photos, own_shards, keep_photos=True)
    assert summary.masks > 0
    assert "NO MASK" not in capsys.readouterr().err + summary.lines()


def test_run_without_a_mask_says_so_and_why(
    photos: Path, tmp_path: Path, loose_options: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.labelgen.progress.FIRST_PHOTOS", 4)
    strict = [*loose_options, "--pred-iou-thresh=1e9"]
    result = labelgen("run", "--images", photos, "--shards", tmp_path / "s", *strict)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("NO MASK was kept on the first 4 photos") == 1
    assert "NO MASK was kept on any of 6 photos: the weights (--sam) may be" in result.stdout
