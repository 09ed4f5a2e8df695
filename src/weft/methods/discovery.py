"""Which methods there are, found by reading source files: an identity card is a literal, so listing a method never runs it.

Ours are the classes under this package; other packages name theirs in their entry points of group ``weft.methods``.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from weft.errors import UserError, nearest
from weft.federation.info import CHALLENGES, EVIDENCE, FAMILIES, NEEDS, MethodInfo

GROUP = "weft.methods"


@dataclass(frozen=True)
class Definition:
    """Where a method is defined.

    Attributes:
        info: its identity card. module, name: of its class. package: the distribution that brings it.
    """

    info: MethodInfo
    module: str
    name: str
    package: str


@dataclass(frozen=True)
class Broken:
    """An entry point that leads to no method.

    Attributes:
        name: its left-hand side. package: the distribution that registers it. reason: what is wrong, one sentence.
    """

    name: str
    package: str
    reason: str


class _Fault(Exception):
    """Why a source file can't be used; the text goes on after its name."""


def sources() -> dict[str, Definition]:
    """All methods by slug: ours by family, then those of other packages.

    Raises:
        UserError: two methods have one slug.
    """
    found = dict(_ours())
    for source in _theirs(tuple(sys.path))[0]:
        if source.info.slug in found:
            raise _duplicate(found[source.info.slug], source)
        found[source.info.slug] = source
    return found


def broken() -> list[Broken]:
    """Entry points of other packages that lead to no method, each with the reason."""
    return list(_theirs(tuple(sys.path))[1])


@cache
def _ours() -> dict[str, Definition]:
    root = Path(__file__).parent
    found: dict[str, Definition] = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join(("weft", "methods", *path.relative_to(root).with_suffix("").parts))
        try:
            cards = _cards(path)
        except _Fault as fault:
            raise UserError(f"{module} {fault}.") from None
        for name, info in cards.items():
            source = Definition(info, module, name, "weft")
            if info.slug in found:
                raise _duplicate(found[info.slug], source)
            found[info.slug] = source
    return dict(sorted(found.items(), key=lambda item: (FAMILIES.index(item[1].info.family), item[0])))


@cache
def _theirs(path: tuple[str, ...]) -> tuple[list[Definition], list[Broken]]:
    """Methods of other packages, and what could not be read; ``path`` is ``sys.path``, on which the answer depends."""
    found: list[Definition] = []
    faults: list[Broken] = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        package = point.dist.name if point.dist else "an unnamed package"
        try:
            found.append(_follow(point, package))
        except _Fault as fault:
            faults.append(Broken(point.name, package, f'"{point.name} = {point.value}" of {package} {fault}.'))
    return found, faults


def _follow(point: EntryPoint, package: str) -> Definition:
    if not re.fullmatch(r"[\w.]+:\w+", point.value.replace(" ", "")):
        raise _Fault("is not of the form package.module:Class")
    cards = _cards(_file(point.module))
    if point.attr not in cards:
        raise _Fault(f"leads to a file that holds no class {point.attr} with `info = MethodInfo(…)` in its body")
    info = cards[point.attr]
    if info.slug != point.name:
        raise _Fault(f'has another name than the slug of that class, "{info.slug}"; make them the same')
    return Definition(info, point.module, point.attr, package)


def _file(module: str) -> Path:
    """A module's source file, found without importing it or the packages around it."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        name = top
        for part in inner:
            if spec is None:
                break
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations or []))
    except (ImportError, ValueError) as e:
        raise _Fault(f"can't be found ({e})") from None
    if spec is None:
        raise _Fault("leads to a module that is not installed")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise _Fault("leads to a module that is no Python source file")
    return Path(spec.origin)


def _cards(path: Path) -> dict[str, MethodInfo]:
    """Class name -> identity card, of every class in the file whose body says ``info = MethodInfo(…)``."""
    try:
        data = path.read_bytes()
        if b"MethodInfo(" not in data:
            return {}
        tree = ast.parse(data)
    except (OSError, SyntaxError, ValueError) as e:
        raise _Fault(f"leads to a file that can't be read ({type(e).__name__}: {e})") from None
    found = {}
    for node in tree.body:
        for statement in node.body if isinstance(node, ast.ClassDef) else ():
            targets: list[ast.expr] = []
            if isinstance(statement, ast.AnnAssign):
                targets = [statement.target]
            elif isinstance(statement, ast.Assign):
                targets = statement.targets
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Call) and any(isinstance(t, ast.Name) and t.id == "info" for t in targets):
                assert isinstance(node, ast.ClassDef)
                found[node.name] = _card(node.name, value)
    return found


def _card(name: str, call: ast.Call) -> MethodInfo:
    known = [f.name for f in fields(MethodInfo)]
    given: dict[str, Any] = {}
    for key, value in [*zip(known, call.args, strict=False), *((k.arg or "**", k.value) for k in call.keywords)]:
        try:
            given[key] = ast.literal_eval(value)
        except ValueError:
            raise _Fault(
                f"has an identity card that must be read without running it, but {name}.info.{key} is no literal"
            ) from None
    try:
        info = MethodInfo(**given)
    except TypeError as e:
        raise _Fault(f"has an identity card that does not fit: {name}.info: {e}") from None
    for field in fields(MethodInfo):
        value = getattr(info, field.name)
        if str(field.type).startswith("tuple"):
            fits = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        else:
            fits = isinstance(value, bool if field.type == "bool" else str)
        if not fits:
            lone = field.type == "tuple[str, ...]" and isinstance(value, str)
            comma = f': write ("{value}",), a comma makes it one' if lone else ""
            raise _Fault(f"has an identity card that does not fit: {name}.info.{field.name} must be {field.type}{comma}")
    for words, choices, what in (
        ((info.family,), FAMILIES, "family"),
        ((info.evidence,), EVIDENCE, "evidence"),
        (info.challenges, CHALLENGES, "challenge"),
        (info.needs, NEEDS, "need"),
    ):
        for word in words:
            if word not in choices:
                near = nearest(word, choices).strip(" ?").replace("Did", "did")
                hint = f" ({near}?)" if near else ""
                raise _Fault(f'has an unknown {what} "{word}" in {name}.info{hint}; it is one of {", ".join(choices)}')
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", info.slug):
        raise _Fault(f'has a slug "{info.slug}" in {name}.info that is not lower-case words joined by hyphens')
    return info


def _duplicate(first: Definition, second: Definition) -> UserError:
    where = " and ".join(f"{s.module}:{s.name} (of {s.package})" for s in (first, second))
    return UserError(f'two methods are called "{first.info.slug}": {where}; rename one, or uninstall its package.')
