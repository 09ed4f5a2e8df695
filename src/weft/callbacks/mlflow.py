"""MLflow: a run in the store of ``MLFLOW_TRACKING_URI``, else in ``RUN/tracking/mlflow.db``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from weft.callbacks.tracker import LAST, Tracker, note, noted

BATCH = 100
"""Parameters that MLflow takes at once."""


class MLflow(Tracker):
    """Settings as parameters, numbers as metrics by round; its run is finished or, where ours was stopped, killed."""

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"
    _client: Any = None
    _run = ""
    _ended = "KILLED"

    def open(self, place: Path, name: str, settings: Mapping[str, Any]) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri, own = os.environ.get("MLFLOW_TRACKING_URI"), place / "mlflow.db"
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{own.resolve()}")
        known = noted(place / "mlflow.json")
        if known.get("uri") == uri and "run" in known:
            self._run = known["run"]
            self._client.update_run(self._run, "RUNNING")
            return max((one.step for one in self._client.get_metric_history(self._run, LAST)), default=0)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "weft")
        found = self._client.get_experiment_by_name(title)
        artifacts = None if uri else (place / "mlflow").resolve().as_uri()
        where = self._client.create_experiment(title, artifacts) if found is None else found.experiment_id
        self._run = self._client.create_run(where, run_name=name).info.run_id
        params = [Param(n.replace("=", "-"), str(v)[:6000]) for n, v in settings.items()]
        for at in range(0, len(params), BATCH):
            self._client.log_batch(self._run, params=params[at : at + BATCH])
        note(place / "mlflow.json", {"run": self._run, "uri": uri})
        return 0

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(n, v, now, step) for n, v in numbers.items()])

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        self._ended = "FINISHED"

    def close(self) -> None:
        if self._run:
            self._client.set_terminated(self._run, self._ended)
