"""Make what all runs on photos share, once: labels, refiner, and a layer of maps for each source that is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sum_factory.pipelines.microworld.ablation.prepare import add_maps, label_photos, sources_read
from sum_factory.pipelines.photos.ablation.plan import PhotosPlan, refiner_recipe
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.refiner import train_refiner

POOL = "pool.txt"
"""The list of the photos that are labelled."""


def prepare_photos(plan: PhotosPlan, processes: int, say: Callable[[str], None]) -> Path:
    """Make what is not there yet, in so many processes; return the refiner. Raises ``SumError`` as the stages do."""
    workers = processes if processes > 1 else 0  # of Ray, or none and no Ray
    text = "".join(f"{path.absolute()}\n" for path in plan.labelled)
    storage = Storage(str(plan.out))
    storage.make()
    storage.write(POOL, text.encode())
    label_photos(plan.out / POOL, plan.shards, plan.sam, plan.automask, workers, say)
    refiner = train_refiner(refiner_recipe(plan), plan.out / "refiner", say)
    add_maps(plan.shards, refiner, plan.sam, sources_read(plan.methods), workers, say)
    return refiner
