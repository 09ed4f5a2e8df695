"""Weights & Biases: an offline run in ``RUN/tracking/wandb``, for ``wandb sync``, unless ``WANDB_MODE`` says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from weft.callbacks.tracker import Tracker, note, noted


class WandB(Tracker):
    """Settings as the configuration, numbers by round. A resumed run is a further part of the same run."""

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"
    _run: Any = None

    def open(self, place: Path, name: str, settings: Mapping[str, Any]) -> int:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._file = place / "wandb.json"
        known = noted(self._file)
        self._known = {"run": known.get("run", uuid4().hex[:8]), "round": known.get("round", 0)}
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "weft"),
            dir=str(place),
            id=self._known["run"],
            name=name,
            config=dict(settings),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        note(self._file, self._known)
        return int(self._known["round"])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)
        self._known["round"] = step
        note(self._file, self._known)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
