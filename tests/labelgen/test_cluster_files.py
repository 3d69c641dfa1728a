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


def test_command_of_the_guide_exists() -> None:
    guide = (FOLDER.parent / "cluster.md").read_text()
    (command,) = re.findall(r"^    (labelgen run (?:.*\\\n)*.*)$", guide, re.MULTILINE)
    assert options_of(command.replace("\\\n", " "))["workers"] == 64
