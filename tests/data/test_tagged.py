"""Sentences of tagged words: from the files, frames and sets that hold them to numbered tags and label spaces."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import toy_runs
from weft.data import labels
from weft.data.partitioners import partition
from weft.data.rows import Rows, Source, fingerprint
from weft.data.sources import limited, load
from weft.data.tagged import rows_of
from weft.errors import UserError
from weft.experiment import resolve
from weft.runs import prepare

Columns = dict[str, list[Any]]

WORDS = [["Ada", "met", "Grace", "Hopper"], ["in", "New", "York"], ["nobody"], ["Ada", "left", "York"]] * 6
TAGS = [["B-PER", "O", "B-PER", "I-PER"], ["O", "B-LOC", "I-LOC"], ["O"], ["B-PER", "O", "B-LOC"]] * 6
CLASSES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def columns(words: str = "tokens", tags: str = "ner_tags", **more: list[Any]) -> Columns:
    return {words: WORDS, tags: TAGS, **more}


def objects(table: Columns) -> list[dict[str, Any]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def jsonl(path: Path, table: Columns) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in objects(table)))
    return path


def tags_in(rows: Rows, classes: Sequence[str]) -> list[list[str]]:
    return [[classes[t] for t in own.tolist()] for own in rows.tags or ()]


def checked(source: Source) -> None:
    """It holds WORDS and TAGS as its training rows."""
    assert source.classes == CLASSES
    assert source.train.words == [tuple(row) for row in WORDS]
    assert tags_in(source.train, source.classes) == TAGS
    assert list(source.train.texts or ()) == [" ".join(row) for row in WORDS]


# where they come from -------------------------------------------------------------------------------------------------


def in_lines(to: Path) -> Any:
    return jsonl(to / "rows.jsonl", columns())


def in_one_list(to: Path) -> Any:
    (to / "rows.json").write_text(json.dumps(objects(columns())))
    return to / "rows.json"


def in_columns(to: Path) -> Any:
    (to / "rows.json").write_text(json.dumps(columns()))
    return to / "rows.json"


def in_parquet(to: Path) -> Any:
    frame(to).to_parquet(to / "rows.parquet")
    return to / "rows.parquet"


def frame(_: Path) -> Any:
    import pandas as pd

    return pd.DataFrame(columns(), index=range(7, 7 + len(WORDS)))


def arrow(_: Path) -> Any:
    import pyarrow as pa

    return pa.table(columns())


def texts_of_datasets(_: Path) -> Any:
    import datasets

    return datasets.Dataset.from_dict(columns())


def with_names(numbers: list[Any] | None = None) -> Any:
    import datasets

    names = ["O", *sorted({tag for row in TAGS for tag in row} - {"O"})]
    inner = datasets.ClassLabel(names=names)
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(inner)})
    numbers = [[names.index(tag) for tag in row] for row in TAGS] if numbers is None else numbers
    return datasets.Dataset.from_dict({"tokens": WORDS, "ner_tags": numbers}, features=features)


def names_of_datasets(_: Path) -> Any:
    return with_names()


def saved_by_datasets(to: Path) -> Any:
    with_names().save_to_disk(to / "saved")
    return to / "saved"


def names_in_parquet(to: Path) -> Any:
    with_names().to_parquet(to / "rows.parquet")
    return to / "rows.parquet"


def in_conll(to: Path) -> Any:
    """As CoNLL-2003 lays them out: columns between blanks, documents, and comments."""
    rows = ["\n".join(f"{w} NN {t}" for w, t in zip(*row, strict=True)) for row in zip(WORDS, TAGS, strict=True)]
    (to / "rows.conll").write_text("-DOCSTART- -X- O\n\n# first\n" + "\n\n".join(rows) + "\n")
    return to / "rows.conll"


def in_tabs(to: Path) -> Any:
    rows = ["\r\n".join(f"{w}\t{t}" for w, t in zip(*row, strict=True)) for row in zip(WORDS, TAGS, strict=True)]
    (to / "rows.bio").write_bytes(("\r\n\r\n".join(rows)).encode())
    return to / "rows.bio"


FORMS = [
    in_conll,
    in_tabs,
    names_in_parquet,
    in_lines,
    in_one_list,
    in_columns,
    in_parquet,
    frame,
    arrow,
    texts_of_datasets,
    names_of_datasets,
    saved_by_datasets,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_words_and_tags_are_recognised(form: Callable[[Path], Any], tmp_path: Path) -> None:
    source = load(form(tmp_path))
    checked(source)
    (guess,) = [note for note in source.notes if "guessed" in note]
    called = "tags" if form in (in_conll, in_tabs) else "ner_tags"
    assert f'guessed that "tokens" are the words (--text), "{called}" their tags (--label)' in guess


def test_natural_clients_that_lack_a_type_are_said(tmp_path: Path) -> None:
    table: dict[str, Any] = {"tokens": [["a"], ["b"]] * 2, "tags": [["B-X"], ["B-Y"], ["B-X"], ["B-Y"]], "hospital": list("nsns")}
    (note,) = [note for note in load(jsonl(tmp_path / "rows.jsonl", table)).notes if "lack types" in note]
    assert "2 of 2 values of hospital lack types of entities in their training rows" in note
    assert '"n" lacks Y' in note
    same = jsonl(tmp_path / "same.jsonl", table | {"hospital": list("nnss")})
    assert not [note for note in load(same).notes if "lack types" in note]


def test_a_type_that_training_rows_lack_is_said(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", {"tokens": [["a", "b"]], "tags": [["B-X", "O"]]})
    jsonl(tmp_path / "test.jsonl", {"tokens": [["a", "b"]], "tags": [["B-X", "B-Y"]]})
    assert any("never seen in training, only in other splits: Y." in note for note in load(tmp_path).notes)


def test_a_sharp_with_a_tag_is_a_word_and_any_other_begins_a_comment(tmp_path: Path) -> None:
    (tmp_path / "rows.conll").write_text("# id 1\n# O\na B-X\n# I-X\n# more\n\n# B-X\n\nb O\n")
    assert list(load(tmp_path / "rows.conll").train.words or ()) == [("#", "a", "#"), ("#",), ("b",)]


@pytest.mark.parametrize(("line", "number"), [("word", 2), ("\tO", 2)])
def test_a_line_of_conll_without_a_word_or_a_tag_is_refused_with_its_number(line: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "rows.conll").write_text(f"a\tO\n{line}\n")
    with pytest.raises(UserError, match=rf"rows\.conll:{number} holds"):
        load(tmp_path / "rows.conll")


def test_a_row_without_a_list_is_named_and_columns_without_any_are_told_what_they_lack(tmp_path: Path) -> None:
    tags: list[Any] = [list(row) for row in TAGS]
    tags[2] = "O O"
    with pytest.raises(UserError, match="row 2 of the train rows"):
        load(jsonl(tmp_path / "rows.jsonl", {"tokens": WORDS, "tags": tags}))
    (tmp_path / "rows.csv").write_text('tokens,tags\n"[""a""]","[""O""]"\nb,O\n')
    with pytest.raises(UserError, match="do not hold a list in each row"):
        load(tmp_path / "rows.csv")


@pytest.mark.parametrize("option", ["pair", "image"])
def test_a_second_text_or_a_picture_of_tagged_words_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"leave --{option} out"):
        load(in_lines(tmp_path), **{option: "tokens"})


@pytest.mark.parametrize(
    ("words", "tags"), [("tokens", "tags"), ("words", "ner"), ("Tokens", "NER_TAGS"), ("sentence", "labels")]
)
def test_usual_names_of_columns_need_not_be_said(words: str, tags: str, tmp_path: Path) -> None:
    other = {"pos_tags": [["NN"] * len(row) for row in WORDS], "id": list(range(len(WORDS)))}
    source = load(jsonl(tmp_path / "rows.jsonl", columns(words, tags, **other)))
    checked(source)
    assert source.label_name == tags


def test_columns_of_other_names_are_asked_for_and_then_not_called_a_guess(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", columns("form", "mine") | {"tags": [["O"] * len(row) for row in WORDS]})
    source = load(path, text="form", label="mine")
    checked(source)
    assert not [note for note in source.notes if "guessed" in note]


def test_a_folder_gives_its_splits_and_a_column_tells_them_too(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split, cut in (("train", slice(0, 12)), ("test", slice(12, 18)), ("validation", slice(18, 24))):
        jsonl(tmp_path / "set" / f"{split}.jsonl", {name: values[cut] for name, values in columns().items()})
    split = ["train"] * 12 + ["test"] * 6 + ["dev"] * 6
    for source in (load(tmp_path / "set"), load(jsonl(tmp_path / "rows.jsonl", columns(split=split)))):
        parts = [source.train, source.test, source.validation]
        assert [tags_in(part, source.classes) for part in parts if part is not None] == [TAGS[:12], TAGS[12:18], TAGS[18:]]
        ids = np.concatenate([part.ids for part in parts if part is not None])
        assert len(set(ids.tolist())) == 24


def test_a_validation_split_is_the_test_set_where_there_is_no_other(tmp_path: Path) -> None:
    source = load(jsonl(tmp_path / "rows.jsonl", columns(split=["train"] * 20 + ["validation"] * 4)))
    assert source.test is not None
    assert tags_in(source.test, source.classes) == TAGS[20:]
    assert source.validation is None
    assert any("its validation split is the test set" in note for note in source.notes)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("S-PER O S-PER", "B-PER O B-PER"),
        ("B-PER I-PER E-PER S-LOC", "B-PER I-PER I-PER B-LOC"),  # BIOES
        ("B-PER I-PER L-PER U-LOC", "B-PER I-PER I-PER B-LOC"),  # BILOU
        ("B-PER M-PER E-PER O", "B-PER I-PER I-PER O"),
        ("I-PER I-PER o 0", "I-PER I-PER O O"),  # IOB1
        ("B-Cell-Line L-Cell-Line", "B-Cell-Line I-Cell-Line"),
        (" B-PER ", "B-PER"),
        ("B-Cafe\u0301", "B-Caf\u00e9"),
    ],
)
def test_other_schemes_are_brought_to_bio(given: str, read: str, tmp_path: Path) -> None:
    row = [given] if given.startswith(" ") else given.split()
    table = {"words": [["w"] * len(row)] * 4, "tags": [row] * 4}
    source = load(jsonl(tmp_path / "rows.jsonl", table))
    assert tags_in(source.train, source.classes) == [read.split()] * 4


def test_a_sentence_counts_as_its_first_tag_that_is_not_o() -> None:
    source = load(frame(Path()))
    assert [source.classes[i] for i in source.train.labels[:4]] == ["B-PER", "B-LOC", "O", "B-PER"]


def test_sentences_without_words_or_tags_are_left_out_and_ids_stay(tmp_path: Path) -> None:
    table = columns()
    table = {"tokens": [None, [], *table["tokens"]], "ner_tags": [["O"], [], *table["ner_tags"]]}
    source = load(jsonl(tmp_path / "rows.jsonl", table))
    checked(source)
    assert source.train.ids.tolist() == list(range(2, 26))
    assert any("2 of 26 train rows have no words or no tags and are left out" in note for note in source.notes)


def test_types_with_few_entities_are_named_and_counted_as_entities(tmp_path: Path) -> None:
    """Also of IOB1, whose entities begin with I-X."""
    table = {"words": [["a", "b", "c"]] * 10, "tags": [["I-MANY", "I-MANY", "O"]] * 9 + [["I-MANY", "I-FEW", "I-FEW"]]}
    (note,) = [n for n in load(jsonl(tmp_path / "rows.jsonl", table)).notes if "fewer than" in n]
    assert note == "rows.jsonl: fewer than 10 entities of FEW."


# natural keys and label spaces ----------------------------------------------------------------------------------------


def of_two_corpora() -> Source:
    """One knows genes, the other diseases; a test row has what its corpus has never seen, and one is of no corpus."""
    import pandas as pd

    def table(rows: list[tuple[str | None, str]]) -> Any:
        tags = [row.split() for _, row in rows]
        return pd.DataFrame({"corpus": [c for c, _ in rows], "words": [["w"] * len(t) for t in tags], "tags": tags})

    train = [("genes", "B-Gene I-Gene O"), ("genes", "O B-Gene"), ("ills", "B-Ill O"), ("ills", "O O")] * 5
    test = [("genes", "O B-Gene"), ("ills", "B-Ill I-Ill"), ("other", "O"), (None, "O")]
    return load({"train": table(train), "test": table(test)})


def spaces(source: Source, rows: Rows | None) -> list[set[str]]:
    assert rows is not None
    assert rows.allowed is not None
    return [{source.classes[i] for i in np.flatnonzero(own)} for own in rows.allowed]


def test_a_row_may_be_what_the_training_rows_of_its_key_are_and_what_it_is_itself() -> None:
    source = of_two_corpora()
    assert source.key_name == "corpus"
    genes, ills, everything = {"O", "B-Gene", "I-Gene"}, {"O", "B-Ill"}, set(source.classes)
    assert spaces(source, source.train) == [genes, genes, ills, ills] * 5
    assert spaces(source, source.test) == [genes, ills | {"I-Ill"}, everything, everything]
    for rows in (source.train, source.test):
        assert rows is not None
        assert rows.allowed is not None
        assert all(own[tags].all() for own, tags in zip(rows.allowed, rows.tags or (), strict=True))


def test_without_keys_all_rows_may_be_what_training_rows_are() -> None:
    source = load(frame(Path()))
    assert source.train.keys is None
    assert source.key_name is None
    assert spaces(source, source.train) == [set(CLASSES)] * 24


def test_a_key_that_is_asked_for_makes_the_spaces(tmp_path: Path) -> None:
    whose = [["per", "loc", "none", "mixed"][i % 4] for i in range(24)]
    path = jsonl(tmp_path / "rows.jsonl", columns(who=whose))
    source = load(path, key="who")
    assert source.train.keys == whose
    assert spaces(source, source.train)[:4] == [
        {"O", "B-PER", "I-PER"},
        {"O", "B-LOC", "I-LOC"},
        {"O"},
        {"O", "B-PER", "B-LOC"},
    ]
    assert load(path).train.keys is None


def test_corpora_are_dealt_whole_and_may_be_left_out_though_all_sentences_are_of_one_kind() -> None:
    source = of_two_corpora()
    dealt = partition(source, clients=2, scheme="natural")
    assert sorted(client.facts["domain"] for client in dealt.clients) == ["genes", "ills"]
    left = partition(source, clients=1, leave_out=["ills"], scheme="iid")
    assert all(label == source.classes.index("B-Gene") for label in left.clients[0].train.labels)
    assert len(left.unseen[0].test) == 11


def test_a_limit_draws_rows_and_leaves_their_spaces_as_they_were() -> None:
    whole = load(frame(Path()))
    few = load(frame(Path()), limit=3)
    assert len(few.train) == 3
    assert spaces(few, few.train) == [set(CLASSES)] * 3
    at = few.train.ids
    assert tags_in(few.train, few.classes) == [tags_in(whole.train, whole.classes)[i] for i in at]
    assert few.train.words == [tuple(WORDS[i]) for i in at]
    assert len(limited(whole, 2, 0).train) == 2


def test_drawn_splits_keep_words_and_tags_together() -> None:
    dealt = partition(load(frame(Path())), clients=2, scheme="iid", val_fraction=0.2, test_fraction=0.3)
    seen = 0
    for client in dealt.clients:
        for rows in (client.train, client.val, client.test):
            assert rows.words is not None
            for number, words, own in zip(rows.ids.tolist(), rows.words, tags_in(rows, dealt.classes), strict=True):
                assert (list(words), own) == (WORDS[number], TAGS[number])
                seen += 1
    assert seen == 24


# tables -----------------------------------------------------------------------------------------------------------------


def test_rows_that_are_taken_and_put_together_again_keep_everything() -> None:
    rows = of_two_corpora().train
    order = np.random.default_rng(0).permutation(len(rows))
    again = Rows.concatenate([rows.take(order[:7]), rows.take(np.array([])), rows.take(order[7:])])
    assert again.words == [(rows.words or ())[i] for i in order]
    assert [t.tolist() for t in again.tags or ()] == [(rows.tags or ())[i].tolist() for i in order]
    assert again.allowed is not None
    assert rows.allowed is not None
    assert (again.allowed == rows.allowed[order]).all()
    back = again.take(np.argsort(order))
    assert fingerprint(CLASSES, {"train": back}) == fingerprint(CLASSES, {"train": rows})
    assert rows.every_tag.tolist() == [t for own in rows.tags or () for t in own.tolist()]
    assert rows.take(np.array([])).every_tag.tolist() == []


def test_parts_some_of_which_have_no_spaces_have_none_together() -> None:
    rows = of_two_corpora().train
    assert Rows.concatenate([rows, replace(rows, allowed=None, ids=rows.ids + 100)]).allowed is None


def other_words(rows: Rows) -> Rows:
    words = [*(rows.words or ())]
    return replace(rows, words=[("w w", "w"), *words[1:]], tags=[rows.tags[0][:2], *rows.tags[1:]])  # type: ignore[index]


def other_tags(rows: Rows) -> Rows:
    return replace(rows, tags=[(rows.tags or ())[0][::-1], *(rows.tags or ())[1:]])


def other_spaces(rows: Rows) -> Rows:
    assert rows.allowed is not None
    allowed = rows.allowed.copy()
    allowed[0, -1] ^= True
    return replace(rows, allowed=allowed)


@pytest.mark.parametrize("change", [other_words, other_tags, other_spaces])
def test_the_fingerprint_sees_words_tags_and_spaces(change: Callable[[Rows], Rows]) -> None:
    rows = of_two_corpora().train
    other = change(rows)
    assert other.texts == rows.texts
    assert other.labels.tolist() == rows.labels.tolist()
    assert fingerprint(CLASSES, {"train": rows}) != fingerprint(CLASSES, {"train": other})


@pytest.mark.parametrize(
    ("words", "tags", "sentence"),
    [
        ([("a", "b")], [[0]], "row 0 has 2 words and 1 tags"),
        ([("a",)], [[0], [1]], "tags are of 2 rows, and there are words of 1"),
        ([("a",)], [[-1]], "tags must not be negative"),
        ([("a",)], [[0.5]], "tags must be whole numbers"),
        ([("a",)], None, "words and their tags go together"),
    ],
)
def test_tables_made_by_hand_are_checked(words: list[tuple[str, ...]], tags: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Rows(["a"], labels=[0], words=words, tags=tags)  # type: ignore[arg-type]


def test_a_tag_beyond_the_classes_is_refused() -> None:
    with pytest.raises(UserError, match="go from 1 to 3, but it has 2 classes"):
        Source("toy", ("O", "B-X"), rows_of([("a", "b"), ("c",)], [np.array([0, 1]), np.array([3])]))


# declared classes -------------------------------------------------------------------------------------------------------


def test_declared_classes_number_tags_and_spaces_anew() -> None:
    source = of_two_corpora()
    order = ("B-Ill", "I-Ill", "B-Nobody", "I-Gene", "O", "B-Gene")
    other = labels.declared(source, order)
    assert other.classes == order
    for before, after in ((source.train, other.train), (source.test, other.test)):
        assert before is not None
        assert after is not None
        assert tags_in(after, order) == tags_in(before, source.classes)
        assert [order[i] for i in after.labels] == [source.classes[i] for i in before.labels]
    assert spaces(other, other.train) == spaces(source, source.train)
    assert spaces(other, other.test) == [own - {"B-Nobody"} for own in spaces(source, source.test)]
    assert other.train.allowed is not None
    assert other.train.allowed.shape == (20, 6)


def test_a_tag_that_is_not_declared_is_named_though_no_sentence_counts_as_it() -> None:
    """I-Gene is never a sentence's first."""
    with pytest.raises(UserError, match='has the label "I-Gene", which is none of the classes of this experiment'):
        labels.declared(of_two_corpora(), ("O", "B-Gene", "B-Ill", "I-Ill"))


# errors -----------------------------------------------------------------------------------------------------------------


def changed(row: int, words: Any = None, tags: Any = None) -> Columns:
    table = columns()
    table["tokens"], table["ner_tags"] = [*table["tokens"]] * 6, [*table["ner_tags"]] * 6
    table["tokens"][row] = table["tokens"][row] if words is None else words
    table["ner_tags"][row] = table["ner_tags"][row] if tags is None else tags
    return table


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (changed(3, words=["a", "b"]), "row 3 of the train rows of rows.jsonl has 2 words and 3 tags: give each word one tag"),
        (changed(2, words=[3]), "row 2 of the train rows of rows.jsonl holds 3 instead of a word"),
        (changed(2, words=[None]), "holds None instead of a word"),
        (changed(130, words="nobody"), "row 130 of the train rows of rows.jsonl holds 'nobody' instead of a list of words"),
        (changed(130, words=5), "holds 5 instead of a list of words"),
        (changed(130, tags=5), "holds 5 instead of a list of tags"),
        (changed(2, tags=["PER"]), 'holds the tag "PER": tags are O, B-X and I-X for an entity X'),
        (changed(2, tags=["B-"]), 'holds the tag "B-"'),
        (changed(2, tags=["X-PER"]), 'holds the tag "X-PER"'),
        (changed(2, tags=[""]), 'holds the tag ""'),
        (changed(2, tags=[3]), "holds the tag 3: write tags such as B-Disease, I-Disease and O"),
        (columns() | {"ner_tags": [[0] * len(row) for row in WORDS]}, "holds the tag 0: write tags such as"),
        (
            columns() | {"ner_tags": [["O"] * len(row) for row in WORDS]},
            'column "ner_tags" of rows.jsonl holds no entity, O alone',
        ),
        (columns() | {"tokens": [[] for _ in WORDS]}, "rows.jsonl has no training sentence with words and tags"),
    ],
)
def test_what_is_no_tagged_sentence_is_one_sentence(table: Columns, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(jsonl(tmp_path / "rows.jsonl", table))
    assert sentence in str(caught.value)
    assert str(caught.value)[-1] == "."
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"label": "nonesuch"}, 'has no column "nonesuch", asked for by --label'),
        ({"text": "nonesuch"}, 'has no column "nonesuch", asked for by --text'),
        ({"key": "toxens"}, 'has no column "toxens", asked for by --key; .* Did you mean "tokens"'),
    ],
)
def test_a_column_that_there_is_not_is_one_sentence(asked: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(frame(Path()), **asked)  # type: ignore[arg-type]


def test_a_test_split_without_the_tags_is_one_sentence() -> None:
    import pandas as pd

    with pytest.raises(UserError, match='the test rows of frames have no column "ner_tags", which its train rows have'):
        load({"train": frame(Path()), "test": pd.DataFrame({"tokens": WORDS})})


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_hidden_tag_of_a_set_of_datasets_is_not_taken_for_another(hidden: int | None) -> None:
    """-1 is how the hub hides a label, and no place to count from the end of the names."""
    numbers: list[Any] = [[0] * len(row) for row in WORDS]
    numbers[0][0], numbers[5][1] = 1, hidden
    with pytest.raises(UserError, match='column "ner_tags" of dataset, row 5 of the train rows, holds the tag None'):
        load(with_names(numbers))


def test_tags_are_asked_of_plain_texts_in_vain(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--task tokens needs words with tags: .* such as B-Disease and O\.$"):
        toy_runs.run(tmp_path, task="tokens")


def test_tagged_words_are_not_classified(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the words of these data are tagged: --task tokens learns from that\.$"):
        toy_runs.run(tmp_path, data=frame(tmp_path), task="classification")


def test_data_with_tags_choose_their_task_by_themselves() -> None:
    x = resolve({"data": "unused", "model": tiny.folder("bert")}).experiment
    dealt = partition(load(frame(Path())), clients=2, scheme="iid")
    assert prepare.told(x, dealt.test).task == "tokens"
    assert prepare.told(x, tiny.rows(3)).task == "auto"
