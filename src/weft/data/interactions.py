"""Files of who took which item when: reviews and ratings as Amazon's are published, and the lines of invoices (Online Retail).

A file is one domain, a folder one domain for each file. What items are called stands beside, in ``meta_DOMAIN.jsonl``, or in the
file itself, in a column such as ``Description``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weft.data import sequences
from weft.data.columns import Table
from weft.data.formats import READABLE, read_file, suffix
from weft.data.rows import Source
from weft.data.scored import as_number
from weft.data.sequences import Event
from weft.data.spelling import spelled
from weft.errors import UserError

USERS = ("reviewerid", "user_id", "userid", "user", "customerid", "customer id", "customer_id", "customer")
ITEMS = ("parent_asin", "asin", "item_id", "itemid", "item", "product_id", "stockcode")
TIMES = ("unixreviewtime", "timestamp", "unix_time", "time", "invoicedate", "date")
TITLES = ("description", "item_title", "product_title")  # ``title`` is that of a review in Amazon's reviews of 2023 …
META_TITLES = ("title", *TITLES)  # … and that of an item in their metadata
INVOICES = ("invoiceno", "invoice")
META = "meta_"
CORE = re.compile(r"_\d+$")
"""Of names of files: ``Office_Products_5`` is the 5-core of ``Office_Products``."""
DATES = ("%m/%d/%Y %H:%M", "%m/%d/%y %H:%M", "%d-%m-%Y %H:%M", "%d.%m.%Y %H:%M")


def read(path: Path, asked: Mapping[str, str], notes: list[str], least: int = 0) -> Source:
    """The source of next items in a file or folder, but for its fingerprint.

    Args:
        asked: columns that were named, by option: of these ``label`` is the item, ``text`` its title, and ``key`` the natural
            key, ``domain`` or ``user``.
        notes: what was said so far. least: see :func:`weft.data.sequences.core`.

    Raises:
        UserError: a file can't be read, lacks a column, or holds no sequences; or an option means nothing here.
    """
    if odd := next((option for option in asked if option not in ("label", "text", "key")), None):
        raise UserError(f"sequences of items have no column for --{odd}: leave it out.")
    by = asked.get("key", "domain")
    if by not in ("domain", "user"):
        raise UserError(
            f'the natural key of sequences is their domain or their user, not "{by}": give --key domain or --key user.'
        )
    files, meta = _files(path)
    events: list[Event] = []
    titles: dict[tuple[str, str], str] = {}
    for domain, file in files.items():
        table = read_file(file, notes)
        own, called = _events(domain, file.name, table, asked, notes)
        beside = meta.get(domain) if asked.get("text") not in table else None
        named = called if beside is None else _titles(beside.name, read_file(beside, notes), asked)
        if not named:
            raise UserError(
                f"{file.name} does not tell what its items are called, and nothing beside it does: add "
                f"{META}{domain}.jsonl with the columns asin and title, or name a column with --text."
            )
        events += own
        titles |= {(domain, item): title for item, title in named.items()}
    return sequences.source(
        path.resolve().name, events, titles, least=least, by="user" if by == "user" else "domain", notes=notes
    )


def _files(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files of interactions, and those of titles, by domain."""
    if not path.exists():
        raise UserError(f"there is no file or folder {path}: check the path.")
    beside = sorted(p for p in (path if path.is_dir() else path.parent).iterdir() if suffix(p) and not p.name.startswith("."))
    stems = {p: p.name[: -len(suffix(p) or "")] for p in beside}
    meta = {s.removeprefix(META): p for p, s in stems.items() if s.startswith(META)}
    found: dict[str, Path] = {}
    for file in [p for p in beside if p not in meta.values()] if path.is_dir() else [path]:
        domain = CORE.sub("", stems.get(file, file.name))
        if domain in found:
            raise UserError(f"{path} holds two files of the domain {domain} ({found[domain].name}, {file.name}): leave one.")
        found[domain] = file
    if not found:
        raise UserError(f"{path} holds no file of interactions that Weft reads ({READABLE}).")
    return found, meta


def _events(
    domain: str, file: str, table: Table, asked: Mapping[str, str], notes: list[str]
) -> tuple[list[Event], dict[str, str]]:
    """What users of one domain took, and what items are called as far as the same table tells."""
    user, item, time = (
        _column(file, table, names, what, option, asked)
        for names, what, option in ((USERS, "user", ""), (ITEMS, "item", "label"), (TIMES, "time", ""))
    )
    cancelled = _lower(table).get(next((n for n in INVOICES if n in _lower(table)), ""), "")
    found, without, undone, odd = [], 0, 0, 0
    for i, (who, what, when) in enumerate(zip(table[user], table[item], table[time], strict=True)):
        owner, thing, at = spelled(who), spelled(what), moment(when)
        if cancelled and str(table[cancelled][i]).strip().upper().startswith("C"):
            undone += 1
        elif owner is None or thing is None:
            without += 1
        elif at is None:
            odd += 1
        else:
            found.append(Event(domain, owner, thing, at))
    for n, why in ((without, "tell no user or item"), (undone, "are of cancelled invoices"), (odd, f'have no time in "{time}"')):
        if n:
            notes.append(f"{file}: {n} of {len(table[user])} rows {why}, and are left out.")
    if not found:
        raise UserError(f"{file} holds no row with a user, an item and a time: check its columns {user}, {item} and {time}.")
    title = (
        asked.get("text") if asked.get("text") in table else next((_lower(table)[n] for n in TITLES if n in _lower(table)), None)
    )
    return found, {} if title is None else _called(table[item], table[title])


def _titles(file: str, table: Table, asked: Mapping[str, str]) -> dict[str, str]:
    """What items are called by a table of its own."""
    item = _column(file, table, ITEMS, "item", "label", asked)
    return _called(table[item], table[_column(file, table, META_TITLES, "title", "text", asked)])


def _called(items: Iterable[Any], titles: Iterable[Any]) -> dict[str, str]:
    """The first title that an item has."""
    found: dict[str, str] = {}
    for what, title in zip(items, titles, strict=True):
        thing, text = spelled(what), spelled(title)
        if thing is not None and text is not None:
            found.setdefault(thing, text)
    return found


def _column(file: str, table: Table, names: Sequence[str], what: str, option: str, asked: Mapping[str, str]) -> str:
    """
    Raises:
        UserError: the table has no such column.
    """
    if option and (given := asked.get(option)) in table:
        return str(given)
    lower = _lower(table)
    found = next((lower[name] for name in names if name in lower), None)
    if found is None:
        hint = f", or name one with --{option}" if option else ""
        raise UserError(
            f"{file} has no column for the {what}, such as {', '.join(names[:3])} (it has {', '.join(table)}): rename one{hint}."
        )
    return found


def _lower(table: Table) -> dict[str, str]:
    return {name.lower(): name for name in reversed(list(table))}


def moment(value: Any) -> float | None:
    """A time as a number: a number itself, or a date in ISO's form or as spreadsheets write it; None for others."""
    number = as_number(value)
    if number is not None:
        return number if math.isfinite(number) else None
    text = str(value).strip()
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        pass
    for form in DATES:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    return None
