"""What attacks have found of a run: ``audit.json`` in its folder, where an attack that is played again replaces what it found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.storage import files

NAME = "audit.json"
"""Of the file, in the folder of a run."""


@dataclass(frozen=True)
class Result:
    """What one attack has found on one target of a run.

    Attributes:
        attack, target, measure, score, chance, most, n, low, found, sentence, about: of :class:`weft.audits.outcome.Outcome`;
            what is no number is None.
        settings: of the attack, by name: results of other settings are of another question.
        round: whose updates were attacked, from 1; None = the finished run. weft: the version that attacked; None = a checkout
            that is not installed.
    """

    attack: str
    target: str
    measure: str
    score: float | None
    chance: float | None
    most: float | None
    n: int
    low: float | None
    found: bool
    sentence: str
    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    round: int | None
    weft: str | None


@dataclass(frozen=True)
class Impossible:
    """Why an attack could not be played, in a clause. unkept: for want of updates of single clients."""

    why: str
    unkept: bool


@dataclass(frozen=True)
class Kept:
    """What ``audit.json`` holds, by attack in the order in which they were first kept; an attack is in one of both."""

    results: Mapping[str, Sequence[Result]] = field(default_factory=dict)
    impossible: Mapping[str, Impossible] = field(default_factory=dict)


def read(folder: Path) -> Kept:
    """What is kept in the folder of a run; nothing where nobody has attacked it.

    Raises:
        UserError: the file is damaged, or of another format.
    """
    path = folder / NAME
    if not path.exists():
        return Kept()
    try:
        content = files.parsed(files.read(path))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        files.check_format(path, content.get("format"))
        results: dict[str, list[Result]] = {}
        for one in _of(content, "results", list):
            found = _result(one)
            results.setdefault(found.attack, []).append(found)
        impossible = {
            name: Impossible(_of(one, "why", str), _of(one, "unkept", bool))
            for name, one in _of(content, "impossible", dict).items()
        }
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}): remove it, and attack the run once more with weft audit {folder}.") from None
    return Kept(results, impossible)


def keep(folder: Path, attack: str, found: Sequence[Result]) -> None:
    """Put what an attack has found in the place of what it had found before, durably.

    Raises:
        UserError: what lies there is damaged, or the file can't be written.
    """
    kept = read(folder)
    _write(folder, Kept({**kept.results, attack: found}, {n: w for n, w in kept.impossible.items() if n != attack}))


def keep_impossible(folder: Path, attack: str, why: Impossible) -> None:
    """Note that an attack could not be played, unless it could be before: what it has found then stays.

    Raises:
        UserError: what lies there is damaged, or the file can't be written.
    """
    kept = read(folder)
    if attack not in kept.results:
        _write(folder, Kept(kept.results, {**kept.impossible, attack: why}))


def _write(folder: Path, kept: Kept) -> None:
    content = {
        "format": files.FORMAT,
        "results": [vars(one) for some in kept.results.values() for one in some],
        "impossible": {name: vars(one) for name, one in kept.impossible.items()},
    }
    files.write(folder / NAME, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _result(one: Any) -> Result:
    values: dict[str, Any] = {name: _of(one, name, str) for name in ("attack", "target", "measure", "sentence")}
    values |= {name: _number(one, name) for name in ("score", "chance", "most", "low")}
    values |= {name: _of(one, name, dict) for name in ("about", "settings")}
    values |= {"found": _of(one, "found", bool), "n": _of(one, "n", int)}
    return Result(**values, round=_of(one, "round", int, type(None)), weft=_of(one, "weft", str, type(None)))


def _number(one: Any, name: str) -> float | None:
    found = _of(one, name, int, float, type(None))
    if found is not None and not math.isfinite(found):
        raise ValueError(f"{name} is no finite number")
    return None if found is None else float(found)


def _of(one: Any, name: str, *kinds: type) -> Any:
    """
    Raises:
        ValueError: there is nothing of that name and those kinds.
    """
    found = one.get(name, ...) if isinstance(one, dict) else ...
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise ValueError(f"without {name}" if found is ... else f"{name} is not what it has to be")
    return found
