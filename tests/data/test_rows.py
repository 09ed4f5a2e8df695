"""The tables themselves: immutable, checked, and with a fingerprint of their content."""

from __future__ import annotations

import numpy as np
import pytest

from weft.data import Rows
from weft.data.rows import fingerprint
from weft.errors import UserError


def rows(**changed: object) -> Rows:
    columns = {
        "texts": ["a", "b", "c"],
        "pairs": ["x", "y", "z"],
        "labels": np.array([0, 1, 0]),
        "ids": np.array([5, 6, 7]),
        "keys": ["k", "k", "l"],
    }
    return Rows(**{**columns, **changed})  # type: ignore[arg-type]


def test_taking_rows_keeps_every_column_in_step() -> None:
    taken = rows().take(np.array([2, 0]))
    assert (taken.texts, taken.pairs, taken.keys) == (["c", "a"], ["z", "x"], ["l", "k"])
    assert taken.labels.tolist() == [0, 0]
    assert taken.ids.tolist() == [7, 5]
    assert rows().take(np.array([False, True, False])).texts == ["b"]
    assert len(rows().take(np.array([]))) == 0


def test_concatenating_keeps_pairs_and_keys_only_where_all_parts_have_them() -> None:
    both = Rows.concatenate([rows(), rows(ids=np.array([8, 9, 10]), keys=None)])
    assert both.keys is None
    assert both.pairs == ["x", "y", "z", "x", "y", "z"]
    assert both.ids.tolist() == [5, 6, 7, 8, 9, 10]


def test_labels_and_ids_cannot_be_written_to_and_do_not_follow_the_callers_array() -> None:
    mine = np.array([0, 1, 0])
    table = rows(labels=mine)
    mine[0] = 9
    assert table.labels.tolist() == [0, 1, 0]
    assert table.labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        table.labels[0] = 1


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(UserError, match="keys has 1 entries for 3 texts"):
        rows(keys=["k"])


def test_the_fingerprint_follows_every_part_of_the_content_and_nothing_else() -> None:
    classes = ("no", "yes")
    base = fingerprint(classes, {"train": rows()})
    assert base == fingerprint(classes, {"train": rows(), "test": None})
    assert base == fingerprint(classes, {"train": rows(ids=np.array([1, 2, 3]))})
    changed = [
        fingerprint(("no", "maybe"), {"train": rows()}),
        fingerprint(classes, {"test": rows()}),
        fingerprint(classes, {"train": rows(texts=["a", "b", "d"])}),
        fingerprint(classes, {"train": rows(texts=["ab", "", "c"])}),
        fingerprint(classes, {"train": rows(pairs=None)}),
        fingerprint(classes, {"train": rows(pairs=["None"] * 3)}),
        fingerprint(classes, {"train": rows(labels=np.array([1, 1, 0]))}),
        fingerprint(classes, {"train": rows(keys=["k", "l", "l"])}),
        fingerprint(classes, {"train": rows().take(np.array([1, 0, 2]))}),
        fingerprint(classes, {"train": rows().take(np.array([0, 1]))}),
    ]
    assert len({base, *changed}) == len(changed) + 1


def test_splits_are_fingerprinted_in_a_fixed_order() -> None:
    one, two = rows(), rows(texts=["d", "e", "f"])
    assert fingerprint((), {"train": one, "test": two}) == fingerprint((), {"test": two, "train": one})
