"""Regression: its loss and scores by hand, what sites tell of numbers, and a run that learns some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
import weft
from command_line import weft as shell
from machines import Machines, coordinate, experiment
from weft import experiment as settings
from weft.communication.strict import Refused
from weft.data.rows import Rows, Source
from weft.engines.remote import check_told
from weft.errors import UserError
from weft.export import load as load_model
from weft.export.evaluate import evaluate_run
from weft.tasks.moments import Moments
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.regression import Regression

ALL = ("pearson", "spearman", "r2", "mse")


def seen(n: int, seed: int = 0) -> Observed:
    draw = np.random.default_rng(seed)
    own = draw.normal(size=n).round(1)  # some are equal, which ranks have to bear
    logits, labels = torch.from_numpy(own + draw.normal(size=n)).view(n, 1, 1), torch.from_numpy(own).view(n, 1)
    return Regression(("score",)).observe(Output(logits), labels, torch.ones(n, 1, dtype=torch.bool))


def test_the_loss_is_the_mean_squared_error_of_each_client_over_its_own_rows() -> None:
    logits, labels = torch.tensor([[[1.0], [4.0]], [[2.0], [9.0]]]), torch.tensor([[0.0, 2.0], [5.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert Regression(("score",)).loss(Output(logits), labels, mask).tolist() == [(1 + 4) / 2, 9.0]


def test_scores_are_those_of_scipy_and_scikit_learn() -> None:
    from scipy import stats
    from sklearn import metrics

    some = seen(50)
    found = {s.metric: s.value for s in Regression(("score",), ALL).score(some)}
    given, own = some["given"], some["value"]
    wanted = {
        "pearson": stats.pearsonr(given, own).statistic,
        "spearman": stats.spearmanr(given, own).statistic,
        "r2": metrics.r2_score(own, given),
        "mse": metrics.mean_squared_error(own, given),
        "loss": metrics.mean_squared_error(own, given),
    }
    assert found == {n: pytest.approx(v) for n, v in wanted.items()}
    for metric in ALL[:3]:
        one = Regression(("score",), (metric, "mse")).headline(some)
        assert (one.metric, one.value, one.low) == (metric, found[metric], None)


def test_numbers_that_are_all_alike_correlate_with_nothing_and_odd_ones_give_no_score() -> None:
    task = Regression(("score",), ALL)
    n = 5
    flat = Observed({"given": np.full(n, 2.0), "value": np.arange(n) * 1.0, "finite": np.ones(n, bool)})
    assert {s.metric: s.value for s in task.score(flat)} == {"pearson": 0, "spearman": 0, "r2": 0, "mse": 2, "loss": 2}
    odd = Observed({"given": np.array([1.0, math.nan]), "value": np.zeros(2), "finite": np.array([True, False])})
    assert all(math.isnan(s.value) for s in (*task.score(odd), task.headline(odd)))
    assert task.read(task.tell(odd, True), True).blank
    assert task.score(flat.take(np.zeros(0, np.int64))) == []


def test_sums_of_sites_give_the_scores_of_all_their_rows_together() -> None:
    task, whole = Regression(("score",), ("pearson", "r2", "mse")), seen(40)
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 5), (5, 6), (6, 40))]

    def answers(part: Observed, by_class: bool) -> Moments:
        return task.read(json.loads(json.dumps(task.tell(part, by_class))), by_class)

    found = {s.metric: s.value for s in task.pool([answers(p, True) for p in parts])}
    assert found == {s.metric: pytest.approx(s.value, abs=1e-9) for s in task.score(whole)}
    silent = [answers(parts[0], True), answers(parts[1], False)]  # one keeps its sums
    assert [s.metric for s in task.pool(silent)] == ["mse", "loss"]
    blank = Moments(3, math.nan)
    assert [s.value for s in task.pool([blank, answers(parts[2], True)])] == [
        pytest.approx(s.value) for s in task.score(parts[2])
    ]
    assert all(math.isnan(s.value) for s in task.pool([blank]))


def test_a_site_that_keeps_its_sums_tells_no_correlation() -> None:
    check_told(Regression(("score",)), by_class=True)
    for task, by_class in ((Regression(("score",)), False), (Regression(("score",), ("spearman",)), True)):
        with pytest.raises(UserError, match="sites don't tell enough for the metric"):
            check_told(task, by_class)
    assert set(Regression(("score",)).tell(seen(4), False)) == {"n", "loss"}


@given(
    st.dictionaries(
        st.sampled_from(["n", "loss", "sums"]), st.none() | st.integers() | st.floats() | st.lists(st.floats(), max_size=6)
    )
)
def test_what_a_stranger_says_is_refused_or_can_be_true(said: dict[str, Any]) -> None:
    try:
        told = Regression(("score",)).read(said, True)
    except Refused:
        return
    assert told.n > 0
    assert told.blank or -1 - 1e-6 <= told.score("pearson") <= 1 + 1e-6


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": True},
        {"loss": -1.0},
        {"loss": 1e16},
        {"sums": None},
        {"sums": [1.0] * 4},
        {"sums": [0, 0, 1, 1, 5]},
        {"loss": 0.0},
    ],
)
def test_sums_that_contradict_each_other_are_refused(change: dict[str, Any]) -> None:
    task = Regression(("score",))
    honest = task.tell(seen(6), True)
    assert task.read(honest, True).n == 6
    with pytest.raises(Refused):
        task.read(honest | change, True)


@pytest.mark.parametrize(
    ("classes", "metrics", "words"),
    [(("a", "b"), ALL, "one output"), (("a",), ("rmse",), "unknown metric")],
)
def test_what_is_no_regression_is_one_sentence(classes: tuple[str, ...], metrics: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Regression(classes, metrics)


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ((3e5, 1e5), (0.0, 0.1)),
        ((0.0, 1e6), (0.0, 0.1)),
        ((1e9, 1.0), (1e9, 1.0)),
        ((0.0, 1e-7), (0.0, 1e-7)),
        ((1e9, 1.0), (0.0, 1.0)),
    ],
)
def test_correlations_do_not_depend_on_where_numbers_lie_nor_on_their_scale(
    own: tuple[float, float], given: tuple[float, float]
) -> None:
    draw = np.random.default_rng(0)
    y = draw.normal(size=90)
    x = y + 0.3 * draw.normal(size=90)
    value, guess = own[0] + own[1] * y, given[0] + given[1] * x
    task = Regression(("price",), ("pearson", "r2"))
    seen = Observed({"given": guess, "value": value, "finite": np.ones(90, bool)})
    r2 = 1 - ((value - guess) ** 2).mean() / value.var()
    wanted = [pytest.approx(np.corrcoef(value, guess)[0, 1], abs=1e-6), pytest.approx(r2, rel=1e-6)]
    assert [s.value for s in task.score(seen)[:2]] == wanted
    parts = [task.tell(seen.take(np.arange(a, b)), True) for a, b in ((0, 20), (20, 90))]
    if all(part["loss"] < 1e15 for part in parts):  # larger ones are refused
        assert [s.value for s in task.pool([task.read(json.loads(json.dumps(p)), True) for p in parts])[:2]] == wanted


def longer(n: int, seed: int = 0) -> Rows:
    """Texts whose number is the share of one word in them."""
    draw = np.random.default_rng(seed)
    words = tiny.rows(4).texts[0].split()[:2]  # type: ignore[index]
    share = draw.integers(0, 5, n)
    texts = [" ".join(draw.permutation([words[0]] * k + [words[1]] * (4 - k))) for k in share.tolist()]
    return Rows(texts, labels=np.zeros(n, np.int64), numbers=share / 4)


def test_a_run_learns_numbers_and_its_model_gives_them_back(tmp_path: Path) -> None:
    data = Source("shares", ("share",), longer(160), test=longer(80, 1))
    common: dict[str, Any] = {
        "data": data, "model": tiny.folder(), "clients": 4, "rounds": 3, "device": "cpu", "precision": "float32",
        "runs": str(tmp_path), "quiet": True, "start_head": "random", "baselines": [],
    }  # fmt: skip
    run = weft.run("fedit", parameters={"lr": 1e-2, "epochs": 4}, **common)
    first, last = (line["loss"] for line in (run.rounds[0], run.rounds[-1]))
    assert last < first
    assert run.metrics["pearson"] > 0.8
    assert set(run.metrics) >= {"pearson", "spearman", "mse", "mean_client", "worst_client"}
    model = load_model(run.folder, device="cpu", precision="float32")
    assert model.gives_numbers
    assert data.test is not None
    given = [float(text) for text in model.predict(data.test.texts)]  # type: ignore[arg-type]
    assert np.mean((np.array(given) - data.test.numbers) ** 2) == pytest.approx(run.metrics["mse"], abs=1e-3)
    again = {e["metric"]: e["value"] for e in evaluate_run(run.folder, data, device="cpu", precision="float32")}
    assert "print(logits[:, 0])" in (run.folder / "adapter" / "README.md").read_text()
    near = {"pearson": 1e-6, "mse": 1e-6, "spearman": 1e-2}  # rounding parts ranks that were one
    wanted = {n: pytest.approx(run.metrics[n], abs=off) for n, off in near.items()}
    assert again == wanted | {"loss": wanted["mse"]}
    alone = weft.run("fedit", parameters={"lr": 1e-2, "epochs": 4}, **common, pack=1, name="alone")
    assert [line["loss"] for line in alone.rounds] == [pytest.approx(line["loss"], rel=1e-4) for line in run.rounds]


def test_real_sites_learn_numbers_and_their_sums_give_the_correlation(machines: Machines) -> None:
    about: dict[str, Any] = {"method": "fedit", "task": "regression", "classes": ["share"], "rounds": 2, "model": tiny.folder()}
    about |= {"class_counts": True, "metrics": ["pearson", "mse"], "precision": "float32"}
    file = machines.root / "experiment.toml"
    file.write_text(settings.to_toml(settings.resolve(experiment(machines, **about)).experiment, {}))
    for i, name in enumerate("ab"):
        rows = longer(60, i)
        assert rows.texts is not None
        assert rows.numbers is not None
        lines = [f"{text},{number}" for text, number in zip(rows.texts, rows.numbers, strict=True)]
        called = "score" if i else "label"  # as each likes
        (machines.root / f"{name}.csv").write_text("\n".join([f"text,{called}", *lines]))
        machines.join(name, data=str(machines.root / f"{name}.csv"), experiment=str(file))
    done = coordinate(machines, **about)
    assert [line["lost"] for line in done.rounds] == [[], []]
    scores = {e["metric"]: e["value"] for e in done.rounds[-1]["evaluations"] if e["pooling"] == "pooled"}
    assert set(scores) == {"pearson", "mse", "loss"}
    assert -1 <= scores["pearson"] <= 1
    assert load_model(done.folder, device="cpu", precision="float32").gives_numbers


def test_the_command_line_reads_predicts_and_scores_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("train", longer(60)), ("test", longer(30, 1))):
        assert rows.texts is not None
        assert rows.numbers is not None
        lines = [f"{text},{number}" for text, number in zip(rows.texts, rows.numbers, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,score", *lines]))
    where = ["--model", tiny.folder(), "--runs", tmp_path / "runs", "--device", "cpu", "--name", "numbers"]
    typed = ["run", "--data", tmp_path, "--task", "regression", "--rounds", "1", "--clients", "2", "--baselines", "none"]
    assert shell(capsys, *typed, *where).code == 0
    folder = tmp_path / "runs" / "numbers"
    (one,) = json.loads(shell(capsys, "predict", folder, "--json", "a text").out)
    assert set(one) == {"text", "number"}
    assert isinstance(one["number"], float)
    found = json.loads(shell(capsys, "eval", folder, "--data", tmp_path, "--json").out)
    assert [e["metric"] for e in found] == ["pearson", "spearman", "mse", "loss"]
