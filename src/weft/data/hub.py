"""Sets on the Hugging Face hub, through ``datasets.load_dataset``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weft.data.columns import Table, build, choose
from weft.data.hub_sets import IMAGE, TEXT, Entry
from weft.data.local import SPLIT_NAMES
from weft.data.rows import Source
from weft.errors import UserError

VALIDATION = ("validation_matched", *SPLIT_NAMES["validation"])


def from_hub(
    entry: Entry,
    *,
    image: str | None = None,
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
            if entry.one_of is not None and set(entry.one_of) <= set(data.column_names):
                data = data.select(_middle(data, entry.one_of))
            table = _table(data, named)
            if entry.configs and entry.client_key:
                table[entry.client_key] = [config] * len(data)
            _append(splits.setdefault(split, {}), table)
    catalogued = image is None and text is None and pair is None
    columns = choose(
        splits["train"],
        entry.name,
        image=_known(entry.image, splits["train"]) if catalogued else image,
        text=text or (_known(entry.text, splits["train"]) if image is None else None),
        pair=_known(entry.pair, splits["train"]) if catalogued else pair,
        label=label or _known(entry.label, splits["train"]),
        key=key or _known(entry.client_key, splits["train"]),
    )
    codes: Mapping[Any, str] | None = None
    if columns.label in named:
        codes = {name: entry.renamed.get(name, name) for name in named[columns.label]}
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
        raise UserError(
            f"no copy of {entry.name} is known on the Hugging Face hub: get it from its owner, and give --data its folder, laid "
            "out as domain/class/picture."
        )
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
            f"or use {'glyphs' if entry.kind == IMAGE else 'pydocs'}, which needs neither."
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
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    plain = [n for n, feature in features.items() if isinstance(feature, datasets.Value | datasets.ClassLabel)]
    table: Table = dict(data.select_columns(plain).with_format(None)[:])
    for name in plain:
        if isinstance(features[name], datasets.ClassLabel):
            names = features[name].names
            table[name] = [None if value is None or value < 0 else names[value] for value in table[name]]
            named[name] = list(dict.fromkeys([*named.get(name, []), *names]))
    for name in pictures:
        table[name] = _lazily(data.cast_column(name, datasets.Image(decode=False)), name)
    return table


def _lazily(data: Any, column: str) -> list[Any]:
    """A function for each encoded picture that fetches it (None where there is none): the column stays in its files."""
    stored = data.select_columns([column]).with_format("arrow")[:].column(column)
    return [partial(_fetch, stored, i) if there else None for i, there in enumerate(stored.is_valid().to_pylist())]


def _fetch(stored: Any, i: int) -> bytes | Path:
    value = stored[i].as_py()
    return Path(value["path"]) if value["bytes"] is None else bytes(value["bytes"])


def _middle(data: Any, columns: Iterable[str]) -> Sequence[int]:
    """The middle one of the rows that agree in ``columns``, in the order of the rows: one frame of each clip."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for i, values in enumerate(zip(*(data.with_format(None)[name] for name in columns), strict=True)):
        rows.setdefault(values, []).append(i)
    return sorted(same[len(same) // 2] for same in rows.values())


def _append(table: Table, more: Table) -> None:
    before = len(next(iter(table.values()), []))
    added = len(next(iter(more.values()), []))
    for name in {**table, **more}:
        table.setdefault(name, [None] * before).extend(more.get(name, [None] * added))
