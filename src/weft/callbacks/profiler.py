"""Where the time of the first rounds goes, by PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.callbacks.callback import Callback
from weft.callbacks.tracker import FOLDER
from weft.storage import files


class Profiler(Callback):
    """A trace of the first rounds that this process plays, in ``RUN/tracking/profile.json``, for Perfetto or ``chrome://tracing``.

    Args:
        rounds: how many. They take longer than others, and the trace grows with every operation: 10 MB and more a round.
    """

    def __init__(self, rounds: int = 1):
        self.rounds = rounds
        self._profile: Any = None

    def run_started(self, about: Mapping[str, Any]) -> None:
        import torch

        self._file = Path(about["folder"]) / FOLDER / "profile.json"
        self._left = self.rounds
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=kinds)
        self._profile.start()

    def round_done(self, record: Mapping[str, Any]) -> None:
        self._left -= 1
        if self._left == 0:
            self.close()

    def close(self) -> None:
        if self._profile is not None:
            profile, self._profile = self._profile, None
            profile.stop()
            files.make_folder(self._file.parent)
            profile.export_chrome_trace(str(self._file))
