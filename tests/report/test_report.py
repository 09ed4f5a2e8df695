"""What is said of a run's numbers: rows that can be read, plurals, and a word where nothing was learnt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import command_line
import tiny
import toy_runs
import weft
from command_line import flowing
from weft.report import terminal, verdict
from weft.runs import result
from weft.words import count


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def line(loss: float | None, accuracy: float = 0.5, **more: Any) -> dict[str, Any]:
    """A line of ``rounds.jsonl`` with 100 test rows."""
    common = {"view": "global", "people": "global test", "moment": "received", "pooling": "pooled", "n": 100}
    scored = common | {"metric": "accuracy", "value": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05}
    tested = common | {"metric": "loss", "value": loss}
    wire = {"down": {"wire": 10_300_000_000}, "up": {"wire": 1_023_000_000}}
    record = {"round": 0, "loss": loss, "cohort": ["a", "b"], "evaluations": [scored, tested], "bytes": {"train": wire}}
    return record | more


def summary(of: dict[str, Any], settings: dict[str, Any] | None = None, most: float = 0.1) -> dict[str, Any]:
    chosen = {"method.optim.lr": 0.001, "start_head": "random", "baseline": None} | (settings or {})
    return {
        "settings": {n: {"value": v, "origin": "default"} for n, v in chosen.items()},
        "data": {"classes": list("abcdefghij"), "most_frequent": {"global test": most}},
        "headline": {"round": 0} | of["evaluations"][0],
        "evaluations": of["evaluations"],
    }


@pytest.mark.parametrize("loss", [0.1, 12.3456, 99.9999, 12345.6, 3.02e12, None])
def test_the_columns_of_a_row_never_run_into_each_other(loss: float | None) -> None:
    shown = terminal.round_row(line(loss, 1.0))
    assert shown is not None
    cells = shown.plain.replace(" (", "(").split()
    assert len(cells) == len(terminal.WIDTHS) + 2  # bytes have a unit
    assert len(shown.plain) <= 80


@pytest.mark.parametrize(
    "metrics",
    [("accuracy",), ("macro_f1",), ("matthews", "accuracy"), ("accuracy", "f1:not_equivalent"), ("f1:a b c d e f g h i",)],
)
def test_a_column_of_any_metric_has_its_name_above_it(metrics: tuple[str, ...]) -> None:
    common = {"view": "global", "people": "global test", "moment": "received", "pooling": "pooled", "n": 9}
    one = line(1.0) | {"evaluations": [common | {"metric": m, "value": 0.5} for m in (*metrics, "loss")]}
    head, row = terminal.round_head(one).plain, terminal.round_row(one)
    assert row is not None
    assert len(head) == len(row.plain) == sum(terminal.WIDTHS)
    words = {"macro_f1": "F1", "matthews": "MCC"}
    ends, at = [], 0
    for width in terminal.WIDTHS:
        at += width
        ends.append(at)
    for metric, end, width in zip(metrics, ends[2:], terminal.WIDTHS[2:], strict=False):
        assert head[:end].endswith(words.get(metric, metric.replace("f1:", "F1 of "))[: width - 1])
        assert row.plain[:end].rstrip().endswith("0.500")


def test_the_first_metric_of_a_task_is_the_headline_everywhere() -> None:
    def played(t: int, matthews: float, accuracy: float) -> dict[str, Any]:
        common = {"view": "global", "moment": "received", "pooling": "pooled", "n": 9}
        scores = [("matthews", matthews), ("accuracy", accuracy), ("loss", 1.0)]
        all_ = [common | {"people": p, "metric": m, "value": v} for p in ("global test", "validation") for m, v in scores]
        own = [{**common, "people": "own test", "pooling": "mean over clients", "metric": "matthews", "value": matthews / 2}]
        return line(1.0) | {"round": t, "evaluations": all_ + own}

    lines = [played(0, 0.4, 0.6), played(1, 0.3, 0.9)]
    top, best = result.headline(lines[1]), result.best_by_validation(lines)
    assert top is not None
    assert best is not None
    assert (top["metric"], top["value"], best["round"], best["validation"]) == ("matthews", 0.3, 0, 0.4)
    assert result.metrics(lines) == {"matthews": 0.3, "accuracy": 0.9, "loss": 1.0, "mean_client": 0.15}


def scored(t: int, metric: str, value: float | None, loss: float) -> dict[str, Any]:
    common = {"view": "global", "moment": "received", "pooling": "pooled", "n": 9}
    kinds = [(p, m, v) for p in ("global test", "validation") for m, v in ((metric, value), ("loss", loss))]
    return line(1.0) | {"round": t, "evaluations": [common | {"people": p, "metric": m, "value": v} for p, m, v in kinds]}


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 1), ("perplexity", 3), ("mse", 3), ("loss", 3)])
def test_the_best_round_has_the_most_of_what_is_good_and_the_least_of_what_is_bad(metric: str, best: int) -> None:
    values = [None, 5.0, 5.0, 3.0, 3.0, 4.0, None]
    found = result.best_by_validation([scored(t, metric, value, 1.0) for t, value in enumerate(values)])
    assert found is not None
    assert (found["round"], found["metric"], found["validation"]) == (best, metric, values[best])


def test_rounds_are_compared_by_the_metric_of_the_last() -> None:
    lines = [scored(0, "perplexity", 2.0, 1.0), scored(1, "rouge_l", 0.5, 1.0), scored(2, "rouge_l", 0.4, 1.0)]
    found = result.best_by_validation(lines)
    assert found is not None
    assert (found["round"], found["validation"]) == (1, 0.5)


@pytest.mark.parametrize("value", [0.5, 99.9996, 100.0, 12.3456, 9999.96, 48812.25, 3.02e12])
def test_a_perplexity_fits_its_column_however_large_it_is(value: float) -> None:
    common = {"view": "global", "people": "own test", "moment": "received", "n": 9, "metric": "perplexity", "value": value}
    poolings = ("pooled", "mean over clients", "worst client")
    shown = terminal.round_row(line(1.0) | {"evaluations": [common | {"pooling": pooling} for pooling in poolings]})
    assert shown is not None
    assert len(shown.plain) == sum(terminal.WIDTHS)
    cells = shown.plain.split()
    assert cells[2] == cells[4] == cells[5]
    assert float(cells[2]) == pytest.approx(value, rel=0.01)


def test_one_thing_is_not_called_many() -> None:
    assert [count(n, "client") for n in (0, 1, 2, 1200)] == ["0 clients", "1 client", "2 clients", "1,200 clients"]
    assert count(2, "class", "classes") == "2 classes"


def test_a_run_that_diverged_is_told_with_a_lower_rate() -> None:
    for bad in (line(3.02e12), line(None), line(1.0, evaluations=line(None)["evaluations"])):
        (found,) = verdict.findings(summary(bad), [line(2.0), bad])
        assert "diverged" in found.sentence
        assert found.changes == {"method.optim.lr": 0.0001}


def test_the_lower_rate_is_no_higher_than_the_methods_own() -> None:
    far_off = summary(line(None), {"method": "fedit", "method.optim.lr": 1e30})
    (found,) = verdict.findings(far_off, [line(2.0), line(None)])
    assert found.changes == {"method.optim.lr": 3e-4}


def test_a_model_that_only_guesses_is_told_with_a_higher_rate_and_a_probe() -> None:
    bad = line(2.3, 0.153)
    (found,) = verdict.findings(summary(bad, most=0.15), [bad])
    assert "most frequent class" in found.sentence
    assert "0.153" in found.sentence
    assert found.changes == {"method.optim.lr": 0.01, "start_head": "probe"}
    (found,) = verdict.findings(summary(bad, {"start_head": "probe"}, most=0.15), [bad])
    assert found.changes == {"method.optim.lr": 0.01}


def test_another_metric_is_not_compared_with_the_accuracy_of_the_most_frequent_class() -> None:
    bad = line(2.3, 0.153)
    about = summary(bad, most=0.15)
    assert verdict.findings(about, [bad])
    about["headline"] = about["headline"] | {"metric": "top5"}
    assert verdict.findings(about, [bad]) == []


def test_a_probe_is_proposed_only_where_there_is_a_head_to_train() -> None:
    bad = line(2.3, 0.153)
    (found,) = verdict.findings(summary(bad, most=0.15) | {"backbone": {"head": False}}, [bad])
    assert found.changes == {"method.optim.lr": 0.01}
    assert "probe" not in found.advice


def test_what_has_no_rate_is_not_told_to_raise_it_and_a_few_test_rows_are_said_to_tell_little() -> None:
    bad = line(2.3, 0.153)
    about = summary(bad, {"method.optim.lr": None}, most=0.15)
    (found,) = verdict.findings(about, [bad])
    assert "rate" not in found.advice
    assert "method.optim.lr" not in found.changes
    assert "tell little" not in found.advice
    about["headline"] = about["headline"] | {"n": 8}
    (found,) = verdict.findings(about, [bad])
    assert found.advice.startswith("more test rows (8 tell little), more rounds or a head")


def test_of_a_probe_its_own_rate_is_proposed() -> None:
    """Nothing else of a method holds for what stands in for it."""
    chosen = {"baseline": "probe", "probe_lr": 0.001, "start_head": "random"}
    (found,) = verdict.findings(summary(line(2.3, 0.153), chosen, most=0.15), [line(2.3)])
    assert found.changes == {"probe_lr": 0.01}
    (found,) = verdict.findings(summary(line(None), chosen | {"probe_lr": 1e9}), [line(2.3), line(None)])
    assert found.changes == {"probe_lr": 0.1}


def test_a_last_round_in_which_nobody_was_left_is_no_divergence() -> None:
    nobody = line(None, lost=["a", "b"], evaluations=line(2.0)["evaluations"])
    assert verdict.findings(summary(nobody), [line(2.0), nobody]) == []
    (found,) = verdict.findings(summary(nobody), [line(2.0), nobody | {"lost": ["a"]}])
    assert "diverged" in found.sentence


def test_a_round_of_which_nothing_counted_is_told_with_its_reason() -> None:
    bad = line(2.3, refused={"a": "its weight is too large.", "b": "its weight is too large."})
    (found,) = verdict.findings(summary(bad), [bad])
    assert "No update of the last round counted" in found.sentence
    assert "its weight is too large." in found.sentence
    assert verdict.findings(summary(bad), [line(2.3, refused={"a": "odd."})]) == []


def test_a_run_that_learnt_is_not_talked_about() -> None:
    good = line(math.log(10), 0.5)
    assert verdict.findings(summary(good), [good]) == []
    assert verdict.findings(summary(good, {"method.optim.lr": None}), [good]) == []
    untrained = line(None, 0.5, evaluations=good["evaluations"])  # a method that tells no loss in any round
    assert verdict.findings(summary(untrained), [untrained, untrained]) == []


def test_the_most_frequent_class_is_that_of_the_rows_that_were_scored(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, test_fraction=0.4)
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid", test_fraction=0.4)
    labels = dealt.test.labels.tolist()
    assert run.summary["data"]["most_frequent"]["global test"] == max(labels.count(c) for c in set(labels)) / len(labels)
    own = [c.test.labels.tolist() for c in dealt.clients]
    right = sum(max(y.count(c) for c in set(y)) for y in own)
    assert run.summary["data"]["most_frequent"]["own test"] == right / sum(map(len, own))


@pytest.mark.parametrize(("rate", "words"), [(1e30, "The run diverged"), (0.0, "most frequent class")])
def test_the_command_line_says_so_after_the_table(
    rate: float, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    got = command_line.weft(capsys, *command_line.small(tmp_path, "--set", f"method.lr={rate}", "--set", "test_fraction=0.1"))
    assert got.code == 0
    assert words in flowing(got.out)


def test_flat_rows_hold_the_numbers_that_were_printed(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, method="feddat", rounds=3, eval_every=2)
    rows = run.records()
    views = run.summary["method"]["views"]
    assert [(r["round"], r["view"]) for r in rows] == [(1, None), *((n, v) for n in (2, 3) for v in views)]
    assert {n: v for n, v in rows[4].items() if n in run.metrics} == run.metrics
    assert rows[4]["accuracy"] == run.summary["headline"]["value"]
    assert (rows[4]["low"], rows[4]["high"]) == (run.summary["headline"]["low"], run.summary["headline"]["high"])
    assert rows[0]["accuracy"] is None
    assert [r["training_loss"] for r in rows[:2]] == [n["loss"] for n in run.rounds[:2]]
    up = {r["round"]: r["bytes_up"] for r in rows}
    assert sum(up.values()) == sum(p["up"]["wire"] for p in run.summary["bytes"].values())
    assert all(not isinstance(value, dict | list) for r in rows for value in r.values())
    frame = run.table()
    assert list(frame.columns) == list(rows[0])
    assert frame["accuracy"].max() == max(r["accuracy"] for r in rows if r["view"])


def test_a_run_without_any_test_rows_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny.rows(30, 3)
    none = rows.take([])
    clients = [weft.data.ClientData("a", rows, none, none)]
    run = toy_runs.run(
        tmp_path, data=weft.data.FederatedData("mine", toy_runs.CLASSES, clients, none, none, [], "mine"), clients=None
    )
    assert run.metrics == {}
    assert run.summary["headline"] is None
    assert "no test rows" in flowing(capsys.readouterr().out)
