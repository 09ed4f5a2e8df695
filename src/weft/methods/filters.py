"""Which methods a person asks for: those of a family, with a need, against a challenge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weft.errors import UserError, nearest
from weft.federation.info import FAMILIES, MethodInfo


def chosen(
    infos: Mapping[str, MethodInfo], family: str | None = None, needs: str | None = None, challenge: str | None = None
) -> dict[str, MethodInfo]:
    """The cards that have every word given, in their order.

    Args:
        family: one of FAMILIES. needs: an entry of ``needs`` on some card. challenge: one of ``challenges`` on some card.

    Raises:
        UserError: a word that no card could have.
    """
    _known("family", family, FAMILIES)
    _known("need", needs, (n for i in infos.values() for n in i.needs))
    _known("challenge", challenge, (c for i in infos.values() for c in i.challenges))
    return {
        slug: info
        for slug, info in infos.items()
        if family in (None, info.family)
        and (needs is None or needs in info.needs)
        and (challenge is None or challenge in info.challenges)
    }


def _known(what: str, word: str | None, choices: Iterable[str]) -> None:
    known = list(dict.fromkeys(choices))
    if word is not None and word not in known:
        raise UserError(f'there is no {what} "{word}" among methods; there are: {", ".join(known)}.{nearest(word, known)}')
