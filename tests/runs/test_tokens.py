"""Federations that learn to tag words, from their rows to the entities that an exported model finds."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import command_line
import tagged_sets
import tiny
import toy_runs
import weft
from every_method import short
from machines import Machines, coordinate
from run_laws import LAWS, Law, keep
from tagged_sets import NAMES, byte_level, sentences, written
from toy_runs import Dies, Killed, Told
from weft.adaptation.optim import Optim
from weft.data.rows import Rows
from weft.data.tagged import rows_of
from weft.errors import UserError
from weft.export import evaluate_run, load
from weft.export.predictor import Predictor
from weft.methods import FedIT, FedSALoRA, registry
from weft.runs.checkpoint import digest
from weft.testing.compare import assert_same, state
from weft.testing.plays import Plays

FAST = {"optim.lr": 0.01, "batch": 8, "epochs": 6, "sites": "all", "rank": 8}
SETTINGS: dict[str, Any] = {
    "rounds": 5,
    "precision": "float32",
    "max_length": 10,
    "parameters": FAST,
    "name": "names",
    "baselines": [],
    "observer": weft.Observer(),
}


def shallow() -> str:
    return tiny.folder("bert", num_hidden_layers=1)


def value(records: list[dict[str, Any]], metric: str, people: str, pooling: str = "pooled") -> float:
    (found,) = [r["value"] for r in records if (r["metric"], r["people"], r["pooling"]) == (metric, people, pooling)]
    assert isinstance(found, float)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    return tagged_sets.folder(root / "set")


@pytest.fixture(scope="module")
def run(root: Path, data: Path) -> weft.Run:
    return toy_runs.run(root / "runs", model=shallow(), data=str(data), **SETTINGS)


@pytest.fixture(scope="module")
def model(run: weft.Run) -> Predictor:
    return load(run.folder, device="cpu", precision="float32")


# a run ------------------------------------------------------------------------------------------------------------------


def test_a_federation_learns_names(run: weft.Run) -> None:
    losses = [line["loss"] for line in run.rounds]
    assert losses == sorted(losses, reverse=True)
    f1 = [value(line["evaluations"], "entity_f1", "global test") for line in run.rounds]
    assert f1[0] < f1[-1]
    assert f1[-1] > 0.9
    assert run.summary["headline"]["metric"] == "entity_f1"
    assert set(run.metrics) >= {"entity_f1", "precision", "recall", "token_accuracy", "loss", "mean_client", "worst_client"}
    assert run.summary["data"]["classes"] == list(NAMES)


def test_the_same_rows_by_eval_have_the_scores_of_the_run(run: weft.Run, data: Path) -> None:
    found = evaluate_run(run.folder, str(data), device="cpu", precision="float32")
    mine = [e for e in run.rounds[-1]["evaluations"] if (e["people"], e["pooling"]) == ("global test", "pooled")]
    assert [e["metric"] for e in found] == [e["metric"] for e in mine]
    for again, once in zip(found, mine, strict=True):
        assert again["n"] == once["n"] == 30
        exact = again["metric"] != "loss"
        assert again["value"] == (once["value"] if exact else pytest.approx(once["value"], rel=1e-3))


def test_clients_that_labelled_alike_are_trained_and_scored_among_all_types_by_choice(tmp_path: Path) -> None:
    """North has no B-PLACE: its rows may still be one, in the run and in its scores, and in those of ``weft eval``."""
    rows: list[dict[str, Any]] = [{"tokens": ["w1", "w17"], "tags": ["O", "B-NAME"], "site": "north"} for _ in range(12)]
    rows += [{"tokens": ["w1", "w18"], "tags": ["O", "B-PLACE"], "site": "south"} for _ in range(12)]
    for split in ("train", "test"):
        lines = [
            json.dumps(row | {"tokens": [*row["tokens"], f"w{i}"], "tags": [*row["tags"], "O"]}) for i, row in enumerate(rows)
        ]  # type: ignore[misc]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    found = {}
    for spaces in ("own", "all"):
        more = SETTINGS | {"rounds": 1, "clients": 2, "key": "site", "label_spaces": spaces, "name": spaces}
        done = toy_runs.run(tmp_path / "runs", model=shallow(), data=str(tmp_path), **more)
        mine = value(done.rounds[-1]["evaluations"], "loss", "global test")
        again = evaluate_run(done.folder, str(tmp_path), device="cpu", precision="float32")
        assert next(e["value"] for e in again if e["metric"] == "loss") == pytest.approx(mine, rel=1e-4)
        found[spaces] = (done.rounds[0]["loss"], mine)
    assert all(own < every for own, every in zip(found["own"], found["all"], strict=True)), (
        "fewer classes are easier to tell apart"
    )


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [(["B-PLACE", "O"], 'has the label "B-PLACE", which is none of the model\'s classes'), (["yes", "no"], "")],
)
def test_eval_on_other_tags_or_on_plain_texts_is_one_sentence(
    labels: list[str], sentence: str, run: weft.Run, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"tokens": ["w1", "w2"], "ner_tags": labels}] * 3
    if not sentence:
        rows, sentence = [{"text": f"w{i} w1", "label": labels[i % 2]} for i in range(6)], "--task tokens needs words with tags"
    with pytest.raises(UserError, match=sentence):
        evaluate_run(run.folder, str(written(tmp_path / "other.jsonl", rows)))


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not(data: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"model": shallow(), "data": str(data), "rounds": 2, "parameters": FAST | {"steps": 4}}
    whole = toy_runs.run(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", **settings | {"observer": Dies(after=0)})
    again = weft.resume(tmp_path / "cut" / "names", observer=Told())
    assert digest(again.folder) == digest(whole.folder)
    assert again.summary["evaluations"] == whole.summary["evaluations"]


def test_data_with_other_spaces_are_not_what_a_stopped_run_goes_on_with(tmp_path: Path) -> None:
    """Who labelled a row is not among its words and tags."""

    def put(*whose: str) -> str:
        rows = [row | {"corpus": whose[i % 2]} for i, row in enumerate(sentences(24))]
        rows += [{"tokens": ["w1"], "ner_tags": ["B-PLACE"], "corpus": "b"}] * 4
        return str(written(tmp_path / "rows.jsonl", rows))

    settings = SETTINGS | {"rounds": 2, "parameters": {"steps": 1, "batch": 4}}
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "runs", data=put("a", "b"), **settings | {"observer": Dies(after=0)})
    put("b", "a")
    with pytest.raises(UserError, match="data"):
        weft.resume(tmp_path / "runs" / "names", observer=Told())


def test_a_probe_on_the_frozen_prefix_gives_what_it_gives_without(tmp_path: Path, data: Path) -> None:
    """A head that reads every token needs the features of every token."""
    both = [
        toy_runs.run(
            tmp_path / way,
            model=shallow(),
            data=str(data),
            start_head="probe",
            probe_rounds=2,
            prefix_cache=way,
            **SETTINGS | {"rounds": 1, "precision": "float64", "parameters": {"steps": 1}},
        )
        for way in ("auto", "off")
    ]
    first, second = ({(e["metric"], e["people"], e["pooling"]): e["value"] for e in r.rounds[-1]["evaluations"]} for r in both)
    assert first == {name: pytest.approx(v, rel=1e-9) for name, v in second.items()}


# packs and sites --------------------------------------------------------------------------------------------------------

QUICK = {m.info.slug: m for m in (FedIT(rank=2), FedSALoRA(rank=2))}
OF_TEXTS = [
    slug
    for slug, info in registry.infos().items()
    if not {"images", "label words", "hidden words", "items", "classes", "connector"} & {*info.needs}
]


@pytest.fixture(
    scope="module",
    params=[("fedit", False), *(pytest.param((s, True), marks=() if s in QUICK else pytest.mark.slow) for s in OF_TEXTS)],
    ids=str,
)
def of_tags(request: pytest.FixtureRequest) -> Plays:
    slug, spaces = request.param
    return Plays(QUICK.get(slug) or short(slug), task="tokens", spaces=spaces)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_federations_of_tags_keep_the_laws(law: Law, of_tags: Plays) -> None:
    """In packs and alone, in another order, with sites and resumed: the numbers are the same."""
    keep(law, of_tags)


def test_the_runs_that_laws_read_have_tags_and_spaces(of_tags: Plays) -> None:
    table = of_tags.packed.run.bench.table
    assert of_tags.packed.run.bench.task.kind == "tokens"
    tags = table.tags  # type: ignore[union-attr]
    assert tags is not None
    assert set(tags.tolist()) == {-1, 0, 1, 2, 3, 4}
    assert {e.metric for e in of_tags.packed.scores} >= {"entity_f1", "token_accuracy"}
    told = "entity_f1" if of_tags.method.info.slug in QUICK else "token_accuracy"  # some find no entity in so few steps
    scores = {e.value for e in of_tags.packed.scores if e.metric == told}
    assert len(scores) > 1, "scores of nothing found tell nothing"
    if table.allowed is not None:
        assert not table.allowed[:, 3:].all()
        assert table.allowed[:, 3:].any()


@pytest.mark.parametrize("spaces", [False, True])
def test_packed_and_one_at_a_time_leave_the_same(spaces: bool) -> None:
    method = FedIT(rank=2, batch=3, sites="all", optim=Optim("adamw", lr=1e-2, eps=1e-6))
    packed, alone = (tiny.federation(method, "bert", task="tokens", spaces=spaces, pack=k).run() for k in (6, 1))
    assert_same(state(packed), state(alone), 1e-10)
    again = tiny.federation(method, "bert", task="tokens", spaces=spaces, pack=6).run()
    assert_same(state(packed), state(again), 0.0)
    for a, b in zip(*(run.simulation.evaluate(1) for run in (packed, alone)), strict=True):
        assert (a.view, a.people, a.metric, a.n) == (b.view, b.people, b.metric, b.n)
        assert a.value == pytest.approx(b.value, rel=1e-6)


def test_spaces_change_what_is_learnt_and_what_is_said() -> None:
    method = FedIT(rank=2, batch=3, sites="all", optim=Optim("adamw", lr=1e-2))
    free, within = (tiny.federation(method, "bert", task="tokens", spaces=s) for s in (False, True))
    free_loss, loss = ((run.simulation.round(0) or {})["loss"] for run in (free, within))
    assert loss < free_loss, "fewer classes are easier to tell apart"
    assert not torch.equal(free.global_logits(), within.global_logits())


def test_scores_of_a_pack_are_of_the_guesses_that_a_rows_space_allows() -> None:
    run = tiny.federation(FedIT(rank=2), "bert", task="tokens", spaces=True)
    table, tests = run.bench.table, run.simulation.setup.tests.test
    logits = run.global_logits(tests)
    tags = [t[t >= 0] for t in table.tags_of(tests)]  # type: ignore[union-attr]
    may = np.repeat(table.allowed[tests], [len(t) for t in tags], axis=0)  # type: ignore[index]
    truth = np.concatenate(tags)
    narrow = np.where(may, logits.numpy(), -np.inf)
    right = float((narrow.argmax(1) == truth).mean())
    assert right != float((logits.numpy().argmax(1) == truth).mean())
    found = {e.metric: e.value for e in run.simulation.evaluate(0) if (e.people, e.pooling) == ("global test", "pooled")}
    assert found["token_accuracy"] == pytest.approx(right)
    z = narrow - narrow.max(1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert found["loss"] == pytest.approx(-logp[np.arange(len(truth)), truth].mean(), rel=1e-5)


def test_real_sites_tag_words_too(machines: Machines) -> None:
    for number, name in enumerate(("north", "south")):
        rows = written(machines.root / f"{name}.jsonl", sentences(100, number))
        machines.join(name, data=str(rows))
    told = Told()
    parameters = {f"method.{name}": v for name, v in FAST.items()}
    about: dict[str, Any] = {
        "method": "fedit",
        "task": "tokens",
        "classes": list(NAMES),
        "method.rank": None,
        "method.batch": None,
    }
    done = coordinate(machines, told, **about | parameters, model=shallow(), precision="float32")
    assert [line["cohort"] for line in done.rounds] == [["north", "south"]] * 3
    f1 = [value(line["evaluations"], "entity_f1", "global test") for line in done.rounds]
    assert f1[-1] > 0.5
    assert done.adapter is not None
    (entity,) = load(done.folder).entities(["w1 w17 w21, w3"])[0]
    assert (entity.text, entity.type) == ("w17 w21", "NAME")


# what is left of it -----------------------------------------------------------------------------------------------------


def by_readme(folder: Path, texts: list[list[str]]) -> tuple[torch.Tensor, list[list[tuple[str, str]]]]:
    """Logits, and the printed words with their tags, of the lines in the README of an export, word for word."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {"FOLDER": folder, "TEXTS": texts}
    torch.manual_seed(98)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, scope)
    return scope["logits"], [eval(line) for line in out.getvalue().splitlines()]


def tagged(model: Predictor, texts: list[list[str]]) -> list[list[tuple[str, str]]]:
    """Words with the tags that the model gives them."""
    found = []
    for words in texts:
        z = model.logits_of(rows_of([tuple(words)], [np.zeros(len(words), dtype=np.int64)]))
        assert len(z) == len(words)
        found.append([(word, model.classes[i]) for word, i in zip(words, z.argmax(-1).tolist(), strict=True)])
    return found


TEXTS = [["w1", "w17", "w21", "w2"], ["w16"], ["w3", "w19", "w18", "w4", "w17", "w22", "w9", "w8"]]


def test_the_export_is_an_adapter_of_peft_for_tokens(run: weft.Run, model: Predictor) -> None:
    from peft import PeftModel
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    assert run.adapter is not None
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["task_type"] == "TOKEN_CLS"
    base = AutoModelForTokenClassification.from_pretrained(shallow(), num_labels=3)
    plain = PeftModel.from_pretrained(base, run.adapter).eval()
    inputs = AutoTokenizer.from_pretrained(shallow())(TEXTS[0], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        z = plain(**inputs).logits[0, 1:-1]
    ours = model.logits_of(rows_of([tuple(TEXTS[0])], [np.zeros(4, dtype=np.int64)]))
    torch.testing.assert_close(z, ours, rtol=0, atol=2e-5)


def test_the_readme_of_the_export_gives_our_tags(run: weft.Run, model: Predictor) -> None:
    assert run.adapter is not None
    texts = [*TEXTS, ["w17.w3", "w1.w16"]]  # words of three tokens, of which the first one counts
    logits, said = by_readme(run.adapter, texts)
    assert said == tagged(model, texts)
    assert {tag for row in said for _, tag in row} == set(NAMES)
    assert logits.shape == (4, 10, 3)


def test_the_readme_says_that_byte_level_words_need_their_space(tmp_path: Path, data: Path) -> None:
    settings = SETTINGS | {"rounds": 1, "parameters": FAST | {"epochs": 1}}
    done = toy_runs.run(tmp_path, model=byte_level("gpt2"), data=str(data), **settings | {"max_length": 40})
    assert done.adapter is not None
    assert '" " + word' in (done.adapter / "README.md").read_text()
    model = load(done.folder, device="cpu", precision="float32")
    logits, said = by_readme(done.adapter, TEXTS)
    assert said == tagged(model, TEXTS)
    ours = model.logits_of(rows_of([tuple(TEXTS[1])], [np.zeros(1, dtype=np.int64)]))
    torch.testing.assert_close(logits[1, :1], ours, rtol=0, atol=2e-5)


def test_entities_have_the_characters_that_they_stand_at(model: Predictor) -> None:
    text = "  w1 (w17 w21), w2\n w19"
    (found,) = model.entities([text])
    assert [(e.text, e.type, e.start, e.end) for e in found] == [("w17 w21", "NAME", 6, 13), ("w19", "NAME", 20, 23)]
    assert [text[e.start : e.end] for e in found] == [e.text for e in found]


def test_entities_of_words_are_counted_in_words(model: Predictor) -> None:
    both, words = model.entities(["w1 w17 w21 w2", ["w1", "w17", "w21", "w2"]])
    assert [(e.text, e.type, e.start, e.end) for e in words] == [("w17 w21", "NAME", 1, 3)]
    assert [(e.text, e.start, e.end) for e in both] == [("w17 w21", 3, 10)]
    assert model.predict([["w1", "w17", "w21"], "w16. w3", "w1"]) == ["w17 w21 (NAME)", "w16 (NAME)", ""]


def test_texts_without_words_and_words_beyond_the_longest_row_have_no_entities(model: Predictor) -> None:
    assert model.entities(["", "  ", [], ["", ""]]) == [[]] * 4
    assert model.entities([]) == []
    long = ["w1"] * 7 + ["w17", "w18", "w19"]  # 10 tokens with the two around: w17 is the last that is seen
    found, after = model.entities([long, ["w16"]])
    assert [(e.text, e.start) for e in found] == [("w17", 7)]
    assert [(e.text, e.start) for e in after] == [("w16", 0)], "a row that was cut does not move those after it"
    between = model.entities([["w1", "", "w17", "", "w18"]])[0]
    assert [(e.text, e.start) for e in between] == [("w17", 2), ("w18", 4)]


def test_what_is_no_text_and_what_gives_a_row_a_class_is_one_sentence(model: Predictor, run: weft.Run) -> None:
    odd: Any = [3]
    with pytest.raises(UserError, match="entities are found in texts or lists of words, not in a int"):
        model.entities(odd)
    for ask in (model.logits, model.probabilities):
        with pytest.raises(UserError, match="this model tags words and gives no row a class: use entities"):
            ask(["w1 w2"])
    assert model.logits_of(Rows([], labels=[])).shape == (0, 3)


def test_predict_prints_entities_and_json(run: weft.Run, capsys: pytest.CaptureFixture[str]) -> None:
    got = command_line.weft(capsys, "predict", run.folder, "w1 w17 w21.", "w3", "--json")
    assert got.code == 0
    assert json.loads(got.out) == [
        {"text": "w1 w17 w21.", "entities": [{"text": "w17 w21", "type": "NAME", "start": 3, "end": 10}]},
        {"text": "w3", "entities": []},
    ]
    got = command_line.weft(capsys, "predict", run.folder, "w1 w17 w21.", "w3")
    lines = [line.split() for line in got.out.splitlines() if "w1" in line or "w3" in line]
    assert lines == [["NAME", "w17", "w21", "w1", "w17", "w21."], ["-", "-", "w3"]]
