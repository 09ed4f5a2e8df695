"""Entities as spans of tags, held to the rules of ``conlleval`` written down anew."""

from __future__ import annotations

import re

import numpy as np
import pytest

from weft.data.bio import spans, type_of

KINDS = ("PER", "LOC", "Cell-Line", "Cell", "B-Cell", "I", "O", "B", "Ä ö")


def parted(tag: str) -> tuple[str, str]:
    found = re.fullmatch(r"([^-]*)-(.*)", tag)
    return (found[1], found[2]) if found else (tag, "")


def conlleval(tags: list[str]) -> list[tuple[str, int, int]]:
    """The chunks that the script of CoNLL-2000 sees: a word begins one, or does not, by its tag and the one before."""
    found, begun, last, last_kind = [], None, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        now, kind = parted(tag)
        ends = (last in ("B", "I") and now in ("B", "O")) or (last != "O" and last_kind != kind)
        begins = now == "B" or (last == "O" and now == "I") or (now != "O" and last_kind != kind)
        if ends and begun is not None:
            found.append((last_kind, begun, i))
            begun = None
        if begins:
            begun = i
        last, last_kind = now, kind
    return found


def test_spans_of_random_tags_are_those_of_conlleval_however_broken() -> None:
    draw = np.random.default_rng(0)
    broken = longest = 0
    for _ in range(5000):
        kinds = draw.choice(KINDS, int(draw.integers(1, 4)), replace=False).tolist()
        every = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        tags = [every[i] for i in draw.integers(len(every), size=int(draw.integers(0, 12)))]
        found = list(spans(tags))
        assert found == conlleval(tags), tags
        broken += any(tags[start].startswith("I-") for _, start, _ in found)
        longest = max([longest, *(end - start for _, start, end in found)])
    assert broken > 1000
    assert longest > 3


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O O", []),
        ("B-PER", [("PER", 0, 1)]),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("O I-PER I-PER O", [("PER", 1, 3)]),  # IOB1
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("B-PER O I-PER", [("PER", 0, 1), ("PER", 2, 3)]),
        ("B-Cell I-Cell-Line", [("Cell", 0, 1), ("Cell-Line", 1, 2)]),
        ("B-PER I-PER I-PER", [("PER", 0, 3)]),
    ],
)
def test_textbook_tags_make_up_these_entities(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert list(spans(tags.split())) == found


def test_entities_of_sentences_made_of_them_come_back() -> None:
    draw = np.random.default_rng(1)
    for _ in range(500):
        tags: list[str] = []
        made = []
        for _ in range(int(draw.integers(0, 5))):
            tags += ["O"] * int(draw.integers(0, 3))
            kind, length = str(draw.choice(KINDS)), int(draw.integers(1, 4))
            made.append((kind, len(tags), len(tags) + length))
            tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
        assert list(spans(tags)) == made


@pytest.mark.parametrize("tag", ["O", "B-X", "I-X", "B-Cell-Line", "I-B-Cell"])
def test_the_type_of_a_tag_is_all_after_its_first_hyphen(tag: str) -> None:
    assert type_of(tag) == parted(tag)[1]
