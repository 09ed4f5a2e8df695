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
    found: dict[tuple[str, str], dict[str, Any]] = {}
    names: dict[tuple[str, str], str] = {}
    for name, recipe in _files(_folder()):
        if unknown := set(recipe) - _SECTIONS:
            raise ValueError(f"{name}: unknown sections {sorted(unknown)}")
        pair = recipe["model"], recipe["data"]
        if pair in found:
            raise ValueError(f"{name}: a second recipe for {pair[0]} and {pair[1]}, after {names[pair]}")
        found[pair], names[pair] = recipe | {"method": {}}, name
    for name, tables in _files(_folder() / "methods"):
        for model, sets in tables.items():
            for data, values in sets.items():
                if (model, data) not in found:
                    raise ValueError(f"methods/{name}: there is no recipe for {model} and {data}")
                found[model, data]["method"][name.removesuffix(".toml")] = values
    return list(found.values())


def _folder() -> Traversable:
    return resources.files(__name__)


def _files(folder: Traversable) -> list[tuple[str, dict[str, Any]]]:
    """The TOML files of a folder, by name."""
    found = [(f.name, tomllib.loads(f.read_text("utf-8"))) for f in folder.iterdir() if f.name.endswith(".toml")]
    return sorted(found, key=lambda pair: pair[0])


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
