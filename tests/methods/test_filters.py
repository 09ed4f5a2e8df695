"""Which methods a person asks for, among cards made by hand."""

from __future__ import annotations

import pytest

from weft.errors import UserError
from weft.federation.info import MethodInfo
from weft.methods.filters import chosen


def card(slug: str, family: str, needs: tuple[str, ...] = (), challenges: tuple[str, ...] = ()) -> MethodInfo:
    return MethodInfo(slug, slug, "nobody", family, "nothing", challenges=challenges, needs=needs)


CARDS = {
    one.slug: one
    for one in (
        card("a", "prompts", ("images", "two towers"), ("data heterogeneity",)),
        card("b", "prompts"),
        card("c", "full", ("images",), ("data heterogeneity", "privacy preservation")),
    )
}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({}, ["a", "b", "c"]),
        ({"family": "prompts"}, ["a", "b"]),
        ({"needs": "images"}, ["a", "c"]),
        ({"challenge": "privacy preservation"}, ["c"]),
        ({"family": "prompts", "challenge": "data heterogeneity"}, ["a"]),
        ({"family": "full", "needs": "two towers"}, []),
    ],
)
def test_cards_have_every_word_that_was_given(words: dict[str, str], wanted: list[str]) -> None:
    assert list(chosen(CARDS, **words)) == wanted


def test_a_word_that_no_card_could_have_is_refused() -> None:
    with pytest.raises(UserError, match=r'there is no family "prompt" among methods; .* Did you mean "prompts"'):
        chosen(CARDS, family="prompt")
