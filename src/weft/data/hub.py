"""Sets on the Hugging Face hub, through ``datasets.load_dataset``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weft.data import asked_columns, dialogues, preferred, questions, scored, tagged
from weft.data.columns import Table, Wanted, build, choose
from weft.data.hub_sets import GENERATION, IMAGE, PREFERENCE, QUESTIONS, TEXT, Entry
from weft.data.local import SPLIT_NAMES
from weft.data.question_forms import called_boxes
from weft.data.rows import Source
from weft.errors import UserError

# Of kinds of sets: one that comes with Weft.
OFFLINE = {IMAGE: "glyphs", GENERATION: "docstrings", PREFERENCE: "docstring_preferences", QUESTIONS: "glyph_questions"}
WANTED: dict[str, Wanted] = {GENERATION: "answers", PREFERENCE: "preferences"}  # of kinds of sets, whatever else is asked for
VALIDATION = ("validation_matched", *SPLIT_NAMES["validation"])


def from_hub(entry: Entry, wanted: Wanted = "classes", **asked: str) -> Source:
    """Download, or read from the cache, the set that ``entry`` describes.

    asked: ``image``, ``text``, ``pair``, ``label`` and ``key``: columns that override those of the entry.
    """
    loaded = [(config, _download(entry, config)) for config in entry.configs or (entry.config,)]
    wanted = WANTED.get(entry.kind, "numbers" if entry.numbers else wanted)
    return _source(entry, loaded, asked, [f"{entry.name}: {entry.verified}."], wanted)


def from_disk(folder: Path, wanted: Wanted = "classes", **asked: str) -> Source:
    """Read a set that ``save_to_disk`` of the ``datasets`` library wrote; columns as in :func:`from_hub`.

    Raises:
        UserError: the folder is damaged.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # in many ways, as above
        reason = str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
        raise UserError(f"{folder} can't be read as a set that datasets saved ({reason}): save it anew.") from error
    splits = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    return _source(unknown(folder.resolve().name), [(None, splits)], asked, [], wanted)


def from_object(name: str, data: Any, wanted: Wanted = "classes", **asked: str) -> Source:
    """Read a ``Dataset`` or ``DatasetDict`` of the ``datasets`` library, or a mapping of one for each split.

    Raises:
        UserError: it can't be counted, as those that are streamed, or lacks the columns.
    """
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    if streamed := [split for split, rows in splits.items() if not hasattr(rows, "__len__")]:
        raise UserError(f"the {streamed[0]} rows of the data are streamed: load them without streaming=True.")
    return _source(unknown(name), [(None, splits)], asked, [], wanted)


def _source(
    entry: Entry,
    loaded: Sequence[tuple[str | None, Any]],
    asked: Mapping[str, str],
    said: list[str],
    wanted: Wanted = "classes",
) -> Source:
    """The source of all configs of an entry, each with its splits."""
    splits: dict[str, Table] = {}
    named: dict[str, list[str]] = {}  # column -> names of its classes, where the set has them
    for number, (config, found) in enumerate(loaded):
        for split, data in _splits(entry, found, said).items():
            if entry.parallel and split == "train":
                data = data.select(range(number, len(data), len(entry.configs)))
            if entry.one_of is not None and set(entry.one_of) <= set(data.column_names):
                data = data.select(_middle(data, entry.one_of))
            table = _table(data, named)
            if entry.configs and entry.client_key and config is not None:
                table[entry.client_key] = [config] * len(data)
            _append(splits.setdefault(split, {}), table)
    if wanted not in ("answers", "preferences") and (pair := tagged.recognised(splits["train"], asked)):
        return tagged.build(entry.name, splits, *pair, asked, notes=said)
    every = _named(entry, splits["train"], asked)
    if (pictured := questions.recognised(entry.name, splits["train"], every, wanted)) is not None:
        return questions.build(entry.name, splits, pictured, wanted, notes=said)
    answered = preferred.recognised(entry.name, splits["train"], every, wanted)
    answered = answered or asked_columns.recognised(entry.name, splits["train"], every, wanted)
    if answered is not None:
        return dialogues.build(entry.name, splits, answered, notes=said)
    image, text, label, key = (asked.get(c) for c in ("image", "text", "label", "key"))
    catalogued = not {"image", "text", "pair"} & asked.keys()
    columns = choose(
        splits["train"],
        entry.name,
        image=_known(entry.image, splits["train"]) if catalogued else image,
        text=text or (_known(entry.text, splits["train"]) if image is None else None),
        pair=_known(entry.pair, splits["train"]) if catalogued else asked.get("pair"),
        label=label or _known(entry.label, splits["train"]),
        key=key or _known(entry.client_key, splits["train"]),
        wanted=wanted,
    )
    if wanted == "numbers" or (wanted == "any" and scored.meant(splits["train"][columns.label])):
        return scored.build(entry.name, splits, columns, notes=said)
    codes: Mapping[Any, str] | None = None
    if columns.label in named:
        codes = {name: entry.renamed.get(name, name) for name in named[columns.label]}
    elif columns.label == entry.label:
        codes = entry.label_names
    return build(entry.name, splits, columns, label_names=codes, notes=said)


def _named(entry: Entry, table: Table, asked: Mapping[str, str]) -> dict[str, str]:
    """Columns by option: those catalogued that there still are, unless others were named."""
    catalogued = {"text": entry.text, "pair": entry.pair, "label": entry.label, "key": entry.client_key}
    if entry.kind in (QUESTIONS, GENERATION):
        catalogued["image"] = entry.image
    if {"image", "text", "pair"} & asked.keys():
        catalogued |= {"text": None, "pair": None, "image": None}
    return {option: column for option, column in catalogued.items() if column in table and column is not None} | dict(asked)


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
            f"no copy of {entry.name} is known on the Hugging Face hub: get it from its owner, and give --data its "
            + ("folder, laid out as domain/class/picture." if entry.kind == IMAGE else "file or folder.")
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
            f"or use {OFFLINE.get(entry.kind, 'pydocs')}, which needs neither."
        ) from error


def _splits(entry: Entry, data: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
    """The splits in use, by our names."""
    train = entry.train if entry.train in data else "train"
    if train not in data and len(data) != 1:
        raise UserError(f"{entry.name} has no train split but {', '.join(data)}: save the one you want as a local file.")
    if train not in data:
        said.append(f"{entry.name}: has a {next(iter(data))} split alone, from which rows for training and testing are drawn.")
        return {"train": next(iter(data.values()))}
    found = {"train": data[train]}
    if entry.test in data:
        found["test"] = data[entry.test]
    validation = entry.validation or next((name for name in VALIDATION if name in data), "")
    if validation in data and validation not in (train, entry.test):
        found["validation"] = data[validation]
    return found


def _table(data: Any, named: dict[str, list[str]]) -> Table:
    """The columns of a split but for those of sound, video and the like; names of classes are added to ``named``.

    Lists of numbers are embeddings and outlines, and left where they are but for columns called boxes.
    Labels with names become these names, because configs of one set may number them in different orders. A
    label of -1, the hub's sign for a hidden one, becomes None.
    """
    import datasets

    features = data.features
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    plain = [n for n, feature in features.items() if isinstance(feature, datasets.Value | datasets.ClassLabel)]
    lists = {name: inner for name, feature in features.items() if (inner := _of_list(feature, called_boxes(name))) is not None}
    objects = [name for name, feature in features.items() if name not in lists and _of_objects(feature)]
    table: Table = dict(data.select_columns([*plain, *lists, *objects]).with_format(None)[:])
    for name, inner in lists.items():
        if isinstance(inner, datasets.ClassLabel):
            table[name] = [None if row is None else [_name(inner.names, value) for value in row] for row in table[name]]
    for name in plain:
        if isinstance(features[name], datasets.ClassLabel):
            names = features[name].names
            table[name] = [_name(names, value) for value in table[name]]
            named[name] = list(dict.fromkeys([*named.get(name, []), *names]))
    for name in pictures:
        table[name] = _lazily(data.cast_column(name, datasets.Image(decode=False)), name)
    return table


def _name(names: Sequence[str], value: int | None) -> str | None:
    return None if value is None or value < 0 else names[value]


def _of_list(feature: Any, boxes: bool) -> Any:
    """What a column of lists holds, if it is words or their tags, or anything plain where it may be ``boxes``."""
    import datasets

    inner = None if (inner := _inner(feature)) is feature else inner
    words = isinstance(inner, datasets.ClassLabel) or getattr(inner, "dtype", None) in ("string", "large_string")
    return inner if words or (boxes and isinstance(inner, datasets.Value)) else None


def _of_objects(feature: Any) -> bool:
    """Whether a column holds objects of plain values, or lists of such objects: turns of a chat, translations, answers."""
    import datasets

    inner = _inner(feature)
    return isinstance(feature, datasets.Translation) or (isinstance(inner, dict) and all(map(_plain, inner.values())))


def _plain(feature: Any) -> bool:
    import datasets

    inner = _inner(feature)
    return isinstance(inner, datasets.Value) or (isinstance(inner, dict) and all(map(_plain, inner.values())))


def _inner(feature: Any) -> Any:
    """What a list holds; anything else itself."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)


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
