"""Credentials of photos' URLs are read with, and stand in nothing that a run leaves or says; the next command finds
the photos by what is recorded and by what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import InputError
from sum_factory.shared.relocation import Relocation
from sum_factory.shared.shards.shard_set import ShardSet

SECRET = "S3CR3T"
LIVE, RECORDED = f"memory://me:{SECRET}@host/photos", "memory://host/photos"


@pytest.fixture
def behind_a_password(photos: Path) -> Iterator[None]:
    """The six photos at a URL with a user and a password, without which nothing is there."""
    store = fsspec.filesystem("memory")
    for path in photos.rglob("*.*"):
        store.pipe_file(f"/me:{SECRET}@host/photos/{path.relative_to(photos)}", path.read_bytes())
    yield
    store.store.clear()


def lies_in(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_photos_behind_a_password_are_labelled_and_nothing_has_it(
    behind_a_password: None, label: Callable[..., RunSummary], add_maps: Callable[..., RunSummary], tmp_path: Path
) -> None:
    shards, log, said = tmp_path / "shards", str(tmp_path / "log"), list[str]()
    assert label(LIVE, shards, log=log).units_done == 3
    assert label(LIVE, shards, log=log).units_done == 0, "they are found where they are recorded"
    urls = {image.url.rpartition("photo")[0] for n in range(3) for image in ShardSet.open(str(shards)).unit(n).images}
    assert urls == {f"{RECORDED}/", f"{RECORDED}/sub/"}
    with pytest.raises(InputError, match=r"--photos-from OLD=NEW, such as memory://host/photos"):
        add_maps(shards, source="entropy")
    given = Relocation.parse([f"{RECORDED}={LIVE}"])
    summary = add_maps(shards, source="entropy", photos_from=given, say=said.append, log=log)
    assert (summary.units_done, len(summary.errors)) == (3, 0)
    for command in ("export", "view"):
        out = tmp_path / f"{command}.out"
        arguments = [command, "--shards", str(shards), "--out", str(out), f"--photos-from={RECORDED}={LIVE}"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        said.append(result.output)
    assert f'"source": "{RECORDED}/' in (tmp_path / "export.out").read_text()
    assert lies_in(tmp_path) == []
    assert SECRET not in "\n".join(said)


def test_photo_that_cannot_be_read_is_told_of_without_its_password(
    behind_a_password: None, label: Callable[..., RunSummary], tmp_path: Path
) -> None:
    fsspec.filesystem("memory").pipe_file(f"/me:{SECRET}@host/photos/broken.jpg", b"no photo")
    summary = label(LIVE, tmp_path / "shards", log=str(tmp_path / "log"))
    assert len(summary.errors) == 1
    assert "memory://host/photos/broken.jpg" in summary.errors[0]
    assert lies_in(tmp_path) == []
    result = CliRunner().invoke(main, ["status", "--shards", str(tmp_path / "shards")])
    assert "broken.jpg" in result.output
    assert SECRET not in result.output


def test_refusal_names_the_place_without_its_password(tmp_path: Path) -> None:
    for shards, images in (("memory://a:S3CR3T@b/set", "/nowhere"), (str(tmp_path), f"{LIVE}/nowhere?sig={SECRET}")):
        result = CliRunner().invoke(main, ["run", "--images", images, "--shards", shards, "--device", "cpu"])
        assert result.exit_code == 1
        assert "nowhere" in result.output
        assert SECRET not in result.output
