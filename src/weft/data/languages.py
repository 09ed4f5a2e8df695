"""Languages: their codes, what they are called, and which family each is of.

``languages.csv`` holds the code of ISO 639-1, that of ISO 639-3 by which NLLB marks the language, its English name, and its genus
(Germanic, Slavic …) as the World Atlas of Language Structures (Dryer and Haspelmath, wals.info) has it.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Collection
from importlib.resources import files
from typing import NamedTuple

APART = re.compile(r"[-_]")  # of a code and a region or a script: de_DE, pt-BR, deu_Latn


class Language(NamedTuple):
    """One language of the table."""

    code: str
    longer: str
    name: str
    family: str


@functools.cache
def table() -> dict[str, Language]:
    """All of them, by their shorter code."""
    text = (files("weft.data") / "languages.csv").read_text(encoding="utf-8")
    return {row["code"]: Language(**row) for row in csv.DictReader(text.splitlines())}


@functools.cache
def _by_any_name() -> dict[str, Language]:
    return {name.lower(): one for one in table().values() for name in (one.code, one.longer, one.name)}


def language_of(language: str) -> Language | None:
    """The language that a code (``de``, ``de_DE``, ``deu_Latn``) or a name (``German``) stands for, if the table has it."""
    return _by_any_name().get(APART.split(language.strip().lower())[0])


def name_of(language: str) -> str:
    """What it is called in English; one that is not in the table as it is written."""
    found = language_of(language)
    return language if found is None else found.name


def family_of(language: str) -> str:
    """Its family; one that is not in the table is a family by itself."""
    found = language_of(language)
    return language if found is None else found.family


def mark_of(language: str, marks: Collection[str]) -> str | None:
    """Which of a tokenizer's marks stands for a language; None if none does, or several do.

    Args:
        marks: as ``de_DE`` of mBART, ``deu_Latn`` of NLLB, ``__de__`` of M2M100.
    """
    if language in marks:
        return language
    one = language_of(language)
    names = {language.lower()} if one is None else {one.code, one.longer}
    found = [mark for mark in marks if APART.split(mark.strip("_").lower())[0] in names]
    return found[0] if len(found) == 1 else None
