"""Recipes: settings for a method on a given backbone and data set, read from the TOML files beside this one (see README.md)."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

ANY = "*"
"""Stands for the data in a recipe for a backbone on whatever data."""

_SECTIONS = {"model", "data", "settings", "any", "family"}


@cache
def _all() -> list[dict[str, Any]]:
    """Every recipe, with the values of single methods under ``method``."""
    folder = resources.files(__name__)
    found = {(r["model"], r["data"]): r | {"method": {}} for r in (_read(name) for name in _names(folder))}
    for name in _names(folder / "methods"):
        slug = name.removesuffix(".toml")
        for model, sets in _toml(folder / "methods" / name).items():
            for data, values in sets.items():
                if (model, data) not in found:
                    raise ValueError(f"methods/{name}: there is no recipe for {model} and {data}")
                found[model, data]["method"][slug] = values
    return list(found.values())


def _names(folder: Traversable) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.name.endswith(".toml"))


def _toml(file: Traversable) -> dict[str, Any]:
    return tomllib.loads(file.read_text("utf-8"))


def _read(name: str) -> dict[str, Any]:
    recipe = _toml(resources.files(__name__) / name)
    if unknown := set(recipe) - _SECTIONS:
        raise ValueError(f"{name}: unknown sections {sorted(unknown)}")
    return recipe


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
