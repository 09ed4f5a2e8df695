"""Errors that a person can cause, each one sentence: what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from signal import SIGINT


class WeftError(Exception):
    """Base of all errors raised on purpose by Weft."""


class UserError(WeftError):
    """Something a person can put right. The command line prints its sentence and exits with code 2.

    As text it is one printable line, whatever cells, names and messages of other libraries it quotes.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Elsewhere(UserError):
    """Something outside has ended this, and may be over soon: the same command goes on. The command line exits with code 75."""


class Interrupted(KeyboardInterrupt):
    """A run that is stopped from outside, by Ctrl-C or SIGTERM: what was finished is saved. The command line prints its sentence
    and exits with the code that shells have for the signal, 130 or 143.
    """

    def __init__(self, sentence: str, signal: int = SIGINT):
        super().__init__(sentence)
        self.signal = signal


def printable(text: str) -> str:
    """A text in one line, with escapes for what is no visible character: line breaks, other controls, unusual blanks, bytes that
    are not UTF-8."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, choices: Iterable[str]) -> str:
    """A suggestion to append to an error: ``' Did you mean "x"?'``, or ``''`` if nothing is near."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""
