"""What lies in a run's folder at this moment, read without lock and without torch: for lists, and to follow a run that goes on.

Whoever writes replaces whole files by renaming and appends to ``rounds.jsonl`` beyond what the checkpoint vouches for, so that a
reader who asks the checkpoint first never sees half of anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.runs import audit_file
from weft.runs import directory as directories
from weft.runs.directory import RunDirectory
from weft.storage import files


@dataclass(frozen=True)
class Glance:
    """A run as it stands.

    Attributes:
        summary: contents of ``summary.json``; empty if nothing has been written yet.
        rounds: the lines of ``rounds.jsonl`` that count. setup: how many rounds of the head's own training count.
        saved: seconds since the epoch at which the last round was saved, None before the first.
    """

    folder: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    setup: int = 0
    saved: float | None = None

    @property
    def finished(self) -> bool:
        return bool(self.summary.get("finished"))

    @property
    def planned(self) -> int | None:
        """Rounds that the run was asked for."""
        found = self.summary.get("planned", self.setting("rounds"))
        return found if isinstance(found, int) else None

    def setting(self, name: str) -> Any:
        """As the run goes by it: what ``auto`` turned out to be, else what was asked for; None if it has no such setting."""
        one = self.summary.get("settings", {}).get(name)
        return self.summary.get("pinned", {}).get(name, one["value"] if isinstance(one, dict) else None)

    def bytes(self, way: str) -> int | None:
        """Bytes sent so far ``up`` or ``down``, all clients and phases, headers included; None where nothing crosses a wire."""
        billed = [self.summary["bytes"]] if self.finished else [line.get("bytes", {}) for line in self.rounds]
        found = [phase[way]["wire"] for phases in billed for phase in phases.values()]
        return sum(found) if found else None


def glance(folder: Path) -> Glance:
    """Read a run's folder.

    Raises:
        UserError: a file is damaged, or of another format.
    """
    directory = RunDirectory(folder)
    if not directory.summary.exists():
        return Glance(folder)
    summary = directories.read_summary(directory)  # first: once it is finished, so is all the rest
    rounds, saved = _counted(folder)
    setup, _ = _counted(directory.setup)
    return Glance(folder, summary, rounds, len(setup), saved)


def stamp(folder: Path) -> str:
    """Another one whenever :func:`glance`, or a reader of audits, may see something else; no contents are looked at."""
    directory = RunDirectory(folder)
    found: list[tuple[int, int, int] | None] = []
    for path in (directory.summary, _state(folder), _state(directory.setup), folder / audit_file.NAME):
        try:
            about = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((about.st_mtime_ns, about.st_size, about.st_ino))
    return files.sha256(repr(found).encode())[:16]


def _state(folder: Path) -> Path:
    """What says which rounds of a federation count."""
    return folder / "checkpoint" / "state.json"


def _counted(folder: Path) -> tuple[list[dict[str, Any]], float | None]:
    """The rounds of a federation that its checkpoint vouches for, and when that was written."""
    state = _state(folder)
    if not state.exists():
        return [], None
    length = files.read_sealed(state).get("length", 0)
    return directories.read_rounds(folder / "rounds.jsonl", length), state.stat().st_mtime
