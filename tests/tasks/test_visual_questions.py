"""Questions about pictures: the loss by plain PyTorch, scores by hand, what sites tell, and runs that learn to answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
import weft
from command_line import weft as shell
from machines import Machines, coordinate, experiment
from weft import experiment as settings
from weft.communication.strict import Refused
from weft.data.rows import BOTH, Rows, Source
from weft.engines.remote import check_told
from weft.errors import UserError
from weft.export import load as load_model
from weft.export.evaluate import evaluate_run
from weft.tasks.kinds import CLASSES, GENERATION, QUESTIONS, suits
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.visual_questions import VisualQuestions

ANSWERS = ("no", "red", "two", "yes")


def asked(k: int, b: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and votes of k clients of b rows."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(k, b, len(ANSWERS), generator=draw, dtype=torch.float64)
    votes = torch.tensor([0.0, 0.3, 0.6, 1.0])[torch.randint(4, logits.shape, generator=draw)]
    votes[..., 0] += votes.sum(-1) == 0
    return logits, votes.argmax(-1), votes


def seen(n: int, seed: int = 0, soft: bool = True) -> Observed:
    logits, labels, votes = (x.transpose(0, 1) for x in asked(1, n, seed))
    mask = torch.ones(n, 1, dtype=torch.bool)
    return VisualQuestions(ANSWERS).observe(Output(logits), labels, mask, votes[:, 0] if soft else None)


# loss and scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [True, False])
def test_the_loss_is_binary_cross_entropy_summed_over_the_answers(soft: bool) -> None:
    logits, labels, votes = asked(2, 5)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    target = votes if soft else F.one_hot(labels, len(ANSWERS))
    found = VisualQuestions(ANSWERS).loss(Output(logits), labels, mask, beside=votes if soft else None)
    for client, n in ((0, 5), (1, 3)):
        own = F.binary_cross_entropy_with_logits(logits[client, :n], target[client, :n].double()) * len(ANSWERS)
        assert float(found[client]) == pytest.approx(float(own), rel=1e-12)
    logits.requires_grad_()
    again = VisualQuestions(ANSWERS).loss(Output(logits), labels, mask, beside=votes if soft else None).sum()
    (grad,) = torch.autograd.grad(again, logits)
    by_hand = (logits.sigmoid() - target) * mask[..., None] / mask.sum(1)[:, None, None]
    torch.testing.assert_close(grad, by_hand.detach(), rtol=1e-12, atol=1e-14)


def test_scores_are_how_right_the_given_answers_are_and_the_share_of_best_ones() -> None:
    logits, labels, votes = (x.transpose(0, 1) for x in asked(1, 50))
    given = logits[:, 0].argmax(1)
    wanted = {
        "vqa_accuracy": float(votes[torch.arange(50), 0, given].double().mean()),
        "accuracy": float((given == labels[:, 0]).double().mean()),
        "loss": float(F.binary_cross_entropy_with_logits(logits[:, 0], votes[:, 0].double()) * len(ANSWERS)),
    }
    found = VisualQuestions(ANSWERS).score(seen(50))
    assert {s.metric: s.value for s in found} == {n: pytest.approx(v, rel=1e-6) for n, v in wanted.items()}
    assert wanted["vqa_accuracy"] > wanted["accuracy"]  # the best is never less right than another
    for one in found[:2]:
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
    headline = VisualQuestions(ANSWERS).headline(seen(50))
    assert (headline.value, headline.low, headline.high) == (found[0].value, None, None)


def test_where_one_answer_alone_is_right_both_scores_are_the_accuracy() -> None:
    first, second, _ = VisualQuestions(ANSWERS).score(seen(30, soft=False))
    assert first.value == second.value


def test_losses_are_summed_in_double_precision_whatever_the_model_computes_in() -> None:
    logits, labels, votes = (x.transpose(0, 1) for x in asked(1, 20))
    mask = torch.ones(20, 1, dtype=torch.bool)
    half = logits.bfloat16()
    found = VisualQuestions(ANSWERS).observe(Output(half), labels, mask, votes[:, 0])
    wanted = F.binary_cross_entropy_with_logits(half[:, 0].double(), votes[:, 0].double(), reduction="none").sum(1)
    np.testing.assert_allclose(found["loss"], wanted.numpy(), rtol=1e-12)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_outputs_that_are_not_finite_give_no_score(odd: float, soft: bool) -> None:
    logits, labels, votes = (x.transpose(0, 1) for x in asked(1, 3))
    logits[1, 0, (int(labels[1, 0]) + 1) % len(ANSWERS)] = odd
    task = VisualQuestions(ANSWERS)
    found = task.observe(Output(logits), labels, torch.ones(3, 1, dtype=torch.bool), votes[:, 0] if soft else None)
    assert all(math.isnan(s.value) for s in task.score(found))
    assert task.tell(found, True) == {"n": 3, "loss": None}
    assert task.read(task.tell(found, True), True).blank
    assert task.score(found.take(np.zeros(0, np.int64))) == []


# what sites tell ------------------------------------------------------------------------------------------------------------


def test_sums_of_sites_give_the_scores_of_all_their_rows_together() -> None:
    task, whole = VisualQuestions(ANSWERS), seen(40)
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 5), (5, 6), (6, 40))]
    told = [task.read(json.loads(json.dumps(task.tell(part, False))), False) for part in parts]
    found = {s.metric: s.value for s in task.pool(told)}
    assert found == {s.metric: pytest.approx(s.value, abs=1e-12) for s in task.score(whole)}
    check_told(task, by_class=False)


@given(
    st.dictionaries(
        st.sampled_from(["n", "soft", "right", "loss"]), st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text()
    )
)
def test_what_a_stranger_says_is_refused_or_can_be_true(said: dict[str, Any]) -> None:
    task = VisualQuestions(ANSWERS)
    try:
        told = task.read(said, True)
    except Refused:
        return
    assert told.n > 0
    assert told.blank or all(0 <= s.value <= 1 + 1e-5 for s in task.pool([told]) if s.metric != "loss")


@pytest.mark.parametrize(
    "change",
    [{"n": 0}, {"n": 6.0}, {"soft": 6.1}, {"soft": -0.1}, {"soft": math.nan}, {"right": 7}, {"right": -1}, {"right": 2.0},
     {"right": None}, {"loss": -1.0}, {"loss": math.inf}, {"loss": "much"}],
)  # fmt: skip
def test_sums_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    task = VisualQuestions(ANSWERS)
    honest = task.tell(seen(6), True)
    assert task.read(honest, True).n == 6
    with pytest.raises(Refused):
        task.read(honest | change, True)


def test_a_site_may_have_answered_all_of_its_questions_rightly() -> None:
    """Sums of many thirds are off in the last digits, and no score is above 1 for that."""
    task = VisualQuestions(ANSWERS)
    for soft in (3.0, 3.0 + 1e-6):
        told = task.read({"n": 3, "soft": soft, "right": 3, "loss": 0.5}, True)
        assert [s.value for s in task.pool([told])] == [1.0, 1.0, 0.5 / 3]


# what is one sentence ----------------------------------------------------------------------------------------------------------


def pictured(n: int = 12, seed: int = 0, first: int = 0) -> Rows:
    return replace(tiny.rows(n, seed=seed, reads=BOTH), ids=np.arange(first, first + n))


def test_an_unknown_metric_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r'unknown metric "vqa_acuracy".*vqa_accuracy'):
        VisualQuestions(ANSWERS, ("vqa_acuracy",))


def test_rows_and_task_have_to_fit() -> None:
    texts, answered = tiny.rows(4), Rows(texts=["q"], images=[np.zeros((4, 4, 3), np.uint8)], answers=["a"])
    with pytest.raises(UserError, match="needs a picture, a question and its answer"):
        suits(QUESTIONS, texts)
    with pytest.raises(UserError, match="--task generation learns from that"):
        suits(QUESTIONS, answered)
    with pytest.raises(UserError, match="questions about pictures: --task vqa learns from that"):
        suits(CLASSES, pictured())
    suits(QUESTIONS, pictured())
    suits(GENERATION, answered)


@pytest.mark.parametrize(
    ("model", "data", "task", "words"),
    [
        ("bert", pictured(), "auto", "reads no question beside a picture"),
        ("vit", pictured(), "vqa", "reads no question beside a picture"),
        ("vilt", tiny.rows(12), "auto", "the data are texts, but backbone .* reads texts and images"),
        ("vilt", tiny.rows(12, reads="images"), "auto", "the data are images, but backbone .* reads texts and images"),
        ("vilt", pictured(), "classification", "questions about pictures: --task vqa learns from that"),
        ("vilt", tiny.rows(12), "classification", "answers questions about pictures: leave --task out"),
    ],
)
def test_a_model_that_does_not_fit_is_one_sentence(model: str, data: Rows, task: str, words: str, tmp_path: Path) -> None:
    source = Source("set", ("a", "b", "c"), data)
    with pytest.raises(UserError, match=words) as found:
        weft.run("fedit", data=source, model=tiny.folder(model), task=task, clients=2, runs=str(tmp_path), quiet=True)
    assert "\n" not in str(found.value)


# runs --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedit", "feddat"])
def test_a_run_learns_answers_and_a_pack_gives_what_its_clients_give_alone(method: str, tmp_path: Path) -> None:
    table = pictured(60)
    votes = [{int(label): 1.0, (int(label) + 1) % 3: 0.3} for label in table.labels]
    data = Source("asked", ("a", "b", "c"), replace(table, votes=votes))
    common: dict[str, Any] = {
        "data": data, "model": tiny.folder("vilt"), "clients": 3, "rounds": 3, "device": "cpu", "precision": "float64",
        "runs": str(tmp_path), "quiet": True, "start_head": "random", "baselines": [], "partition": "iid",
    }  # fmt: skip
    run = weft.run(method, parameters={"lr": 1e-2, "epochs": 2}, **common)
    losses = [line["loss"] for line in run.rounds]
    assert losses[-1] < losses[0]
    assert set(run.metrics) >= {"vqa_accuracy", "accuracy"}
    alone = weft.run(method, parameters={"lr": 1e-2, "epochs": 2}, **common, pack=1, name="alone")
    assert [line["loss"] for line in alone.rounds] == [pytest.approx(loss, rel=1e-10) for loss in losses]


def test_a_model_of_a_run_answers_and_is_scored_again(tmp_path: Path) -> None:
    data = Source("asked", ("a", "b", "c"), pictured(60), test=pictured(30, 1, first=60))
    run = weft.run(
        "fedit", data=data, model=tiny.folder("vilt"), clients=2, rounds=1, device="cpu", precision="float32", runs=str(tmp_path),
        quiet=True, start_head="random", baselines=[], partition="iid",
    )  # fmt: skip
    again = {e["metric"]: e["value"] for e in evaluate_run(run.folder, data, device="cpu", precision="float32")}
    assert again == {n: pytest.approx(run.metrics[n], abs=1e-6) for n in ("vqa_accuracy", "accuracy")} | {"loss": again["loss"]}
    test = data.test
    assert test is not None
    votes = [{int(y): 0.6, 0: 0.3} if y else {0: 1.0} for y in test.labels + 1]  # those for "unknown" are nobody's to give
    more = replace(test, labels=test.labels + 1, votes=votes)
    other = Source("asked", ("unknown", "a", "b", "c"), replace(more, ids=more.ids + 30), test=more)
    scored = {e["metric"]: e["value"] for e in evaluate_run(run.folder, other, device="cpu", precision="float32")}
    assert scored["vqa_accuracy"] == pytest.approx(0.6 * run.metrics["accuracy"])
    assert test.texts is not None
    assert test.images is not None
    items = [(test.texts[i], test.images[i]) for i in range(len(test))]
    model = load_model(run.folder, device="cpu", precision="float32")
    right = [data.classes[y] == answer for y, answer in zip(test.labels, model.predict(items), strict=True)]
    assert np.mean(right) == pytest.approx(run.metrics["accuracy"])


def write(folder: Path, rows: Rows, answers: tuple[str, ...]) -> Path:
    """A table with its pictures beside it."""
    assert rows.texts is not None
    assert rows.images is not None
    folder.mkdir()
    lines = []
    for i, text in enumerate(rows.texts):
        Image.fromarray(np.asarray(rows.images[i])).save(folder / f"{i}.png")
        lines.append(json.dumps({"question": text, "image": f"{i}.png", "answer": answers[rows.labels[i]]}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def test_the_command_line_reads_runs_predicts_and_scores_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "asked", pictured(40), ("a", "b", "c"))
    where = ["--model", tiny.folder("vilt"), "--runs", tmp_path / "runs", "--device", "cpu", "--name", "asked"]
    typed = ["run", "--data", data, "--rounds", "1", "--clients", "2", "--baselines", "none", "--partition", "iid", *where]
    assert "Nothing was trained" in shell(capsys, *typed, "--dry-run").out
    done = shell(capsys, *typed)
    assert done.code == 0
    assert "weft predict" in done.out + done.err
    assert "a question' picture.png" in done.out + done.err
    folder = tmp_path / "runs" / "asked"
    (one,) = json.loads(shell(capsys, "predict", folder, "--json", "what is it?", data / "0.png").out)
    assert set(one) == {"question", "picture", "label", "probabilities"}
    assert one["label"] in "abc"
    odd = shell(capsys, "predict", folder, "what is it?")
    assert odd.code == 2
    assert "an odd number of texts was given (1): give each question and its picture in turn" in odd.err
    found = json.loads(shell(capsys, "eval", folder, "--data", data, "--json").out)
    assert [e["metric"] for e in found] == ["vqa_accuracy", "accuracy", "loss"]


def test_real_sites_learn_answers_and_their_sums_give_the_score(machines: Machines) -> None:
    about: dict[str, Any] = {"method": "fedit", "task": "vqa", "classes": ["a", "b", "c"], "rounds": 2}
    about |= {"model": tiny.folder("vilt"), "precision": "float32"}
    file = machines.root / "experiment.toml"
    file.write_text(settings.to_toml(settings.resolve(experiment(machines, **about)).experiment, {}))
    for i, name in enumerate("ab"):
        machines.join(name, data=str(write(machines.root / name, pictured(30, i), ("a", "b", "c"))), experiment=str(file))
    done = coordinate(machines, **about)
    assert [line["lost"] for line in done.rounds] == [[], []]
    scores = {e["metric"]: e["value"] for e in done.rounds[-1]["evaluations"] if e["pooling"] == "pooled"}
    assert set(scores) == {"vqa_accuracy", "accuracy", "loss"}
    assert 0 <= scores["vqa_accuracy"] <= 1
    picture = np.zeros((8, 8, 3), np.uint8)
    assert load_model(done.folder, device="cpu", precision="float32").predict([("what is it?", picture)])[0] in "abc"
