"""Names of settings: flat, nested in tables as in a file, or typed as ``NAME=VALUE``."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from weft.errors import UserError
from weft.experiment.whole import GROUPS, LISTS


def ungrouped(name: str) -> str:
    """``federation.rounds`` as ``rounds``, and ``lora.scaling`` as ``lora_scaling``, where that is its name in the group; a name
    that is in no group, or not in that one, as it is.
    """
    group, _, inner = name.partition(".")
    own = GROUPS[group].__annotations__ if group in GROUPS else {}
    if inner.partition(".")[0] in own:
        return inner
    return f"{group}_{inner}" if f"{group}_{inner}" in own else name


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names from a nested table: ``{"method": {"name": "fedit", "optim": {"lr": 1}}}`` gives ``method`` and
    ``method.optim.lr``; ``parameters`` stands for ``method`` in Python, and ``{"federation": {"rounds": 3}}`` gives ``rounds``.

    Raises:
        UserError: a setting stands in the table of its group and elsewhere.
    """
    found: dict[str, Any] = {}
    grouped: set[str] = set()

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                add(f"{prefix}.{name}", inner)
            return
        name = ungrouped(prefix)
        own = name != prefix
        name = "method" + name.removeprefix("parameters") if own and name.partition(".")[0] == "parameters" else name
        name = "method" if name == "method.name" else name
        if name in found and (own or name in grouped):
            raise UserError(f"{name} is given twice: leave one out.")
        found[name] = value
        if own:
            grouped.add(name)

    for name, value in settings.items():
        if name != "format":
            add("method" if name == "parameters" else str(name), value)
    return found


def assignment(text: str) -> tuple[str, Any]:
    """``method.rank=16`` as a name and a value; what is no TOML value is a text.

    Raises:
        UserError: there is no ``=``.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UserError(f'"{text}" sets nothing: write NAME=VALUE, as in --set method.rank=16.')
    try:
        return name.strip(), tomllib.loads(f"v = {value.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
    except RecursionError:
        raise UserError(f"the value of {name.strip()} is nested too deeply.") from None


def assignments(texts: Iterable[str], typed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Several of them, over what was typed otherwise. A setting that is a list takes one joined by commas, ``classes=a,b``; names
    with commas in them are written as TOML, ``classes=["a, b", "c"]``.

    Raises:
        UserError: one sets nothing, or a name is set twice.
    """
    found = dict(typed or {})
    for name, value in map(assignment, texts):
        name = ungrouped(name)
        if name in found:
            raise UserError(f"{name} is given twice: leave one out.")
        found[name] = [v.strip() for v in value.split(",")] if name in LISTS and isinstance(value, str) else value
    return found
