"""Recipes: settings for a method on a given backbone and data set, read from ``recipes.toml`` beside this file."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from typing import Any

ANY = "*"
"""Stands for the data in a recipe for a backbone on whatever data."""

_SECTIONS = {"model", "data", "settings", "any", "family", "method"}


@cache
def _all() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(resources.files("weft").joinpath("recipes.toml").read_text("utf-8"))["recipe"]
    for recipe in found:
        if unknown := set(recipe) - _SECTIONS:
            raise ValueError(f"recipes.toml: unknown sections {sorted(unknown)}")
    return found


def find(slug: str, family: str, model: str, data: str, parameters: Collection[str]) -> dict[str, Any]:
    """Settings by flat name (``rounds``, ``method.rank``) of all recipes that apply; empty where none does.

    A recipe for the data goes before one for any data as a whole, not setting by setting: each was measured by itself.

    Args:
        parameters: full names of the method's settings; a recipe sets those only.
    """
    found: dict[str, Any] = {}
    for recipe in [r for r in _all() if (r["model"], r["data"]) == (model, data)] or _for_any_data(model):
        found |= recipe.get("settings", {})
        family_own, own = recipe.get("family", {}).get(family, {}), recipe.get("method", {}).get(slug, {})
        for section in (recipe.get("any", {}), family_own, own):
            found |= {f"method.{n}": v for n, v in _flat(section).items() if n in parameters}
    return found


def _for_any_data(model: str) -> list[dict[str, Any]]:
    return [r for r in _all() if (r["model"], r["data"]) == (model, ANY)]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
