"""Scenes are a pure function of seed and index, and their masks are what they claim to be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from sum_factory.pipelines.microworld.scene import Scene, World, make_scene, make_scenes
from sum_factory.shared.images import digest

COUNT = 24
"""Scenes that a property is checked on."""


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """The first scenes of a world."""
    return list(make_scenes(11, 0, COUNT))


@pytest.fixture(scope="module")
def raw(scenes: list[Scene]) -> list[Scene]:
    """The same scenes with the masks that are too small to be annotated."""
    return list(make_scenes(11, 0, COUNT, World(minimum_area=1)))


def fingerprint(scene: Scene) -> str:
    """Return the SHA-256 of all that a scene holds."""
    return digest(b"".join(array.tobytes() for array in (scene.image, scene.entities, scene.parts, scene.salient)))


def opened_share(mask: npt.NDArray[np.bool_]) -> float:
    """Return the share of a mask that an opening with a 5 x 5 square takes away: what is thinner than 5 px."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return 1 - np.count_nonzero(opened) / np.count_nonzero(mask)


def test_same_seed_and_index_give_the_same_bytes(scenes: list[Scene]) -> None:
    assert fingerprint(make_scene(11, 3)) == fingerprint(scenes[3])


def test_another_process_draws_the_same_bytes(scenes: list[Scene]) -> None:
    script = (
        "from sum_factory.pipelines.microworld.scene import make_scene\n"
        "from sum_factory.shared.images import digest\n"
        "s = make_scene(11, 2)\n"
        "print(digest(b''.join(a.tobytes() for a in (s.image, s.entities, s.parts, s.salient))))\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert told == fingerprint(scenes[2])


def test_every_index_and_seed_gives_another_scene(scenes: list[Scene]) -> None:
    prints = {fingerprint(scene) for scene in scenes}
    assert len(prints) == COUNT
    assert fingerprint(make_scene(12, 0)) not in prints


def test_a_range_of_scenes_is_those_scenes(scenes: list[Scene]) -> None:
    assert [fingerprint(scene) for scene in make_scenes(11, 4, 3)] == [fingerprint(scene) for scene in scenes[4:7]]


def test_scenes_have_the_side_and_types_that_are_promised() -> None:
    scene = make_scene(0, 0, World(side=128))
    assert scene.image.shape == (128, 128, 3)
    assert scene.entities.shape == scene.parts.shape == scene.salient.shape == (128, 128)
    assert (scene.image.dtype, scene.entities.dtype, scene.parts.dtype) == (np.uint8, np.uint8, np.uint8)
    assert scene.salient.dtype == bool


def test_labels_have_no_gaps(scenes: list[Scene]) -> None:
    for scene in scenes:
        for labels in (scene.entities, scene.parts):
            present = np.unique(labels)
            assert present.tolist() == list(range(int(present.max()) + 1))
            assert present[0] == 0


def test_masks_are_the_labels_one_by_one(scenes: list[Scene]) -> None:
    for scene in scenes[:5]:
        for task, labels in (("entity", scene.entities), ("part", scene.parts)):
            masks = scene.masks(task)
            assert len(masks) == labels.max()
            for k, mask in enumerate(masks):
                np.testing.assert_array_equal(mask, labels == k + 1)
        np.testing.assert_array_equal(scene.masks("salient"), [scene.salient])


def test_no_mask_is_smaller_than_the_minimum_area(scenes: list[Scene]) -> None:
    areas = [np.count_nonzero(mask) for scene in scenes for task in ("entity", "part") for mask in scene.masks(task)]
    assert min(areas) >= World().minimum_area


def test_masks_below_the_minimum_area_are_all_that_is_dropped(scenes: list[Scene], raw: list[Scene]) -> None:
    dropped = 0
    for kept, whole in zip(scenes, raw, strict=True):
        np.testing.assert_array_equal(kept.image, whole.image)
        for task in ("entity", "part"):
            large = [mask for mask in whole.masks(task) if np.count_nonzero(mask) >= World().minimum_area]
            np.testing.assert_array_equal(kept.masks(task), large)
            dropped += len(whole.masks(task)) - len(large)
    assert dropped > 0


def test_salient_object_is_a_union_of_whole_visible_entities(raw: list[Scene]) -> None:
    for scene in raw:
        assert scene.salient.any()
        assert (scene.entities[scene.salient] > 0).all()
        for entity in scene.masks("entity"):
            assert np.count_nonzero(entity & scene.salient) in (0, np.count_nonzero(entity))


def test_salient_object_has_one_to_three_entities_and_is_not_always_one(raw: list[Scene]) -> None:
    counts = [len(np.unique(scene.entities[scene.salient])) for scene in raw]
    assert set(counts) <= {1, 2, 3}
    assert len(set(counts)) > 1


def test_some_scene_has_entities_that_are_not_salient(raw: list[Scene]) -> None:
    assert all((scene.entities[~scene.salient] > 0).any() for scene in raw)


def test_every_part_lies_inside_one_entity(raw: list[Scene]) -> None:
    parts = 0
    for scene in raw:
        for part in scene.masks("part"):
            assert len(np.unique(scene.entities[part])) == 1
            assert scene.entities[part][0] > 0
            parts += 1
    assert parts > COUNT


def test_some_entities_are_mostly_thin_and_most_are_not(scenes: list[Scene]) -> None:
    lost = np.array([opened_share(mask) for scene in scenes for mask in scene.masks("entity")])
    assert np.mean(lost > 0.6) > 0.03
    assert np.mean(lost > 0.2) > 0.1
    assert np.mean(lost < 0.2) > 0.4


def test_thin_structures_are_as_wide_as_the_world_says() -> None:
    for width in (1, 4, 6):
        rods = World(appendage_share=0.0, thin_object_share=1.0, thin_widths=(width,) * 4, parts=(0, 0))
        narrower, wider = np.ones((max(1, width - 1),) * 2, np.uint8), np.ones((width + 4,) * 2, np.uint8)
        masks = [mask.astype(np.uint8) for scene in make_scenes(11, 0, 6, rods) for mask in scene.masks("entity")]
        kept = sum(np.count_nonzero(cv2.morphologyEx(mask, cv2.MORPH_OPEN, narrower)) for mask in masks)
        lost = sum(np.count_nonzero(mask - cv2.morphologyEx(mask, cv2.MORPH_OPEN, wider)) for mask in masks)
        total = sum(np.count_nonzero(mask) for mask in masks)
        assert kept > 0.5 * total
        assert lost > 0.5 * total


def test_world_without_thin_structures_has_none() -> None:
    solid = World(appendage_share=0.0, thin_object_share=0.0, grille_share=0.0, parts=(0, 0), distractors=(0, 0))
    found = [scene for scene in make_scenes(11, 0, 12, solid) if len(scene.masks("entity"))]
    bodies = [mask for scene in found for mask in scene.masks("entity")]
    assert all(not scene.masks("part").any() for scene in found)
    assert np.median([opened_share(mask) for mask in bodies]) < 0.05


def parts_of(world: World) -> list[tuple[Scene, npt.NDArray[np.bool_]]]:
    return [(scene, mask) for scene in make_scenes(11, 0, COUNT, world) for mask in scene.masks("part")]


def test_parts_may_carry_thin_structures_that_stay_on_their_entity() -> None:
    plain = World(appendage_share=0.0, thin_object_share=0.0, parts=(1, 1), thin_widths=(3,) * 4, minimum_area=200)
    thin = replace(plain, part_appendage_share=1.0)
    lost = [np.array([opened_share(mask) for _, mask in parts_of(world)]) for world in (plain, thin)]
    detailed = [np.mean((share > 0.05) & (share < 0.6)) for share in lost]
    assert detailed[1] > detailed[0] + 0.15
    assert all(len(np.unique(scene.entities[mask])) == 1 for scene, mask in parts_of(thin))


def test_share_of_appendages_that_are_parts_is_the_worlds() -> None:
    counts = [
        len(parts_of(World(appendage_share=1.0, thin_object_share=0.0, parts=(0, 0), thin_part_share=share)))
        for share in (0.0, 0.5, 1.0)
    ]
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2]


def test_objects_differ_in_colour_from_what_is_around_them(raw: list[Scene]) -> None:
    contrasts = []
    for scene in raw:
        for mask in scene.masks("entity"):
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~mask
            if np.count_nonzero(mask) >= 200 and ring.any():
                contrasts.append(np.abs(scene.image[mask].mean(0) - scene.image[ring].mean(0)).max())
    assert np.median(contrasts) > 25
