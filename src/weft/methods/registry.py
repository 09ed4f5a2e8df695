"""Methods by slug: listed without importing any, imported when asked for, built from settings, described on a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weft.errors import UserError, nearest
from weft.federation.info import MethodInfo
from weft.methods.discovery import Broken, broken, sources
from weft.methods.settings import Parameter, canonical, configure, idle, parameters, values, written

if TYPE_CHECKING:
    from weft.federation.method import Method

__all__ = [
    "Broken",
    "Parameter",
    "broken",
    "build",
    "canonical",
    "configure",
    "idle",
    "info",
    "infos",
    "load",
    "parameters",
    "values",
    "written",
]


def infos() -> dict[str, MethodInfo]:
    """Identity cards by slug: ours by family, then those of other packages. Imports no method, hence no torch.

    Raises:
        UserError: two methods have one slug.
    """
    return {slug: source.info for slug, source in sources().items()}


def info(slug: str) -> MethodInfo:
    """One identity card.

    Raises:
        UserError: there is no such method.
    """
    known = infos()
    if slug not in known:
        for fault in broken():
            if fault.name == slug:
                raise UserError(f"method {fault.reason}")
        raise UserError(f'there is no method "{slug}"; `weft methods` lists them.{nearest(slug, known)}')
    return known[slug]


def load(slug: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: there is no such method, or its package can't be imported.
    """
    card = info(slug)
    source = sources()[slug]
    from weft.federation.method import Method

    try:
        found = getattr(import_module(source.module), source.name)
    except Exception as e:  # another package's code runs here
        if source.package == "weft":
            raise
        reason = f"{type(e).__name__}: {e}"
        raise UserError(f'method "{slug}" of {source.package} can\'t be imported ({reason}); repair that package.') from e
    if not (isinstance(found, type) and issubclass(found, Method) and found.info == card):
        raise UserError(
            f'method "{slug}" of {source.package}: {source.module}.{source.name} must be a subclass of '
            "weft.federation.method.Method whose `info` stays as its class body says."
        )
    return found


def build(slug: str, given: Mapping[str, Any] | None = None) -> Method:
    """A method with settings; what is not given keeps the method's default.

    Args:
        given: setting -> value or its text. Parts of a nested setting are dotted (``optim.lr``) or in a table
            (``{"optim": {"lr": 1e-3}}``); those of ``optim`` may go without it (``lr``).

    Raises:
        UserError: no such method, unknown settings, wrong types or ranges; all problems in one sentence.
    """
    return configure(load(slug), given or {})
