"""Published methods, one file each. A class is imported when it is first named: ``weft.methods.FedIT(rank=8)``.

:mod:`weft.methods.registry` lists and builds them by slug.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from importlib import import_module

    from weft.methods.discovery import sources

    if not name.startswith("_"):
        for source in sources().values():
            if source.name == name:
                return getattr(import_module(source.module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from weft.methods.discovery import sources

    return sorted({"registry", *(source.name for source in sources().values())})
