"""Where is a method better than another, and where worse: on small masks or large ones, on thin ones or full ones?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference
from sum_factory.pipelines.microworld.ablation.cells import FROZEN
from sum_factory.pipelines.microworld.ablation.kinds import MaskKind, differences_of_kinds
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import FROZEN_ROW, Row
from sum_factory.pipelines.photos.ablation.compare import scores_of_row
from sum_factory.pipelines.photos.ablation.plan import PhotosPlan
from sum_factory.shared.masks import Mask
from sum_factory.shared.progress import track
from sum_factory.trainer.data.sets import open_set
from sum_factory.trainer.evaluation.report import ALL

SMALL, LARGE = 0.01, 0.1
"""Shares of the photo that a small mask covers less of than, and a large one more."""
SIZES = {
    f"below {100 * SMALL:g} % of the photo": (0.0, SMALL),
    f"{100 * SMALL:g} to {100 * LARGE:g} %": (SMALL, LARGE),
    f"above {100 * LARGE:g} %": (LARGE, np.inf),
}
"""From which share of the photo up to which, by the words of the page."""
OPENED = 0.03
"""Width of what counts as thin, as a share of the photo's longer side: about two cells of a grid of 64."""
THIN = 0.3
"""Share of a mask's pixels that are thin, of a thin mask."""


def is_of_size(share: npt.NDArray[np.float64], size: str) -> npt.NDArray[np.bool_]:
    """Return which masks, that cover a ``share`` (M,) of their photo, are of one of ``SIZES``, bool (M,)."""
    least, most = SIZES[size]
    return (share >= least) & (share < most)


def thin_share(mask: Mask) -> float:
    """Return the share of the pixels of a mask, bool (H, W), that no square fits around which is ``OPENED`` wide."""
    width = max(3, round(OPENED * max(mask.shape)) | 1)
    padded = np.pad(mask.astype(np.uint8), width, mode="edge")
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((width, width), np.uint8))
    return 1 - float(opened[width:-width, width:-width].sum()) / max(1, int(mask.sum()))


def thin_shares(plan: PhotosPlan, rows: pa.Table) -> npt.NDArray[np.float64]:
    """Return ``thin_share`` of the human mask of each row of scores, (M,)."""
    wanted: dict[str, set[int]] = {}
    keys = list(zip(rows["image"].to_pylist(), rows["mask"].to_pylist(), strict=True))
    for image, mask in keys:
        wanted.setdefault(image, set()).add(mask)
    found: dict[tuple[str, int], float] = {}
    for each in track(plan.opened.tested, "measuring masks", "set"):
        opened = open_set(each.settings("val"))
        for index, key in enumerate(opened.keys):
            image = f"{each.name}/{key}"
            numbers = sorted(wanted.get(image, ()))
            if numbers:
                masks = opened.load(index).masks_at(numbers)
                found |= {(image, n): thin_share(mask) for n, mask in zip(numbers, masks, strict=True)}
    return np.array([found[key] for key in keys])


def kinds_of_masks(plan: PhotosPlan, results: Results, measure: Measure) -> list[MaskKind]:
    """Return the kinds by size and by thinness of the masks that were tested, in the order of their scores."""
    rows = results.rows_of_masks(FROZEN, measure)
    area, height, width = (rows[name].to_numpy() for name in ("area", "height", "width"))
    share, thin = area / (height.astype(np.int64) * width), thin_shares(plan, rows)
    return [
        *(MaskKind(size, is_of_size(share, size)) for size in SIZES),
        MaskKind(f"thin: more than {100 * THIN:g} % of it is", thin > THIN),
        MaskKind("not thin", thin <= THIN),
    ]


def differences_by_kind(
    results: Results, kinds: Sequence[MaskKind], better: Row, worse: Row, measure: Measure
) -> Iterator[tuple[MaskKind, Difference | None]]:
    """Return the mean difference of two rows for each kind of masks, whose masks all count alike, of whatever set."""
    first, second = (scores_of_row(results, row, measure, ALL) for row in (better, worse))
    if worse == FROZEN_ROW:
        second = {seed: only for only in second.values() for seed in first}
    return differences_of_kinds(first, second, kinds)
