"""Rows to generate from: the forms in which files, frames and sets hold them, what is guessed, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from weft.data import Rows, Source, load, partition
from weft.data.sources import limited
from weft.errors import UserError

Table = dict[str, list[Any]]
ASKED = [f"what is {i}?" for i in range(6)]
TOLD = [f"it is {i}." for i in range(6)]
MORE = ["", "given 1", "", "given 3", "", ""]


def written(to: Path, table: Table, name: str = "rows.jsonl") -> Path:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    data = "\n".join(map(json.dumps, rows)).encode()
    (to / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return to / name


def chats(form: str = "messages") -> Table:
    """Chats of one, two and three exchanges; the second has a system turn."""
    role, text, user, assistant = {
        "messages": ("role", "content", "user", "assistant"),
        "conversations": ("from", "value", "human", "gpt"),
    }[form]
    turns = [[user, "hi"], [assistant, "hello"], [user, "how?"], [assistant, "so"]]
    system = [["system", "be kind"]]
    return {form: [[{role: r, text: t} for r, t in own] for own in (turns[:2], system + turns, turns)]}


def answered(source: Source, texts: list[str], answers: list[str], pairs: list[str] | None = None) -> Rows:
    assert (source.train.texts, source.train.answers, source.train.pairs) == (texts, answers, pairs)
    assert source.train.labels.tolist() == [0] * len(texts)
    assert len(source.classes) == 1
    return source.train


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        act()
    said = str(error.value)
    assert said.endswith(".") or "Did you mean" in said
    return said


# forms ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["messages", "conversations"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "frame", "set"])
def test_a_chat_is_one_row_of_its_last_answer(form: str, kind: str, tmp_path: Path) -> None:
    table, data = chats(form), tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        written(tmp_path, table)
    elif kind == "json":
        data.write_text(json.dumps([{form: chat} for chat in table[form]]))
    elif kind == "parquet":
        pd.DataFrame(table).to_parquet(data)
    source = load({"frame": pd.DataFrame(table), "set": datasets.Dataset.from_dict(table)}.get(kind, data))
    rows = answered(source, ["hi", "how?", "how?"], ["hello", "so", "so"])
    assert rows.history == [
        (),
        (("system", "be kind"), ("user", "hi"), ("assistant", "hello")),
        (("user", "hi"), ("assistant", "hello")),
    ]
    assert source.classes == (form,)
    assert any(f'guessed that "{form}" are chats' in note for note in source.notes)


def test_chats_of_one_exchange_have_no_history_and_older_sets_keep_them_as_two_lists() -> None:
    turns = [{"from": ["human", "gpt"], "value": ["hi", "hello"]}] * 3
    assert answered(load(pd.DataFrame({"conversations": turns})), ["hi"] * 3, ["hello"] * 3).history is None


@pytest.mark.parametrize("names", [("instruction", "input", "output"), ("Instruction", "Context", "Response")])
def test_instructions_with_an_input_are_recognised_unasked(names: tuple[str, str, str], tmp_path: Path) -> None:
    table = dict(zip(names, (ASKED, MORE, TOLD), strict=True))
    path = written(tmp_path, {**table, "category": list("aabbab")})
    for wanted in ("classes", "any", "answers"):
        source = load(path, wanted=wanted)  # type: ignore[arg-type]
        assert answered(source, ASKED, TOLD, MORE).keys == list("aabbab")
        assert (source.classes, source.key_name) == ((names[2],), "category")
    assert f'"{names[0]}" is asked (--text), "{names[1]}" its input (--pair), "{names[2]}" the answer' in " ".join(source.notes)


def test_an_input_that_no_row_has_is_none(tmp_path: Path) -> None:
    answered(load(written(tmp_path, {"instruction": ASKED, "input": [""] * 6, "output": TOLD})), ASKED, TOLD)
    answered(load(written(tmp_path, {"prompt": ASKED, "completion": TOLD})), ASKED, TOLD)


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"), ("problem", "solution"), ("query", "answers"), ("document", "summary"), ("text", "summary"),
        ("dialogue", "highlights"), ("source", "target"), ("src", "tgt"), ("prompt", "response"), ("inputs", "targets"),
        ("en", "de"),
    ],
)  # fmt: skip
def test_other_prompts_and_answers_are_read_where_answers_are_wanted(names: tuple[str, str], tmp_path: Path) -> None:
    path = written(tmp_path, dict(zip(names, (ASKED, TOLD), strict=True)))
    assert load(path, wanted="answers").classes == names[1:]
    answered(load(path, wanted="answers"), ASKED, TOLD)
    if names[1] != "target":  # which is called like a label
        refusal(lambda: load(path))
    swapped = load(path, wanted="answers", text=names[1], label=names[0])
    answered(swapped, TOLD, ASKED)


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        ({"definition": ASKED, "inputs": MORE, "targets": TOLD}, MORE),
        ({"query": ASKED, "text": [f"document {i}" for i in range(6)], "answer": TOLD}, [f"document {i}" for i in range(6)]),
        ({"question": ASKED, "context": MORE, "answers": [{"text": [t, "or"], "answer_start": [1, 2]} for t in TOLD]}, MORE),
    ],
)
def test_inputs_stand_beside_what_is_asked(table: Table, shown: list[str], tmp_path: Path) -> None:
    answered(load(written(tmp_path, table), wanted="answers"), ASKED, TOLD, shown)
    answered(load(datasets.Dataset.from_dict(table), wanted="answers"), ASKED, TOLD, shown)


def test_any_reads_questions_with_answers_but_no_labels_or_running_text(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": ASKED, "answer": TOLD})
    answered(load(path, wanted="any"), ASKED, TOLD)
    assert 'or generate "answer" with --task generation' in refusal(lambda: load(path))
    refusal(lambda: load(written(tmp_path, {"text": ASKED}), wanted="any"))
    labelled = load(written(tmp_path, {"text": ASKED, "summary": TOLD, "label": list("ababab")}), wanted="any")
    assert labelled.train.answers is None


def test_a_label_that_is_named_or_called_so_makes_classes(tmp_path: Path) -> None:
    table = {"instruction": ASKED, "output": TOLD, "label": list("ababab")}
    assert load(written(tmp_path, table), text="instruction").classes == ("a", "b")
    del table["label"]
    named = load(written(tmp_path, {**table, "kind": list("ababab")}), text="instruction", label="kind")
    assert named.classes == ("a", "b")


def test_translations_are_read_from_the_first_language_to_the_second_unless_others_are_named(tmp_path: Path) -> None:
    pairs = [{"en": a, "de": b, "fr": f"le {a}"} for a, b in zip(ASKED, TOLD, strict=True)]
    path = written(tmp_path, {"translation": pairs, "pair": list("xxyyxy")})
    source = load(path, wanted="answers")
    assert answered(source, ASKED, TOLD).keys == list("xxyyxy")
    assert any("are read from en to de" in note for note in source.notes)
    answered(load(path, wanted="answers", text="de", label="en"), TOLD, ASKED)
    answered(load(path, wanted="answers", label="en"), TOLD, ASKED)
    answered(load(path, wanted="answers", text="en"), ASKED, TOLD)
    answered(load(path, wanted="answers", text="en", label="fr"), ASKED, [f"le {a}" for a in ASKED])
    assert 'in en, de, fr, and not in "es", asked for by --label' in refusal(
        lambda: load(path, wanted="answers", text="de", label="es")
    )
    features = datasets.Features({"translation": datasets.Translation(languages=["en", "de"])})
    of_hub = datasets.Dataset.from_dict({"translation": [{"en": p["en"], "de": p["de"]} for p in pairs]}, features)
    answered(load(of_hub, wanted="answers"), TOLD, ASKED)  # datasets sorts languages


def test_text_alone_is_gone_on_with_and_a_prompt_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"speaker": list("aabbab"), "text": ASKED}, "rows.jsonl.gz")
    source = load(path, wanted="answers")
    assert answered(source, [""] * 6, ASKED).keys == list("aabbab")
    assert any("running text" in note for note in source.notes)
    answered(load(written(tmp_path, {"play": ASKED, "title": list("aabbab")}), wanted="answers", label="play"), [""] * 6, ASKED)
    answered(load(written(tmp_path, {"title": ASKED, "play": TOLD}), wanted="answers", text="title", label="play"), ASKED, TOLD)


def test_a_plain_text_is_its_paragraphs_or_its_lines(tmp_path: Path) -> None:
    def texts(content: str) -> Any:
        (tmp_path / "book.txt").write_text(content)
        return load(tmp_path / "book.txt", wanted="answers").train.answers

    assert texts("one\ntwo\n\nthree\n \nfour\n") == ["one\ntwo", "three", "four"]
    assert texts("one\ntwo\n") == ["one", "two"]
    assert texts(f"head\n{'long ' * 50}\n\nlast\n") == ["head", ("long " * 50).strip(), "last"]


def test_plain_texts_of_a_folder_are_splits_but_never_beside_tables(tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt", "README.txt"):
        (tmp_path / name).write_text(f"a line of {name}\nand more")
    source = load(tmp_path, wanted="answers")
    assert (len(source.train), len(source.test or ())) == (2, 2)
    written(tmp_path, {"text": ASKED, "label": list("ababab")}, "train.jsonl")
    assert load(tmp_path).classes == ("a", "b")


def test_broken_characters_of_turns_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi \\ud83d"}, {"role": "assistant", "content": "oh"}]}'
    )
    source = load(tmp_path / "rows.jsonl")
    assert source.train.texts == ["hi \N{REPLACEMENT CHARACTER}"]
    assert any("1 broken character" in note for note in source.notes)


# splits and rows --------------------------------------------------------------------------------------------------------


def test_rows_without_an_answer_are_dropped_and_counted_and_ids_number_all_rows(tmp_path: Path) -> None:
    written(tmp_path, {"prompt": ["a", " ", "c"], "completion": ["x", "y", None]}, "train.jsonl")
    written(tmp_path, {"prompt": ["d", "e"], "completion": ["", 7]}, "test.jsonl")
    source = load(tmp_path)
    answered(source, ["a"], ["x"])
    assert source.test is not None
    assert (source.test.answers, source.test.ids.tolist()) == (["7"], [4])
    assert any("dropped 2 of 3 train rows without an answer" in note for note in source.notes)
    assert any("dropped 1 of 2 test rows" in note for note in source.notes)


def test_a_test_split_without_answers_is_set_aside_and_validation_tests(tmp_path: Path) -> None:
    written(tmp_path, {"prompt": ["a"], "completion": ["x"]}, "train.jsonl")
    written(tmp_path, {"prompt": ["b"]}, "test.jsonl")
    written(tmp_path, {"prompt": ["c"], "completion": ["z"]}, "validation.jsonl")
    source = load(tmp_path)
    assert source.test is not None
    assert (source.test.texts, source.validation) == (["c"], None)
    assert any("test split has no labels" in note for note in source.notes)
    written(tmp_path, {"question": ["b"], "completion": ["y"]}, "test.jsonl")
    assert "test rows of" in (said := refusal(lambda: load(tmp_path)))
    assert 'no column "prompt"' in said


def test_a_column_tells_splits_and_history_or_inputs_of_one_split_are_columns_of_all(tmp_path: Path) -> None:
    path = written(tmp_path, {**chats(), "split": ["train", "test", "train"]})
    source = load(path)
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (2, 1)
    assert source.train.history is not None
    table = {"instruction": ASKED, "input": MORE, "output": TOLD, "split": ["train", "test"] + ["train"] * 4}
    source = load(written(tmp_path, {**table, "input": ["", "only here", *[""] * 4]}))
    assert source.train.pairs == [""] * 5


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "has two turns of the user one after the other"),
        ([("assistant", "a"), ("user", "b"), ("assistant", "c")], "starts with a turn of the assistant"),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "ends without an answer of the assistant"),
        ([("user", "a"), ("system", "b"), ("assistant", "c")], "has a system turn after other turns"),
        (
            [("user", "a"), ("tool", "b"), ("assistant", "c")],
            "has a turn of 'tool': roles are system, user, human, assistant",
        ),
        ([("user", [{"type": "image"}]), ("assistant", "c")], "which is no text: leave pictures, sound and calls of tools"),
    ],
)
def test_a_chat_out_of_order_is_refused_with_its_row(turns: list[Any], sentence: str, tmp_path: Path) -> None:
    fine = chats()["messages"]
    path = written(tmp_path, {"messages": [fine[0], [{"role": r, "content": t} for r, t in turns], fine[1]]})
    said = refusal(lambda: load(path))
    assert said.startswith("row 1 of the train rows of rows.jsonl ")
    assert sentence in said


def test_what_is_no_turn_no_text_or_no_answer_is_refused(tmp_path: Path) -> None:
    fine = chats()["messages"][0]
    for odd in ([{"role": "user"}], "hi", ["hi"]):
        assert "instead of a turn" in refusal(lambda odd=odd: load(written(tmp_path, {"messages": [fine, odd, fine]})))
    table = {"prompt": ["a", ["b"], "c"], "completion": ["x", "y", "z"]}
    assert "holds ['b'] in column \"prompt\", which is no text" in refusal(lambda: load(written(tmp_path, table)))
    empty = {"prompt": ["a", "b"], "completion": [" ", ""]}
    assert "no training rows with an answer" in refusal(lambda: load(written(tmp_path, empty)))
    (tmp_path / "none.jsonl").write_text("")
    assert "holds no rows" in refusal(lambda: load(tmp_path / "none.jsonl", wanted="answers"))


def test_columns_that_cannot_be_told_or_are_named_wrongly_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"one": ASKED, "two": TOLD})
    said = refusal(lambda: load(path, wanted="answers"))
    assert "its columns are one, two: name them with --text and --label" in said
    assert 'has no column "ones", asked for by --text' in refusal(lambda: load(path, wanted="answers", text="ones", label="two"))
    assert 'name column "two"' in refusal(lambda: load(path, wanted="answers", text="two", label="two"))
    assert "leave --image out" in refusal(lambda: load(pd.DataFrame({"one": ASKED}), wanted="answers", key="one", image="img"))
    assert "no column" in refusal(lambda: load(path, wanted="answers", text="one", label="two", key="three"))
    empty = written(tmp_path, {"prompt": ASKED, "completion": TOLD, "site": [None] * 6})
    assert 'column "site" of rows.jsonl is empty' in refusal(lambda: load(empty, key="site"))


# from Python, and on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"instruction": ASKED, "output": [[] for _ in ASKED]}, 'column "output" holds a list in row 1, where the answer should'),
        ({"question": ASKED, "answer": [{"a": 1} for _ in ASKED]}, 'column "answer" holds an object in row 1'),
        ({"instruction": ASKED, "output": [None for _ in ASKED]}, 'column "output" holds nothing, where the answer should be'),
        ({"prompt": [None, 1, 2, 3, 4, 5], "completion": TOLD}, 'column "prompt" holds a number in row 2, where what is asked'),
        ({"messages": [{"a": 1} for _ in ASKED]}, 'column "messages" holds no chats, lists of turns, but an object in row 1'),
        ({"translation": [[1] for _ in ASKED]}, 'column "translation" holds no translations, .* but a list in row 1'),
    ],
)
def test_columns_that_are_called_so_and_hold_something_else_are_not_read_as_running_text(
    table: Table, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        load(str(written(tmp_path, table)), wanted="answers")


def test_a_number_of_turns_beside_running_text_is_no_chat(tmp_path: Path) -> None:
    source = load(
        written(tmp_path, {"text": [f"{a} and {b}" for a, b in zip(ASKED, TOLD, strict=True)], "turns": [2] * 6}),
        wanted="answers",
    )
    assert source.train.answers is not None
    assert "running text" in " ".join(source.notes)


def test_what_a_turn_says_in_pieces_of_text_is_one_text(tmp_path: Path) -> None:
    whole, pieces = chats(), chats()
    for turns in pieces["messages"]:
        for turn in turns:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    pieces["messages"][0][0]["content"] = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    whole["messages"][0][0]["content"] = "h\ni"
    one, other = (load(str(written(tmp_path, t, f"{i}.jsonl")), wanted="answers") for i, t in enumerate((whole, pieces)))
    assert (one.train.texts, one.train.answers, one.train.history) == (
        other.train.texts,
        other.train.answers,
        other.train.history,
    )
    for odd in ([{"type": "image", "url": "x"}], [{"type": "text", "text": "look"}, {"type": "image", "url": "x"}]):
        pieces["messages"][0][0]["content"] = odd
        with pytest.raises(UserError, match="which is no text: leave pictures"):
            load(str(written(tmp_path, pieces)), wanted="answers")


def test_rows_made_by_hand_need_neither_labels_nor_texts() -> None:
    rows = Rows(texts=["a", "b"], answers=["x", "y"], history=[(), [["user", "q"], ["assistant", "r"]]])
    assert rows.labels.tolist() == [0, 0]
    assert rows.history == [(), (("user", "q"), ("assistant", "r"))]
    assert Rows(answers=["x", "y"]).texts == ["", ""]
    source = Source("mine", ("answer",), rows)
    assert partition(source, clients=1, test_fraction=0, val_fraction=0).clients[0].train.answers == ["x", "y"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"texts": ["a"], "answers": ["x", "y"]}, "answers has 2 entries for 1 texts"),
        ({"texts": ["a"], "answers": [None]}, "answers have no text in row 0"),
        ({"texts": ["a"], "labels": [0], "history": [()]}, "give answers too"),
        ({"texts": ["a"], "answers": ["x"], "history": [[("robot", "q")]]}, "with roles system, user, assistant, but row 0"),
        (
            {"images": ["a.png"], "texts": ["q"], "answers": ["x"], "history": [()]},
            "texts about images have no history",
        ),
    ],
)
def test_rows_made_by_hand_are_checked(columns: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(lambda: Rows(**columns))


def test_equal_prompts_are_drawn_into_one_split_and_running_text_by_itself() -> None:
    def groups(**columns: Any) -> list[int]:
        return Rows(**columns).groups().tolist()

    assert groups(texts=["a", "a", "b"], answers=["x", "y", "x"]) == [0, 0, 1]
    assert groups(texts=["a", "a", "a"], pairs=["", "p", ""], answers=["x", "y", "z"]) == [0, 1, 0]
    assert groups(texts=["a", "a"], answers=["x", "x"], history=[(), (("user", "q"), ("assistant", "r"))]) == [0, 1]
    assert groups(texts=["", "", ""], answers=["x", "y", "x"]) == [0, 1, 0]


def test_answers_and_history_go_along_and_change_the_fingerprint(tmp_path: Path) -> None:
    source = load(written(tmp_path, {**chats(), "user": ["u", "v", "u"]}))
    rows = source.train
    for few in (rows.take([2, 0]), Rows.concatenate([rows.take([2]), rows.take([0])]), limited(source, 2, 0).train):
        assert few.answers is not None
        assert few.history is not None
        assert {(r, a, h) for r, a, h in zip(few.ids.tolist(), few.answers, few.history, strict=True)} <= {
            (i, a, h) for i, (a, h) in enumerate(zip(rows.answers or (), rows.history or (), strict=True))
        }
    one = chats()["messages"]
    one[1][0]["content"] = "be rude"
    assert load(written(tmp_path, {"messages": one, "user": ["u", "v", "u"]})).fingerprint != source.fingerprint
    dealt = partition(source, clients=1, leave_out="v")
    assert dealt.unseen[0].test.answers == ["so"]
