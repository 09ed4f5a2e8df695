"""Values and the annotations that they have to fit: read from text, compared, and told in words.

An annotation is a type, ``Literal["a", "b"]`` for a choice, or ``Annotated[int, Ge(1)]`` for bounds; inside tuples and unions
too.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from annotated_types import Ge, Gt, Le, Lt

from weft.errors import UserError, nearest

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Portion = Annotated[float, Gt(0), Le(1)]

TRUE, FALSE, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")


class Called(NamedTuple):
    """What sentences call a choice, if not by the name of its field: ``Annotated[Literal["end", "front"], Called("place")]``."""

    name: str


class Misfit(ValueError):
    """A value that does not fit. As text: what it has to be, and what it is.

    Args:
        text: it was read as a text that may stand for another value.
    """

    def __init__(self, value: Any, hint: Any, text: bool):
        super().__init__(f"{words(hint)}, not {value!r}")
        self.value, self.hint, self.text = value, hint, text

    def clause(self, name: str) -> str:
        """What is wrong with the setting of this name."""
        return _clause(name, self.value, self.hint, self.text)


def convert(value: Any, hint: Any) -> Any:
    """``value``, or the value that a text stands for, as the annotated type.

    Raises:
        Misfit: it is something else.
    """
    try:
        return _fit(value, hint, True)
    except _No:
        raise Misfit(value, hint, True) from None


def check(made: object) -> None:
    """Compare every field of a dataclass object with its annotation.

    Raises:
        UserError: some do not fit, all of them in one sentence.
    """
    problems = []
    for name, hint in hints(type(made)).items():
        value = getattr(made, name)
        try:
            _fit(value, hint, False)
        except _No:
            problems.append(_clause(name, value, hint, False))
    if problems:
        raise UserError(sentence(type(made).__name__, problems))


def sentence(who: str, problems: Iterable[str]) -> str:
    """One sentence of all clauses; those that end in a question come last."""
    text = f"{who}: {'; '.join(sorted(problems, key=lambda p: p.endswith('?')))}"
    return text if text.endswith("?") else f"{text}."


def stray(name: str, known: Iterable[str], more: Iterable[str] = ()) -> str:
    """What is wrong with a name that no setting has.

    Args:
        known: names of the settings. more: other names for them.
    """
    known = list(known)
    hint = nearest(name, [*known, *more]).strip()
    if hint:
        return f'there is no setting "{name}" ({hint[0].lower()}{hint[1:]})'
    return f'there is no setting "{name}"; it has {", ".join(known) or "none"}'


# annotations --------------------------------------------------------------------------------------------------------------


_KNOWN: WeakKeyDictionary[type, Mapping[str, Any]] = WeakKeyDictionary()


def hints(cls: type) -> Mapping[str, Any]:
    """Field -> annotation of a dataclass. A field that a subclass overrides with the plain type (``batch: int = 8``) keeps the
    bounds and choices of its base.

    Raises:
        TypeError: an annotation names something that its module does not have when the program runs.
    """
    if cls in _KNOWN:
        return _KNOWN[cls]
    fields = {f.name for f in dataclasses.fields(cls)}
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, written in inspect.get_annotations(base).items():
            if name in fields:
                hint = _resolved(base, name, written)
                if name not in found or _narrow(hint) or spelled(hint) != spelled(found[name]):
                    found[name] = hint
    _KNOWN[cls] = found
    return found


def _resolved(cls: type, name: str, written: Any) -> Any:
    module = sys.modules.get(cls.__module__)
    holder: Any = SimpleNamespace(__annotations__={name: written})
    try:
        return get_type_hints(holder, vars(module) if module else {}, dict(vars(cls)), include_extras=True)[name]
    except NameError as e:
        raise TypeError(
            f"the type of {cls.__name__}.{name}, {written}, can't be looked up ({e}): define or import it at the top of "
            f"{cls.__module__}, and not under TYPE_CHECKING"
        ) from None


def _narrow(hint: Any) -> bool:
    """Whether an annotation says more than a plain type."""
    return get_origin(hint) in (Annotated, Literal) or any(_narrow(a) for a in get_args(hint))


def spelled(hint: Any) -> str:
    """The plain type, without bounds: ``Count | None`` is ``int | None``, and a choice of words is ``str``."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return spelled(arms[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(spelled(a) for a in arms))
    if origin is Literal:
        return " | ".join(dict.fromkeys(spelled(type(a)) for a in arms))
    if origin is tuple:
        return f"tuple[{', '.join('...' if a is Ellipsis else spelled(a) for a in arms)}]"
    if hint is NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not arms else inspect.formatannotation(hint).removeprefix("typing.")


def choices(hint: Any) -> tuple[Any, ...]:
    """What there is to choose from; ``()`` for anything but a choice, or none at all."""
    if get_origin(hint) in (Union, UnionType):
        arms = [a for a in get_args(hint) if a is not NoneType]
        return choices(arms[0]) if len(arms) == 1 else ()
    plain, _ = _parted(hint)
    return get_args(plain) if get_origin(plain) is Literal else ()


def _parted(hint: Any) -> tuple[Any, list[Any]]:
    """An annotation, and what is noted at it."""
    if get_origin(hint) is not Annotated:
        return hint, []
    plain, *marks = get_args(hint)
    return plain, [m for mark in marks for m in (mark if _grouped(mark) else (mark,))]


def _grouped(mark: Any) -> bool:
    """Whether it stands for several marks. Asking whether it has the protocol's type takes a hundred times as long."""
    return getattr(mark, "__is_annotated_types_grouped_metadata__", False) is True


# values -------------------------------------------------------------------------------------------------------------------


class _No(Exception):
    """It does not fit."""


def _fit(value: Any, hint: Any, read: bool) -> Any:
    """``value`` as the annotated type; with ``read`` a text may stand for it."""
    text = value.strip() if read and isinstance(value, str) else None
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        plain, marks = _parted(hint)
        found = _fit(value, plain, read)
        if isinstance(found, Real) and not all(_within(found, m) for m in marks):
            raise _No
        return found
    if origin in (Union, UnionType):
        return _one_of(value, get_args(hint), read)
    if origin is Literal:
        for choice in get_args(hint):
            if (type(value) is type(choice) and value == choice) or text == str(choice):
                return choice
    elif origin is tuple:
        return _tuple(value, get_args(hint), read)
    elif hint is NoneType:
        if value is None or (text or "").lower() in NONE:
            return None
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if text is not None and text.lower() in (*TRUE, *FALSE):
            return text.lower() in TRUE
    elif hint in (int, float):
        return _number(value, text, hint)
    elif _instance(value, origin or hint):
        return value
    raise _No


def _number(value: Any, text: str | None, kind: type[int] | type[float]) -> int | float:
    try:
        number = value if text is None else kind(text)
        known = isinstance(number, Integral if kind is int else Real) and not isinstance(number, bool)
        if known and math.isfinite(kind(number)):
            return kind(number)
    except (ValueError, OverflowError):
        pass
    raise _No


def _instance(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol, a type variable: nothing can be said
        return True


def _within(number: Any, mark: Any) -> bool:
    match mark:
        case Ge(ge):
            return bool(number >= ge)
        case Gt(gt):
            return bool(number > gt)
        case Le(le):
            return bool(number <= le)
        case Lt(lt):
            return bool(number < lt)
    return True


def _one_of(value: Any, arms: tuple[Any, ...], read: bool) -> Any:
    for arm in sorted(arms, key=lambda a: a is str):  # any text is a text: ask the other types first
        try:
            return _fit(value, arm, read)
        except _No:
            continue
    raise _No


def _tuple(value: Any, arms: tuple[Any, ...], read: bool) -> tuple[Any, ...]:
    items = [v for v in value.strip("()[] ").split(",") if v.strip()] if read and isinstance(value, str) else value
    if isinstance(items, (list, tuple)):
        if len(arms) == 2 and arms[1] is Ellipsis:
            arms = (arms[0],) * len(items)
        if len(items) == len(arms):
            return tuple(_fit(v, a, read) for v, a in zip(items, arms, strict=True))
    raise _No


# sentences ----------------------------------------------------------------------------------------------------------------


def _clause(name: str, value: Any, hint: Any, read: bool) -> str:
    plain, marks = _parted(hint)
    if get_origin(plain) in (Union, UnionType):
        arms = [a for a in get_args(plain) if a is not NoneType]
        if len(arms) == 1 and _plainly(value, arms[0], read) is not None:
            return _clause(name, value, arms[0], read)
    elif get_origin(plain) is Literal and isinstance(value, str):
        known = [str(a) for a in get_args(plain)]
        what = next((m.name for m in marks if isinstance(m, Called)), name.rpartition(".")[2])
        return f'unknown {what} "{value}": use {", ".join(known)}.{nearest(value, known)}'.removesuffix(".")
    elif plain in (int, float):
        found = _plainly(value, plain, read)
        if found is not None:
            return f"it needs {_range(name, marks)}, not {found!r}"
        hint = plain
    return f'setting "{name}" must be {words(hint)}, not {value!r}'


def _plainly(value: Any, hint: Any, read: bool) -> Any:
    """``value`` as the type without bounds and choices; None if it is not even that."""
    plain, _ = _parted(hint)
    try:
        return _fit(value, type(get_args(plain)[0]) if get_origin(plain) is Literal else plain, read)
    except _No:
        return None


def _bounds(marks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for mark in marks:
        match mark:
            case Gt(bound):
                yield ">", bound
            case Ge(bound):
                yield "≥", bound
            case Lt(bound):
                yield "<", bound
            case Le(bound):
                yield "≤", bound


def _range(name: str, marks: Iterable[Any]) -> str:
    """``batch ≥ 1``, ``0 < share ≤ 1``."""
    found = list(_bounds(marks))
    low = [b for b in found if b[0] in ">≥"]
    high = [b for b in found if b[0] in "<≤"]
    if len(low) == len(high) == 1:
        return f"{low[0][1]} {'<' if low[0][0] == '>' else '≤'} {name} {high[0][0]} {high[0][1]}"
    return " and ".join(f"{name} {sign} {bound}" for sign, bound in found)


def words(hint: Any) -> str:
    """What a value of this type is, for people."""
    hint, marks = _parted(hint)
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(words(a) for a in arms)
    if origin is Literal:
        return "one of " + ", ".join(f'"{a}"' for a in arms)
    if origin is tuple and arms:
        return "a list, of each " + words(arms[0]) if arms[-1] is Ellipsis else "(" + ", ".join(map(words, arms)) + ")"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "none"}
    return plain.get(hint, spelled(hint)) + " and".join(f" {sign} {bound}" for sign, bound in _bounds(marks))
