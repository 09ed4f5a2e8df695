"""A method's settings by name: what they are, and a method made from names and values as people give them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from weft import typed
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.federation.method import Method

SHORT = ("optim", "tune")
"""Nested settings whose parts may be named without them: ``lr`` stands for ``optim.lr``, ``rank`` for ``tune.rank``."""

IDLE = "{} has no effect on what it does: leave it out"

M = TypeVar("M", bound="Method")


class Parameter(NamedTuple):
    """One setting of a method.

    Attributes:
        name: as given to :func:`configure`; that of a nested setting is dotted. type: without bounds, ``int`` for ``Count``.
        default: the method's own. doc: its text in the docstring, "" if there is none.
        choices: words that it is one of; empty if it may be any.
    """

    name: str
    type: str
    default: Any
    doc: str
    choices: tuple[str, ...] = ()


_PARAMETERS: WeakKeyDictionary[type[Method], list[Parameter]] = WeakKeyDictionary()


def parameters(cls: type[Method]) -> list[Parameter]:
    """Every setting of a method class: its own first, those of the contract last, nested ones (``optim.lr``) one by one."""
    if cls not in _PARAMETERS:
        _PARAMETERS[cls] = _parameters(cls)
    return list(_PARAMETERS[cls])


def _parameters(cls: type[Method]) -> list[Parameter]:
    order = [n for c in cls.__mro__ for n in inspect.get_annotations(c)]
    docs = docs_of(cls)
    found: list[Parameter] = []
    for field in sorted(used(cls), key=lambda f: order.index(f.name)):
        if dataclasses.is_dataclass(field.default):
            inner = docs_of(type(field.default))
            for name, hint in typed.hints(type(field.default)).items():
                value = getattr(field.default, name)
                found.append(_parameter(f"{field.name}.{name}", hint, value, inner.get(name, "")))
        else:
            found.append(_parameter(field.name, typed.hints(cls)[field.name], field.default, docs.get(field.name, "")))
    return found


def used(cls: type[Method]) -> list[dataclasses.Field[Any]]:
    """The fields that are settings: none of the contract's that have no effect on this method."""
    return [field for field in dataclasses.fields(cls) if field.name not in cls.unused]


def idle(method: Method) -> list[str]:
    """Settings without effect that an object was made with all the same."""
    return [f.name for f in dataclasses.fields(method) if f.name in method.unused and getattr(method, f.name) != f.default]


def _parameter(name: str, hint: Any, default: Any, doc: str) -> Parameter:
    return Parameter(name, typed.spelled(hint), default, doc, typed.choices(hint))


def values(method: Method) -> dict[str, Any]:
    """The settings of one method object under the names that :func:`configure` takes."""
    found: dict[str, Any] = {}
    for field in used(type(method)):
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
        elif name not in defaults and (outer := next((s for s in SHORT if name in nested.get(s, ())), None)):
            pairs = {f"{outer}.{name}": value}
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
    defaults: dict[str, Any] = {f.name: getattr(base, f.name, f.default) for f in used(cls)}
    spec = {p.name: p for p in parameters(cls)}
    for name, value in canonical(cls, given).items():
        outer, _, leaf = name.rpartition(".")
        try:
            if name in defaults and name not in spec:  # a nested setting as a whole, and not of its type
                problems.append(f'setting "{name}" must be a table, such as {name}.{_first(spec, name)} = …, not {value!r}')
            elif name.split(".")[0] in cls.unused:
                problems.append(IDLE.format(name))
            elif name not in spec:
                problems.append(_unknown(name, spec))
            elif outer:
                inner.setdefault(outer, {})[leaf] = typed.convert(value, typed.hints(type(defaults[outer]))[leaf])
            else:
                own[name] = typed.convert(value, typed.hints(cls)[name])
        except typed.Misfit as e:
            problems.append(e.clause(name))
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
    raise UserError(typed.sentence(f'method "{cls.info.slug}"', problems))


def _changed(method: M, fields: Mapping[str, Any]) -> M:
    """The same object but for some fields. Its constructor is not called: one that is not ours may take anything."""
    made = copy.copy(method)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


def _unknown(name: str, spec: Iterable[str]) -> str:
    short = [n.split(".", 1)[1] for n in spec if n.split(".")[0] in SHORT and "." in n]
    return typed.stray(name, spec, short)


def _first(spec: Iterable[str], outer: str) -> str:
    return next(n for n in spec if n.startswith(f"{outer}.")).removeprefix(f"{outer}.")


# docstrings ---------------------------------------------------------------------------------------------------------------


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
