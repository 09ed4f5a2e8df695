"""What a site settles for itself, as a file, and the process that answers for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weft import experiment as settings
from weft.errors import UserError
from weft.sites.keys import check_name
from weft.sites.own_rows import OwnData
from weft.sites.resident import Own, Resident
from weft.storage import files


def own_of(about: Mapping[str, Any]) -> Own:
    """A site from plain values.

    Raises:
        UserError: a name that can't be, no data, or an experiment file that can't be read.
    """
    name = str(about["name"])
    check_name(name)
    columns = {c: about.get(c) for c in ("image", "text", "pair", "label")}
    deal = about.get("deal")
    data = OwnData(str(about.get("data") or ""), **columns, deal=None if deal is None else (Path(deal[0]), str(deal[1])))
    if not data.data and data.deal is None:
        raise UserError("a site needs rows of its own: give --data FILE, a folder or the name of a data set.")
    file = about.get("experiment")
    return Own(
        name=name,
        data=data,
        model=str(about.get("model") or ""),
        facts=dict(about.get("facts") or {}),
        device=str(about.get("device") or "auto"),
        expected=None if file is None else settings.resolve({"recipes": False}, settings.read(Path(file))).experiment,
        trust_remote_code=bool(about.get("trust_remote_code")),
        sum_key=Path(about["sum_key"]) if about.get("sum_key") else None,
    )


def resident(about: Mapping[str, Any], say: Callable[[str], None]) -> Resident:
    """The process of a site; its rows are read at once, so that what is wrong with them is said before anybody is asked."""
    own = own_of(about)
    for note in own.data.notes:
        say(note)
    return Resident(own, Path(about["folder"]), say)


def write_file(path: Path, about: Mapping[str, Any]) -> None:
    """Keep it for a SuperNode's ``--node-config``, with absolute paths."""
    kept = {n: v for n, v in about.items() if v not in (None, "", {}, False)}
    for place in {"experiment", "folder", "sum_key"} & kept.keys():
        kept[place] = str(Path(kept[place]).resolve())
    if "data" in kept and (local := Path(kept["data"]).expanduser()).exists():
        kept["data"] = str(local.resolve())
    if "deal" in kept:
        kept["deal"] = [str(Path(kept["deal"][0]).resolve()), kept["deal"][1]]
    files.write(path, json.dumps(kept, indent=1).encode())


def from_file(path: Path, say: Callable[[str], None]) -> Resident:
    """Raises:
    UserError: the file is none that ``weft join --write`` wrote.
    """
    try:
        about = files.parsed(files.read(path))
    except (OSError, ValueError) as e:
        raise UserError(f"can't read the site's file {path} ({e}): write it with weft join --write.") from None
    return resident(about, say)
