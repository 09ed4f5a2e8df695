"""Sets of the catalogue to generate from: the real code path, with small sets of their columns in place of the download."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from weft.data import catalogue, load
from weft.data.hub_sets import GENERATION, metrics_of
from weft.errors import UserError

ENTRIES = {entry.name: entry for entry in catalogue() if entry.kind == GENERATION}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Columns that every set on the hub holds; the key "config" holds the config that was asked for."""
    columns: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        assert path in {entry.hub_id for entry in ENTRIES.values()}
        own = {column: values for column, values in columns.items() if column != "translation"}
        if "translation" in columns and name is not None:
            pair = name.split("-")
            own["translation"] = [dict(zip(pair, (f"{pair[0]} {i}", f"{pair[1]} {i}"), strict=True)) for i in range(4)]
        return datasets.DatasetDict(train=datasets.Dataset.from_dict(own))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return columns


def texts(word: str) -> list[str]:
    return [f"{word} number {i}" for i in range(4)]


TASKS = ["sum", "sum", "find", "find"]
COLUMNS: dict[str, dict[str, list[Any]]] = {
    "alpaca": {"instruction": texts("do"), "input": ["", "x", "", ""], "output": texts("done"), "text": texts("all")},
    "alpaca-gpt4": {"instruction": texts("do"), "input": ["", "x", "", ""], "output": texts("done"), "text": texts("all")},
    "dolly": {"instruction": texts("do"), "context": ["", "x", "", ""], "response": texts("done"), "category": TASKS},
    "flan": {"inputs": texts("do"), "targets": texts("done"), "task": TASKS},
    "gsm8k": {"question": texts("do"), "answer": texts("done")},
    "multi30k": {"en": texts("do"), "de": texts("done")},
    "natural-instructions": {
        "task_name": TASKS, "id": texts("id"), "definition": texts("do"), "inputs": texts("x"), "targets": texts("done"),
    },
    "qmsum": {"id": texts("id"), "pid": texts("id"), "input": texts("do"), "output": texts("done"), "input_token_count": [1] * 4},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_columns_of_prompts_and_answers_are_those_catalogued(hub: dict[str, Any], name: str) -> None:
    hub.update(COLUMNS[name])
    source = load(name)
    assert (source.train.texts, source.train.answers) == (texts("do"), texts("done"))
    assert (source.train.pairs is not None) == (ENTRIES[name].pair is not None)
    assert source.key_name == ENTRIES[name].client_key
    assert not any("guessed" in note for note in source.notes)


def test_subjects_and_pairs_of_languages_are_the_clients_of_sets_in_several_configs(hub: dict[str, Any]) -> None:
    hub.update(problem=texts("do"), level=["1"] * 4, type=["Algebra"] * 4, solution=texts("done"))
    source = load("math")
    assert set(source.train.keys or ()) == set(ENTRIES["math"].configs)
    hub.clear()
    hub["translation"] = None
    source = load("opus")
    assert set(source.train.keys or ()) == set(ENTRIES["opus"].configs)
    assert (source.train.texts[0], (source.train.answers or ())[0], source.train.keys[0]) == ("en 0", "es 0", "en-es")
    assert any("read from en to es, en to fr" in note for note in source.notes)


def test_chats_and_running_text(hub: dict[str, Any]) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    hub.update(id=texts("id"), conversations=[turns] * 4)
    for name in ("wizard", "sharegpt"):
        assert load(name).train.answers == ["hello"] * 4
    hub.clear()
    hub["text"] = ["", " = A title = ", "words of it", "more words"]
    source = load("wikitext")
    assert (source.train.texts, source.train.answers) == ([""] * 3, hub["text"][1:])


def test_a_set_without_a_copy_is_one_sentence_and_all_have_metrics() -> None:
    with pytest.raises(UserError, match="give --data its file or folder"):
        load("rosetta-alpaca")
    known = {
        "perplexity", "token_accuracy", "rouge_1", "rouge_2", "rouge_l", "exact_match", "token_f1", "final_answer",
        "choice_accuracy", "iou", "box_accuracy", "bleu", "chrf",
    }  # fmt: skip
    assert all(entry.metrics and set(entry.metrics) <= known for entry in ENTRIES.values())
    assert metrics_of("gsm8k")[0] == "final_answer"
