"""Run ``labelgen`` in forks of one process that has loaded the libraries: tests that kill and double runs start dozens.

Calls come as lines of JSON on standard input, their answers go to standard output. A call that names a ``command``
begins it, in a ``folder`` and an ``environment``, with its ``output`` added to a file, and gives its process; ``wait``
names a process, waits for it and gives its exit status.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from sum_factory.labelgen import cli, run
from sum_factory.shared.sam.checkpoint import load_sam


def begin(call: dict[str, Any]) -> int:
    """Fork; the child runs ``first``, which is Python, and then ``labelgen``, in a session of its own."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(call["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    exec(call["first"], {})
    cli.main(call["command"])
    raise AssertionError("a command ends its process")


LOADED = (run, load_sam())
for line in sys.stdin:
    call = json.loads(line)
    answer = begin(call) if "command" in call else os.waitstatus_to_exitcode(os.waitpid(call["wait"], 0)[1])
    print(answer, flush=True)
