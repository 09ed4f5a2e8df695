"""TensorBoard: event files in ``RUN/tracking/tensorboard``, for ``tensorboard --logdir RUN/tracking``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from weft.callbacks.tracker import LAST, Tracker


class TensorBoard(Tracker):
    """Scalars by round, and the settings as hyper-parameters."""

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "track"
    _writer: Any = None

    def open(self, place: Path, name: str, settings: Mapping[str, Any]) -> int:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = place / "tensorboard"
        last = latest(folder)
        self._writer = SummaryWriter(str(folder), purge_step=last + 1 if last else None)  # of a round that is not whole
        if not last:
            for summary in hparams(dict(settings), {}):
                self._writer.file_writer.add_summary(summary)
        self._writer.flush()
        return last

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def latest(folder: Path) -> int:
    """The last step that is whole in a folder of event files, 0 if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return 0
    events = EventAccumulator(str(folder), size_guidance={"scalars": 1})  # of each, the last
    events.Reload()
    return max((one.step for one in events.Scalars(LAST)), default=0) if LAST in events.Tags()["scalars"] else 0
