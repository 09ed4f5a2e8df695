"""docs/codecs.md says of every codec what it is."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from codec_texts import TEXTS
from paths import ROOT
from weft.communication.codecs import CODECS, ENDS, codec
from weft.communication.codecs.chain import Stage

PAGE = (ROOT / "docs" / "codecs.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: row for line in PAGE.splitlines() if (row := re.split(r" *\| *", line.strip("| "))) and re.match(r"`\w+`$", row[0])
}


def test_the_table_has_a_row_for_each_codec_in_their_order() -> None:
    names = [name.strip("`") for name in ROWS if name != "`unbiased`" and name != "`linear`"]
    assert names == [*CODECS, *ENDS]


@pytest.mark.parametrize("name", [*CODECS, *ENDS])
def test_a_row_says_all_settings_with_their_defaults_and_whether_it_is_unbiased(name: str) -> None:
    cls, row = (CODECS | ENDS)[name], ROWS[f"`{name}`"]  # type: ignore[operator]
    text = cls().text.partition(":")[2]
    said = re.findall(r"`(\w+=[\w.]+)`", row[1])
    assert said == (text.split(",") if text else [])
    assert len(said) == len(fields(cls))
    if name not in ENDS:
        assert row[4] == ("yes" if codec(name).unbiased else "no")


@pytest.mark.parametrize("name", [n for n, cls in CODECS.items() if issubclass(cls, Stage)])
def test_a_row_links_what_the_codec_says_it_rests_on(name: str) -> None:
    said = set(re.findall(r"\d{4}\.\d{5}", CODECS[name].source))  # type: ignore[attr-defined]
    linked = set(re.findall(r"\d{4}\.\d{5}", ROWS[f"`{name}`"][5]))
    assert said == linked or (name == "adaptive" and said == {"1610.02132"})


def test_every_example_on_the_page_is_a_codec() -> None:
    examples = re.findall(r"weft run --codec (\S+)", PAGE)
    assert len(examples) == 5
    assert all(codec(text).text for text in (*examples, *TEXTS))
