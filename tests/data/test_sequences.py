"""Sequences of items: leave-last-out and cores by hand; files of reviews, ratings and invoices; the set that is drawn."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.data import item_names, labels, load, partition
from weft.data.interactions import moment
from weft.data.rows import Rows
from weft.data.sequences import LONGEST, Event, core, source
from weft.data.shops import FOLLOWING, PURPOSES, shops
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator

TITLES = {("a", str(i)): f"thing {i}" for i in range(12)} | {("b", str(i)): f"other {i}" for i in range(9)}


def events(**taken: str) -> list[Event]:
    """``a_1="0 1 2"``: user 1 of domain a takes these, in order."""
    return [Event(who[0], who[2:], item, float(t)) for who, items in taken.items() for t, item in enumerate(items.split())]


def pairs(rows: Rows | None, classes: Sequence[str]) -> set[tuple[str, ...]]:
    """Sequences with their next item, by title."""
    assert rows is not None
    assert rows.items is not None
    named = [item_names.title_of(c) for c in classes]
    return {tuple(named[i] for i in (*own, int(y))) for own, y in zip(rows.items, rows.labels, strict=True)}


def test_the_last_item_is_for_testing_the_one_before_for_validation_and_the_rest_for_training() -> None:
    found = source("some", events(a_1="3 1 4 1 5", a_2="2 7 1", b_1="0 1 2 3"), TITLES)
    assert pairs(found.test, found.classes) == {
        ("thing 3", "thing 1", "thing 4", "thing 1", "thing 5"),
        ("thing 2", "thing 7", "thing 1"),
        ("other 0", "other 1", "other 2", "other 3"),
    }
    assert pairs(found.validation, found.classes) == {
        ("thing 3", "thing 1", "thing 4", "thing 1"),
        ("thing 2", "thing 7"),
        ("other 0", "other 1", "other 2"),
    }
    assert pairs(found.train, found.classes) == {
        ("thing 3", "thing 1"),
        ("thing 3", "thing 1", "thing 4"),
        ("other 0", "other 1"),
    }
    assert found.classes[:3] == ("a/1: thing 1", "a/2: thing 2", "a/3: thing 3")
    assert [item_names.domain_of(c) for c in found.classes] == ["a"] * 6 + ["b"] * 4
    assert (found.key_name, Counter(found.train.keys or ())) == ("domain", Counter(a=2, b=1))
    every = np.concatenate([r.ids for r in (found.train, found.test, found.validation) if r is not None])
    assert len(set(every.tolist())) == len(every)


def test_time_orders_a_sequence_and_what_is_of_one_time_stays_as_given_and_counts_once() -> None:
    given = [Event("a", "1", i, t) for i, t in (("5", 9.0), ("1", 2.0), ("2", 3.0), ("3", 3.0), ("2", 3.0), ("4", 1.0))]
    found = source("some", given, TITLES)
    assert pairs(found.test, found.classes) == {("thing 4", "thing 1", "thing 2", "thing 3", "thing 5")}


def test_short_sequences_and_items_without_a_title_are_left_out_and_counted() -> None:
    found = source("some", events(a_1="0 1 2 3 99", a_2="8 9", b_7="1 2"), TITLES)
    assert len(found.classes) == 4
    assert pairs(found.test, found.classes) == {("thing 0", "thing 1", "thing 2", "thing 3")}
    assert found.notes[:2] == (
        "some: 1 of 9 interactions are with items without a title: left out.",
        "some: 2 users of fewer than 3 items are left out.",
    )
    assert found.notes[-1] == "some: 1 user and 4 items of a."


def test_the_core_is_the_largest_part_in_which_all_have_enough() -> None:
    given = events(a_1="0 1 2", a_2="0 1 2", a_3="0 1 3", a_4="3", b_1="0 1 2", b_2="0 0 0")
    kept = core(given, 3)
    assert {(e.domain, e.user) for e in kept} == {("b", "2")}  # the others fall one after the other
    assert {(e.domain, e.user) for e in core(given, 2)} == {("a", "1"), ("a", "2"), ("a", "3"), ("b", "2")}
    every = Counter((e.domain, e.user) for e in core(given, 2)) + Counter((e.domain, "item", e.item) for e in core(given, 2))  # type: ignore[operator]
    assert min(every.values()) >= 2
    assert core(given, 0) == given


def test_nothing_to_train_on_is_said_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"some has no user of 4 items or more, and so nothing to train on: give more\.$"):
        source("some", events(a_1="0 1 2"), TITLES)
    with pytest.raises(UserError, match="give more, or ask for a smaller --core"):
        source("some", events(a_1="0 1 2 3"), TITLES, least=5)


def test_a_long_sequence_keeps_its_latest_items() -> None:
    given = [Event("a", "1", str(i % 12), float(i)) for i in range(LONGEST + 50)]
    found = source("some", given, TITLES)
    assert found.test is not None
    assert found.test.items is not None
    assert len(found.test.items[0]) == LONGEST
    assert found.test.items[0][-1] == found.classes.index(f"a/{(LONGEST + 48) % 12}: thing {(LONGEST + 48) % 12}")


def test_clients_are_domains_with_the_rows_of_their_own_last_items() -> None:
    dealt = partition(shops(), clients=2)
    assert [c.facts["domain"] for c in dealt.clients] == ["stationery", "household"]
    whole = shops()
    for client in dealt.clients:
        for own, every in ((client.test, whole.test), (client.val, whole.validation), (client.train, whole.train)):
            assert every is not None
            wanted = [i for i, key in zip(every.ids.tolist(), every.keys or (), strict=True) if key == client.facts["domain"]]
            assert sorted(own.ids.tolist()) == sorted(wanted)
    assert len(dealt.test) == len(dealt.val) == 420


def test_users_can_be_clients_and_nobody_s_rows_are_torn_apart() -> None:
    taken = {f"{d}_{u}": " ".join(str((u + i) % 9) for i in range(6)) for d in "ab" for u in range(8)}
    found = source("some", events(**taken), TITLES, by="user")
    dealt = partition(found, clients=5)
    owners: dict[str, set[str]] = {}
    for client in dealt.clients:
        assert len(client.test)
        assert len(client.val)
        for rows in (client.train, client.val, client.test):
            for key in rows.keys or ():
                owners.setdefault(key, set()).add(client.id)
    assert len(owners) == 16
    assert all(len(some) == 1 for some in owners.values())


# the drawn set --------------------------------------------------------------------------------------------------------


def test_shops_is_the_same_whenever_it_is_drawn_and_its_shops_share_words_alone() -> None:
    found = shops()
    assert found.fingerprint == shops.__wrapped__().fingerprint
    assert load("shops").fingerprint == found.fingerprint
    by_shop: dict[str, set[str]] = {}
    for name in found.classes:
        by_shop.setdefault(item_names.domain_of(name), set()).add(item_names.title_of(name))
    assert {shop: len(titles) for shop, titles in by_shop.items()} == {"household": 223, "stationery": 133}
    assert not by_shop["household"] & by_shop["stationery"]
    words = [{w for title in titles for w in title.split()[:2]} for titles in by_shop.values()]
    assert words[0] == words[1]


def test_in_both_shops_the_purpose_that_follows_comes_next_far_more_often_than_any() -> None:
    found, follows = shops(), numpy_generator(0, "shops", "follows").permutation(len(PURPOSES))
    purpose = [PURPOSES.index(item_names.title_of(c).split()[1]) for c in found.classes]
    hits: dict[str, list[bool]] = {}
    assert found.train.items is not None
    for own, y, key in zip(found.train.items, found.train.labels, found.train.keys or (), strict=True):
        hits.setdefault(key, []).append(follows[purpose[own[-1]]] == purpose[int(y)])
    assert all(np.mean(some) > 0.8 * FOLLOWING for some in hits.values())


def test_classes_in_another_order_number_the_items_of_sequences_anew() -> None:
    found = source("some", events(a_1="3 1 4 1 5", b_1="0 1 2 3"), TITLES)
    turned = labels.declared(found, found.classes[::-1])
    for split in ("train", "test", "validation"):
        assert pairs(getattr(turned, split), turned.classes) == pairs(getattr(found, split), found.classes)
    with pytest.raises(labels.UnknownLabel, match='some has the label "b/0: other 0", which is none of the classes'):
        labels.declared(found, [c for c in found.classes if c != "b/0: other 0"])  # it is nobody's label, but in a sequence


@pytest.mark.parametrize("items", [[()], [(1, -1)], [("1",)], [3], [(1.0,)]])
def test_rows_of_something_else_than_sequences_are_refused(items: Any) -> None:
    with pytest.raises(UserError, match="items must be sequences of whole numbers from 0, but row 0 holds"):
        Rows(items=items, labels=np.array([0]))


@pytest.mark.parametrize("name", ["a/1: x", "office products/B01: Pens, 12: blue", "no form at all", "x: y"])
def test_a_name_tells_its_domain_and_title(name: str) -> None:
    wanted = {"a/1: x": ("a", "x"), "office products/B01: Pens, 12: blue": ("office products", "Pens, 12: blue")}
    assert (item_names.domain_of(name), item_names.title_of(name)) == wanted.get(name, ("", name))
    assert item_names.called("a/b", "c: d", " e \n f ") == "a-b/c-d: e f"


# files ----------------------------------------------------------------------------------------------------------------


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A file of JSON lines, packed or not."""
    text = "\n".join(json.dumps(row) for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def reviews(user: str, item: str, time: str, scale: int = 1) -> list[dict[str, Any]]:
    """Three reviewers of five products each, not in the order of time."""
    found = [
        {user: f"U{u}", item: f"B{(u + i) % 6}", time: (100 * u + i) * scale, "title": "Great!"}
        for u in range(3)
        for i in range(5)
    ]
    return found[::-1]


def metadata(item: str, **more: Any) -> list[dict[str, Any]]:
    return [{item: f"B{i}", "title": f"Product {i}", **more} for i in range(6)]


def last_of(rows: Rows | None, classes: Sequence[str]) -> set[str]:
    return {sequence[-1] for sequence in pairs(rows, classes)}


@pytest.mark.parametrize("old", [True, False])
def test_reviews_of_amazon_are_read_with_their_metadata(tmp_path: Path, old: bool) -> None:
    user, item, time = ("reviewerID", "asin", "unixReviewTime") if old else ("user_id", "parent_asin", "timestamp")
    for domain, core_of in (("Office_Products", "_5"), ("Arts", "")):
        name = f"{domain}{core_of}.json.gz" if old else f"{domain}.jsonl"
        written(tmp_path / name, reviews(user, item, time, 1 if old else 1000))
        written(tmp_path / (f"meta_{domain}.json.gz" if old else f"meta_{domain}.jsonl"), metadata(item, price=3))
    found = load(str(tmp_path), wanted="items")
    assert Counter(item_names.domain_of(c) for c in found.classes) == {"Arts": 6, "Office_Products": 6}
    assert "Arts/B3: Product 3" in found.classes
    assert last_of(found.test, found.classes) == {"Product 4", "Product 5", "Product 0"}
    assert len(found.train) == 2 * 3 * 2
    assert sorted(set(found.train.keys or ())) == ["Arts", "Office_Products"]
    by_user = load(str(tmp_path), wanted="items", key="user")
    assert len(set(by_user.train.keys or ())) == 6
    with pytest.raises(
        UserError, match="no user of 4 items or more, and so nothing to train on: give more, or ask for a smaller"
    ):
        load(str(tmp_path), wanted="items", core=4)


def test_ratings_and_a_table_of_titles_in_csv(tmp_path: Path) -> None:
    lines = [f"U{u},B{(u + i) % 6},5.0,{100 * u + i}" for u in range(3) for i in range(5)]
    (tmp_path / "arts.csv").write_text("\n".join(["user,item,rating,timestamp", *lines]))
    (tmp_path / "meta_arts.csv").write_text("\n".join(["asin,title", *(f"B{i},Product {i}" for i in range(5))]))
    found = load(str(tmp_path / "arts.csv"), wanted="items")
    assert any("interactions are with items without a title: left out" in note for note in found.notes)
    assert len(found.classes) == 5


def invoices() -> list[list[str]]:
    head = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "CustomerID", "Country"]
    rows = [
        [f"5363{u}{i}", f"{i % 7}A", f"WHITE LANTERN {i % 7}", "6", f"12/{1 + i}/2010 8:26", f"1785{u}.0", "UK"]
        for u in range(3)
        for i in range(8)
    ]
    rows.append(["C53699", "1A", "WHITE LANTERN 1", "-6", "12/30/2010 9:00", "17850.0", "UK"])
    rows.append(["536999", "2A", "WHITE LANTERN 2", "6", "12/31/2010 9:00", "", "UK"])
    rows.append(["536999", "2A", "WHITE LANTERN 2", "6", "once", "17850.0", "UK"])
    return [head, *rows]


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_lines_of_invoices_are_read_without_those_that_were_cancelled(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"retail.{kind}"
    if kind == "csv":
        path.write_text("\n".join(",".join(row) for row in invoices()))
    else:
        import openpyxl

        book = openpyxl.Workbook()
        for row in invoices():
            book.active.append(row)
        book.save(path)
    found = load(str(path), wanted="items", core=2)
    assert last_of(found.test, found.classes) == {"WHITE LANTERN 0"}
    assert "retail/0A: WHITE LANTERN 0" in found.classes
    assert len(found.classes) == 7
    for n, why in ((1, "tell no user or item"), (1, "are of cancelled invoices"), (1, 'have no time in "InvoiceDate"')):
        assert f"retail.{kind}: {n} of 27 rows {why}, and are left out." in found.notes


def test_times_are_numbers_or_dates() -> None:
    assert moment("1355616000") == moment(1355616000) == 1355616000.0
    assert (
        moment("2010-12-01 08:26:00") == moment("12/1/2010 8:26") == moment("2010-12-01T08:26:00") == moment("01.12.2010 08:26")
    )
    assert moment("12/2/2010 8:26") > moment("12/1/2010 8:26")  # type: ignore[operator]
    assert moment("once") is moment(None) is moment(float("nan")) is moment("") is None


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    def refused(name: str, **more: Any) -> str:
        with pytest.raises(UserError) as caught:
            load(name, wanted="items", **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    file = written(tmp_path / "arts.jsonl", reviews("user_id", "asin", "timestamp"))
    assert "arts.jsonl does not tell what its items are called, and nothing beside it does: add meta_arts.jsonl" in refused(
        str(file)
    )
    written(tmp_path / "meta_arts.jsonl", [{"asin": "B1", "name": "x"}])
    assert "meta_arts.jsonl has no column for the title, such as title" in refused(str(file))
    assert len(load(str(file), wanted="items", text="title").classes) == 6  # of the reviews: whoever says so gets it
    odd = written(tmp_path / "odd.jsonl", [{"who": "U1", "what": "B1"}])
    assert "odd.jsonl has no column for the user, such as reviewerid, user_id, userid (it has who, what): rename one." in refused(
        str(odd)
    )
    for name, said in (("nowhere.jsonl", "there is no file or folder"), ("owner/set", "are read from files: download owner/set")):
        assert said in refused(str(tmp_path / name) if "." in name else name)
    assert "the natural key of sequences is their domain or their user, not" in refused(str(file), key="asin")
    assert "have no column for --pair" in refused(str(file), pair="x")
    empty = tmp_path / "none"
    empty.mkdir()
    assert "holds no file of interactions that Weft reads" in refused(str(empty))
    blank = written(tmp_path / "blank.jsonl", [{"user_id": None, "asin": "B1", "timestamp": 1}])
    assert "blank.jsonl holds no row with a user, an item and a time" in refused(str(blank))
    written(tmp_path / "arts_5.jsonl", reviews("user_id", "asin", "timestamp"))
    assert "holds two files of the domain arts (arts.jsonl, arts_5.jsonl): leave one" in refused(str(tmp_path))
    with pytest.raises(UserError, match="sequences of items are read from a file or folder"):
        load([{"user": 1}], wanted="items")


@pytest.mark.parametrize(("data", "wanted"), [("digits", "any"), ("shops", "items"), ("rows.csv", "classes")])
def test_a_core_of_what_holds_no_files_of_sequences_is_refused(data: str, wanted: Any) -> None:
    with pytest.raises(UserError, match="--core is of sequences in a file or folder"):
        load(data, wanted=wanted, core=5)
