"""What a run asks of Ray, and what it asks Ray about its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sum_factory.labelgen.engine.pulse import Patience
from sum_factory.shared.cluster.connect import Workers


@dataclass(frozen=True)
class Resources(Workers):
    """The workers of a run, and how long one may be silent, or get nothing done."""

    patience: Patience = field(default_factory=Patience)


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are about to be taken away (``ray drain-node``, or a cloud's notice).

    Ray has no public call for it; this is the one that its own libraries use.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())
