"""What happens to a client's tensor between rounds: three independent bits."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from fnmatch import fnmatchcase


class Scope(enum.Flag):
    """DOWN: the server sends its value. UP: the client sends its value. KEEP: the client remembers its value.

    UP alone starts afresh in every round; UP | KEEP is sent but never overwritten; no bit at all lives for one turn.
    """

    NONE = 0
    DOWN = 1
    UP = 2
    KEEP = 4

    @property
    def word(self) -> str:
        """The usual word for the combination, for listings."""
        return _WORDS.get(self, "+".join(s.name or "" for s in Scope if s in self and s) or "temporary")


SHARED = Scope.DOWN | Scope.UP
PERSONAL = Scope.KEEP
GIVEN = Scope.DOWN
SENT = Scope.UP
TEMPORARY = Scope.NONE
_WORDS = {SHARED: "shared", PERSONAL: "personal", GIVEN: "given", SENT: "sent", TEMPORARY: "temporary"}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor name "part/site/role" is meant by a pattern: a part ("head"), or a glob ("lora/*/A", "*")."""
    return any(fnmatchcase(name, p) or name.startswith(p + "/") for p in patterns)
