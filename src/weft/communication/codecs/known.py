"""Codecs by name, and a codec from its text."""

from __future__ import annotations

from typing import TypeVar

from weft import typed
from weft.communication.codecs.chain import Chain, Coder, Joined, Shift, Stage
from weft.communication.codecs.codec import Codec
from weft.communication.codecs.configured import Configured, configured
from weft.errors import UserError, nearest

CODECS: dict[str, type[Configured]] = {}
"""Codecs by name, in the order in which people are shown them. Most are stages and may be joined."""

ENDS: dict[str, type[Configured]] = {}
"""Shifts and entropy coders by name: the beginnings and ends of chains, and no codecs by themselves."""

C = TypeVar("C", bound=type[Configured])


def register(cls: C) -> C:
    """Class decorator that makes a codec or a stage known by its name; it must be constructible without arguments."""
    if cls.name in CODECS.keys() | ENDS.keys():
        raise ValueError(f"there already is a codec {cls.name!r}")
    typed.hints(cls)  # looked up now: nothing is to be evaluated when a stranger's message names it
    (ENDS if issubclass(cls, (Shift, Coder)) else CODECS)[cls.name] = cls
    return cls


def codec(text: str) -> Codec:
    """The codec of that text: ``NAME:setting=value,setting=value``, and several stages joined by ``+``.

    Raises:
        UserError: there is none of a name, its settings are not right, or nothing could decode such a chain.
    """
    found = [_named(piece) for piece in text.split("+")]
    if len(found) == 1 and not isinstance(found[0], Stage):
        return found[0]  # type: ignore[return-value]  # what is registered and no stage is a codec
    if alone := next((s for s in found if not isinstance(s, Stage)), None):
        raise UserError(f'"{text}" is a codec chain that can\'t be decoded: {alone.name} stands alone.')
    joined = Joined(tuple(s for s in found if isinstance(s, Stage)))
    return joined.stages[0] if len(found) == 1 else joined


def for_downloads(text: str) -> Codec:
    """The codec of that text, if values can go down in it.

    Raises:
        UserError: there is none, or it needs something that their receivers may not hold.
    """
    found = codec(text)
    if isinstance(found, Chain) and (found.sparsifier is not None or found.alpha(1) > 0):
        raise UserError(
            f'"{text}" can\'t be the codec of downloads, in which values go whole to clients that may hold nothing to add them '
            "to: use a quantiser, such as quant8 or half."
        )
    return found


def _named(text: str) -> Configured:
    name, _, settings = (part.strip() for part in text.partition(":"))
    known: dict[str, type[Configured]] = {**CODECS, **ENDS}
    if name not in known:
        raise UserError(f'There is no codec "{name}"; choose from {", ".join(known)}.{nearest(name, known)}')
    return configured(known[name], settings)
