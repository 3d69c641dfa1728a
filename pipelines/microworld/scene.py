"""The micro-world: deterministic 256 px scenes with exact salient, entity and part masks.

A scene is drawn back to front: a textured background, dull objects, then one vivid *salient object*
made of one to three entities that touch, then sometimes a thin thing in front of everything. Every
object has a body or is all thin structure, may carry thin appendages, and may carry parts.
``make_scene(seed, index)`` is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.microworld import shapes
from sum_factory.pipelines.microworld.shapes import Mask, Point
from sum_factory.pipelines.microworld.textures import cut_patch

Image = npt.NDArray[np.float32]
Colour = npt.NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """What scenes look like. Lengths are pixels, shares are probabilities."""

    side: int = 256
    distractors: tuple[int, int] = (3, 6)
    """Least and most dull objects in a scene."""
    salient_sizes: tuple[float, float, float] = (0.6, 0.28, 0.12)
    """Shares of salient objects made of 1, 2 and 3 entities."""
    salient_radius: tuple[float, float] = (0.13, 0.24)
    """Least and largest radius of the first of these, as a share of the side."""
    dull_radius: tuple[float, float] = (0.06, 0.17)
    salient_saturation: tuple[float, float] = (0.65, 1.0)
    dull_saturation: tuple[float, float] = (0.05, 0.5)
    """Colour saturation of salient objects and of all others."""
    appendage_share: float = 0.6
    thin_object_share: float = 0.12
    thin_widths: tuple[int, ...] = (1, 2, 2, 3)
    """Widths that those of thin structures are drawn from."""
    grille_share: float = 0.15
    parts: tuple[int, int] = (0, 3)
    thin_part_share: float = 0.5
    """Share of appendages that are a part of their own, in a colour of their own."""
    part_appendage_share: float = 0.0
    """Share of patches on a body that carry an appendage themselves, which ends where the body does."""
    minimum_area: int = 60
    """Masks with fewer visible pixels are not annotated."""


@dataclass(frozen=True)
class Scene:
    """One scene: an image and its exact masks.

    ``image`` is RGB uint8 (S, S, 3). ``entities`` and ``parts`` are label maps, uint8 (S, S), 0 where there is
    none; labels are 1, 2, ... without gaps. ``salient`` is bool (S, S).
    """

    image: npt.NDArray[np.uint8]
    entities: npt.NDArray[np.uint8]
    parts: npt.NDArray[np.uint8]
    salient: npt.NDArray[np.bool_]

    def masks(self, task: str) -> npt.NDArray[np.bool_]:
        """Return the masks of ``task`` ("salient", "entity" or "part") as bool (K, S, S)."""
        if task == "salient":
            return self.salient[None]
        labels = {"entity": self.entities, "part": self.parts}[task]
        numbers = np.arange(1, int(labels.max()) + 1, dtype=np.uint8)
        return np.asarray(labels[None] == numbers[:, None, None])


@dataclass
class _Canvas:
    """The scene while it is being drawn."""

    image: Image
    entities: Mask
    parts: Mask
    next_part: int = 1
    salient_entities: list[int] = field(default_factory=list)

    def paint(self, mask: Mask, colour: Colour, contrast: float, rng: np.random.Generator) -> None:
        """Fill ``mask`` with a textured, shaded ``colour``."""
        x, y, w, h = cv2.boundingRect(mask)
        if w == 0 or h == 0:
            return
        side = self.image.shape[0]
        texture = cut_patch(rng, h, w, minimum_side=side)
        texture *= contrast
        slope = rng.uniform(-30, 30, 2).astype(np.float32)
        shade = (
            np.linspace(-0.5, 0.5, h, dtype=np.float32)[:, None] * slope[0]
            + np.linspace(-0.5, 0.5, w, dtype=np.float32)[None] * slope[1]
        )
        texture += shade[..., None]
        texture += colour
        np.copyto(self.image[y : y + h, x : x + w], texture, where=mask[y : y + h, x : x + w, None] > 0)

    def mean_colour(self, mask: Mask) -> Colour:
        """Return the mean colour now seen under ``mask``, float32 (3,)."""
        return np.asarray(cv2.mean(self.image, mask)[:3], np.float32)


def make_scene(seed: int, index: int, world: World | None = None) -> Scene:
    """Draw scene ``index`` of the world that ``seed`` names."""
    world = world or World()
    rng = np.random.default_rng([seed, index])
    side = world.side
    canvas = _Canvas(np.zeros((side, side, 3), np.float32), shapes.empty(side), shapes.empty(side))
    everything = np.ones((side, side), np.uint8)
    background = _pick_colour(rng, (0.0, 0.35), (0.2, 0.85))
    canvas.paint(everything, background, rng.uniform(6, 26), rng)

    entity = 0
    for _ in range(int(rng.integers(world.distractors[0], world.distractors[1] + 1))):
        entity += 1
        centre = (float(rng.uniform(0.06, 0.94) * side), float(rng.uniform(0.06, 0.94) * side))
        _draw_object(canvas, entity, centre, side * rng.uniform(*world.dull_radius), world.dull_saturation, world, rng)

    centre = (float(rng.uniform(0.3, 0.7) * side), float(rng.uniform(0.3, 0.7) * side))
    for member in range(1 + int(rng.choice(3, p=world.salient_sizes))):
        entity += 1
        radius = side * (rng.uniform(*world.salient_radius) if member == 0 else rng.uniform(0.08, 0.14))
        _draw_object(canvas, entity, centre, radius, world.salient_saturation, world, rng)
        canvas.salient_entities.append(entity)
        angle, reach = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.7, 1.1)
        centre = (
            float(np.clip(centre[0] + reach * np.cos(angle), 0.1 * side, 0.9 * side)),
            float(np.clip(centre[1] + reach * np.sin(angle), 0.1 * side, 0.9 * side)),
        )

    if rng.random() < 0.25:  # something thin in front of it all
        entity += 1
        centre = (float(rng.uniform(0.1, 0.9) * side), float(rng.uniform(0.1, 0.9) * side))
        front = shapes.rods(side, centre, side * rng.uniform(0.1, 0.25), world.thin_widths, rng)
        _paint(canvas, entity, front, _contrasting_colour(canvas, front, world.dull_saturation, rng), rng)
    return _finish(canvas, world, rng)


def make_scenes(seed: int, start: int, count: int, world: World | None = None) -> Iterator[Scene]:
    """Yield scenes ``start`` to ``start + count - 1``."""
    for index in range(start, start + count):
        yield make_scene(seed, index, world)


def _draw_object(
    canvas: _Canvas,
    entity: int,
    centre: Point,
    radius: float,
    saturation: tuple[float, float],
    world: World,
    rng: np.random.Generator,
) -> None:
    side = world.side
    if rng.random() < world.thin_object_share:
        draw = shapes.THIN_OBJECTS[int(rng.integers(len(shapes.THIN_OBJECTS)))]
        mask = draw(side, centre, radius, world.thin_widths, rng)
        _paint(canvas, entity, mask, _contrasting_colour(canvas, mask, saturation, rng), rng)
        return
    body = shapes.body(side, centre, radius, rng)
    if rng.random() < world.grille_share:
        body &= 1 - shapes.slots(side, centre, radius, rng)
    colour = _contrasting_colour(canvas, body, saturation, rng)
    if rng.random() < world.appendage_share:
        draw = shapes.APPENDAGES[int(rng.integers(len(shapes.APPENDAGES)))]
        anchor = centre
        if draw is shapes.lattice:  # a panel stands beside the body, not behind it
            angle = rng.uniform(0, 2 * np.pi)
            anchor = (centre[0] + radius * float(np.cos(angle)), centre[1] + radius * float(np.sin(angle)))
        thin = draw(side, anchor, radius, world.thin_widths, rng) & (1 - body)
        own_part = rng.random() < world.thin_part_share
        thin_colour = _contrasting_colour(canvas, thin, saturation, rng) if own_part else colour
        _paint(canvas, entity, thin, thin_colour, rng, part=own_part)
    _paint(canvas, entity, body, colour, rng)
    for _ in range(int(rng.integers(world.parts[0], world.parts[1] + 1))):
        if rng.random() < 0.2:
            part = shapes.wheel(side, centre, radius * 0.45, world.thin_widths, rng) & body
        else:
            part = shapes.patch(side, centre, radius, rng) & body
            if world.part_appendage_share and rng.random() < world.part_appendage_share:
                part |= _appendage_of(part, world, rng) & body
        _paint(canvas, entity, part, _contrasting_colour(canvas, part, saturation, rng), rng, part=True)


def _appendage_of(mask: Mask, world: World, rng: np.random.Generator) -> Mask:
    """Draw a thin structure that begins in the middle of ``mask``."""
    ys, xs = np.nonzero(mask)
    if not len(xs):
        return mask
    draw = shapes.APPENDAGES[int(rng.integers(len(shapes.APPENDAGES)))]
    middle = (float(xs.mean()), float(ys.mean()))
    return draw(world.side, middle, float(np.sqrt(len(xs) / np.pi)), world.thin_widths, rng)


def _paint(
    canvas: _Canvas, entity: int, mask: Mask, colour: Colour, rng: np.random.Generator, part: bool = False
) -> None:
    """Paint ``mask`` over what is there and take its pixels for ``entity``, as a new part if asked."""
    canvas.paint(mask, colour, rng.uniform(3, 20), rng)
    where = mask > 0
    canvas.entities[where] = entity
    canvas.parts[where] = canvas.next_part if part else 0
    canvas.next_part += int(part)


def _contrasting_colour(
    canvas: _Canvas, mask: Mask, saturation: tuple[float, float], rng: np.random.Generator
) -> Colour:
    """Pick the one of four colours that differs most from what lies under ``mask`` (mostly)."""
    candidates = [_pick_colour(rng, saturation, (0.2, 0.95)) for _ in range(4)]
    if rng.random() < 0.1:
        return candidates[0]
    grown = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    under = canvas.mean_colour(np.asarray(grown, np.uint8))
    return max(candidates, key=lambda colour: float(np.abs(colour - under).sum()))


def _pick_colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return np.asarray(255 * v * (1 - s + s * ramp), np.float32)


def _finish(canvas: _Canvas, world: World, rng: np.random.Generator) -> Scene:
    """Blur, add noise, drop masks that are too small, number the rest without gaps."""
    blurred = cv2.GaussianBlur(canvas.image, (0, 0), float(rng.uniform(0.35, 0.9)))
    noise = rng.standard_normal(blurred.shape, np.float32)
    image = np.asarray(blurred, np.float32) + noise * np.float32(rng.uniform(1, 7))
    salient = np.isin(canvas.entities, canvas.salient_entities)
    return Scene(
        image=np.clip(image, 0, 255).astype(np.uint8),
        entities=_renumber(canvas.entities, world.minimum_area),
        parts=_renumber(canvas.parts, world.minimum_area),
        salient=salient,
    )


def _renumber(labels: Mask, minimum_area: int) -> Mask:
    counts = np.bincount(labels.ravel(), minlength=256)
    keep = counts >= minimum_area
    keep[0] = False
    table = np.where(keep, np.cumsum(keep), 0).astype(np.uint8)
    return table[labels]
