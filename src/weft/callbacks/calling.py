"""Callbacks told of a run beside whoever watches it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.callbacks.callback import Callback
from weft.engines.observer import Observer


class Calling(Observer):
    """Passes everything on to an observer, and the course of the run to callbacks.

    Args:
        about: contents of ``summary.json`` at the beginning.
    """

    def __init__(self, observer: Observer, callbacks: Sequence[Callback], folder: Path, about: Mapping[str, Any]):
        self.observer, self.callbacks = observer, list(callbacks)
        self.folder, self.about = folder, about
        self.say = observer.say  # type: ignore[method-assign]
        self.begin = observer.begin  # type: ignore[method-assign]
        self.advance = observer.advance  # type: ignore[method-assign]
        self.end = observer.end  # type: ignore[method-assign]

    def rounds_begin(self, played: Sequence[dict[str, Any]]) -> bool | None:
        asked = self.observer.rounds_begin(played)
        about = _plain(self.about) | {"folder": str(self.folder), "played": list(played)}
        return self._each(lambda one: one.run_started(about)) or asked

    def round_done(self, record: dict[str, Any]) -> bool | None:
        asked = self.observer.round_done(record)
        return self._each(lambda one: one.round_done(record)) or asked

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        plain = _plain(summary)
        self._each(lambda one: one.run_finished(plain))

    def close(self) -> None:
        self._each(lambda one: one.close())

    def _each(self, tell: Callable[[Callback], bool | None]) -> bool:
        """Tell every one; whether one answers True."""
        asked = False
        for one in list(self.callbacks):
            try:
                asked = tell(one) is True or asked
            except Exception as e:  # of a library, a server or a person's own code: the run is worth more
                self.callbacks.remove(one)
                name, what = type(one).__name__, " ".join(str(e).split())[:200]
                self.say(f"{name} failed and is left alone from here on ({type(e).__name__}{': ' + what if what else ''}).")
        return asked


def _plain(summary: Mapping[str, Any]) -> dict[str, Any]:
    """As the file has it; and a copy, so that nobody changes ours."""
    found: dict[str, Any] = json.loads(json.dumps(summary))
    return found
