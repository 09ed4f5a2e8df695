"""From the tables of a file, folder or frame to a source: its columns, and its splits where a column tells them."""

from __future__ import annotations

from collections.abc import Mapping

from weft.data import asked_columns, dialogues, preferred, questions, scored, tagged
from weft.data.columns import Columns, Table, Wanted, build, choose
from weft.data.local import SPLIT_OF
from weft.data.rows import Source
from weft.errors import UserError


def assemble(
    name: str, splits: Mapping[str, Table], asked: Mapping[str, str], notes: list[str], wanted: Wanted = "classes"
) -> Source:
    """The source made of a table for each split.

    Args:
        name: what sentences call it. asked: columns that were named, by option. notes: what was said of it so far.
        wanted: what rows are for, see :func:`weft.data.load`.

    Raises:
        UserError: no columns can be told, or a split lacks those of the training rows.
    """
    if wanted not in ("answers", "preferences") and (pair := tagged.recognised(splits["train"], asked)):
        return tagged.build(name, splits if len(splits) > 1 else by_split(splits["train"], name), *pair, asked, notes=notes)
    if (pictured := questions.recognised(name, splits["train"], asked, wanted)) is not None:
        splits = splits if len(splits) > 1 else by_split(splits["train"], name)
        return questions.build(name, splits, pictured, wanted, notes=notes)
    answered = preferred.recognised(name, splits["train"], asked, wanted)
    answered = answered or asked_columns.recognised(name, splits["train"], asked, wanted)
    if answered is not None:
        return dialogues.build(name, splits if len(splits) > 1 else by_split(splits["train"], name), answered, notes=notes)
    tagged.half(splits["train"], name, asked)
    columns = choose(splits["train"], name, wanted=wanted, **asked)
    if len(splits) == 1 and (columns.image is not None or _names_train(splits["train"], columns)):
        splits = by_split(splits["train"], name)
        if len(splits) > 1:
            notes.append(f"{name}: a column tells the split of a row ({', '.join(splits)}).")
    for split, table in splits.items():
        used = (columns.image, columns.text, columns.pair, columns.label)
        absent = [c for c in used if c is not None and c not in table]
        # Without the label, and without a column that could be a new name of it, it is the test set of a competition.
        if absent and not (absent == [columns.label] and split != "train" and table.keys() <= splits["train"].keys()):
            raise UserError(f'the {split} rows of {name} have no column "{absent[0]}", which its train rows have.')
        lost = [v for v in ([] if columns.image is None else table[columns.image]) if isinstance(v, str)]
        if lost:
            raise UserError(f"the {split} rows of {name} name {len(lost)} pictures that do not exist, first {lost[0]}.")
    if wanted == "numbers" or (wanted == "any" and scored.meant(splits["train"][columns.label])):
        return scored.build(name, splits, columns, notes=notes)
    return build(name, splits, columns, notes=notes)


def _names_train(table: Table, columns: Columns) -> bool:
    """Whether a column that is not in use tells the split of rows, some of them for training."""
    used = (columns.text, columns.pair, columns.label, columns.key)
    names = {
        str(value).strip().lower() for name in table if name.lower() == "split" and name not in used for value in table[name]
    }
    return names <= SPLIT_OF.keys() and "train" in {SPLIT_OF[name] for name in names}


def by_split(table: Table, where: str) -> dict[str, Table]:
    """The rows of each split that a column ``split`` names, all training rows where there is no such column.

    Raises:
        UserError: no row is a training row.
    """
    column = next((name for name in table if name.lower() == "split"), None)
    names = [] if column is None else [str(value).strip().lower() for value in table[column]]
    if not names or not set(names) <= SPLIT_OF.keys():
        return {"train": table}
    if "train" not in {SPLIT_OF[name] for name in names}:
        raise UserError(f'column "{column}" of {where} names no row train: name the rows to train on so.')
    splits: dict[str, Table] = {}
    for split in sorted({SPLIT_OF[name] for name in names}):
        rows = [i for i, name in enumerate(names) if SPLIT_OF[name] == split]
        splits[split] = {name: [values[i] for i in rows] for name, values in table.items()}
    return splits
