"""Cores are those that the process may run on, fewer if a control group that it is in allows less time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sum_factory.shared.cores import SPINNING, divide_cores, rest_while_waiting, usable_cores, usable_memory

V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "34 31 0:31 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def machine(root: Path, mounts: str, memberships: str, **files: str) -> Path:
    """Write what the kernel says; the names of ``files`` have ``__`` for a slash and ``_of_`` for a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("23 1 0:20 / / rw - ext4 /dev/root rw\n" + mounts)
    (root / "proc/self/cgroup").write_text(memberships)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_of_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def test_without_control_groups_it_is_the_affinity_that_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


def test_without_affinity_it_is_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores(tmp_path) == 5


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("5000000 100000", 8)],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(machine(tmp_path, V2.format(root="/"), "0::/\n", cpu_of_max=quota)) == cores


def test_groups_that_a_group_is_nested_in_count_too(tmp_path: Path) -> None:
    files = {
        "job__cpu_of_max": "300000 100000",
        "job__step__cpu_of_max": "max 100000",
        "other__cpu_of_max": "1000 100000",
    }
    assert usable_cores(machine(tmp_path, V2.format(root="/"), "0::/job/step\n", **files)) == 3


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    root = machine(tmp_path, V2.format(root="/docker/1"), "0::/docker/1/step\n", step__cpu_of_max="400000 100000")
    assert usable_cores(root) == 4


def test_a_group_out_of_sight_is_taken_for_what_is_mounted(tmp_path: Path) -> None:
    root = machine(tmp_path, V2.format(root="/docker/1"), "0::/docker/2\n", cpu_of_max="400000 100000")
    assert usable_cores(root) == 4


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3)])
def test_quota_of_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    memberships = "4:memory:/job\n3:cpuset:/\n2:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n"
    files = {"job__cpu_of_cfs_quota_us": quota, "job__cpu_of_cfs_period_us": "100000"}
    files = {"cpu,cpuacct__" + name: text for name, text in files.items()}
    assert usable_cores(machine(tmp_path, V1.format(root="/"), memberships, **files)) == cores


@pytest.mark.parametrize(("limit", "found"), [("1000000", 1_000_000), ("max", None), (str(2**63 - 4096), None)])
def test_memory_is_the_machines_or_less(tmp_path: Path, limit: str, found: int | None) -> None:
    whole = usable_memory(tmp_path)
    assert whole == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    root = machine(tmp_path, V2.format(root="/"), "0::/job\n", job__memory_of_max=limit)
    assert usable_memory(root) == (whole if found is None else found)


def test_each_process_gets_a_core_at_least() -> None:
    assert [divide_cores(8, processes) for processes in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]


def test_waiting_threads_rest_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SPINNING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    rest_while_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that what is set is taken back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    rest_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_asking_takes_no_torch() -> None:
    code = (
        "import sys; from sum_factory.shared.cores import usable_cores\n"
        "assert usable_cores() >= 1; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
