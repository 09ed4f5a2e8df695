"""docstrings: what the standard library's functions do, in sentences, with the modules of pydocs held out."""

from __future__ import annotations

import re

import pytest

from weft.data import load
from weft.data.docstrings import docstrings, first_sentence
from weft.data.pydocs_areas import UNSEEN


def test_there_are_thousands_of_short_sentences_each_once_and_the_modules_of_pydocs_are_held_out() -> None:
    source = docstrings()
    rows = [source.train, *source.unseen.values()]
    answers = [answer for own in rows for answer in own.answers or ()]
    assert 4_000 < len(source.train) < 6_000
    assert len({answer.casefold() for answer in answers}) == len(answers)
    assert all(15 <= len(answer) <= 200 and answer[0].isupper() and re.search(r"[.!?][)\"']?$", answer) for answer in answers)
    assert set(source.unseen) == set(UNSEEN)
    assert not set(source.unseen) & set(source.train.keys or ())
    assert (source.test, source.key_name, source.classes) == (None, "module", ("sentence",))
    assert load("docstrings") is docstrings()


def test_what_is_asked_has_the_module_its_area_and_the_signature() -> None:
    json = docstrings().unseen["json"]
    asked = dict(zip(json.answers or (), json.texts or (), strict=True))
    text = asked["Serialize ``obj`` to a JSON formatted ``str``."]
    start = "Say in one sentence what this function of Python's standard library does (module json, internet data):\n\n"
    assert text.startswith(f"{start}def dumps(obj, *, skipkeys=False, ")
    assert max(len(text) for text in docstrings().train.texts or ()) < 500
    assert any("\n\nclass JSONEncoder:\n    def " in text for text in json.texts or ())


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum.  More\n    follows.", "Return the sum."),
        ("Return\n    the sum of it\n\n    More.", "Return the sum of it."),
        ("Read a name, e.g. a path, and return it. Then stop.", "Read a name, e.g. a path, and return it."),
        ("S.find(sub) -> int. Find a thing.", None),
        (">>> add(1, 2)\n3", None),
        ("Deprecated alias of the other function.", None),
        ("See the other function for all of this.", None),
        ("Do it.", None),
        ("Arguments: a, b and the others.", None),
        ("obj - the object that is read from it.", None),
        ("a" * 300 + " is long and longer.", None),
    ],
)
def test_the_first_sentence_is_english_or_none(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence
