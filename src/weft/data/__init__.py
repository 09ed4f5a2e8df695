"""Data: loading sets of texts or pictures for classification, dealing them out to clients, and showing the deal.

``load`` a :class:`Source` by name, hub id or path, then ``partition`` it into :class:`FederatedData`.
Importing this package is cheap: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.data.deal_table import picture, table
    from weft.data.hub_sets import Entry, catalogue
    from weft.data.images import Images
    from weft.data.partitioners import SCHEMES, partition
    from weft.data.rows import ClientData, FederatedData, Rows, Source
    from weft.data.sources import load

_HOME = {
    "SCHEMES": "partitioners",
    "ClientData": "rows",
    "Entry": "hub_sets",
    "FederatedData": "rows",
    "Images": "images",
    "Rows": "rows",
    "Source": "rows",
    "catalogue": "hub_sets",
    "load": "sources",
    "partition": "partitioners",
    "picture": "deal_table",
    "table": "deal_table",
}

__all__ = [
    "SCHEMES",
    "ClientData",
    "Entry",
    "FederatedData",
    "Images",
    "Rows",
    "Source",
    "catalogue",
    "load",
    "partition",
    "picture",
    "table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
