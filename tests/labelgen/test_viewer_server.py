"""The server of `labelgen view --serve`: who may ask it, and that what it tells is what the shard set holds."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from sum_factory.labelgen.page.drawing import DARKENED
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.labelgen.viewer.app import Viewer, make_app
from sum_factory.labelgen.viewer.shown_set import ShownSet
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import ShardSet

TOKEN = "a-token"
HOME = "http://127.0.0.1:8000"
ANY = [None, None]
ODD = "<img src=x onerror=alert(1)>"
Refined = tuple[Path, RunSummary]
Rows = list[dict[str, Any]]


class Asker:
    """Asks a server, as the page does."""

    def __init__(self, *places: Path | str, photos_from: Relocation = UNMOVED) -> None:
        sets = [ShownSet(lambda place=place: open_shards(str(place), photos_from=photos_from)) for place in places]
        self.viewer = Viewer(sets)
        self.client = TestClient(make_app(self.viewer, TOKEN), base_url=HOME)

    def read_all(self) -> Asker:
        """Read all manifests at once, as the thread does in a while."""
        for each in self.viewer.sets:
            for number in each.catalog.committed:
                each.catalog._take(number)
        return self

    def get(self, path: str, status: int = 200, **parameters: Any) -> Any:
        texts = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in parameters.items()}
        response = self.client.get(f"/{TOKEN}/api/{path}", params=texts or None)
        assert response.status_code == status, response.text
        return response.json() if response.headers["content-type"] == "application/json" else response.content

    def save(self, status: int = 200, **wanted: Any) -> Any:
        response = self.client.post(f"/{TOKEN}/api/save", content=json.dumps(wanted))
        assert response.status_code == status, response.text
        return response.json()

    def entries(self, **parameters: Any) -> Rows:
        found: Rows = self.get("entries", start=0, count=500, **parameters)["entries"]
        return found


@pytest.fixture
def asker(refined: Refined) -> Asker:
    return Asker(refined[0]).read_all()


@pytest.fixture(scope="module")
def rows(refined: Refined) -> Rows:
    """All masks, as another program reads them: rows of the manifests, with ``mean_u`` beside."""
    found: Rows = []
    for path in sorted((refined[0] / "manifest/masks").glob("*")):
        maps = pq.read_table(refined[0] / "manifest/uncertainty/refinement" / path.name).to_pylist()
        of_unit = pq.read_table(path).to_pylist()
        found += [{**row, "mean_u": of_map["mean_u"]} for row, of_map in zip(of_unit, maps, strict=True)]
    return [row for row in found if row["mask"] is not None]


def median(rows: Rows, column: str) -> float:
    return float(np.float32(np.median([row[column] for row in rows])))


def picture(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    "path", ["/", "/api/about", "/a-toke/api/about", "/a-tokenn/api/about", "/a-token", "//api/about"]
)
def test_who_lacks_the_token_is_told_nothing(asker: Asker, path: str) -> None:
    response = asker.client.get(path)
    assert response.status_code == 403
    assert "lacks the token" in response.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1:80:80", "localhost@evil", ""])
def test_another_name_of_this_machine_is_refused(asker: Asker, host: str) -> None:
    """A stranger's page whose name leads here has its own name in `Host`."""
    assert asker.client.get(f"/{TOKEN}/api/about", headers={"Host": host}).status_code == 403
    assert asker.client.get(f"/{TOKEN}/api/about", headers={"Host": "localhost:9"}).status_code == 200


def test_a_page_of_another_origin_is_refused(asker: Asker) -> None:
    for origin, status in (("http://evil.example", 403), ("null", 403), (HOME, 422)):
        saved = asker.client.post(f"/{TOKEN}/api/save", content="{}", headers={"Origin": origin})
        assert saved.status_code == status


def test_the_page_runs_its_own_scripts_alone(asker: Asker) -> None:
    response = asker.client.get(f"/{TOKEN}/")
    policy = response.headers["Content-Security-Policy"]
    (nonce,) = re.findall(r"script-src 'self' 'nonce-([\w-]+)'", policy)
    assert "default-src 'none'" in policy
    assert set(re.findall(r"<script[^>]*>", response.text)) == {
        f'<script type="importmap" nonce="{nonce}">',
        f'<script type="module" nonce="{nonce}">',
    }
    for name in re.findall(r"\./static/([\w.]+)", response.text):
        assert asker.client.get(f"/{TOKEN}/static/{name}").headers["content-type"].startswith("text/javascript")
    assert asker.client.get(f"/{TOKEN}/static/index.html").status_code == 404
    assert asker.client.get(f"/{TOKEN}/static/..%2Fapp.py").status_code == 404


def test_all_photos_are_listed_before_any_manifest_is_read(refined: Refined) -> None:
    fresh = Asker(refined[0])
    assert fresh.get("summary")["photos"] == 6
    assert fresh.get("summary")["progress"]["read"] == 0
    assert len(fresh.entries()) == 6
    assert {image.key for _, image in ShardSet.open(str(refined[0])).walk()} == {e["key"] for e in fresh.entries()}


@pytest.mark.parametrize("names", [(), ("stability",), ("area", "mean_u"), ("predicted_iou", "stability", "area")])
def test_photos_and_masks_that_meet_conditions(asker: Asker, rows: Rows, names: tuple[str, ...]) -> None:
    bounds = {name: median(rows, name) for name in names}
    conditions = {"layer": "refinement", **{name: [bound, None] for name, bound in bounds.items()}}
    passing = [row for row in rows if all(row[name] >= bound for name, bound in bounds.items())]
    told = asker.get("summary", conditions=conditions)
    assert 0 < told["masks"] == len(passing) <= told["masks_read"] == len(rows)
    counts = {entry["key"]: entry["shown"] for entry in asker.entries(conditions=conditions)}
    assert {key: count for key, count in counts.items() if count} == {
        key: sum(row["image"] == key for row in passing) for key in {row["image"] for row in passing}
    }


def test_a_histogram_counts_what_its_own_range_would_choose_from(asker: Asker, rows: Rows) -> None:
    bound, scales = median(rows, "area"), {each["name"]: each for each in asker.get("about")["scales"]}
    told = asker.get("summary", conditions={"layer": "refinement", "area": [None, bound], "stability": [0.2, 0.9]})
    for name, scale in scales.items():
        others = [row for row in rows if (name == "area" or row["area"] <= bound)]
        others = [row for row in others if name == "stability" or 0.2 <= row["stability"] <= 0.9]
        edges = np.linspace(scale["lowest"], scale["highest"], scale["bars"] + 1)
        for what, counted in (("all", rows), ("shown", others)):
            values = np.array([row[name] for row in counted], float)
            values = np.log2(np.maximum(values, 1)) if scale["is_log"] else values
            expected, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            found = np.array(told["histograms"][name][what])
            assert found.sum() == len(counted)
            assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= 1, (
                "a value on an edge may fall on either side"
            )


def test_photos_are_found_by_pattern_and_kind(
    own_photos: Path, label: Callable[..., RunSummary], tmp_path: Path
) -> None:
    (own_photos / "photo2.jpg").write_bytes(b"no photo")
    label(own_photos, tmp_path / "shards")
    asker = Asker(tmp_path / "shards").read_all()
    kinds = asker.get("summary")["kinds"]
    assert kinds == {"labelled": 5, "not an image of a known format": 1}
    (broken,) = asker.entries(conditions={"kinds": ["not an image of a known format"]})
    assert (broken["key"], broken["masks"]) == ("photo2", 0)
    assert "photo2.jpg: not an image of a known format; it starts with" in broken["error"]
    assert {entry["key"] for entry in asker.entries(conditions={"patterns": ["sub/*", "*2"]})} == {
        "photo2", "sub/photo1", "sub/photo3", "sub/photo5",
    }  # fmt: skip


def test_photos_come_in_the_order_that_is_asked(asker: Asker, rows: Rows) -> None:
    means = {key: np.mean([row["mean_u"] for row in rows if row["image"] == key]) for key in {r["image"] for r in rows}}
    conditions = {"layer": "refinement"}
    for order, sign in (("doubt", -1), ("certain", 1)):
        keys = [entry["key"] for entry in asker.entries(conditions=conditions, order=order) if entry["masks"]]
        assert keys == sorted(means, key=lambda key: sign * means[key])
    counts = [entry["masks"] for entry in asker.entries(order="most")]
    assert counts == sorted(counts, reverse=True)
    assert asker.get("entries", 422, start=0, count=1, order="odd")["error"].startswith("order: 'odd'; there are")
    second = asker.entries(order="most")[1]
    assert asker.get(f"place/{second['unit']}/{second['index']}", order="most")["place"] == 1


def test_an_image_tells_of_its_masks(asker: Asker, refined: Refined, rows: Rows) -> None:
    shards = ShardSet.open(str(refined[0]))
    bound = median(rows, "stability")
    for number, image in shards.walk():
        told = asker.get(f"image/0/{number}/{image.index}", conditions={"stability": [bound, None]})
        assert (told["key"], told["height"], told["width"]) == (image.key, image.height, image.width)
        for mask, row in zip(told["masks"], image.masks, strict=True):
            assert mask["box"] == [row[f"box_{name}"] for name in "xywh"]
            assert mask["point"] == [row["point_x"], row["point_y"]]
            assert mask["meets"] == (row["stability"] >= np.float32(bound))


def test_tiles_and_photos_are_those_of_the_set(asker: Asker, photos: Path) -> None:
    for entry in asker.entries():
        path = next(photos.glob(f"{entry['key']}.*"))
        original = np.asarray(Image.open(path).convert("RGB")).astype(int)
        named = f"0/{entry['unit']}/{entry['index']}"
        for data in (asker.get(f"photo/{named}"), asker.get(f"tile/{named}", what="photo", side=160)):
            assert np.abs(picture(data).astype(int) - original).mean() < 12, "but for what a JPEG leaves out"
        part = picture(asker.get(f"photo/{named}", part="5,7,20,10")).astype(int)
        assert np.abs(part - original[7:17, 5:25]).mean() < 20
        assert (picture(asker.get(f"tile/{named}", what="masks", side=160)) != picture(data)).any()


def test_doubt_of_one_mask_or_the_largest_of_all(asker: Asker) -> None:
    entry = asker.entries()[0]
    named = f"0/{entry['unit']}/{entry['index']}"
    whole = np.asarray(Image.open(io.BytesIO(asker.get(f"doubt/{named}", layer="refinement"))).convert("RGBA"))[..., 3]
    each = [
        np.asarray(Image.open(io.BytesIO(asker.get(f"doubt/{named}", layer="refinement", mask=k))).convert("RGBA"))[
            ..., 3
        ]
        for k in range(entry["masks"])
    ]
    np.testing.assert_array_equal(whole, np.max(each, axis=0))
    assert "no layer" in asker.get(f"doubt/{named}", 422, layer="other")["error"]


def test_a_tile_of_doubt_is_dark_where_there_is_none(asker: Asker) -> None:
    entry = asker.entries()[0]
    named = f"0/{entry['unit']}/{entry['index']}"
    photo, tile = (
        picture(asker.get(f"tile/{named}", what=w, side=160, layer="refinement")) for w in ("photo", "doubt")
    )
    data = io.BytesIO(asker.get(f"doubt/{named}", layer="refinement"))
    opacity = np.asarray(Image.open(data).convert("RGBA"))[..., 3]
    assert (opacity == 0).any()
    assert np.abs(tile[opacity == 0] - DARKENED * photo[opacity == 0]).mean() < 12, "but for what a JPEG leaves out"


def test_a_set_at_a_url_is_read(refined: Refined, upload: Callable[[Path, str], None]) -> None:
    upload(refined[0], "memory://viewed/shards")
    asker, local = Asker("memory://viewed/shards").read_all(), Asker(refined[0]).read_all()
    assert asker.entries() == local.entries()
    assert asker.get("image/0/1/0")["masks"] == local.get("image/0/1/0")["masks"]


def test_a_photo_that_is_gone_is_told_and_its_masks_stay(
    own_photos: Path, label: Callable[..., RunSummary], tmp_path: Path
) -> None:
    label(own_photos, tmp_path / "shards")
    own_photos.rename(tmp_path / "moved")
    asker = Asker(tmp_path / "shards").read_all()
    for path in ("photo/0/0/0", "tile/0/0/0?what=masks&side=160"):
        assert f"say where with --photos-from OLD=NEW, such as {own_photos}=NEW" in asker.get(path, 422)["error"]
    assert asker.get("image/0/0/0")["masks"]
    found = Asker(tmp_path / "shards", photos_from=Relocation.parse((f"{own_photos}={tmp_path}/moved",)))
    assert found.get("photo/0/0/0")[:2] == b"\xff\xd8"


def test_photos_that_the_set_keeps_are_shown_instead(whole_in: Callable[[str], Path], tmp_path: Path) -> None:
    shards = whole_in("zarr")
    nowhere = ShardSet.open(str(shards)).unit(0).images[0].url.rsplit("/", 1)[0]
    asker = Asker(shards, photos_from=Relocation.parse((f"{nowhere}={tmp_path}/nowhere",)))
    response = asker.client.get(f"/{TOKEN}/api/photo/0/0/0")
    assert response.status_code == 200
    assert response.headers["X-Note"].startswith("shown%20as%20the%20layer%20photos%20keeps%20it")


def test_a_damaged_unit_is_named_and_the_others_are_shown(own_refined: Path) -> None:
    path = own_refined / "manifest/masks/000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    asker = Asker(own_refined).read_all()
    told = asker.get("summary")["progress"]
    assert (told["read"], len(told["problems"])) == (2, 1)
    assert "000001.parquet: damaged" in told["problems"][0]
    assert ["problem" in entry for entry in asker.entries()] == [False, False, True, True, False, False]
    assert {entry["key"] for entry in asker.entries()} >= {"photo2", "photo0"}
    assert "000001.parquet: damaged" in asker.get("image/0/1/0", 422)["error"]
    data = own_refined / "masks/000000.tar"
    data.write_bytes(b"\0" * data.stat().st_size)
    assert "fails its checksum" in asker.get("image/0/0/0", 422)["error"]


def test_units_appear_as_they_are_labelled(own_shards: Path) -> None:
    manifest = own_shards / "manifest/masks/000002.parquet"
    data = manifest.read_bytes()
    manifest.unlink()
    asker = Asker(own_shards).read_all()
    told = asker.get("summary")
    assert (told["photos"], told["progress"]["is_growing"], told["progress"]["committed"]) == (4, True, 2)
    manifest.write_bytes(data)
    assert asker.client.post(f"/{TOKEN}/api/look_again").json()["is_growing"] is False
    assert len(asker.entries()) == 6


def test_a_photo_is_found_in_the_set_beside(refined: Refined, finished: Refined, tmp_path: Path) -> None:
    select(str(finished[0]), str(tmp_path / "some"), Filter(images=("photo4", "sub/photo5")))
    asker = Asker(refined[0], tmp_path / "some").read_all()
    for entry in asker.entries():
        found = asker.get(f"beside/1/{entry['unit']}/{entry['index']}")["found"]
        assert (found is not None) == (entry["key"] in ("photo4", "sub/photo5"))
        if found is not None:
            assert asker.get(f"image/1/{found[0]}/{found[1]}")["key"] == entry["key"]
    assert asker.get("beside/2/0/0", 422)["error"] == "there is no set 2, but 2"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("entries?start=x&count=1", "start: expected a whole number, found 'x'"),
        ("summary?conditions={", "conditions: : Invalid JSON"),
        ('summary?conditions={"odd":1}', "conditions: odd: Extra inputs are not permitted"),
        ("image/0/9/0", "missing"),
        ("image/0/0/99", "unit 0 has no image 99"),
        ("photo/0/0/0?part=1,2", "part: expected x,y,width,height"),
        ("photo/0/0/0?part=9000,0,5,5", "part: no such part of the photo"),
    ],
)
def test_what_cannot_be_answered_is_told_in_words(asker: Asker, path: str, told: str) -> None:
    assert told in asker.get(path, 422)["error"]


def test_names_are_data(own_photos: Path, label: Callable[..., RunSummary], tmp_path: Path) -> None:
    (own_photos / "photo0.jpg").rename(own_photos / f"{ODD}.jpg")
    label(own_photos, tmp_path / "shards")
    asker = Asker(tmp_path / "shards")
    response = asker.client.get(f"/{TOKEN}/api/entries?start=0&count=9")
    assert ODD in {entry["key"] for entry in response.json()["entries"]}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert ODD not in asker.client.get(f"/{TOKEN}/").text


def test_a_thread_reads_all_manifests_until_the_server_ends(refined: Refined) -> None:
    asker = Asker(refined[0])
    thread = asker.viewer.sets[0].catalog._thread
    with asker.client:
        for _ in range(2000):
            told = asker.get("summary")["progress"]
            if told["read"] == told["committed"]:
                break
            thread.join(0.01)
        assert told["read"] == 3
        assert thread.is_alive()
    assert not thread.is_alive()
