"""Settings are checked, and what is wrong with them is said in one sentence, from the types and bounds that were declared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from weft.errors import UserError, nearest
from weft.experiment.whole import GROUPS, SETTINGS, Experiment

_OPTIONAL = {n for n, s in SETTINGS.items() if type(None) in getattr(s.kind, "__args__", ())}


def checked(settings: Mapping[str, Any], parameters: Iterable[str] = ()) -> Experiment:
    """An experiment from its own settings.

    Raises:
        UserError: unknown names, wrong types or ranges.
    """
    own: dict[str, Any] = {n: None if v == "none" and n in _OPTIONAL else v for n, v in settings.items()}
    try:
        return Experiment(**own)
    except ValidationError as e:
        problems: dict[str, list[Any]] = {}
        for error in e.errors():
            problems.setdefault(str(error["loc"][0]), []).append(error)
        raise UserError("; ".join(_said(n, p, parameters) for n, p in problems.items()) + ".") from None


def _said(name: str, errors: list[Any], parameters: Iterable[str]) -> str:
    """One clause on what is wrong with one setting."""
    given = errors[0]["input"]
    if errors[0]["type"] == "extra_forbidden":
        leaf = name.rsplit(".", 1)[-1]
        if found := [p for p in parameters if f".{p}".endswith(f".{name}")] or [p for p in parameters if p == leaf]:
            return f'there is no setting "{name}", but one of the method: write method.{found[0]}'
        choices = [*(set(SETTINGS) - {"parameters"}), *(f"method.{p}" for p in parameters)]
        group, _, inner = name.partition(".")
        if group in GROUPS and all(own.startswith(f"{group}_") for own in GROUPS[group].__annotations__ if own in SETTINGS):
            inner = f"{group}_{inner}"
        return f'there is no setting "{name}"{_near(inner if group in GROUPS and inner else name, choices)}'
    wanted = " or ".join(dict.fromkeys(_wanted(e) for e in errors))
    near = _near(given, _choices(errors)) if isinstance(given, str) else ""
    return f"{name} is {_shown(given)}, but must be {wanted}{near}"


def _near(name: str, choices: Iterable[str]) -> str:
    hint = nearest(name, choices).strip()
    return f" ({hint[0].lower()}{hint[1:]})" if hint else ""


def _wanted(error: Mapping[str, Any]) -> str:
    kind, bounds = error["type"], error.get("ctx", {})
    words = {
        "int_type": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "bool_type": "true or false",
        "list_type": "a list",
        "finite_number": "a finite number",
        "string_too_short": "a name",
        "none_required": "none",
        "greater_than_equal": f"at least {bounds.get('ge')}",
        "greater_than": f"more than {bounds.get('gt')}",
        "less_than_equal": f"at most {bounds.get('le')}",
        "less_than": f"less than {bounds.get('lt')}",
        "literal_error": str(bounds.get("expected")).replace("'", '"'),
    }
    return words.get(kind) or str(error["msg"]).removeprefix("Input should be ")


def _choices(errors: list[Any]) -> list[str]:
    return [w for e in errors for w in re.findall(r"'([^']*)'", str(e.get("ctx", {}).get("expected", "")))]


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
