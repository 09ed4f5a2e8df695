"""The registered methods, as tests over all of them take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

import of_methods
from weft.federation.method import Method
from weft.methods import registry
from weft.testing import plays

SPLIT = sorted(slug for slug, info in registry.infos().items() if "split" in info.needs)
"""Methods whose clients have no turns by themselves, so that none can be packed, carried elsewhere or played by a worker: what is
asked of them stands in their own test files, and that other engines and rules refuse them in a sentence."""

METHODS = sorted(registry.infos().keys() - set(SPLIT))

TERMS = "flora of small rank"
"""At its own rank a stack is as large as a layer of the tiny models, and goes whole: here the terms travel."""

TRAVELS = [*METHODS, TERMS]

KINDS = ("fedit", "fedsa-lora", "flora", "pfedpg", "fedhpl")
"""Two means, one with personal values; stacks; a generator; tables: of each way to aggregate one."""


SHORT: dict[str, dict[str, Any]] = {
    "MPFT": {"server_epochs": 5, "adapt_steps": 3},
    "FlexLoRA": {"sites": "q"},
}
"""By class: settings for what takes long beside the clients' turns, a server's own training or its algebra at every layer."""


TINY = of_methods.said("TINY")


def built(slug: str) -> Method:
    """The method at its own defaults, but for what a tiny model is too small for."""
    return registry.build("flora", {"rank": 1}) if slug == TERMS else registry.build(slug, TINY.get(slug, {}))


def short(slug: str) -> Method:
    """The method at its own defaults, but for :data:`SHORT`."""
    if slug == TERMS:
        return built(slug)
    names = [cls.__name__ for cls in registry.load(slug).__mro__]
    return registry.build(slug, TINY.get(slug, {}) | next((SHORT[n] for n in names if n in SHORT), {}))


def small(slug: str) -> Method:
    """The method at its own defaults, but with small batches, so that a turn has several unequal steps."""
    return plays.small(built(slug))


def some(slugs: Iterable[str], quick: Iterable[str] = KINDS) -> list[Any]:
    """All of these methods, but in ``make test`` only ``quick``: the others are slow tests.

    For what the laws cover in small, or what depends on the kind of a method more than on the method.
    """
    chosen = set(quick)
    return [slug if slug in chosen else pytest.param(slug, marks=pytest.mark.slow) for slug in slugs]
