"""What the command lines import: nothing heavy to show a page of help, and no torch to read manifests.

What is imported is counted, in fresh processes, and not the time that it takes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    *(
        "cv2",
        "fsspec",
        "jinja2",
        "llvmlite",
        "matplotlib",
        "numba",
        "numpy",
        "PIL",
        "pyarrow",
        "pycocotools",
        "pydantic",
        "ray",
    ),
    *(
        "scipy",
        "segment_anything",
        "sum_factory.shared.shards.shard_set",
        "skimage",
        "tensorboard",
        "torch",
        "torchvision",
        "tqdm",
    ),
    *("webdataset", "yaml", "zarr"),
}
PROGRAM = """
import sys
from click.testing import CliRunner
from {module} import main

heavy, seen = {heavy!r}, set()

def call(arguments):
    result = CliRunner().invoke(main, arguments)
    if result.exit_code or not result.output:
        sys.exit(f"{{arguments}}: exit status {{result.exit_code}}, {{result.output}}{{result.exception}}")
    print(" ".join(arguments[:1]), *sorted((heavy & set(sys.modules)) - seen))
    seen.update(sys.modules)

{calls}
"""


def imported(module: str, calls: str, heavy: set[str] = HEAVY) -> dict[str, set[str]]:
    """Make ``calls`` of a program in one fresh process; return which of the heavy modules each was first to import."""
    program = PROGRAM.format(module=module, heavy=heavy, calls=calls)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {name: set(modules) for name, *modules in lines}


@pytest.mark.parametrize("module", ["sum_factory.labelgen.cli", "sum_factory.trainer.cli"])
def test_pages_of_help_import_nothing_heavy(module: str) -> None:
    calls = "call(['--version'])\ncall(['--help'])\nfor name in main.list_commands(None):\n    call([name, '--help'])"
    by_command = imported(module, calls)
    assert len(by_command) >= 7
    assert {name: modules for name, modules in by_command.items() if modules} == {}


def test_help_of_the_ablation_imports_nothing_heavy() -> None:
    for name in ("microworld", "photos"):
        assert imported(f"sum_factory.pipelines.{name}.ablation.__main__", "call(['--help'])") == {"--help": set()}


@pytest.mark.parametrize(
    ("command", "needless"),
    [
        ("status", {"torch", "ray", "numba", "cv2", "scipy"}),
        ("gc", {"torch", "ray", "numba", "cv2", "scipy"}),
        ("verify", {"torch", "ray", "scipy"}),
        ("repair", {"torch", "ray", "scipy"}),
    ],
)
def test_reading_a_shard_set_needs_no_torch(command: str, needless: set[str], finished: tuple[Path, object]) -> None:
    by_command = imported(
        "sum_factory.labelgen.cli", f"call([{command!r}, '--shards', {str(finished[0])!r}])", needless | {"pyarrow"}
    )
    assert by_command == {command: {"pyarrow"}}, "pyarrow is what manifests are read with"


def test_views_are_made_without_torch(finished: tuple[Path, object], tmp_path: Path) -> None:
    shards, chosen, joined = str(finished[0]), str(tmp_path / "chosen"), str(tmp_path / "joined")
    calls = (
        f"call(['select', '--shards', {shards!r}, '--out', {chosen!r}, '--min-area', '1'])\n"
        f"call(['merge', {chosen!r}, {chosen!r}, '--out', {joined!r}, '--keep', 'first'])"
    )
    by_command = imported("sum_factory.labelgen.cli", calls, {"torch", "ray", "numba", "pyarrow"})
    assert by_command == {"select": {"pyarrow"}, "merge": set()}


def test_runs_are_listed_without_torch(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    about = '{"what": "training", "steps": 9, "method": "sum", "variant": "full", "data": "a"}'
    (tmp_path / "run" / "run.json").write_text(about)
    assert imported("sum_factory.trainer.cli", f"call(['runs', {str(tmp_path)!r}])") == {"runs": set()}
