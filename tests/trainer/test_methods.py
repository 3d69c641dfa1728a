"""The table of methods, row by row."""

from __future__ import annotations

import pytest

from sum_factory.trainer.methods import METHODS, Method

NOTHING = (False, False)
LOSS_ONLY = (True, False)
LOSS_AND_SAMPLING = (True, True)

ROWS = {
    # method: pseudo-labels, where certainty acts, source of uncertainty if it is read, rounds with the task prompt
    "human-only": ("none", NOTHING, None, "none"),
    "vanilla": ("raw", NOTHING, None, "none"),
    "mask-refinement": ("refined", NOTHING, "refinement", "none"),
    "sum-no-task-prompt": ("raw", LOSS_AND_SAMPLING, "refinement", "none"),
    "sum": ("raw", LOSS_AND_SAMPLING, "refinement", "first"),
    "sum-continuous-tp": ("raw", LOSS_AND_SAMPLING, "refinement", "all"),
    "sum-no-ua-sampling": ("raw", LOSS_ONLY, "refinement", "first"),
    "sum-confidence-uncer": ("raw", LOSS_AND_SAMPLING, "confidence", "first"),
    "sum-discrepancy-uncer": ("raw", LOSS_AND_SAMPLING, "discrepancy", "first"),
    "sum-discrepancy-online": ("raw", NOTHING, None, "first"),
    "augseg-mixed-prompt": ("raw", NOTHING, None, "none"),
    "augseg-box-prompt": ("raw", NOTHING, None, "none"),
    "u2pl": ("raw", NOTHING, "refinement", "first"),
    "u2pl-entropy": ("raw", NOTHING, "entropy", "none"),
    "sum-soft": ("refined", LOSS_AND_SAMPLING, "refinement", "first"),
    "sum-online": ("raw", LOSS_AND_SAMPLING, "refinement", "first"),
    "self-distillation": ("raw", NOTHING, None, "none"),
    "model-merging": ("none", NOTHING, None, "none"),
}


def test_no_other_methods_are_there() -> None:
    assert METHODS.keys() == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_row_is_the_papers(name: str) -> None:
    labels, certain, source, task_prompt = ROWS[name]
    method = METHODS[name]
    assert method.pseudo_labels == labels
    assert (method.loss_by_certainty, method.sampling_by_certainty) == certain
    assert method.task_prompt == task_prompt
    assert method.needs_uncertainty == (source is not None)
    if source is not None:
        assert method.source == source


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        (Method(), False),
        (Method(pseudo_labels="none", task_prompt="first"), False),
        (Method(loss_by_certainty=True), True),
        (Method(sampling_by_certainty=True), True),
        (Method(pseudo_labels="refined"), True),
        (Method(reads_certainty=True), True),
    ],
)
def test_uncertainty_is_read_if_anything_depends_on_it(method: Method, needs: bool) -> None:
    assert method.needs_uncertainty == needs
