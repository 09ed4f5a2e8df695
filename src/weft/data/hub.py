"""Sets on the Hugging Face hub, through ``datasets.load_dataset``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.data.columns import Table, build, choose
from weft.data.hub_sets import TEXT, Entry
from weft.data.local import SPLIT_NAMES
from weft.data.rows import Source
from weft.errors import UserError

VALIDATION = ("validation_matched", *SPLIT_NAMES["validation"])


def from_hub(
    entry: Entry,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    key: str | None = None,
) -> Source:
    """Download, or read from the cache, the set that ``entry`` describes; arguments override its columns."""
    splits: dict[str, Table] = {}
    named: dict[str, list[str]] = {}  # column -> names of its classes, where the set has them
    for number, config in enumerate(entry.configs or (entry.config,)):
        for split, data in _splits(entry, _download(entry, config)).items():
            if entry.parallel and split == "train":
                data = data.select(range(number, len(data), len(entry.configs)))
            table = _table(data, named)
            if entry.configs and entry.client_key:
                table[entry.client_key] = [config] * len(data)
            _append(splits.setdefault(split, {}), table)
    columns = choose(
        splits["train"],
        entry.name,
        text=text or _known(entry.text, splits["train"]),
        pair=pair or (_known(entry.pair, splits["train"]) if text is None else None),
        label=label or _known(entry.label, splits["train"]),
        key=key or _known(entry.client_key, splits["train"]),
    )
    codes: Mapping[Any, str] | None = None
    if columns.label in named:
        codes = {name: name for name in named[columns.label]}
    elif columns.label == entry.label:
        codes = entry.label_names
    return build(entry.name, splits, columns, label_names=codes, notes=[f"{entry.name}: {entry.verified}."])


def unknown(hub_id: str) -> Entry:
    """An entry for a set that the catalogue doesn't know, written ``owner/name`` or ``owner/name:config``."""
    path, _, config = hub_id.partition(":")
    return Entry(
        name=hub_id,
        hub_id=path,
        config=config or None,
        kind=TEXT,
        classes=0,
        rows={},
        client_key=None,
        licence="see the hub",
        verified="not in Weft's catalogue, so its columns are guessed",
    )


def _known(column: str | None, table: Table) -> str | None:
    """A catalogued column, unless the set has it no more: sets change form, and then it is guessed."""
    return column if column in table else None


def _download(entry: Entry, config: str | None) -> Any:
    import datasets

    if entry.hub_id is None:
        raise ValueError(f"{entry.name} is not on the hub")
    try:
        try:
            return datasets.load_dataset(entry.hub_id, config)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(entry.hub_id, config, revision="refs/convert/parquet")
    except Exception as error:  # a download fails in many ways, none of which is worth a traceback
        reason = str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
        raise UserError(
            f"{entry.hub_id}{f' ({config})' if config else ''} can't be loaded from the Hugging Face hub "
            f"({reason}): check the name and the network, give --data a local file or folder instead, "
            f"or use pydocs, which needs neither."
        ) from error


def _splits(entry: Entry, data: Any) -> dict[str, Any]:
    """The splits in use, by our names."""
    if "train" not in data and len(data) != 1:
        raise UserError(f"{entry.name} has no train split but {', '.join(data)}: save the one you want as a local file.")
    found = {"train": data["train"] if "train" in data else next(iter(data.values()))}
    if entry.test in data:
        found["test"] = data[entry.test]
    validation = entry.validation or next((name for name in VALIDATION if name in data), None)
    if validation in data and validation != entry.test:
        found["validation"] = data[validation]
    return found


def _table(data: Any, named: dict[str, list[str]]) -> Table:
    """The plain columns of a split; names of classes are added to ``named``.

    Labels with names become these names, because configs of one set may number them in different orders. A
    label of -1, the hub's sign for a hidden one, becomes None.
    """
    import datasets

    features = data.features
    plain = [n for n, feature in features.items() if isinstance(feature, datasets.Value | datasets.ClassLabel)]
    table: Table = dict(data.select_columns(plain).with_format(None)[:])
    for name in plain:
        if isinstance(features[name], datasets.ClassLabel):
            names = features[name].names
            table[name] = [None if value is None or value < 0 else names[value] for value in table[name]]
            named[name] = list(dict.fromkeys([*named.get(name, []), *names]))
    return table


def _append(table: Table, more: Table) -> None:
    before = len(next(iter(table.values()), []))
    added = len(next(iter(more.values()), []))
    for name in {**table, **more}:
        table.setdefault(name, [None] * before).extend(more.get(name, [None] * added))
