"""The files of docs/cluster: the commands in them exist, and Ray and bash take them for what they are meant to be."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml

from sum_factory.labelgen.commands.label import run_command

FOLDER = Path(__file__).parents[2] / "docs/cluster"


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def options_of(command: str) -> dict[str, Any]:
    """Parse a ``labelgen run`` as the command line does, without running it."""
    words = shlex.split(re.sub(r"\$\(\([^)]*\)\)", "8", command))
    assert words[:2] == ["labelgen", "run"]
    return run_command.make_context("run", words[2:]).params


def test_cluster_of_machines_is_what_ray_expects() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(load("aws.yaml"), schema)


def test_kubernetes_job_asks_for_as_many_workers_as_its_nodes_hold() -> None:
    spec = load("kuberay.yaml")["spec"]
    options = options_of(spec["entrypoint"])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert options["workers"] == group["maxReplicas"] * int(limits["nvidia.com/gpu"]) / options["gpus_per_worker"]
    assert options["cpus_per_worker"] * int(limits["nvidia.com/gpu"]) <= int(limits["cpu"])
    assert options["grace"] < pod["terminationGracePeriodSeconds"]


def test_script_for_slurm_is_bash_and_starts_a_command_that_exists() -> None:
    script = (FOLDER / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    command = re.search(r"^labelgen run(?:.*\\\n)*.*&$", script, re.MULTILINE)
    assert command is not None
    options = options_of(command[0].replace("\\\n", " ").removesuffix("&"))
    seconds_left = int(re.search(r"--signal=B:TERM@(\d+)", script)[1])  # type: ignore[index]
    assert options["grace"] < seconds_left


def test_every_way_to_start_ray_has_a_token() -> None:
    assert load("kuberay.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    machines = load("aws.yaml")
    assert machines["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "./auth_token"
    starts = [*machines["head_start_ray_commands"], *machines["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    for script in ((FOLDER / "slurm.sh").read_text(), (FOLDER.parents[1] / "README.md").read_text()):
        lines = [line.split("#")[0] for line in script.splitlines()]
        (exported,) = (k for k, line in enumerate(lines) if re.match(r"\s*export RAY_AUTH_MODE=token", line))
        assert exported < min(k for k, line in enumerate(lines) if "ray start" in line)


def test_slurm_makes_another_token_for_each_job() -> None:
    line = next(line for line in (FOLDER / "slurm.sh").read_text().splitlines() if line.startswith("RAY_AUTH_TOKEN="))
    tokens = {subprocess.run(["bash", "-c", f"{line}; echo $RAY_AUTH_TOKEN"], capture_output=True).stdout for _ in "ab"}
    assert len(tokens) == 2
    assert all(re.fullmatch(rb"[0-9a-f]{64}\n", token) for token in tokens)


def test_command_of_the_guide_exists() -> None:
    guide = (FOLDER.parent / "cluster.md").read_text()
    (command,) = re.findall(r"^    (labelgen run (?:.*\\\n)*.*)$", guide, re.MULTILINE)
    assert options_of(command.replace("\\\n", " "))["workers"] == 64
