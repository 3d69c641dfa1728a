"""Run every benchmark of this package, quickly: ``python -m pipelines.bench``."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from sum_factory.pipelines import bench


def main() -> None:
    """Run each benchmark in a process of its own; stop at the first that fails."""
    modules = [module for module in pkgutil.iter_modules(bench.__path__) if not module.ispkg]
    for name in sorted({module.name for module in modules} - {"__main__"}):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"sum_factory.pipelines.bench.{name}", "--quick"], check=True)


if __name__ == "__main__":
    main()
