"""How many cores this process may use, and how work is divided among them. Needs no torch, whose import takes seconds.

The machine's count says nothing in a container or under a batch system: what counts is the set of cores that the
process may run on, and the processor time that its control groups allow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What tells OpenMP how long a thread that waits keeps its core busy."""


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: those that it may run on, fewer if a quota allows less time.

    A quota of one and a half cores counts as two, of which each then rests for a quarter of the time. ``root`` is where
    the kernel's files are looked for.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([cores, *quotas]))


def divide_cores(cores: int, processes: int) -> int:
    """Return how many of ``cores`` each of some processes gets, 1 at least."""
    return max(1, cores // processes)


def rest_while_waiting() -> None:
    """Have OpenMP's threads sleep when they wait, unless the environment says otherwise.

    A thread that spins takes its core from what else runs there, such as the thread that it waits for. Heeded if torch
    is not loaded yet; processes that are started later inherit it.
    """
    if not any(name in os.environ for name in SPINNING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _quotas(root: Path) -> Iterator[float]:
    """Yield what the control groups of this process allow, in cores: its own, and those that it is nested in."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        if number == "0" and not controllers:
            kind, quota_of = "cgroup2", _quota_of_version_2
        elif "cpu" in controllers.split(","):
            kind, quota_of = "cgroup", _quota_of_version_1
        else:
            continue
        for mounted, place in _mounted(mounts, kind):
            inside = PurePosixPath(path)
            own = inside.relative_to(mounted) if inside.is_relative_to(mounted) else PurePosixPath()
            for group in (own, *own.parents):
                quota = quota_of(root / place.relative_to("/") / group)
                if quota is not None:
                    yield quota


def _mounted(mounts: list[str], kind: str) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    """Yield which groups of a kind are mounted, and where; of version 1, those of the controller ``cpu``."""
    for mount in mounts:
        place, _, file_system = mount.partition(" - ")
        fields, (found, _, options) = place.split(), file_system.split()[:3]
        if found == kind and (kind == "cgroup2" or "cpu" in options.split(",")):
            yield PurePosixPath(fields[3]), PurePosixPath(fields[4])


def _quota_of_version_2(group: Path) -> float | None:
    """Return the cores that ``cpu.max`` allows, as in "150000 100000"; None for "max" or without the file."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_of_version_1(group: Path) -> float | None:
    """Return the cores that ``cpu.cfs_quota_us`` allows; None for -1 or without the file."""
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except OSError:
        return None
    return None if quota < 0 else quota / period
