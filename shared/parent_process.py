"""What a process does about the one that started it. Needs no torch, whose import takes seconds in each."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """Have this process end when the one ends that started it, also if that was killed and could not say so."""
    parent = parent_process()
    assert parent is not None, "started by another process"

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()
