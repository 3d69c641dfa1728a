"""How many cores and how much memory this process may use. Needs no torch, whose import takes seconds.

The machine's own figures say nothing in a container or under a batch system: what counts is the set of cores that the
process may run on, and the processor time and the memory that its control groups allow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil
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
    return max(1, min([cores, *map(ceil, _quotas(root))]))


def usable_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use: the machine's, fewer if its control groups allow less."""
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (
        _number(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        for version, group in _groups(root, "memory")
    )
    return min([own, *(limit for limit in limits if limit is not None)])


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
    """Yield how many cores' time the control groups of this process allow."""
    for version, group in _groups(root, "cpu"):
        if version == 2:
            quota, period = _number(group / "cpu.max"), _number(group / "cpu.max", 1)
        else:
            quota, period = (_number(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota is not None and period is not None:
            yield quota / period


def _number(file: Path, index: int = 0) -> int | None:
    """Return the number in a file of a control group; None without the file, and for "max" and -1: no limit."""
    try:
        found = file.read_text().split()[index]
    except OSError:
        return None
    return None if found in ("max", "-1") else int(found)


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the control groups of this process that may limit what ``controller`` counts, with their version.

    These are its own group and those that it is nested in, as far as they are mounted.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        for group_root, mount_point in _mounts(mounts, version, controller):
            inside = PurePosixPath(path)
            own = inside.relative_to(group_root) if inside.is_relative_to(group_root) else PurePosixPath()
            for group in (own, *own.parents):
                yield version, root / mount_point.relative_to("/") / group


def _mounts(mounts: list[str], version: int, controller: str) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    """Yield which group of a hierarchy is mounted, and where, from the lines of ``/proc/self/mountinfo``."""
    for mount in mounts:
        about_mount, _, rest = mount.partition(" - ")
        kind, _, options = rest.split()[:3]
        if kind == "cgroup2" if version == 2 else kind == "cgroup" and controller in options.split(","):
            yield PurePosixPath(about_mount.split()[3]), PurePosixPath(about_mount.split()[4])
