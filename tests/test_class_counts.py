"""Macro-F1 over sites: from counts by class, which tell a histogram of the labels and are told if a file says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import table, weft
from test_answers_fuzz import read, said
from test_leaving import texts
from test_serve import CLASSES, Machines, coordinate, experiment, machines  # noqa: F401 - a fixture
from toy_runs import Told
from weft import experiment as settings
from weft.communication.strict import Refused
from weft.engines.evaluation import answers, macro_f1, pooled, score
from weft.engines.remote import _answers
from weft.methods import FedIT
from weft.testing.sites import remote


def test_counts_of_sites_give_the_macro_f1_of_all_their_rows_together() -> None:
    draw = np.random.default_rng(0)
    logits, labels = torch.from_numpy(draw.normal(size=(40, 4))), draw.integers(0, 3, 40)  # nobody has the last class
    whole = {e.metric: e.value for e in score(logits, labels, view="global", people="global test")}
    cuts = (slice(0, 5), slice(5, 25), slice(25, 40))
    told = [answers(logits[c], labels[c], by_class=True) for c in cuts]
    found = {e.metric: e.value for e in pooled(told, view="global", people="global test")}
    assert found == {n: pytest.approx(v) for n, v in whole.items()}
    assert [a.classes is None for a in (answers(logits, labels), *told)] == [True, False, False, False]
    some = [told[0], answers(logits[5:], labels[5:])]  # one does not say
    assert {e.metric for e in pooled(some, view="global", people="global test")} == {"accuracy", "loss"}
    assert macro_f1([[(0, 2, 2), (0, 1, 1)]]) == 0.0


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
    assert _answers(said(good, b""), 2)["global", "own test"].classes == ((1, 2, 2), (1, 1, 1))
    assert _answers(said(good, b""))["global", "own test"].classes is None  # not asked for, and not read
    good["global"]["own test"]["classes"] = classes
    with pytest.raises(Refused, match="The counts by class"):
        _answers(said(good, b""), 2)
    assert _answers(said({"global": {"own test": {"n": 3, "right": 0, "loss": None}}}, b""), 2)["global", "own test"].blank


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


def test_a_federation_whose_sites_agree_has_a_macro_f1(machines: Machines) -> None:  # noqa: F811
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
