"""Masked language models in federations: which tokens are hidden, what they cost, and the laws of runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import toy_runs
from run_laws import LAWS, Law, keep
from weft.adaptation.optim import Optim
from weft.backbones.load import load
from weft.backbones.masked_table import Masked, hide
from weft.backbones.run_table import tabulate
from weft.data.rows import Rows
from weft.errors import UserError
from weft.experiment import Experiment
from weft.federation.batch import make_batch
from weft.methods import FedIT
from weft.runs.prepare import backbone_of, bench_of, deal
from weft.tasks.masked_language import MaskedLanguage
from weft.testing.federation import Federation
from weft.testing.plays import Plays


@pytest.fixture(scope="module", params=["bert", "roberta"])
def of_masks(request: pytest.FixtureRequest) -> Plays:
    return Plays(FedIT(rank=2), task="masked", kind=request.param)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_federations_of_masked_models_keep_the_laws(law: Law, of_masks: Plays) -> None:
    keep(law, of_masks)


def run_on(kind: str) -> Federation:
    method = FedIT(rank=2, alpha=8.0, batch=3, sites="q,v", optim=Optim("adamw", lr=1e-2))
    return tiny.federation(method, kind, task="masked", rounds=1).run()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_the_loss_is_that_of_transformers(kind: str) -> None:
    run = tiny.federation(FedIT(rank=2, sites="q,v"), kind, task="masked")  # B is 0: the model is the backbone
    pack, table = run.server.pack(), run.bench.table
    assert isinstance(table, Masked)
    rows = np.array([[0, 3, 5, 11]])
    batch = make_batch(pack.task, table, rows, None, pack.device)
    inputs = table.collate(rows[0])
    labels = torch.full_like(inputs["input_ids"], -100)
    for r, i in enumerate(rows[0]):
        own = slice(table.offsets[i], table.offsets[i + 1])
        chosen = table.answer[own]
        labels[r, : len(chosen)][torch.from_numpy(chosen)] = torch.from_numpy(table.originals[own][chosen]).long()
    with torch.no_grad():
        found, wanted = pack.loss(pack(batch), batch), run.bench.backbone.model(**inputs, labels=labels).loss
    assert float(found[0]) == pytest.approx(float(wanted), rel=1e-6)


def test_what_is_hidden_is_a_rows_own_draw_of_fifteen_per_cent() -> None:
    words = tiny.backbone("bert", checkpoint="mlm", task="masked").tokenizer
    ids = np.asarray(words(" ".join(f"w{i % 94}" for i in range(2000)))["input_ids"], dtype=np.int32)
    shown, chosen = hide(ids, 7, words)
    again, same = hide(ids, 7, words)
    assert (shown.tolist(), chosen.tolist()) == (again.tolist(), same.tolist())
    assert hide(ids, 8, words)[1].tolist() != chosen.tolist()
    assert chosen.sum() == 300
    assert not chosen[[0, -1]].any(), "the model's own tokens are never hidden"
    assert (shown[~chosen] == ids[~chosen]).all()
    masks, kept = (shown[chosen] == words.mask_token_id).mean(), (shown[chosen] == ids[chosen]).mean()
    assert masks == pytest.approx(0.8, abs=0.07)
    assert kept == pytest.approx(0.1, abs=0.06)
    others = shown[chosen & (shown != words.mask_token_id) & (shown != ids)]
    assert len(set(others.tolist())) > len(others) // 2 > 5, "they are drawn from all words"
    assert hide(ids[:3], 0, words)[1].sum() == 1, "one of each row at least"


def test_a_row_is_its_whole_text_with_the_same_tokens_hidden_wherever_it_lies() -> None:
    model = tiny.backbone("bert", checkpoint="mlm", task="masked")
    answers = [" ".join(f"w{i + j}" for j in range(20)) for i in (20, 40, 60)]
    rows = Rows(texts=["w1 w2", "", "w3"], answers=answers, ids=np.array([7, 5, 6]))
    found = []
    for table in (tabulate(model, rows, 40), tabulate(model, rows.take(np.array([2, 0])), 40)):
        assert isinstance(table, Masked)
        own = [slice(a, b) for a, b in zip(table.offsets[:-1], table.offsets[1:], strict=True)]
        found.append([(table.ids[at].tolist(), table.originals[at].tolist()) for at in own])
    whole, some = found
    assert some == [whole[2], whole[0]]
    said = [model.tokenizer.decode(ids, skip_special_tokens=True) for _, ids in whole]
    assert said == [f"w1 w2 {answers[0]}", answers[1], f"w3 {answers[2]}"]


def test_scores_are_of_hidden_tokens() -> None:
    run = run_on("bert")
    found = {e.metric: e for e in run.simulation.evaluate(0) if (e.people, e.pooling) == ("global test", "pooled")}
    assert set(found) == {"perplexity", "token_accuracy", "loss"}
    assert found["perplexity"].value == pytest.approx(np.exp(found["loss"].value))
    assert not run.simulation.samples


def test_what_can_not_be_masked_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"predicts no hidden tokens: choose an encoder"):
        load(tiny.folder("llama", "lm"), classes=("text",), task="masked")
    rows = Rows(answers=["w1 w2"])
    blind = tiny.backbone("electra", checkpoint="mlm", task="masked")
    token, blind.tokenizer.mask_token = blind.tokenizer.mask_token, None
    try:
        with pytest.raises(UserError, match="has no mask token"):
            tabulate(blind, rows)
    finally:
        blind.tokenizer.mask_token = token
    with pytest.raises(UserError, match="writes no texts, so that there is nothing for the metric rouge_l"):
        MaskedLanguage(("text",), ("rouge_l",))
    with pytest.raises(UserError, match="writes no texts, so that there is nothing for samples"):
        MaskedLanguage(("text",), samples=3)


def test_a_set_for_generation_is_scored_by_what_a_masked_model_can_be_scored_by() -> None:
    x = Experiment(data="docstrings", model=tiny.folder("bert", "mlm"), task="masked", limit=30, max_length=32)
    dealt = deal(x)
    model = backbone_of(x, x.model, dealt.classes, ())
    rows = dealt.clients[0].train
    assert bench_of(x, model, dealt.classes, rows).task.metrics == ("perplexity",)
    with pytest.raises(UserError, match="nothing for the metric rouge_l"):
        bench_of(x.model_copy(update={"metrics": ("rouge_l",)}), model, dealt.classes, rows)


def test_texts_that_reach_the_longest_row_are_counted() -> None:
    model = tiny.backbone("bert", checkpoint="mlm", task="masked")
    table = tabulate(model, Rows(answers=["w1 w2", "w1 w2 w3 w4", "w1 w2 w3 w4 w5 w6"]), 6)
    assert table.notes == ("2 of 3 texts reach --max-length 6; what goes beyond it is cut.",)  # type: ignore[union-attr]
    assert table.widths.tolist() == [4, 6, 6]  # type: ignore[union-attr]


def test_a_run_on_texts_leaves_an_adapter_that_finds_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 80, 80)
    texts = [" ".join(f"w{start + j}" for j in range(6)) for start in starts.tolist()]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = toy_runs.run(
        tmp_path / "runs",
        data=str(data),
        model=tiny.folder("bert", "mlm"),
        task="masked",
        method="fedit",
        parameters={"rank": 2, "steps": 2, "batch": 4},
        clients=3,
        rounds=2,
    )
    assert set(run.metrics) >= {"perplexity", "token_accuracy"}
    assert run.adapter is not None
    assert json.loads((run.adapter / "adapter_config.json").read_text())["task_type"] is None
    (code,) = re.findall(r"```python\n(.*?)```", (run.adapter / "README.md").read_text(), flags=re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"FOLDER": str(run.adapter), "TEXTS": ["w1 [MASK] w3", "w5"]})
    found, none = out.getvalue().splitlines()
    assert len(eval(found)) == 1
    assert eval(none) == []
    with pytest.raises(UserError, match="finds hidden tokens"):
        run.predict(["w1"])
