"""Evaluation over sets of all three layouts, against upstream's predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
from PIL import Image
from scipy.ndimage import distance_transform_edt

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.trainer.evaluation import run
from sum_factory.trainer.evaluation.run import SCORES, evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol
from tiny_world import SIZES, coco, counted_embeddings, evaluated, labels, pairs, scores_of, shapes


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
