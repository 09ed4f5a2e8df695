"""What is exported without a client is what a client gets that was never here, as the run scores it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import weft
from every_method import METHODS, built
from exporting import exported
from toy_runs import Told
from weft.adaptation.optim import Optim
from weft.data import load as load_data
from weft.data.rows import Source
from weft.data.sources import limited
from weft.export import load
from weft.export.about import About
from weft.export.evaluate import evaluate_run
from weft.export.trained import capture
from weft.federation.method import Method
from weft.testing import plays
from weft.testing.federation import federation


@pytest.mark.parametrize("slug", METHODS)
def test_a_new_client_s_scores_are_those_of_the_exported_model(slug: str) -> None:
    """In every view, and after enough rounds that the server holds something of every kind."""
    method = plays.steady(built(slug))
    rounds = max(2, plays.exchanges(method))
    run = federation(method, plays.shallow(method), sizes=plays.SIZES, rounds=rounds).run()
    rows = run.simulation.setup.tests.unseen["stranger"]
    task: Any = run.bench.task
    if task.samples:  # the run has written texts for all four rows
        task = replace(task, samples=len(run.bench.table))
    scores = [e for e in run.simulation.evaluate(rounds - 1) if e.people == "new clients"]
    for view in method.views:
        trained = capture(method, run.server, view)
        seen = trained.observe(run.bench.backbone, task, run.bench.table).take(rows)
        found = {s.metric: s.value for s in task.score(seen)}
        wanted = {e.metric: e.value for e in scores if e.view == view and e.pooling == "pooled"}
        assert wanted, "the run scores nobody who is new in this view"
        # relative too: a perplexity is in the hundreds, and what is exported is of single precision
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6, nan_ok=True)


def test_weft_eval_gives_what_the_run_found_of_new_clients(tmp_path: Path) -> None:
    glyphs = limited(load_data("glyphs"), 40, 0)
    settings = {"epochs": 1, "batch": 8, "server_lr": 0.5}
    run = weft.run(
        "pfedpg", data=glyphs, model="drawn-vit", clients=2, rounds=2, parameters=settings, precision="float32", baselines=[],
        recipes=False, quiet=True, runs=tmp_path,
    )  # fmt: skip
    view = About.read(run.folder / "adapter").view
    scores = run.rounds[-1]["evaluations"]
    wanted = {e["metric"]: e["value"] for e in scores if e["people"] == "new clients" and e["view"] == view}
    (unseen,) = glyphs.unseen.values()
    found = evaluate_run(run.folder, Source("new", glyphs.classes, unseen), precision="float32")
    assert {e["metric"]: e["value"] for e in found} == pytest.approx(wanted, abs=1e-5)


def said_of(method: Method, folder: Path, client: int | None = None) -> tuple[str, str]:
    """Of an export: what of it is untrained, and all that is said of it."""
    run = federation(method, plays.shallow(method, "float32"), sizes=(5, 4), rounds=2).run()
    chosen = None if client is None else run.clients[client]
    if chosen is not None:
        run.simulation.setup.store.load(chosen)
    report = exported(run, folder, client=chosen)
    told = Told()
    load(folder, device="cpu", precision="float32", observer=told)
    assert told.sentences == [note for note in report.notes if "untrained" in note], "whoever loads it is told the same"
    return About.read(folder).untrained, " ".join(report.notes)


@pytest.mark.parametrize(
    ("slug", "untrained"), [("fedpcl", "model"), ("fedhpl", "model"), ("pfedpg", "head"), ("fedalt", "head"), ("fedbf", "")]
)
def test_an_export_that_nothing_was_learnt_of_says_so(slug: str, untrained: str, tmp_path: Path) -> None:
    found, said = said_of(plays.small(built(slug)), tmp_path)
    assert found == untrained
    what = {"model": "This model is untrained: ", "head": "The head of this model is untrained, so that it guesses: "}
    told = f"{what[untrained]}{slug} trains a model of each client's own; weft export RUN --client ID" if untrained else ""
    assert told in said
    assert ("untrained" in said) == bool(untrained)


def test_a_client_s_own_model_is_trained(tmp_path: Path) -> None:
    assert said_of(plays.small(built("fedhpl")), tmp_path, client=0)[0] == ""


def test_a_run_that_has_moved_nothing_says_so(tmp_path: Path) -> None:
    method = replace(plays.small(built("fedbf")), optim=Optim("sgd", lr=0.0))
    found, said = said_of(method, tmp_path)
    assert found == "model"
    assert "This model is untrained: its run has changed no value of it." in said
