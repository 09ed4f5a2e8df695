"""Few shots, classes that nobody trains on, and other data sets to be tested on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weft
from picture_folders import CLASSES, draw
from weft.data import load as load_data
from weft.data.further import NOVEL
from weft.data.images import Images
from weft.data.labels import declared
from weft.data.partitioners import partition
from weft.data.protocols import also_tested, base_to_novel, few_shot
from weft.data.rows import FederatedData, Rows, Source
from weft.engines.evaluation import BOTH, Evaluation, both_sides
from weft.errors import UserError
from weft.methods import registry


def pictures(n: int, seed: int) -> Images:
    draw = np.random.default_rng(seed)
    return Images([draw.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(n)])


def source(classes: str, each: int = 12, name: str = "letters", own_test: bool = False, first: int = 0) -> Source:
    """Pictures of noise, ``each`` of a class, those of a class next to each other."""

    def rows(per: int, ids: int, seed: int) -> Rows:
        labels = np.repeat(np.arange(len(classes)), per)
        return Rows(labels=labels, ids=np.arange(ids, ids + len(labels)), images=pictures(len(labels), seed))

    test = rows(3, 1000 + first, 2) if own_test else None
    return Source(name, tuple(classes), rows(each, first, 1), test, fingerprint=name)


@pytest.mark.parametrize("own_test", [False, True])
def test_no_row_of_a_novel_class_is_trained_on_and_each_side_is_told_apart_by_itself(own_test: bool) -> None:
    whole = source("abcdef", own_test=own_test)
    found = base_to_novel(whole, 0.5)
    dealt = partition(found, clients=3, scheme="iid")
    for client in dealt.clients:
        for rows in (client.train, client.val, client.test):
            assert set(rows.labels.tolist()) <= {0, 1, 2}
            assert rows.allowed is not None
            assert (rows.allowed == [True, True, True, False, False, False]).all()
    novel = dealt.further[NOVEL]
    assert len(novel) == (9 if own_test else 36)
    assert set(novel.labels.tolist()) == {3, 4, 5}
    assert novel.allowed is not None
    assert (novel.allowed == [False, False, False, True, True, True]).all()
    assert any("3 classes of 6 are never trained on, and tested on apart (d, e, f)." in note for note in dealt.notes)
    assert base_to_novel(source("abcde"), 0.5).train.labels.max() == 2, "of five classes three are trained on"


def test_validation_rows_and_new_clients_are_of_classes_that_are_trained_on() -> None:
    def rows(first: int) -> Rows:
        labels = np.repeat(np.arange(6), 4)
        return Rows(labels=labels, ids=np.arange(first, first + 24), images=pictures(24, first))

    whole = Source("letters", tuple("abcdef"), rows(0), rows(100), rows(200), unseen={"elsewhere": rows(300)})
    dealt = partition(base_to_novel(whole, 0.5), clients=2, scheme="iid")
    for kept in (dealt.val, dealt.test, dealt.unseen[0].test):
        assert len(kept) == 12
        assert set(kept.labels.tolist()) == {0, 1, 2}
        assert kept.allowed is not None
        assert (kept.allowed == [True, True, True, False, False, False]).all()
    assert dealt.further[NOVEL].ids.tolist() == list(range(112, 124))


@pytest.mark.parametrize(("classes", "share"), [("abc", 0.5), ("abcdef", 0.1), ("abcdef", 0.9)])
def test_both_sides_have_two_classes(classes: str, share: float) -> None:
    with pytest.raises(UserError, match="both need two: choose another --novel"):
        base_to_novel(source(classes), share)


WITHOUT_TOKENS = ("fedclip",)
"""Methods of class names that put no tokens before them."""


def run(data: Any, folder: Path, **settings: Any) -> weft.Run:
    given = {
        "method": "promptfl",
        "model": "glyph-clip",
        "clients": 3,
        "rounds": 2,
        "partition": "iid",
        "recipes": False,
        "precision": "float32",
    }
    steps = {"epochs": 1, "batch": 8, "tokens": 2} | settings.pop("own", {})
    if settings.get("method") in WITHOUT_TOKENS:
        del steps["tokens"]
    return weft.run(data=data, parameters=steps, baselines=[], quiet=True, runs=folder, **{**given, **settings})  # type: ignore[arg-type]


OF_NAMES = [slug for slug, info in registry.infos().items() if "two towers" in info.needs and "all classes" not in info.needs]


def test_all_methods_of_class_names_are_put_to_the_protocol_but_those_that_say_why_not() -> None:
    assert {"promptfl", "promptfolio", "fedotp", "pfedprompt", "pfedmoap", "fedapt"} <= set(OF_NAMES)


@pytest.mark.parametrize("slug", OF_NAMES)
def test_to_train_with_novel_classes_kept_back_is_to_train_as_if_there_were_none(slug: str, tmp_path: Path) -> None:
    """A context for each class is drawn anew where there are more of them, so that such a method has one for all here."""
    own = {"per_class": False} if slug == "fedapt" else {}
    whole = run(source("abcdef"), tmp_path / "whole", method=slug, own=own, novel=0.5)
    alone = run(source("abc"), tmp_path / "alone", method=slug, own=own)
    assert [line["loss"] for line in whole.rounds] == pytest.approx([line["loss"] for line in alone.rounds], abs=1e-5)
    assert whole.metrics["accuracy"] == alone.metrics["accuracy"]
    assert whole.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)
    base, novel = whole.metrics["accuracy"], whole.metrics["novel_classes"]
    assert whole.metrics["base_and_novel_classes"] == pytest.approx(2 * base * novel / max(base + novel, 1e-12))
    assert "novel_classes" not in alone.metrics


def test_another_set_is_tested_on_by_the_names_of_its_own_classes_and_changes_nothing_else(tmp_path: Path) -> None:
    other = source("cxyz", 5, "others", own_test=True)
    found = also_tested(source("abc"), [other])
    assert found.classes == ("a", "b", "c", "x", "y", "z")
    rows = found.further["test of others"]
    assert rows.labels.tolist() == np.repeat([2, 3, 4, 5], 3).tolist()
    assert rows.allowed is not None
    assert (rows.allowed == [False, False, True, True, True, True]).all()
    assert found.train.allowed is not None
    assert (found.train.allowed == [True, True, True, False, False, False]).all()
    assert not set(rows.ids.tolist()) & set(found.train.ids.tolist())
    assert found.fingerprint != also_tested(source("abc"), [source("cxyz", 5, "more", own_test=True)]).fingerprint
    with pytest.raises(UserError, match="others is named twice"):
        also_tested(source("abc"), [other, other])
    both = run(found, tmp_path / "both")
    alone = run(source("abc"), tmp_path / "alone")
    assert [line["loss"] for line in both.rounds] == pytest.approx([line["loss"] for line in alone.rounds], abs=1e-5)
    assert both.metrics["accuracy"] == alone.metrics["accuracy"]
    assert 0 <= both.metrics["test_of_others"] <= 1


def with_split(rows: int, first: int, classes: int = 3) -> Rows:
    return Rows(labels=np.arange(rows) % classes, ids=np.arange(first, first + rows), images=pictures(rows, first))


def test_every_split_of_a_set_goes_with_another_set_to_be_tested_on(tmp_path: Path) -> None:
    """Test and validation rows of its own, a domain that is held out, and test sets beside them."""
    own = Source(
        "letters", tuple("abc"), with_split(24, 0), with_split(9, 100), with_split(6, 200), {"elsewhere": with_split(12, 300)}
    )
    found = also_tested(also_tested(own, [source("cxyz", 5, "others")]), [source("pqr", 5, "more")])
    assert len(found.classes) == 9
    assert found.test is not None
    assert found.validation is not None
    for rows in (found.train, found.test, found.validation, found.unseen["elsewhere"]):
        assert rows.allowed is not None
        assert (rows.allowed == [True] * 3 + [False] * 6).all()
    others = found.further["test of others"]
    assert others.allowed is not None
    assert (others.allowed == [False, False, *[True] * 4, False, False, False]).all()
    done = run(found, tmp_path, clients=2)
    assert 0 <= done.metrics["test_of_others"] <= 1
    assert 0 <= done.metrics["test_of_more"] <= 1


@pytest.mark.parametrize("name", ["drawings", "glyphs", "folder"])
def test_a_set_with_a_test_split_or_a_domain_held_out_is_tested_on_another(name: str, tmp_path: Path) -> None:
    if name == "folder":
        for split, what, i in itertools.product(("train", "test"), CLASSES, range(4)):
            draw(tmp_path / "pictures" / split / what / f"{i}.png")
        own = load_data(str(tmp_path / "pictures"))
    else:
        own = load_data(name, limit=20)
    found = also_tested(own, [load_data("digits", limit=20)])
    assert len(found.further["test of digits"]) == 20
    dealt = partition(found, clients=2, scheme="iid")
    assert len(dealt.test if name == "folder" else dealt.unseen[0].test) == (12 if name == "folder" else 20)


def test_a_test_set_that_one_backbone_does_not_read_or_that_is_the_run_s_own_is_refused() -> None:
    texts = Source("texts", tuple("abcd"), Rows(texts=[f"row {i}" for i in range(8)], labels=np.arange(8) % 4))
    with pytest.raises(UserError, match="texts holds texts and letters images, which one backbone does not both read"):
        also_tested(source("abc"), [texts])
    with pytest.raises(UserError, match="letters is what is trained on, and its own test rows are tested on already"):
        also_tested(source("abc"), [source("abc")])


def test_classes_in_another_order_are_those_of_further_test_sets_too() -> None:
    found = declared(also_tested(source("abc"), [source("cx", 2, "others")]), tuple("xcba"))
    rows = found.further["test of others"]
    assert [found.classes[label] for label in rows.labels] == ["c", "c", "x", "x"]
    assert rows.allowed is not None
    assert (rows.allowed == [True, True, False, False]).all()


def test_rows_of_another_set_that_were_trained_on_are_told() -> None:
    own, other = source("abc"), source("abc", 12, "others")  # the same pictures by another name
    dealt = partition(also_tested(own, [other]), clients=2, scheme="iid")
    assert any("test of others rows" in note and "also stand in training" in note for note in dealt.notes)


def test_clients_models_share_a_further_test_set_among_them(tmp_path: Path) -> None:
    found = run(source("abcdef"), tmp_path, novel=0.5, baseline="local")
    novel = [e for e in found.rounds[-1]["evaluations"] if e["people"] == NOVEL and e["metric"] == "accuracy"]
    assert [(e["n"], e["pooling"]) for e in novel] == [(36, "pooled over clients' models")]


def test_shots_are_drawn_of_each_class_at_each_client() -> None:
    dealt = partition(source("abcd", 30), clients=2, scheme="dirichlet", alpha=0.3, seed=1)
    found = few_shot(dealt, 3, 0)
    again, other = few_shot(dealt, 3, 0), few_shot(dealt, 3, 1)
    few = 0
    for before, after in zip(dealt.clients, found.clients, strict=True):
        for label, size in zip(*np.unique(before.train.labels, return_counts=True), strict=True):
            assert (after.train.labels == label).sum() == min(size, 3)
            few += int(size < 3)
        assert set(after.train.ids.tolist()) <= set(before.train.ids.tolist())
        assert len(set(after.train.ids.tolist())) == len(after.train)
        assert (after.val.ids == before.val.ids).all()
        assert (after.test.ids == before.test.ids).all()
    assert [c.train.ids.tolist() for c in again.clients] == [c.train.ids.tolist() for c in found.clients]
    assert [c.train.ids.tolist() for c in other.clients] != [c.train.ids.tolist() for c in found.clients]
    assert few
    assert f"{few} of " in found.notes[-1]
    assert "have fewer than 3 rows: all of theirs are used." in found.notes[-1]
    assert few_shot(dealt, 100, 0).clients[0].train.ids.tolist() == dealt.clients[0].train.ids.tolist()


def test_the_harmonic_mean_is_of_both_sides_and_none_where_there_is_one() -> None:
    def scored(people: str, value: float) -> Evaluation:
        return Evaluation("global", people, "received", "accuracy", "pooled", value, 10)

    (both,) = both_sides([scored("global test", 0.6), scored(NOVEL, 0.3)])
    assert (both.people, both.value, both.n) == (BOTH, pytest.approx(0.4), 20)
    assert both_sides([scored("global test", 0.6)]) == []
    assert both_sides([scored("global test", 0.0), scored(NOVEL, 0.0)])[0].value == 0.0
    assert np.isnan(both_sides([scored("global test", float("nan")), scored(NOVEL, 0.3)])[0].value)
    assert both_sides([scored("global test", -0.1), scored(NOVEL, 0.3)]) == []


def test_what_can_not_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    texts = Rows(texts=[f"row {i}" for i in range(40)], labels=np.arange(40) % 4)
    with pytest.raises(UserError, match="told by their names: use a CLIP"):
        weft.run("fedit", data=Source("texts", tuple("abcd"), texts), clients=2, novel=0.5, runs=tmp_path, quiet=True)
    with pytest.raises(UserError, match="mpft compares with the names or prototypes of all classes"):
        weft.run("mpft", data=source("abcd"), model="glyph-clip", clients=2, novel=0.5, runs=tmp_path, quiet=True)
    numbers = Rows(texts=["a", "b"], numbers=np.array([0.5, 1.5]), labels=np.zeros(2, int))
    with pytest.raises(UserError, match="leave --novel out"):
        base_to_novel(Source("numbers", ("value",), numbers), 0.5)
    dealt = partition(source("abcd"), clients=2, scheme="iid")
    assert isinstance(dealt, FederatedData)
    with pytest.raises(UserError, match="given dealt out"):
        run(dealt, tmp_path, novel=0.5)
