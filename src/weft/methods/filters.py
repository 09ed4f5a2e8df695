"""Which methods a person asks for: those of a family, with a need, against a challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.errors import UserError, nearest
from weft.federation.info import CHALLENGES, FAMILIES, NEEDS, MethodInfo


def chosen(
    infos: Mapping[str, MethodInfo], family: str | None = None, needs: str | None = None, challenge: str | None = None
) -> dict[str, MethodInfo]:
    """The cards that have every word given, in their order.

    Args:
        family: one of FAMILIES. needs: one of NEEDS. challenge: one of CHALLENGES.

    Raises:
        UserError: a word that no card could have.
    """
    _known("family", family, FAMILIES)
    _known("need", needs, NEEDS)
    _known("challenge", challenge, CHALLENGES)
    return {
        slug: info
        for slug, info in infos.items()
        if family in (None, info.family)
        and (needs is None or needs in info.needs)
        and (challenge is None or challenge in info.challenges)
    }


def _known(what: str, word: str | None, choices: Sequence[str]) -> None:
    if word is not None and word not in choices:
        raise UserError(f'there is no {what} "{word}" among methods; there are: {", ".join(choices)}.{nearest(word, choices)}')
