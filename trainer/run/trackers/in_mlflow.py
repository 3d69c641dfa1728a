"""A run in MLflow, at ``MLFLOW_TRACKING_URI``: a server, a database or a folder.

MLflow keeps whatever it is told, also the same step twice; so what it has of a step is looked up where a run goes on.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.images import RgbImage
from sum_factory.shared.progress import SPEAKER
from sum_factory.trainer.run.trackers import PROJECT, TrackedRun
from sum_factory.trainer.run.trackers.ids import FILE, keep_id, known_id

NAME = "mlflow"
PARAMS_AT_ONCE = 100
LONGEST = 500
"""Characters of a setting that every store takes."""


class InMlflow:
    """Tells ``client`` of the run ``id``; ``resumed`` if MLflow may have some of its steps already."""

    def __init__(self, client: MlflowClient, id: str, resumed: bool) -> None:
        self._client, self._id, self._resumed = client, id, resumed
        self._told: dict[str, int] = {}
        self._is_lost = False

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers of a step. If MLflow cannot be reached, that is said once, and the run goes on without it."""
        if self._is_lost:
            return
        now = int(1000 * time.time())
        try:
            new = {name: value for name, value in _renamed(values).items() if step > self._last(name)}
            self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in new.items()])
        except MlflowException as error:
            self._lose(error)

    def pictures(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Tell pictures of a step."""
        if self._is_lost:
            return
        try:
            for name, picture in _renamed(pictures).items():
                self._client.log_image(self._id, picture, key=name.replace("/", " "), step=step)
        except MlflowException as error:
            self._lose(error)

    def close(self, failed: bool) -> None:
        """Say how the run ended."""
        try:
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
        except MlflowException as error:
            self._lose(error)

    def _last(self, name: str) -> int:
        """Return the last step of which MLflow has a number of this name; looked up once."""
        if name not in self._told:
            known = self._client.get_metric_history(self._id, name) if self._resumed else []
            self._told[name] = max((metric.step for metric in known), default=-1)
        return self._told[name]

    def _lose(self, error: MlflowException) -> None:
        if not self._is_lost:
            SPEAKER.say(f"MLflow takes no more ({error}); the run goes on, and its log has all numbers")
        self._is_lost = True


def open_run(run: TrackedRun) -> InMlflow:
    """Begin a run, or go on with the one that this folder's run is there. Raises ``SettingsError``."""
    known = known_id(run.out, NAME)
    try:
        client = MlflowClient()
        if known is not None:
            client.update_run(known, status="RUNNING")
            return InMlflow(client, known, resumed=True)
        begun = client.create_run(_experiment(client), run_name=run.out.name)
        id = str(begun.info.run_id)
        keep_id(run.out, NAME, id)
        _tell_settings(client, id, run.settings)
        return InMlflow(client, id, resumed=False)
    except MlflowException as error:
        remedy = "look at MLFLOW_TRACKING_URI, or give --tracker none"
        if known is not None:
            ids = run.out / FILE
            remedy = f"set MLFLOW_TRACKING_URI as when the run began, or delete {ids} to begin a new run there"
        raise SettingsError(f"tracker mlflow: {error}; {remedy}") from error


def _experiment(client: MlflowClient) -> str:
    """Return the id of the experiment that the environment names, or of ours; it is made if it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _tell_settings(client: MlflowClient, id: str, settings: Mapping[str, Any]) -> None:
    told = [Param(name, str(value)[:LONGEST]) for name, value in _renamed(settings).items()]
    for start in range(0, len(told), PARAMS_AT_ONCE):
        client.log_batch(id, params=told[start : start + PARAMS_AT_ONCE])


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by names that MLflow takes: what is no letter, digit, -, _, ., / or space is a -."""
    return {re.sub(r"[^\w\-. /]", "-", name): value for name, value in values.items()}
