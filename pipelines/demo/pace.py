"""How fast this machine is, so that the demo can say how long its steps will take."""

from __future__ import annotations

import statistics
import time

from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.shared.sam.settings import PACKAGED

PROBE_SECONDS = 0.18
"""What the probe takes where the demo's estimates were measured: two cores of an AMD Zen 3 server, AVX2."""
PROBE_SEED = 13
REPEATS = 3


def pace_of_this_machine() -> float:
    """Return how many times as long as there it takes here to label one scene with few points."""
    generator = LabelGenerator(
        move_to_device(load_sam(PACKAGED).sam, Runtime()), settings_for(PACKAGED, points_per_side=8)
    )
    image = make_scene(PROBE_SEED, 0).image
    generator.label(image)  # compiles kernels, or reads them from their cache
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        generator.label(image)
        times.append(time.perf_counter() - started)
    return statistics.median(times) / PROBE_SECONDS
