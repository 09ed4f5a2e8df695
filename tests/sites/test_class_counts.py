"""Macro-F1 over sites: from counts by class, which tell a histogram of the labels and are told if a file says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from command_line import table, weft
from experiment_files import texts
from machines import Machines, coordinate, experiment
from raw_messages import read, said
from toy_runs import Told
from weft import experiment as settings
from weft.communication.strict import Refused
from weft.engines.remote import _told, check_told
from weft.errors import UserError
from weft.methods import FedIT
from weft.runs.prepare import bench_of
from weft.tasks.classification import Classification, observed_of
from weft.tasks.counts import Counts, macro_f1
from weft.testing.sites import remote


def test_counts_of_sites_give_the_macro_f1_of_all_their_rows_together() -> None:
    draw = np.random.default_rng(0)
    logits, labels = torch.from_numpy(draw.normal(size=(40, 4))), draw.integers(0, 3, 40)  # nobody has the last class
    task = Classification(tuple("abcd"), ("accuracy", "macro_f1", "matthews", "f1:b", "f1:d", "top5"))
    whole = {s.metric: s.value for s in task.score(observed_of(task, logits, labels))}

    def answers(of: slice, by_class: bool = True) -> Counts:
        return task.read(task.tell(observed_of(task, logits[of], labels[of]), by_class), by_class)

    told = [answers(c) for c in (slice(0, 5), slice(5, 25), slice(25, 40))]
    assert {s.metric: s.value for s in task.pool(told)} == {n: pytest.approx(v) for n, v in whole.items()}
    assert [a.classes is None for a in (answers(slice(0, 40), False), *told)] == [True, False, False, False]
    some = [told[0], answers(slice(5, 40), False)]  # one does not say
    assert {s.metric for s in task.pool(some)} == {"accuracy", "top5", "loss"}
    assert macro_f1(np.array([(0, 2, 2), (0, 1, 1)])) == 0.0


@pytest.mark.parametrize(("classes", "have"), [(2, 2), (7, 7), (7, 6)])  # of the last, nobody has the last class
def test_scores_of_classes_are_those_of_scikit_learn(classes: int, have: int) -> None:
    from sklearn import metrics

    draw = np.random.default_rng(classes)
    logits, labels = torch.from_numpy(draw.normal(size=(60, classes))), draw.integers(0, have, 60)
    names = tuple("abcdefg"[:classes])
    task = Classification(names, ("top5", "matthews", "f1:b", "macro_f1", "accuracy"))
    found = {s.metric: s.value for s in task.score(observed_of(task, logits, labels))}
    given = logits.argmax(1).numpy()
    wanted = {
        "accuracy": metrics.accuracy_score(labels, given),
        "matthews": metrics.matthews_corrcoef(labels, given),
        "f1:b": metrics.f1_score(labels, given, labels=[1], average="macro"),
        "macro_f1": metrics.f1_score(labels, given, average="macro", labels=np.unique(labels)),
        "loss": metrics.log_loss(labels, torch.softmax(logits, 1).numpy(), labels=range(classes)),
        "top5": metrics.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(classes)) if classes > 2 else 1.0,
    }
    assert found == {n: pytest.approx(v) for n, v in wanted.items()}
    assert next(iter(found)) == "top5", "the first is the headline"


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews", "f1:b", "top5"])
def test_the_headline_alone_is_the_first_score_without_its_interval(metric: str) -> None:
    draw = np.random.default_rng(1)
    logits, labels = torch.from_numpy(draw.normal(size=(30, 7))), draw.integers(0, 7, 30)
    task = Classification(tuple("abcdefg"), (metric, "accuracy"))
    seen = observed_of(task, logits, labels)
    first, alone = task.score(seen)[0], task.headline(seen)
    assert (alone.metric, alone.value, alone.low, alone.high) == (first.metric, first.value, None, None)
    assert (first.low is None) == (metric not in ("accuracy", "top5"))
    logits[3, 2] = math.inf
    assert math.isnan(task.headline(observed_of(task, logits, labels)).value)


def test_a_site_that_keeps_back_what_it_is_asked_for_is_refused() -> None:
    """One that leaves it out would take a metric from all."""
    task = Classification(tuple("abcdefg"), ("top5",))
    good: dict[str, Any] = {"n": 3, "right": 1, "loss": 1.0, "top5": 2}
    assert task.read(good, False).top5 == 2
    for odd in (None, 0, 4, 1.5, True, "2"):
        with pytest.raises(Refused, match="not those of a test"):
            task.read(good | {"top5": odd}, False)
    assert Classification(tuple("ab")).read(good, False).top5 is None  # not asked for, and not read
    assert task.read(good | {"loss": None}, False).blank


@pytest.mark.parametrize(("metrics", "fine"), [(("accuracy", "macro_f1"), True), (("macro_f1",), False), (("f1:a",), False)])
def test_a_headline_that_sites_do_not_tell_enough_for_is_refused_before_they_are_asked(
    metrics: tuple[str, ...], fine: bool
) -> None:
    task = Classification(("a", "b"), metrics)
    check_told(task, by_class=True)
    if fine:
        check_told(task, by_class=False)
        return
    with pytest.raises(UserError, match="set class_counts = true"):
        check_told(task, by_class=False)


@pytest.mark.parametrize(
    ("metric", "words"),
    [("acuracy", 'unknown metric "acuracy".* Did you mean "accuracy"'), ("f1", "f1:CLASS"), ("f1:c", 'of the class "c", which')],
)
def test_a_metric_that_there_is_not_is_refused_with_the_nearest_one(metric: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Classification(("a", "b"), (metric,))


@pytest.mark.parametrize(
    "classes",
    [
        None,
        [],
        [[1, 2, 2]],
        [[1, 2, 2], [1, 1]],
        [[1, 2, 2], [1, 1, True]],
        [[1, 2, 2], [1.0, 1, 1]],
        [[-1, 2, 2], [3, 1, 1]],
        [[2, 2, 1], [0, 1, 2]],
        [[1, 2, 1], [1, 1, 1]],
        [[1, 1, 2], [0, 2, 1]],
        {"0": [1, 2, 2]},
    ],
)
def test_counts_that_do_not_add_up_are_refused(classes: Any) -> None:
    good = {"global": {"own test": {"n": 3, "right": 2, "loss": 1.0, "classes": [[1, 2, 2], [1, 1, 1]]}}}
    two = Classification(("a", "b"))
    found: Any = _told(said(good, b""), two, True)["global", "own test"]
    assert found.classes == ((1, 2, 2), (1, 1, 1))
    found = _told(said(good, b""), two, False)["global", "own test"]
    assert found.classes is None  # not asked for, and not read
    good["global"]["own test"]["classes"] = classes
    with pytest.raises(Refused, match="The counts by class"):
        _told(said(good, b""), two, True)
    assert _told(said({"global": {"own test": {"n": 3, "right": 0, "loss": None}}}, b""), two, True)["global", "own test"].blank


def test_nothing_by_class_is_told_unless_it_is_asked_for() -> None:
    for asked in (False, True):
        run, loop = remote(FedIT(batch=3, rank=2, steps=1), rounds=1)
        for site in loop.sites.values():
            site.by_class = asked
        heard: list[bytes] = []
        ask = loop.ask
        loop.ask = lambda q, ask=ask, heard=heard: (found := ask(q), heard.extend(found.values()))[0]  # type: ignore[method-assign, misc]
        run.simulation.round(0)
        heard.clear()
        run.simulation.evaluate(0)
        about = [split for raw in heard for splits in read(raw)[0].values() for split in splits.values()]
        assert about
        assert all(("classes" in a) is asked for a in about)


def test_a_federation_whose_sites_agree_has_a_macro_f1(machines: Machines) -> None:
    file = machines.root / "mine.toml"
    file.write_text(settings.to_toml(settings.resolve(experiment(machines, class_counts=True)).experiment, {}))
    for name in ("north", "south"):
        machines.join(name, experiment=str(file))
    machines.join("odd")  # it has not said that it agrees
    told = Told()
    done = coordinate(machines, told, class_counts=True)
    assert 0 <= done.metrics["macro_f1"] <= 1
    assert not math.isnan(done.metrics["macro_f1"])
    words = "the experiment asks for counts by class, which it gives only with an experiment file of its own that says so."
    assert f"odd does not take part: it refuses: {words}" in told.sentences
    assert any("class_counts = true" in s for s in machines.said["at odd"])


def test_the_dry_run_names_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    file = texts(tmp_path, "fedit")
    for line, named in (("", False), ("class_counts = true\n", True)):
        file.write_text(line + file.read_text())
        got = weft(capsys, "join", file, "--data", rows, "--name", "north", "--device", "cpu", "--dry-run")
        words = " ".join(got.out.split())
        assert ("for each class: how many of those rows have it" in words) is named
        assert ("like a histogram of your labels" in words) is named


@pytest.mark.parametrize(
    ("typed", "classes", "metrics"),
    [
        ({"data": "cola"}, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
        ({"data": "mrpc"}, ("not_equivalent", "equivalent"), ("accuracy", "f1:equivalent")),
        ({"data": "mrpc"}, ("no", "yes"), ("accuracy",)),  # renamed by who declares them
        ({"data": "mrpc", "metrics": ["f1:yes"]}, ("no", "yes"), ("f1:yes",)),
        ({"data": "sst2"}, ("negative", "positive"), ("accuracy", "macro_f1")),
    ],
)
def test_a_set_is_scored_by_what_it_is_reported_in_unless_a_person_says(
    typed: dict[str, Any], classes: tuple[str, ...], metrics: tuple[str, ...]
) -> None:
    x = settings.resolve(typed).experiment
    assert bench_of(x, tiny.backbone("bert", classes=2), classes, tiny.rows(4, 2)).task.metrics == metrics
