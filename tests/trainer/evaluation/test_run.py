"""Evaluation over sets of all three layouts, against upstream's predictor, and the ``evaluate`` command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import segment_anything
import torch
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_edt

from sum_factory.shared.errors import CheckpointError, ImageError, InputError, SettingsError, SumError
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture, build_architecture
from sum_factory.shared.sam.checkpoint import LoadedSam, to_safetensors
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.trainer.commands.evaluate import evaluate_command
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, LabelMapsSettings, SetSettings
from sum_factory.trainer.evaluation import evaluation, run
from sum_factory.trainer.evaluation.report import summarise
from sum_factory.trainer.evaluation.run import SCORES, SetScores, evaluate_sets, load_weights
from sum_factory.trainer.evaluation.settings import Protocol

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
SIZES = {"x": (50, 70), "y": (66, 40), "z": (80, 80)}
Masks = npt.NDArray[np.bool_]


def shapes(key: str) -> Masks:
    """Three masks of a photo that do not touch, bool (3, H, W)."""
    height, width = SIZES[key]
    drawn = np.zeros((3, height, width), np.uint8)
    cv2.circle(drawn[0], (width // 4, height // 4), 9, 1, -1)
    cv2.rectangle(drawn[1], (width // 2 + 2, 3), (width - 3, height // 3), 1, -1)
    cv2.ellipse(drawn[2], (width // 2, 3 * height // 4), (width // 3, 7), 0, 0, 360, 1, -1)
    return drawn > 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos with masks as folder pairs, label maps and COCO. Tests that change it make their own files."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("images", "masks", "labels"):
        (folder / name).mkdir()
    entries, annotations = [], []
    for number, (key, (height, width)) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        masks = shapes(key)
        Image.fromarray(pixels).save(folder / "images" / f"{key}.png")
        Image.fromarray(masks[0].astype(np.uint8) * 255).save(folder / "masks" / f"{key}.png")
        labels = (masks * np.array([10, 20, 30])[:, None, None]).sum(0).astype(np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{key}.png")
        entries.append({"id": number, "file_name": f"{key}.png", "height": height, "width": width})
        for mask in (masks[2], np.zeros_like(masks[0]), masks[1]):  # the middle one cannot be prompted
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            annotations.append({"id": len(annotations), "image_id": number, "segmentation": segmentation})
    (folder / "instances.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def plain() -> LoadedSam:
    """A random SAM with a loud decoder: as it is initialised, all prompts would give nearly the same mask."""
    torch.manual_seed(2)
    sam = build_architecture(TINY)
    with torch.no_grad():
        for name, parameter in sam.mask_decoder.named_parameters():
            if parameter.dim() > 1 and "hypernetworks" not in name:
                parameter *= 3
    return LoadedSam(sam, TINY, "digest")


@pytest.fixture(scope="module")
def prompted(plain: LoadedSam) -> LoadedSam:
    """The same SAM with a task prompt, trained for salient objects and, as in every run, without a task."""
    table = TaskPrompt(32)
    with torch.no_grad():
        table.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return LoadedSam(plain.sam, TINY, "digest", table, ("unspecified", "salient"))


def pairs(world: Path, **changes: Any) -> FolderPairsSettings:
    settings = {"kind": "folder-pairs", "images": world / "images", "masks": world / "masks", "task": "salient"}
    return FolderPairsSettings(**{**settings, "name": "pairs", **changes})


def labels(world: Path, **changes: Any) -> LabelMapsSettings:
    settings = {"kind": "label-maps", "images": world / "images", "labels": world / "labels", "task": "part"}
    return LabelMapsSettings(**{**settings, "name": "labels", **changes})


def coco(world: Path, **changes: Any) -> CocoSettings:
    settings = {"kind": "coco", "images": world / "images", "annotations": world / "instances.json", "task": "entity"}
    return CocoSettings(**{**settings, "name": "coco", **changes})


def evaluated(
    weights: LoadedSam, *sets: SetSettings, protocol: Protocol | None = None, **options: Any
) -> list[SetScores]:
    return list(evaluate_sets(weights, sets, [protocol or Protocol(rounds=2)], **options))


def scores_of(result: SetScores) -> dict[tuple[Any, ...], tuple[float, float, float]]:
    """The scores of a set by image, mask, protocol and round."""
    return {
        (r["image"], r["mask"], r["first"], r["output"], r["round"]): (r["iou"], r["boundary_iou"], r["predicted_iou"])
        for r in result.rows.to_pylist()
    }


@contextmanager
def counted_embeddings(weights: LoadedSam) -> Iterator[list[int]]:
    """Count the images that the encoder embeds."""
    seen: list[int] = []
    handle = weights.sam.image_encoder.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def test_rows_hold_what_upstreams_predictor_scores(plain: LoadedSam, world: Path) -> None:
    results = evaluated(plain, pairs(world), coco(world), labels(world), protocol=Protocol(rounds=1))
    places = {"pairs": {0: 0}, "coco": {0: 2, 2: 1}, "labels": {0: 0, 1: 1, 2: 2}}  # mask number: place in shapes()
    predictor = segment_anything.SamPredictor(plain.sam)
    for result in results:
        assert result.rows.schema == SCORES
        rows = {(row["image"], row["mask"]): row for row in result.rows.to_pylist()}
        expected = places[result.settings.name]
        assert set(rows) == {(key, number) for key in SIZES for number in expected}
        assert (result.images, result.masks) == (3, 3 * len(expected))
        for (key, number), row in rows.items():
            target = shapes(key)[expected[number]]
            predictor.set_image(np.array(Image.open(world / "images" / f"{key}.png")))
            depth = distance_transform_edt(np.pad(target, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            masks, predicted, _ = predictor.predict(np.array([[x, y]]), np.array([1]))
            overlaps = [(mask & target).sum() / (mask | target).sum() for mask in masks]
            assert row["iou"] == pytest.approx(max(overlaps), abs=1e-3)
            assert row["predicted_iou"] == pytest.approx(predicted[int(np.argmax(overlaps))], abs=1e-4)
            assert (row["set"], row["task"], row["first"], row["output"], row["round"]) == (
                result.settings.name,
                result.settings.task,
                "point",
                "oracle",
                1,
            )
            assert (row["area"], row["height"], row["width"]) == (target.sum(), *SIZES[key])


def test_protocols_share_one_embedding_and_score_as_alone(plain: LoadedSam, world: Path) -> None:
    protocols = [Protocol("point", 3), Protocol("box", 3), Protocol("near-boundary", 3)]
    with counted_embeddings(plain) as seen:
        (together,) = evaluate_sets(plain, [labels(world)], protocols)
    assert len(seen) == len(SIZES)
    alone: dict[tuple[Any, ...], tuple[float, float, float]] = {}
    for protocol in protocols:
        alone |= scores_of(evaluated(plain, labels(world), protocol=protocol)[0])
    assert scores_of(together) == alone
    assert len(alone) == 3 * 3 * 3 * 3


def test_sets_of_the_same_photos_share_embeddings_and_score_as_alone(
    plain: LoadedSam, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [pairs(world), labels(world), coco(world)]
    with counted_embeddings(plain) as seen:
        together = evaluated(plain, *sets)
    assert len(seen) == len(SIZES)
    room_for_two = 2 * 32 * 4 * 4 * 4  # of (1, 32, 4, 4) float32
    for room, embedded in ((0, 3 + 3 + 3), (room_for_two, 3 + 1 + 1)):
        monkeypatch.setattr(run, "KEPT_BYTES", room)
        with counted_embeddings(plain) as seen:
            apart = evaluated(plain, *sets)
        assert len(seen) == embedded
        assert [scores_of(each) for each in together] == [scores_of(each) for each in apart]


def test_empty_masks_are_left_out_and_counted(plain: LoadedSam, world: Path) -> None:
    (result,) = evaluated(plain, coco(world))
    assert result.empty == 3
    assert set(result.rows["mask"].to_pylist()) == {0, 2}


def test_set_of_nothing_but_empty_masks_is_refused(plain: LoadedSam, world: Path, tmp_path: Path) -> None:
    for key, size in SIZES.items():
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{key}.png")
    with pytest.raises(InputError, match="all masks that were looked at hold the value 0 alone"):
        evaluated(plain, pairs(world, masks=tmp_path))
    with pytest.raises(InputError, match="3 of 3 masks that were looked at are empty"):
        evaluated(plain, pairs(world, masks=tmp_path, foreground="half"))
    with pytest.raises(InputError, match="pairs: no masks in 3 images"):
        evaluated(plain, pairs(world, masks=tmp_path, foreground="half", most_blank=1))


def test_limit_takes_the_first_images(plain: LoadedSam, world: Path) -> None:
    (result,) = evaluated(plain, labels(world, limit=2))
    assert result.rows["image"].unique().to_pylist() == ["x", "y"]
    assert result.images == 2


@pytest.mark.parametrize("first", ["point", "near-boundary"])
def test_parts_of_an_images_masks_score_as_among_all(
    plain: LoadedSam, world: Path, first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a draw of masks nor how many are prompted together changes what a mask scores."""
    protocol = Protocol(first, 3)
    whole = scores_of(evaluated(plain, labels(world), protocol=protocol)[0])
    drawn = [scores_of(evaluated(plain, labels(world), protocol=protocol, max_masks=1, seed=s)[0]) for s in (0, 0, 1)]
    monkeypatch.setattr(run, "MASKS_TOGETHER", 1)
    single = scores_of(evaluated(plain, labels(world), protocol=protocol)[0])
    assert set(single) == set(whole)
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) != set(drawn[2])
    assert {len({(image, mask) for image, mask, *_ in scores}) for scores in drawn} == {3}
    for part in (single, *drawn):
        for key, values in part.items():
            assert values == pytest.approx(whole[key], abs=2e-3)


def test_draw_of_masks_differs_from_image_to_image(plain: LoadedSam, world: Path) -> None:
    one = Protocol(rounds=1)
    draws = [evaluated(plain, labels(world), protocol=one, max_masks=1, seed=seed)[0].rows for seed in range(4)]
    assert any(len(set(rows["mask"].to_pylist())) > 1 for rows in draws)


def test_large_photos_are_prompted_in_smaller_parts(
    plain: LoadedSam, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = run.evaluate_image

    def spy(*arguments: Any) -> Any:
        sizes.append(len(arguments[4]))
        return original(*arguments)

    monkeypatch.setattr(run, "evaluate_image", spy)
    monkeypatch.setattr(run, "PIXELS_TOGETHER", 2 * 50 * 70)
    evaluated(plain, labels(world))
    assert sizes == [2, 1, 2, 1, 1, 1, 1]  # 80 x 80 goes one by one


def test_trained_task_is_prompted_and_untrained_one_is_unspecified(
    plain: LoadedSam, prompted: LoadedSam, world: Path
) -> None:
    salient, part = evaluated(prompted, labels(world, task="salient"), labels(world, task="part"))
    (unspecified,) = evaluated(prompted, labels(world, task="unspecified"))
    (without,) = evaluated(plain, labels(world))
    assert scores_of(part) == scores_of(unspecified)
    assert len({tuple(scores_of(result).values()) for result in (salient, part, without)}) == 3
    assert [r.prompted_task for r in (salient, part, unspecified, without)] == [
        "salient",
        "unspecified",
        "unspecified",
        None,
    ]
    assert part.note == "labels: these weights were never trained for the task 'part'; prompted as 'unspecified'"
    assert [result.note for result in (salient, unspecified, without)] == [None] * 3


def test_unreadable_photo_stops_the_run_by_name(plain: LoadedSam, world: Path, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(world / name) if name == "labels" else (tmp_path / name).mkdir()
    for key in SIZES:
        (tmp_path / "images" / f"{key}.png").write_bytes((world / "images" / f"{key}.png").read_bytes())
    (tmp_path / "images" / "y.png").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"y\.png: not an image"):
        evaluated(plain, labels(tmp_path))
    (tmp_path / "images" / "y.png").unlink()
    (tmp_path / "images" / "y.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"y\.png: No such file"):
        evaluated(plain, labels(tmp_path))


def test_too_thin_photo_is_refused_by_name(plain: LoadedSam, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (300, 1), 255).save(tmp_path / name / "line.png")
    with pytest.raises(ImageError, match="pairs: line: 300 x 1 is too thin"):
        evaluated(plain, pairs(tmp_path, foreground="half", most_blank=1))


def test_missing_set_is_noticed_before_anything_is_embedded(plain: LoadedSam, world: Path, tmp_path: Path) -> None:
    with counted_embeddings(plain) as seen, pytest.raises(InputError, match="none: no such folder"):
        evaluated(plain, labels(world), pairs(world, masks=tmp_path / "none"))
    assert seen == []


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a command on so few photos, and has tests of its own."""
    monkeypatch.setattr(evaluation, "draw_rounds", lambda results: [("curves.txt", " ".join(results).encode())])


@pytest.fixture
def checkpoint(prompted: LoadedSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training run's checkpoint."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    assert prompted.task_prompt is not None
    state = {**prompted.sam.state_dict(), STATE_KEY: prompted.task_prompt.weight}
    folder = tmp_path / "step_000010"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(to_safetensors(state, {"trained_tasks": prompted.trained_tasks}))
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(
        "sets:\n"
        "- {name: things, kind: folder-pairs, task: salient, images: '${W}/images', masks: '${W}/masks'}\n"
        "- {name: pieces, kind: label-maps, task: part, images: '${W}/images', labels: '${W}/labels', limit: 2}\n"
        "- {name: entities, kind: coco, task: entity, images: '${W}/images', annotations: '${W}/instances.json'}\n"
    )
    return path


def evaluate(*arguments: str | Path) -> Result:
    """Call the command; errors that are not a user's are the test's."""
    result = CliRunner().invoke(evaluate_command, [*map(str, arguments), "--device=cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit | SumError):
        raise result.exception
    return result


def test_command_writes_what_it_prints(
    checkpoint: Path, suite: Path, world: Path, tmp_path: Path, prompted: LoadedSam
) -> None:
    out = tmp_path / "report"
    options = ("--weights", checkpoint, "--suite", suite, "--out", out, "--var", f"W={world}", "--rounds=3")
    result = evaluate(*options, "--first=box", "--first=point", "--output=single")
    assert result.exit_code == 0
    tables = {f"tables.{kind}" for kind in ("csv", "md", "tex")}
    written = {"masks.parquet", "summary.json", "table.md", "evaluation.json", "portions", "curves.txt"} | tables
    assert {path.name for path in out.iterdir()} == written
    assert (out / "curves.txt").read_text() == checkpoint.name
    assert result.stdout == (out / "table.md").read_text()
    assert "- pieces: these weights were never trained for the task 'part'" in result.stdout
    assert "- entities: 3 empty masks were left out" in result.stdout
    rows = pq.read_table(out / "masks.parquet").to_pylist()
    assert len(rows) == (3 + 6 + 6) * 2 * 3
    assert {(row["first"], row["output"]) for row in rows} == {("box", "single"), ("point", "single")}
    (direct,) = evaluate_sets(prompted, [labels(world, limit=2)], [Protocol("point", 3, "single")])
    found = {
        (r["image"], r["mask"], r["round"]): r["iou"] for r in rows if (r["set"], r["first"]) == ("pieces", "point")
    }
    assert found == {(r["image"], r["mask"], r["round"]): r["iou"] for r in direct.rows.to_pylist()}
    summary = json.loads((out / "summary.json").read_text())
    assert [played["first"] for played in summary["results"]] == ["box", "point"]
    assert summary["results"][1]["tasks"]["part"] == summarise(direct.rows)["part"]
    assert summary["suite"][1]["labels"] == f"{world}/labels"
    assert summary["trained_tasks"] == ["unspecified", "salient"]
    assert summary["protocols"][0] == {"first": "box", "rounds": 3, "output": "single", "task_rounds": 1}


def test_task_may_be_given_in_all_rounds(checkpoint: Path, suite: Path, world: Path, tmp_path: Path) -> None:
    options = ("--weights", checkpoint, "--suite", suite, "--var", f"W={world}", "--rounds=2", "--show=1", "--show=2")
    texts = [evaluate(*options, "--out", tmp_path / when, f"--task-prompt={when}").stdout for when in ("first", "all")]
    tables = [[line.split("|") for line in text.splitlines() if line.startswith("| salient")] for text in texts]
    assert tables[0][0][3] == tables[1][0][3]
    assert tables[0][0][4] != tables[1][0][4]


def test_what_is_done_is_kept_when_a_later_set_fails(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for key in SIZES:
        whole = (world / "images" / f"{key}.png").read_bytes()
        (tmp_path / "bad" / f"{key}.png").write_bytes(whole[: len(whole) // 2])  # with a sound header
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"sets:\n- {{name: good, kind: folder-pairs, task: part, images: {world}/images, masks: {world}/masks}}\n"
        f"- {{name: bad, kind: folder-pairs, task: part, images: {tmp_path}/bad, masks: {world}/masks}}\n"
    )
    result = evaluate("--weights", checkpoint, "--suite", suite, "--out", tmp_path / "out", "--rounds=1")
    assert isinstance(result.exception, ImageError)
    done = sorted(path.name for path in (tmp_path / "out" / "portions").iterdir())
    assert done == ["000-0000000.parquet"]
    assert set(pq.read_table(tmp_path / "out" / "portions" / done[0])["set"].to_pylist()) == {"good"}
    for key in SIZES:
        (tmp_path / "bad" / f"{key}.png").write_bytes((world / "images" / f"{key}.png").read_bytes())
    assert evaluate("--weights", checkpoint, "--suite", suite, "--out", tmp_path / "out", "--rounds=1").exit_code == 0
    assert set(pq.read_table(tmp_path / "out" / "masks.parquet")["set"].to_pylist()) == {"good", "bad"}


def test_command_refuses_what_cannot_be(checkpoint: Path, suite: Path, world: Path, tmp_path: Path) -> None:
    common = ("--suite", suite, "--out", tmp_path / "out")
    missing = evaluate("--weights", checkpoint, *common)
    assert isinstance(missing.exception, SettingsError)
    assert "sets.0.images: ${W} has no value" in str(missing.exception)
    beyond = evaluate("--weights", checkpoint, *common, "--var", f"W={world}", "--rounds=3", "--show=4")
    assert beyond.exit_code == 2
    assert "4 is beyond the last round, 3" in beyond.stderr
    for rounds in ("0", "10"):
        assert evaluate("--weights", checkpoint, *common, "--var", f"W={world}", f"--rounds={rounds}").exit_code == 2
    empty = evaluate("--weights", tmp_path, *common, "--var", f"W={world}")
    assert isinstance(empty.exception, CheckpointError)
    assert "weights.safetensors" in str(empty.exception)
    assert not (tmp_path / "out").exists()


def test_weights_are_a_file_a_folder_or_the_packaged_ones(checkpoint: Path) -> None:
    runtime = Runtime("cpu")
    folder, file = (
        load_weights(str(checkpoint), runtime),
        load_weights(str(checkpoint / "weights.safetensors"), runtime),
    )
    assert folder.sha256 == file.sha256
    assert folder.trained_tasks == file.trained_tasks == ("unspecified", "salient")
    assert load_weights("vit_micro", runtime).architecture.name == "vit_micro"


def test_several_models_are_named_and_compared_with_published_figures(
    checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text(
        f"sets:\n- {{name: coift, kind: folder-pairs, task: salient, images: {world}/images, masks: {world}/masks}}\n"
    )
    common = ("--suite", suite, "--out", out, "--rounds=1")
    models = ("--weights", f"sam={checkpoint}", "--weights", f"mine={checkpoint}")
    result = evaluate(*common, *models, "--published", "mine=sum ft-small", "--published", "sam=SAM")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("# ")] == ["# sam", "# mine"]
    (line,) = [line for line in (out / "tables.md").read_text().split("## ")[1].splitlines() if "coift" in line]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert (cells[3], cells[6], cells[8]) == ("93.7", "95.0", "+0.0 [+0.0, +0.0]")
    for options, said in (
        (("--weights", f"a={checkpoint}", "--weights", f"a={checkpoint}"), "several are called 'a'"),
        ((*models, "--published", "mine=SUM FT-Huge"), "'SUM FT-Huge' is none of SAM, SUM FT-Small"),
        ((*models, "--published", "yours=SAM"), "no --weights is called 'yours'; there are sam, mine"),
        ((*models, "--hq-output", "sam=best"), "expected hq or hq+sam, found 'best'"),
        ((*models, "--output=hq"), "hq is for --protocol hq-sam"),
        ((*models, "--protocol=hq-sam", "--first=box"), "leave --first and --rounds out"),
    ):
        refused = evaluate("--suite", suite, "--out", out, *options)
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.replace("│", " ").split())


def test_hq_sams_protocol_shows_its_published_figures(
    checkpoint: Path, world: Path, tmp_path: Path, prompted: LoadedSam
) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text(
        f"sets:\n- {{name: HRSOD, kind: folder-pairs, task: salient, images: {world}/images, masks: {world}/masks}}\n"
    )
    result = evaluate("--weights", f"sum={checkpoint}", "--suite", suite, "--out", out, "--protocol=hq-sam")
    assert result.exit_code == 0
    assert "no HQ-SAM, their single-mask output is judged: sum" in result.stdout
    assert result.stdout == (out / "table.md").read_text()
    table = (out / "tables.md").read_text().split("## ")
    assert table[1].startswith("mIoU, 1 box, photo squeezed, output: hq")
    (line,) = [line for line in table[1].splitlines() if "HRSOD" in line]
    assert [cell.strip() for cell in line.split("|")[4:8:2]] == ["93.6", "94.6"]
    settings = pairs(world, name="HRSOD")
    (direct,) = evaluate_sets(prompted, [settings], [Protocol("squeezed-box", 1, "hq")])
    rows = pq.read_table(out / "masks.parquet")
    assert rows["iou"].to_pylist() == direct.rows["iou"].to_pylist()
