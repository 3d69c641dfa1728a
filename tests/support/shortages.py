"""Folders of photos that go, and reads that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
NO_WAIT = {"wait_for_photos": 0.0}


def errors_in(shards: Path) -> list[str]:
    opened = ShardSet.open(str(shards))
    tables = [opened.manifest(number, MASKS)[0] for number in opened.committed(MASKS)]
    return [error for table in tables for error in table["error"].to_pylist() if error is not None]


def unmount(photos: Path) -> None:
    photos.rename(photos.with_name("away"))
    photos.mkdir()


def mount(photos: Path) -> None:
    photos.rmdir()
    photos.with_name("away").rename(photos)


def labelgen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
