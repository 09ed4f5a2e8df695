"""The most memory that a process has had in use since a moment."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Begins to look when it is made.

    On a GPU it is what PyTorch has allocated there, else what of this process, with all that it had loaded before, lies in the
    machine's memory (Linux alone tells that).
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.begun = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            MARK.write_text("5")  # wipes the mark of the highest level, as proc(5) says
        except OSError:
            self.begun = False

    def bytes(self) -> int | None:
        """None where nobody tells."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if not self.begun:
            return None
        try:
            lines = STATUS.read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
