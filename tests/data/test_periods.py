"""When rows arrive: each in one period, by classes, keys or at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from weft.data import periods
from weft.data.periods import ALWAYS, Held
from weft.data.rows import Rows
from weft.errors import UserError

CLASSES = tuple("abcdefg")


def some(n: int = 210, **more: Any) -> tuple[Rows, dict[str, Held]]:
    """Three clients with 70 rows each, ten of them for tests; the last has three classes only."""
    labels = np.arange(n) % len(CLASSES)
    labels[140:] = labels[140:] % 3
    clients = {f"c{i}": Held(np.arange(70 * i, 70 * i + 60), np.arange(70 * i + 60, 70 * i + 70)) for i in range(3)}
    return Rows(texts=[f"t{i}" for i in range(n)], labels=labels, **more), clients


@pytest.mark.parametrize("number", [2, 3, 7])
def test_classes_arrive_at_the_same_time_everywhere(number: int) -> None:
    rows, clients = some()
    found = periods.deal(rows, clients, number, "classes", 0, CLASSES)
    of_class = {c: set(found[rows.labels == c].tolist()) for c in range(len(CLASSES))}
    assert all(len(one) == 1 for one in of_class.values())
    sizes = np.bincount([one.pop() for one in of_class.values()], minlength=number)
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(found, periods.deal(rows, clients, number, "classes", 0, CLASSES))
    others = [periods.deal(rows, clients, number, "classes", seed, CLASSES) for seed in range(1, 5)]
    assert not all(np.array_equal(found, other) for other in others)


def test_one_client_alone_says_the_same_of_its_rows_as_the_federation() -> None:
    rows, clients = some()
    for by in ("classes", "own-classes", "rows"):
        found = periods.deal(rows, clients, 3, by, 4, CLASSES)
        for name, held in clients.items():
            mine = np.concatenate([held.train, held.others])
            at_home = {name: Held(np.arange(60), np.arange(60, 70))}
            assert np.array_equal(found[mine], periods.deal(rows.take(mine), at_home, 3, by, 4, CLASSES))


def test_own_classes_arrive_in_an_order_of_each_client() -> None:
    rows, clients = some()
    orders = []
    for seed in range(3):
        found = periods.deal(rows, clients, 3, "own-classes", seed, CLASSES)
        for held in clients.values():
            mine = np.concatenate([held.train, held.others])
            of_class = [set(found[mine][rows.labels[mine] == c].tolist()) for c in np.unique(rows.labels[mine])]
            assert all(len(one) == 1 for one in of_class)
            assert set.union(*of_class) == {0, 1, 2}
            orders.append(tuple(min(one) for one in of_class))
    whole = [o for o in orders if len(o) == 7]  # of the first two clients, seed by seed
    assert any(a != b for a, b in zip(whole[::2], whole[1::2], strict=True)), "the same for both"


def test_a_client_with_fewer_classes_than_periods_has_nothing_in_some() -> None:
    rows, clients = some()
    found = periods.deal(rows, clients, 5, "own-classes", 0, CLASSES)
    assert len(np.unique(found[140:])) == 3


def test_keys_arrive_whole() -> None:
    keys = [f"d{i % 4}" for i in range(210)]
    rows, clients = some(keys=keys)
    found = periods.deal(rows, clients, 2, "keys", 0, CLASSES)
    for key in set(keys):
        assert len({int(p) for p, k in zip(found, keys, strict=True) if k == key}) == 1
    assert set(found.tolist()) == {0, 1}


def test_rows_at_random_are_shared_out_evenly_and_test_rows_are_always_there() -> None:
    rows, clients = some()
    found = periods.deal(rows, clients, 4, "rows", 0, CLASSES)
    for held in clients.values():
        assert np.bincount(found[held.train]).tolist() == [15, 15, 15, 15]
        assert set(found[held.others].tolist()) == {ALWAYS}
    assert not np.array_equal(found[:60], found[70:130])


@pytest.mark.parametrize("by", ["classes", "own-classes"])
def test_told_apart_means_among_the_classes_of_the_own_period(by: str) -> None:
    rows, clients = some()
    of_row = periods.deal(rows, clients, 3, by, 0, CLASSES)
    allowed = periods.apart(rows, of_row, clients, by, len(CLASSES)).allowed
    assert allowed is not None
    for i in range(len(rows)):
        mine = np.arange(210) if by == "classes" else np.arange(70 * (i // 70), 70 * (i // 70) + 70)
        wanted = set(rows.labels[mine][of_row[mine] == of_row[i]].tolist())
        assert set(np.flatnonzero(allowed[i]).tolist()) == wanted
        assert rows.labels[i] in wanted


def test_what_was_told_apart_before_stays_so() -> None:
    rows, clients = some(allowed=np.tile(np.arange(7) != 6, (210, 1)))
    of_row = periods.deal(rows, clients, 3, "classes", 0, CLASSES)
    allowed = periods.apart(rows, of_row, clients, "classes", len(CLASSES)).allowed
    assert allowed is not None
    assert not allowed[:, 6].any()


@pytest.mark.parametrize(
    ("number", "by", "more", "why"),
    [
        (8, "classes", {}, "7 classes can't arrive in 8 periods"),
        (2, "keys", {}, "no natural keys"),
        (3, "keys", {"keys": ["a", "b"] * 105}, "2 natural keys can't arrive in 3 periods"),
    ],
)
def test_what_can_not_arrive_so_is_refused(number: int, by: str, more: dict[str, Any], why: str) -> None:
    rows, clients = some(**more)
    with pytest.raises(UserError, match=why):
        periods.deal(rows, clients, number, by, 0, CLASSES)


def test_rows_without_classes_can_not_arrive_by_them() -> None:
    rows = Rows(texts=["a", "b"], answers=["c", "d"])
    with pytest.raises(UserError, match="--periods-by rows"):
        periods.deal(rows, {"c": Held(np.arange(2), np.arange(0))}, 2, "classes", 0, ("answer",))


def test_periods_without_classes_can_not_be_told_apart_by_them() -> None:
    rows, clients = some()
    with pytest.raises(UserError, match="leave --incremental out"):
        periods.apart(rows, periods.deal(rows, clients, 3, "rows", 0, CLASSES), clients, "rows", len(CLASSES))
