"""A run that goes on, and its page as it stands: made of what counts in the folder, once for each state of it.

Nothing is kept but the last look that was whole and the page made of it, so that a folder which is damaged, or moved or copied
under its readers, leaves them with what was there before.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.report.page import document
from weft.report.page.document import Live
from weft.report.page.shown import shown
from weft.runs.glance import Glance, glance, stamp
from weft.words import count

DAMAGE = (UserError, OSError, AttributeError, LookupError, TypeError, ValueError)
"""What is raised for files that can't be read, or hold JSON of another shape than ours."""


@dataclass(frozen=True)
class Page:
    """A page as it is served.

    Attributes:
        html: the whole of it. mark: of the state of the folder that it was made of. rounds, planned, finished: of the run in it.
    """

    html: bytes
    mark: str
    rounds: int
    planned: int | None
    finished: bool


class Followed:
    """A run's folder, for several threads that read it. Nothing is written there, and no lock is taken."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.RLock()
        self._now, self._mark = Glance(folder), ""
        self._page: Page | None = None
        self._tried = ""
        self._unread, self._unmade = "", ""

    def look(self) -> Glance:
        """The run as it stands, or as it stood when that could be read last."""
        with self._lock:
            mark = stamp(self.folder)
            if mark == self._mark:
                self._unread = ""
                return self._now
            try:
                now = glance(self.folder)
            except DAMAGE as e:
                self._unread = self._said(e)
                return self._now
            if stamp(self.folder) != mark:
                return self.look()  # a round was saved meanwhile
            if lacking(now, self._now):
                self._unread = f"{self.folder} lacks rounds that were there, as one does that is being moved or copied."
            else:
                self._now, self._mark, self._unread = now, mark, ""
            return self._now

    def page(self) -> Page:
        """The page of what :meth:`look` sees, or the last one that could be made."""
        with self._lock:
            now = self.look()
            if self._page is None or self._tried != self._mark:
                self._tried = self._mark
                try:
                    self._page, self._unmade = _made(now, self._mark), ""
                except DAMAGE as e:
                    self._unmade = self._said(e)
                    self._page = self._page or _made(Glance(self.folder), self._mark)
            return self._page

    def state(self) -> dict[str, Any]:
        """What a page that is open asks for: of which state a page would be, how far the run is in it, and what is in the way."""
        with self._lock:
            page = self.page()
            told = {"page": page.mark, "rounds": page.rounds, "planned": page.planned, "finished": page.finished}
            return told | {"trouble": self._unread or self._unmade}

    def _said(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        return f"{self.folder} is damaged ({type(error).__name__}: {error})."


def lacking(now: Glance, before: Glance) -> bool:
    """Whether a look saw a part of a folder that is being moved or copied, each of whose files may be whole."""
    return len(now.rounds) < now.summary.get("rounds", 0) or (bool(before.rounds) and not now.rounds)


def _made(now: Glance, mark: str) -> Page:
    live = Live(_status(now), mark, now.finished)
    text = document.html(shown([now]), live=live) if now.rounds else document.waiting(now.folder.resolve().name, _wait(now), live)
    return Page(text.encode(), mark, len(now.rounds), now.planned, now.finished)


def _status(now: Glance) -> str:
    if now.finished:
        return "finished"
    if not now.rounds:
        return "follows the run"
    of = "" if now.planned is None else f" of {now.planned}"
    return f"round {len(now.rounds)}{of}, follows the run"


def _wait(now: Glance) -> list[str]:
    setup = [f"Set-up: {count(now.setup, 'round')} of the head's own training."] if now.setup else []
    return ["No round of this run has been saved yet. Its numbers will stand here after the first.", *setup]
