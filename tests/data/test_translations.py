"""Aligned sentences and rows that say their languages, as prompts with answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weft.data import load, partition, translations
from weft.data.languages import family_of, mark_of, name_of, table
from weft.data.rows import Rows, fingerprint
from weft.errors import UserError

LANGUAGES = ("en", "de", "fr", "cs")


def aligned(n: int, split: str) -> list[dict[str, str]]:
    return [{name: f"{split} {i} {name}" for name in LANGUAGES} for i in range(n)]


def folder(at: Path, train: list[dict[str, Any]], test: list[dict[str, Any]] | None = None) -> Path:
    for split, rows in (("train", train), ("test", test)):
        if rows is not None:
            (at / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return at


def spoken(rows: Rows | None) -> list[tuple[str, str, str, str]]:
    assert rows is not None
    assert rows.texts is not None
    assert rows.answers is not None
    assert rows.languages is not None
    return [(a, b, *pair) for a, b, pair in zip(rows.texts, rows.answers, rows.languages, strict=True)]


def test_training_rows_take_turns_among_directions_and_test_rows_are_read_in_each(tmp_path: Path) -> None:
    source = load(str(folder(tmp_path, aligned(7, "train"), aligned(2, "test"))), pairs="en-de,de-en,fr-cs")
    turns = (("en", "de"), ("de", "en"), ("fr", "cs"))
    assert spoken(source.train) == [(f"train {i} {a}", f"train {i} {b}", a, b) for i in range(7) for a, b in [turns[i % 3]]]
    assert spoken(source.test) == [(f"test {i} {a}", f"test {i} {b}", a, b) for i in range(2) for a, b in turns]
    assert source.key_name == "language pair"
    assert source.train.keys is not None
    assert list(source.train.keys) == ["en-de", "de-en", "fr-cs", "en-de", "de-en", "fr-cs", "en-de"]
    every = [*source.train.ids.tolist(), *source.test.ids.tolist()]  # type: ignore[union-attr]
    assert every == list(range(13))
    assert any("7 training rows take turns among 3 directions" in note for note in source.notes)


@pytest.mark.parametrize("asked", ["pt-BR-en,en-pt-BR", " PT-br-EN , en-pt-BR,", "pt-BR-en,en-pt-br,pt-br-en"])
def test_pairs_are_read_in_any_case_with_blanks_and_regions_and_each_counts_once(asked: str) -> None:
    assert translations.directions("set", asked, ["en", "de", "pt-BR"]) == (("pt-BR", "en"), ("en", "pt-BR"))


@pytest.mark.parametrize(("pair", "lacking"), [("pt-BR-es", "es"), ("es-pt-BR", "es"), ("es-it", "es"), ("en-es-MX", "es-MX")])
def test_of_a_pair_the_language_that_there_is_not_is_named(pair: str, lacking: str) -> None:
    with pytest.raises(UserError, match=f'no sentences in "{lacking}", which the pair {pair} asks for'):
        translations.directions("set", pair, ["en", "de", "pt-BR"])


def test_two_directions_take_turns_and_one_has_none_to_take() -> None:
    assert translations.in_turns("set", 1, (("en", "de"), ("de", "en"))) == [
        "set: 1 training row take turns among 2 directions, each in one of them."
    ]
    assert translations.in_turns("set", 7, (("en", "de"),)) == []


@pytest.mark.parametrize(
    ("source", "target"),
    [("source_language", "target_language"), ("Source_Lang", "target_lang"), ("src_language", "TGT_language"),
     ("src_lang", "tgt_lang")],
)  # fmt: skip
def test_columns_of_languages_are_told_by_any_of_their_names(source: str, target: str) -> None:
    assert translations.columns_of(["text", target, source, source.upper() + "_"]) == (source, target)
    assert translations.columns_of(["text", source]) is None
    assert translations.columns_of(["text", target]) is None


def test_each_pair_is_a_client_whose_facts_say_both_languages(tmp_path: Path) -> None:
    source = load(str(folder(tmp_path, aligned(24, "train"), aligned(4, "test"))), pairs="en-de,cs-fr,de-en,fr-en")
    dealt = partition(source, clients=4)
    told = {c.facts["domain"]: (c.facts["source"], c.facts["target"]) for c in dealt.clients}
    assert told == {pair: tuple(pair.split("-")) for pair in ("en-de", "cs-fr", "de-en", "fr-en")}
    for client in dealt.clients:
        assert set(client.train.languages or ()) == {(client.facts["source"], client.facts["target"])}
        assert len(client.test) == 4, "the test rows of its own direction"
    assert not [note for note in dealt.notes if "some of whom have several" in note]
    assert any(
        "dealt to 3 clients, some of whom have several; --clients 4" in note for note in partition(source, clients=3).notes
    )
    several = partition(source, clients=1).clients[0].facts
    assert "source" not in several
    assert "target" not in several


def test_rows_may_say_their_languages_themselves(tmp_path: Path) -> None:
    rows = [
        {"source": f"a {i}", "target": f"b {i}", "source_language": a, "target_language": b}
        for i, (a, b) in enumerate([("nl", "pl"), ("pl", "nl"), ("nl", "en")] * 3)
    ]
    at = folder(tmp_path, rows)
    source = load(str(at), wanted="answers")
    assert spoken(source.train)[:2] == [("a 0", "b 0", "nl", "pl"), ("a 1", "b 1", "pl", "nl")]
    assert set(source.train.keys or ()) == {"nl-pl", "pl-nl", "nl-en"}
    few = load(str(at), pairs="pl-nl")
    assert {pair for *_, pair in ((0, p) for p in few.train.languages or ())} == {("pl", "nl")}
    assert len(few.train) == 3
    assert few.train.keys is None, "one pair tells no clients apart"


def test_objects_by_language_are_read_in_the_directions_asked_for(tmp_path: Path) -> None:
    source = load(str(folder(tmp_path, [{"translation": row} for row in aligned(4, "x")])), pairs="cs-en,en-cs")
    assert spoken(source.train)[:2] == [("x 0 cs", "x 0 en", "cs", "en"), ("x 1 en", "x 1 cs", "en", "cs")]
    first = load(str(tmp_path), wanted="answers")
    assert set(first.train.languages or ()) == {("en", "de")}, "the first two, where nobody asks"


def test_without_pairs_two_columns_are_one_direction(tmp_path: Path) -> None:
    at = str(folder(tmp_path, aligned(3, "x")))
    assert spoken(load(at, wanted="answers").train)[0] == ("x 0 en", "x 0 de", "en", "de")
    assert spoken(load(at, wanted="answers", text="fr", label="cs").train)[0] == ("x 0 fr", "x 0 cs", "fr", "cs")


def test_a_row_that_lacks_a_language_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = aligned(4, "x")
    rows[1]["en"] = ""
    source = load(str(folder(tmp_path, rows)), pairs="en-de,de-en")
    assert [a for a, *_ in spoken(source.train)] == ["x 0 en", "x 2 en", "x 3 de"]
    assert any("dropped 1 of 4" in note for note in source.notes)


def test_languages_are_part_of_the_fingerprint() -> None:
    texts = {"texts": ["a", "b"], "answers": ["c", "d"]}
    one, other = (Rows(**texts, languages=pairs) for pairs in ([("en", "de")] * 2, [("en", "fr")] * 2))
    plain = fingerprint(("answer",), {"train": Rows(**texts)})
    assert len({plain, *(fingerprint(("answer",), {"train": rows}) for rows in (one, other))}) == 3
    assert Rows.concatenate([one, other]).languages == [("en", "de")] * 2 + [("en", "fr")] * 2
    assert other.take([1]).languages == [("en", "fr")]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ("en-es", r'no sentences in "es", which the pair en-es asks for: it has en, de, fr, cs\.'),
        ("es-en", r'no sentences in "es"'),
        ("en", r'"en" is no pair of languages: write it as en-de'),
        ("en-", r'"en-" is no pair of languages'),
        ("de-de", r"translates a language into itself"),
        ("de-DE", r"translates a language into itself"),
    ],
)
def test_a_direction_that_there_is_not_is_refused_in_a_sentence(tmp_path: Path, pairs: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load(str(folder(tmp_path, aligned(3, "x"))), pairs=pairs)
    assert "\n" not in str(caught.value)


def test_other_data_have_no_directions(tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "completion": "c"}] * 3
    with pytest.raises(UserError, match="holds no translations that"):
        load(str(folder(tmp_path, rows)), pairs="en-de")
    with pytest.raises(UserError, match="fixed columns, so leave --pairs out"):
        load("pydocs", pairs="en-de")
    with pytest.raises(UserError, match="leave one of the two out"):
        load(str(folder(tmp_path, aligned(3, "x"))), pairs="en-de", text="en")
    told = [{"source": "a b", "target": "c", "source_language": "en", "target_language": "de"}] * 3
    with pytest.raises(UserError, match="no training rows of the pair de-en: it has en-de"):
        load(str(folder(tmp_path, told)), pairs="de-en")
    told[2] = told[2] | {"source_language": "cs"}
    with pytest.raises(UserError, match="no training rows of the pair de-en: it has en-de, cs-de"):
        load(str(folder(tmp_path, told)), pairs="de-en")
    for column in ("target_language", "source_language"):
        lacking = [told[0], told[1] | {column: " "}]
        with pytest.raises(UserError, match=rf'row 1 of .* has no language in column "{column}"'):
            load(str(folder(tmp_path, lacking)), wanted="answers")
    with pytest.raises(UserError, match="languages must hold two for each row"):
        Rows(texts=["a"], answers=["b"], languages=[("en",)])  # type: ignore[list-item]
    with pytest.raises(UserError, match="give answers too"):
        Rows(texts=["a"], labels=[0], languages=[("en", "de")])  # type: ignore[arg-type]


def test_families_are_those_of_the_papers_clients() -> None:
    europarl = ({"de", "en", "nl"}, {"fr", "it", "es"}, {"pl", "sl"}, {"lt", "lv"})
    for group in europarl:
        assert len({family_of(one) for one in group}) == 1
    assert len({family_of(next(iter(group))) for group in europarl}) == 4
    assert family_of("ar") == family_of("he")
    assert family_of("fi") == family_of("et")
    assert family_of("tlh") == "tlh", "one that is in no table"
    assert name_of("deu_Latn") == name_of("de_DE") == name_of(" DE ") == "German"
    assert name_of("pt-BR") == "Portuguese"
    assert name_of("Klingon") == "Klingon", "as it is written"
    assert all(len(one.code) == 2 and len(one.longer) == 3 for one in table().values())


@pytest.mark.parametrize(
    ("language", "marks", "found"),
    [
        ("de", ("en_XX", "de_DE"), "de_DE"),
        ("German", ("eng_Latn", "deu_Latn"), "deu_Latn"),
        ("de", ("__en__", "__de__"), "__de__"),
        ("zh", ("zho_Hans", "zho_Hant"), None),
        ("zho_Hant", ("zho_Hans", "zho_Hant"), "zho_Hant"),
        ("fr", ("en_XX",), None),
        ("tlh", ("tlh_Latn",), "tlh_Latn"),
        ("TLH", ("tlh_Latn",), "tlh_Latn"),
        ("de", ("__EN__", "__DE__"), "__DE__"),
        ("pt-BR", ("en-US", "pt-PT"), "pt-PT"),
    ],
)
def test_a_mark_is_found_if_one_alone_fits(language: str, marks: tuple[str, ...], found: str | None) -> None:
    assert mark_of(language, marks) == found
