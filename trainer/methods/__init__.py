"""The methods that are compared: entries of one table. All run through the same code.

An entry is plain data, and what a method does beside that is a class in a module here (``addition.py``).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from sum_factory.trainer.methods.augseg import AugSeg, AugSegSettings
from sum_factory.trainer.methods.discrepancy import DiscrepancySettings, discrepancy
from sum_factory.trainer.methods.distillation import DistillationSettings, SelfDistillation
from sum_factory.trainer.methods.merging import Merging, MergingSettings
from sum_factory.trainer.methods.method import Method as Method
from sum_factory.trainer.methods.online import Online, OnlineSettings
from sum_factory.trainer.methods.soft import SoftTargets
from sum_factory.trainer.methods.u2pl import U2pl, U2plSettings

METHODS = {
    "human-only": Method(pseudo_labels="none"),
    "vanilla": Method(),
    "mask-refinement": Method(pseudo_labels="refined"),
    "sum-no-task-prompt": Method(loss_by_certainty=True, sampling_by_certainty=True),
    "sum": Method(loss_by_certainty=True, sampling_by_certainty=True, task_prompt="first"),
    "sum-continuous-tp": Method(loss_by_certainty=True, sampling_by_certainty=True, task_prompt="all"),
    "sum-no-ua-sampling": Method(loss_by_certainty=True, task_prompt="first"),
    "sum-confidence-uncer": Method(
        loss_by_certainty=True, sampling_by_certainty=True, task_prompt="first", source="confidence"
    ),
    "sum-discrepancy-uncer": Method(
        loss_by_certainty=True, sampling_by_certainty=True, task_prompt="first", source="discrepancy"
    ),
    "sum-discrepancy-online": Method(task_prompt="first", addition=discrepancy, settings=DiscrepancySettings, copies=1),
    "augseg-mixed-prompt": Method(
        addition=AugSeg, settings=AugSegSettings, reads_partners=True, takes_points=False, copies=1
    ),
    "augseg-box-prompt": Method(
        addition=partial(AugSeg, box_prompt=True),
        settings=AugSegSettings,
        reads_partners=True,
        takes_points=False,
        copies=1,
    ),
    "u2pl": Method(task_prompt="first", addition=U2pl, settings=U2plSettings, reads_certainty=True, reads_steps=True),
    "u2pl-entropy": Method(
        source="entropy", addition=U2pl, settings=U2plSettings, reads_certainty=True, reads_steps=True
    ),
    "sum-soft": Method(
        pseudo_labels="refined",
        loss_by_certainty=True,
        sampling_by_certainty=True,
        task_prompt="first",
        addition=SoftTargets,
        reads_logits=True,
        takes_points=False,
    ),
    "sum-online": Method(
        loss_by_certainty=True,
        sampling_by_certainty=True,
        task_prompt="first",
        addition=Online,
        settings=OnlineSettings,
        copies=2,
        reads_logits=True,
    ),
    "self-distillation": Method(addition=SelfDistillation, settings=DistillationSettings, copies=1),
    "model-merging": Method(pseudo_labels="none", addition=Merging, settings=MergingSettings, copies=1),
}


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"no such method; there are {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(_known)]
"""The name of an entry of the table; settings with another one are refused."""
