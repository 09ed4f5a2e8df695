"""A method's settings by name: what they are, and a method made from names and values as people give them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from weft.errors import UserError, nearest

if TYPE_CHECKING:
    from weft.federation.method import Method

SHORT = "optim"
"""The nested setting whose parts may be named without it: ``lr`` stands for ``optim.lr``."""

M = TypeVar("M", bound="Method")


class Parameter(NamedTuple):
    """One setting of a method.

    Attributes:
        name: as given to :func:`configure`; that of a nested setting is dotted. type: as written in the source.
        default: the method's own. doc: its text in the docstring, "" if there is none.
    """

    name: str
    type: str
    default: Any
    doc: str


def parameters(cls: type[Method]) -> list[Parameter]:
    """Every setting of a method class: its own first, those of the contract last, nested ones (``optim.lr``) one by one."""
    order = [n for c in cls.__mro__ for n in inspect.get_annotations(c)]
    docs = docs_of(cls)
    found: list[Parameter] = []
    for field in sorted(dataclasses.fields(cls), key=lambda f: order.index(f.name)):
        if dataclasses.is_dataclass(field.default):
            inner = docs_of(type(field.default))
            for f in dataclasses.fields(field.default):
                value = getattr(field.default, f.name)
                found.append(Parameter(f"{field.name}.{f.name}", _spelled(f.type), value, inner.get(f.name, "")))
        else:
            found.append(Parameter(field.name, _spelled(field.type), field.default, docs.get(field.name, "")))
    return found


def values(method: Method) -> dict[str, Any]:
    """The settings of one method object under the names that :func:`configure` takes."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            found[field.name] = value
    return found


def written(method: Method) -> frozenset[str]:
    """Full names of the settings that were written where the object was made: ``FedIT(rank=16)`` gives ``rank``.

    Recorded and not only guessed by comparing with the defaults: whoever writes a default means it. A nested setting is written
    as a whole (``optim=Optim(lr=1e-3)`` says its schedule too), and so is a copy by ``dataclasses.replace``. A class with a
    constructor of its own writes what it sets, which is told by another value than the default.
    """
    outer: frozenset[str] = method._written  # type: ignore[attr-defined]
    usual = {p.name: p.default for p in parameters(type(method))}
    return frozenset(
        name
        for name, value in values(method).items()
        if name.split(".")[0] in outer or (usual[name] is not dataclasses.MISSING and value != usual[name])
    )


def canonical(cls: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings under full names: ``{"lr": 1, "optim": {"eps": 2}}`` gives ``{"optim.lr": 1, "optim.eps": 2}``.

    Unknown names stay as they are. Use it before one layer of settings is laid over another.

    Raises:
        UserError: one setting is given under two names.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    nested = {n: {f.name for f in dataclasses.fields(d)} for n, d in defaults.items() if dataclasses.is_dataclass(d)}
    found: dict[str, Any] = {}
    called: dict[str, str] = {}
    for name, value in given.items():
        if name in nested and isinstance(value, type(defaults[name])):
            pairs = {f"{name}.{f}": getattr(value, f) for f in nested[name]}
        elif name in nested and isinstance(value, Mapping):
            pairs = {f"{name}.{inner}": v for inner, v in value.items()}
        elif name not in defaults and name in nested.get(SHORT, ()):
            pairs = {f"{SHORT}.{name}": value}
        else:
            pairs = {name: value}
        for full, v in pairs.items():
            if full in found:
                raise UserError(f'setting {full} is given twice, as "{called[full]}" and as "{name}"; leave one out.')
            found[full], called[full] = v, name
    return found


def configure(cls: type[M], given: Mapping[str, Any], base: M | None = None) -> M:
    """A method from names and values; what is not given keeps the method's default.

    Args:
        given: setting -> value, or the text of a value, as from a command line ("8", "1e-3", "true", "none", "0.9,0.99").
        base: keep this object's values instead of the defaults.

    Raises:
        UserError: unknown names, values of the wrong type or out of range, all of them in one sentence.
    """
    problems: list[str] = []
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    defaults: dict[str, Any] = {f.name: getattr(base, f.name, f.default) for f in dataclasses.fields(cls)}
    hints = {n: h for n, h in get_type_hints(cls).items() if n in defaults}
    spec = {p.name: p for p in parameters(cls)}
    for name, value in canonical(cls, given).items():
        outer, _, leaf = name.rpartition(".")
        try:
            if name in defaults and name not in spec:  # a nested setting as a whole, and not of its type
                problems.append(f'setting "{name}" must be a table, such as {name}.{_first(spec, name)} = …, not {value!r}')
            elif name not in spec:
                problems.append(_unknown(name, spec))
            elif outer:
                hint = get_type_hints(type(defaults[outer]))[leaf]
                inner.setdefault(outer, {})[leaf] = convert(value, hint)
            else:
                own[name] = convert(value, hints[name])
        except ValueError as e:
            problems.append(f'setting "{name}" must be {e}')
    for outer, changes in inner.items():
        try:
            own[outer] = dataclasses.replace(defaults[outer], **changes)
        except UserError as e:
            problems.append(str(e).rstrip("."))
    if not problems:
        try:
            return cls(**own) if base is None else _changed(base, own)
        except UserError as e:
            problems.append(str(e).rstrip("."))
    text = f'method "{cls.info.slug}": {"; ".join(problems)}'
    raise UserError(text if text.endswith("?") else text + ".")


def _changed(method: M, fields: Mapping[str, Any]) -> M:
    """The same object but for some fields. Its constructor is not called: one that is not ours may take anything."""
    made = copy.copy(method)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


def _unknown(name: str, spec: Iterable[str]) -> str:
    choices = {n: n for n in spec} | {n.removeprefix(f"{SHORT}."): n for n in spec}
    hint = nearest(name, choices).strip()
    return f'there is no setting "{name}"' + (f" ({hint[0].lower()}{hint[1:]})" if hint else f"; it has {', '.join(spec)}")


def _first(spec: Iterable[str], outer: str) -> str:
    return next(n for n in spec if n.startswith(f"{outer}.")).removeprefix(f"{outer}.")


# values -------------------------------------------------------------------------------------------------------------------

TRUE, FALSE, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")


def convert(value: Any, hint: Any) -> Any:
    """``value``, or the value that a text stands for, as the annotated type.

    Raises:
        ValueError: it is something else; the text says what it has to be.
    """
    text = value.strip() if isinstance(value, str) else None
    if hint is Any:
        return value
    if get_origin(hint) in (Union, types.UnionType):
        return _one_of(value, get_args(hint), hint)
    if get_origin(hint) is Literal:
        for choice in get_args(hint):
            if value == choice or text == str(choice):
                return choice
        raise ValueError(f"{_words(hint)}, not {value!r}")
    if get_origin(hint) is tuple:
        return _tuple(value, hint)
    if hint is type(None) and (value is None or (text or "").lower() in NONE):
        return None
    if hint is bool:
        if isinstance(value, bool):
            return value
        if text is not None and text.lower() in (*TRUE, *FALSE):
            return text.lower() in TRUE
    elif hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(text) if text is not None else value
        except ValueError:
            number = None
        if isinstance(number, (int, float)) and math.isfinite(number) and (hint is float or isinstance(number, int)):
            return hint(number)
    elif hint is str and text is not None:
        return value
    raise ValueError(f"{_words(hint)}, not {value!r}")


def _one_of(value: Any, arms: tuple[Any, ...], hint: Any) -> Any:
    for arm in sorted(arms, key=lambda a: a is str):  # any text is a text: ask the other types first
        try:
            return convert(value, arm)
        except ValueError:
            continue
    raise ValueError(f"{_words(hint)}, not {value!r}")


def _tuple(value: Any, hint: Any) -> tuple[Any, ...]:
    arms = get_args(hint)
    items = [v for v in value.strip("()[] ").split(",") if v.strip()] if isinstance(value, str) else value
    if isinstance(items, (list, tuple)):
        if len(arms) == 2 and arms[1] is Ellipsis:
            arms = (arms[0],) * len(items)
        if len(items) == len(arms):
            try:
                return tuple(convert(v, a) for v, a in zip(items, arms, strict=True))
            except ValueError:
                pass
    raise ValueError(f"{_words(hint)}, not {value!r}")


def _words(hint: Any) -> str:
    """What a value of this type is, for people."""
    arms = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arms)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{a}"' for a in arms)
    if get_origin(hint) is tuple:
        return "a list, of each " + _words(arms[0]) if arms[-1] is Ellipsis else "(" + ", ".join(map(_words, arms)) + ")"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return plain.get(hint, str(hint))


# docstrings ---------------------------------------------------------------------------------------------------------------


def _spelled(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def docs_of(cls: type) -> dict[str, str]:
    """Field -> its text in the "Attributes:" section of the class docstring, or else of a base's.

    A line may describe several fields: ``rank, alpha: of LoRA.`` and ``epochs: local epochs. steps: local steps instead.``
    """
    names = "|".join(f.name for f in dataclasses.fields(cls))
    entry = re.compile(rf"(?:^|(?<=[.;] )(?=(?:{names})\b))(\w+(?:, \w+)*): ", re.MULTILINE)
    found: dict[str, str] = {}
    for c in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(c.__dict__.get("__doc__") or "").partition("\nAttributes:\n")
        lines = [line.strip() for line in re.split(r"\n(?=\S)", section)[0].split("\n")]
        _, *pieces = entry.split("\n".join(lines))
        for called, text in zip(pieces[::2], pieces[1::2], strict=True):
            found |= dict.fromkeys(called.split(", "), " ".join(text.split()))
    return found
