"""What an engine tells whoever watches: progress bars, plain lines, tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Observer:
    """Ignores everything; override what is of interest."""

    def say(self, text: str) -> None:
        """A sentence for the person at the terminal."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps starts: ``set-up``, ``rounds``, ``clients`` …; stages nest."""

    def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
        """Progress within a stage."""

    def end(self, stage: str) -> None:
        """The stage is over."""

    def rounds_begin(self, played: Sequence[dict[str, Any]]) -> bool | None:
        """The rounds are about to begin, or to go on after those that were ``played`` before. True asks to play no more."""

    def round_done(self, record: dict[str, Any]) -> bool | None:
        """A round was evaluated and saved; ``record`` is its line in ``rounds.jsonl``. True asks to stop after it."""
