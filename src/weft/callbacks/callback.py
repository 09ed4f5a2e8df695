"""The protocol of what goes along with a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Callback:
    """Ignores everything; override what is of interest. What it is told is as the run's files have it, and not to be changed.

    A callback that raises is left alone from then on, which is said once: it never ends the run. One that decides by the rounds
    alone decides alike in a run that was killed and resumed.
    """

    def run_started(self, about: Mapping[str, Any]) -> bool | None:
        """The rounds are about to begin, or to go on.

        Args:
            about: contents of ``summary.json``, ``folder`` of the run, and ``played``: the lines of the rounds that were played
                before, none of which is told again.

        Returns:
            True: they are enough.
        """

    def round_done(self, record: Mapping[str, Any]) -> bool | None:
        """A round was evaluated and saved; ``record`` is its line in ``rounds.jsonl``.

        Returns:
            True: it shall be the last. If it was not scored, the next is, and that is the last.
        """

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """The run is finished, with its export and baselines; ``summary`` is the contents of ``summary.json``."""

    def close(self) -> None:
        """The process is done with the run, finished or not: nothing more will be told."""
