"""What cards say is said in words that the documentation explains, and is true."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import tiny
from every_method import built
from paths import ROOT
from weft.federation import info
from weft.federation.message import Update
from weft.methods import registry
from weft.tensors.forms import Value
from weft.tensors.integers import Integers

PAGE = ROOT / "docs" / "adding-a-method.md"


@pytest.mark.parametrize("word", [*info.NEEDS, *info.CHALLENGES])
def test_every_word_has_a_sentence_in_the_source_and_on_the_page(word: str) -> None:
    assert f"\n{word}: " in Path(info.__file__).read_text(encoding="utf-8")
    assert f"\n| `{word}` | " in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("slug", sorted(registry.infos()))
def test_only_a_method_that_needs_all_updates_holds_one_when_it_takes_the_next(slug: str) -> None:
    """The tensors of the newest update may live on in the loop that works through it, those of an earlier one may not."""
    run = tiny.federation(replace(built(slug), batch=3, steps=1, epochs=1.0), sizes=(6, 6, 6, 6), rounds=1)
    intake, most = run.simulation.intake, 0

    def clone(value: Value) -> Value:
        if isinstance(value, Integers):
            return Integers(value.values.clone(), value.below)
        return value.clone() if isinstance(value, Tensor) else value

    def watched(updates: Iterable[Update]) -> Iterator[Update]:
        nonlocal most
        seen: list[weakref.ref[Tensor]] = []
        for update in updates:
            tensors = {n: clone(v) for n, v in update.tensors.items()}
            copies = [v.values if isinstance(v, Integers) else v for v in tensors.values() if isinstance(v, Tensor | Integers)]
            fresh: Any = replace(update, tensors=tensors)
            most = max(most, len({i for i, ref in enumerate(seen) if ref() is not None}))
            seen.append(weakref.ref(copies[0]))
            del copies, tensors, update
            yield fresh
            del fresh

    original = intake.updates
    intake.updates = lambda *a: watched(original(*a))  # type: ignore[method-assign]
    run.simulation.round(0)
    assert (most > 1) == ("all updates" in run.method.info.needs)
