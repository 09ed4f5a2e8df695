"""One finite update of absurd size, or a state that nobody can train on, does not end a federation: it is refused, or undone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import toy_runs
from coordinators import Coordinator
from every_method import TERMS, TRAVELS, small, some
from raw_messages import edited, read
from toy_runs import Killed
from weft.engines.evaluation import per_client
from weft.engines.question import Question
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation import exchange
from weft.federation.message import Value
from weft.federation.usual import WINDOW, Usual, moved
from weft.report import terminal
from weft.runs import prepare
from weft.runs.checkpoint import Checkpoint, Kept, digest
from weft.runs.recovery import PATIENCE, STATES, Recovery
from weft.runs.result import best_by_validation, metrics
from weft.tasks.classification import Classification, observed_of
from weft.tasks.counts import Counts
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote

HUGE = 9e14  # below the bound of a message
GONE = 1e30  # gives no number in any tiny model: their norms heal what is smaller, which those of a large one do not

# what is usual ------------------------------------------------------------------------------------------------------------


def test_an_update_is_judged_by_the_lower_median_of_what_was_accepted_in_rounds_of_its_kind() -> None:
    usual = Usual(10.0)
    assert usual.limit("a", []) is None
    assert usual.limit("a", [0.0, 0.0]) is None  # nobody has moved: there is nothing to go by
    assert usual.limit("a", [1.0, HUGE]) == 10.0
    usual.accepted("a", [2.0, 4.0, 0.0, 6.0])
    assert usual.limit("a", []) == 40.0
    assert usual.limit("a", [HUGE, HUGE]) == 60.0
    assert usual.limit("b", [3.0]) == 30.0
    usual.accepted("a", [100.0] * WINDOW)
    assert usual.limit("a", []) == 1000.0
    assert len(usual.seen["a"]) == WINDOW
    assert Usual(10.0, usual.seen).limit("a", []) == 1000.0
    usual.accepted("a", [1.0] * WINDOW)
    assert usual.limit("a", []) == 10.0  # what was usual long ago is forgotten


@pytest.mark.parametrize(("refused", "good"), [("", True), ("a", True), ("ab", False), ("abc", False)])
def test_a_state_is_good_where_no_more_sites_failed_on_it_than_counted(refused: str, good: bool) -> None:
    counted = [c for c in "abcd" if c not in refused + "d"]
    engine: Any = SimpleNamespace(setup=SimpleNamespace(federations=[]), intake=SimpleNamespace(usual=None, counted=counted))
    watch = Recovery(engine, Checkpoint(Path()), Kept("now", "", []), 1)
    watch.trained({"refused": dict.fromkeys(refused, "not finite"), "lost": ["d"], "cohort": list("abcd")})
    assert bool(watch.good) is good


def test_with_a_state_comes_back_what_was_usual_on_the_way_to_it(tmp_path: Path) -> None:
    run = tiny.federation(small("fedit"), max_factor=10.0)
    engine, checkpoint = run.simulation, Checkpoint(tmp_path)
    assert engine.intake.usual is not None
    watch = Recovery(engine, checkpoint, checkpoint.keep("start.safetensors", [run.server.tensors_and_json()]), 1)
    engine.round(0)
    watch.trained({"refused": {}, "lost": [], "cohort": ["client-0"]})
    assert engine.intake.usual.seen["train"]
    engine.intake.counted = []
    assert watch.trained({"refused": {"client-0": "not finite"}, "lost": [], "cohort": ["client-0"]}) == 1
    assert engine.intake.usual.seen == {}, "before the first round nothing was"


def test_an_update_has_moved_by_its_difference_to_what_was_sent_and_by_all_that_was_not() -> None:
    held: dict[str, Value] = {"a": torch.full((2,), 1e6), "c": torch.zeros(3)}
    update: dict[str, Value] = {"a": torch.tensor([1e6 + 3, 1e6]), "b": torch.tensor([4.0]), "n": torch.tensor([7])}
    assert moved(update, held) == pytest.approx(5.0)
    assert moved({"a": torch.full((4,), 1e15)}, {}) == pytest.approx(2e15)
    assert moved({}, held) == 0.0


# a state that comes back --------------------------------------------------------------------------------------------------


NOTING = {"cell"}
"""Whose clients note how often they have lagged behind, by which they train, before they keep any tensor."""


@pytest.mark.parametrize(("away", "to"), [(True, 0), (True, 2), (False, 0)])
@pytest.mark.parametrize("slug", some(TRAVELS, ("fedit", TERMS)))
def test_to_roll_a_round_back_is_not_to_have_played_it(slug: str, away: bool, to: int) -> None:
    """For all that the server holds at once, and in later rounds too unless clients have learnt in it for themselves."""
    first = tiny.federation(small(slug), rounds=5)
    first.simulation.round(0)
    personal = slug in NOTING or any(name.startswith("client-") for name in state(first))

    def play(back: bool) -> tiny.Federation:
        run = remote(small(slug), rounds=5)[0] if away else tiny.federation(small(slug), rounds=5)
        for t in range(to):
            run.simulation.round(t)
        if back:
            before = held(run)
            tensors, plain = copy.deepcopy(run.server.tensors_and_json())
            run.simulation.round(to)
            run.server.roll_back(tensors, plain)
            assert_same(before, held(run), 0.0)
        for t in range(to + 1, to + 1 if personal else 5):
            run.simulation.round(t)
        return run

    def held(run: tiny.Federation) -> dict[str, Tensor]:
        return {n: v for n, v in state(run).items() if not n.startswith("client-")}

    assert_same(held(play(back=True)), held(play(back=False)), 1e-9)


# whole runs, with a coordinator that sees nothing but bytes ---------------------------------------------------------------


def scaled(to: float) -> Callable[[dict[str, Value]], dict[str, Value]]:
    """Every element is that large, with the sign that it had."""

    def edit(tensors: dict[str, Value]) -> dict[str, Value]:
        return {n: torch.where(v < 0, -to, to).to(v.dtype) if isinstance(v, Tensor) else v for n, v in tensors.items()}

    return edit


class Attacked(Coordinator):
    """A run whose first client sends updates of a size, in some rounds, and whose coordinator may set other settings."""

    def __init__(
        self,
        root: Path,
        patch: pytest.MonkeyPatch,
        bad: Mapping[int, float] | None = None,
        slug: str = "fedit",
        rounds: int = 5,
        attackers: int = 1,
        **more: Any,
    ):
        super().__init__(slug, root, patch)
        self.bad, self.attackers = dict(bad or {}), attackers
        wanted = self.x.flat() | {"rounds": rounds, "recipes": False} | more
        self.x = resolve({n: v for n, v in wanted.items() if v is not None and not n.startswith("method.")}).experiment

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        found = dict(super().ask(questions))
        asked = Question.decode(next(iter(questions.values())))
        if asked.what == "train" and asked.round.index in self.bad:
            for client in sorted(found)[: self.attackers]:
                if read(found[client])[0].get("update"):
                    found[client] = edited(found[client], scaled(self.bad[asked.round.index]))
        return found

    def saved(self) -> Any:
        return Checkpoint(self.root / "run" / "checkpoint").load()


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    toy_runs.light(monkeypatch)
    import os

    monkeypatch.setattr(os, "fsync", lambda _: None)
    return monkeypatch


@pytest.fixture
def single(patch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """In single precision, as real sites compute: there the square of such a number is none any more."""

    def load(name: str, *, classes: tuple[str, ...], task: str = "auto", **_: Any) -> Any:
        kind = Path(name).name.split("-")[0]
        kind = kind if kind in tiny.IMAGES else "bert"
        return tiny.backbone(kind, classes=len(classes), task=task, precision="float32")

    patch.setattr(prepare, "load_backbone", load)
    patch.setattr(exchange, "LARGEST", 1e38)
    return patch


@pytest.mark.parametrize("slug", ["fedit", "flora", "fedsa-lora", "pfedpg", "fedhpl"])
@pytest.mark.parametrize("at", [0, 2])
def test_an_update_of_absurd_size_is_refused_and_the_round_is_that_in_which_its_sender_was_silent(
    slug: str, at: int, tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    run = Attacked(tmp_path, patch, {at: HUGE}, slug, rounds=4)
    lines = run.play()
    assert len(lines) == 4
    assert [list(line["refused"]) for line in lines] == [["c0"] if t == at else [] for t in range(4)]
    assert "is the most that this federation's updates so far allow (max_factor)" in lines[at]["refused"]["c0"]
    assert all("back_to" not in line for line in lines)
    saved = run.saved()
    assert max(float(v.abs().max()) for tensors, _ in saved.servers for v in tensors.values()) < 1e4
    assert all(e["value"] is not None for line in lines for e in line["evaluations"])


@pytest.mark.parametrize(("slug", "size"), [("fedit", GONE), ("flora", HUGE), ("fedsa-lora", GONE), ("pfedpg", GONE)])
def test_where_its_size_is_not_judged_the_last_good_state_comes_back_and_the_run_goes_on(
    slug: str, size: float, tmp_path: Path, single: pytest.MonkeyPatch
) -> None:
    """The factor is as good as off, so that the update counts and honest sites begin to fail."""
    run = Attacked(tmp_path, single, {2: size}, slug, rounds=6, max_factor=1e40)
    lines = run.play()
    back = [line["round"] for line in lines if "back_to" in line]
    assert back in ([2], [3])  # as soon as most sites' scores, or else their updates, are not finite
    assert all(line["back_to"] <= 2 for line in lines if "back_to" in line)
    assert any("back to a state on which they did not" in s for s in run.told.sentences)
    assert lines[-1]["refused"] == {}
    assert all(e["value"] is not None for e in lines[-1]["evaluations"])
    saved = run.saved()
    assert max(float(v.abs().max()) for tensors, _ in saved.servers for v in tensors.values()) < 1e4
    for site in run.sites.values():  # nor do they remember anything of it
        site.store.load(site.client)
        assert all(bool(torch.isfinite(v).all()) for v in site.client.kept.values())


def test_an_attack_on_the_last_round_leaves_the_model_before_it(tmp_path: Path, single: pytest.MonkeyPatch) -> None:
    run = Attacked(tmp_path, single, {3: GONE}, rounds=4, max_factor=1e40)
    lines = run.play()
    assert lines[-1]["back_to"] == 3
    assert all(e["value"] is not None for e in lines[-1]["evaluations"])


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_coordinator_that_is_killed_on_the_way_back_goes_on_as_one_that_was_not(
    at: int, tmp_path: Path, single: pytest.MonkeyPatch
) -> None:
    about: dict[str, Any] = {"rounds": 6, "max_factor": 1e40, "slug": "fedsa-lora"}
    with single.context() as one:
        whole = Attacked(tmp_path / "whole", one, {2: GONE}, **about)
        whole.play()
    with single.context() as two:
        cut = Attacked(tmp_path / "cut", two, {2: GONE}, **about)
        cut.die = ("train", at)
        with pytest.raises(Killed):
            cut.play()
        cut.play()
    assert digest(cut.root / "run") == digest(whole.root / "run")
    assert cut.saved().usual == whole.saved().usual
    assert [g["round"] for g in cut.saved().recovery["good"]] == [g["round"] for g in whole.saved().recovery["good"]]


def test_what_is_usual_survives_a_restart(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """Two of three are bad in one round: only what was seen before tells who."""
    run = Attacked(tmp_path, patch, {2: HUGE}, rounds=4, attackers=2)
    run.die = ("train", 2)
    with pytest.raises(Killed):
        run.play()
    lines = run.play()
    assert list(lines[2]["refused"]) == ["c0", "c1"]


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    run = Attacked(tmp_path, patch, {3: HUGE}, rounds=4)
    run.die = ("train", 2)
    with pytest.raises(Killed):
        run.play()
    from weft.storage import files

    file = tmp_path / "run" / "checkpoint" / "state.json"
    state = files.read_sealed(file)
    del state["usual"], state["recovery"]
    files.write_sealed(file, state)
    for path in file.parent.glob("*.safetensors"):
        if path.name != state["tensors"]["file"]:
            path.unlink()
    lines = run.play()
    assert [list(line["refused"]) for line in lines] == [[], [], [], ["c0"]]


def test_the_last_few_good_states_are_kept_and_no_more(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    run = Attacked(tmp_path, patch, rounds=6)
    run.play()
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoint").glob("*.safetensors"))
    assert names == [f"server-{n:06d}.safetensors" for n in (3, 4, 5)] + ["server-000006-end.safetensors"]
    assert len(names) == STATES + 1
    assert [g["round"] for g in run.saved().recovery["good"]] == [3, 4, 5]


def test_a_run_in_which_nothing_counts_stops_with_a_sentence_and_tries_again_when_it_is_begun_again(
    tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    run = Attacked(tmp_path, patch, dict.fromkeys(range(2, 40), math.inf), rounds=40, attackers=3)
    for tries in (1, 2):
        with pytest.raises(UserError, match=f"no round has counted for {PATIENCE} rounds in a row: .* the same command goes on"):
            run.play()
        assert run.saved().next == 2 + tries * PATIENCE
    run.bad = {}
    lines = run.play()
    assert len(lines) == 40
    assert lines[-1]["refused"] == {}
    assert {line["back_to"] for line in lines if "back_to" in line} == {0, 1}


def test_sites_that_stay_away_for_rounds_on_end_stop_the_run_too(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    run = Attacked(tmp_path, patch, rounds=30)
    run.ask = lambda questions: {}  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no round has counted"):
        run.play()


def test_a_method_that_sends_something_once_is_no_reason_to_stop(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    run = Attacked(tmp_path, patch, slug="mpft", rounds=PATIENCE + 3)
    run.play()
    assert run.saved().finished


def test_a_simulation_judges_nobody_unless_it_is_asked_to(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    plain, asked = toy_runs.run(tmp_path, name="a"), toy_runs.run(tmp_path, name="b", max_factor=1000.0)
    assert digest(plain.folder) == digest(asked.folder)
    for run, judged in ((plain, False), (asked, True)):
        saved = Checkpoint(run.folder / "checkpoint").load()
        assert saved is not None
        assert (saved.usual is not None) is judged
        assert (saved.recovery is not None) is judged


@pytest.mark.parametrize("given", [0.5, 1, "always"])
def test_a_factor_is_a_number_above_one_or_a_word(given: Any) -> None:
    with pytest.raises(UserError, match="max_factor is"):
        resolve({"max_factor": given})


# numbers that are none ------------------------------------------------------------------------------------------------------


def test_scores_of_logits_that_are_not_finite_are_no_numbers() -> None:
    """The largest of NaNs is the first class: an accuracy that looks like one."""
    import numpy as np

    task, logits, labels = Classification(("a", "b", "c")), torch.zeros(4, 3), np.zeros(4, dtype=np.int64)
    assert task.score(observed_of(task, logits, labels))[0].value == 1.0
    for odd in (math.nan, math.inf, -math.inf):
        logits[2, 1] = odd
        seen = observed_of(task, logits, labels)
        found = task.score(seen)
        assert {s.metric for s in found} == {"accuracy", "macro_f1", "loss"}
        assert all(math.isnan(s.value) and s.low is None for s in found)
        assert task.read(task.tell(seen, True), True).blank


def test_a_site_whose_logits_are_not_finite_has_no_say_in_the_scores_of_the_others() -> None:
    task, finite, blank = Classification(("a", "b")), Counts(10, 5, 10.0), Counts(30, 0, math.nan)
    by_metric = {s.metric: s.value for s in task.pool([finite, blank])}
    assert (by_metric["accuracy"], by_metric["loss"]) == (0.5, 1.0)
    assert all(math.isnan(s.value) for s in task.pool([blank, blank]))
    assert per_client({}, "accuracy", view="global", people="own test") == []


def test_tables_show_a_dash_for_what_is_no_number() -> None:
    def line(t: int, value: float | None) -> dict[str, Any]:
        common = {"view": "global", "moment": "received", "pooling": "pooled", "n": 9}
        kinds = [("global test", "accuracy"), ("global test", "loss"), ("validation", "accuracy")]
        return {
            "round": t,
            "loss": None,
            "evaluations": [common | {"people": p, "metric": m, "value": value} for p, m in kinds],
        }

    row = terminal.round_row(line(1, None))
    assert row is not None
    assert row.plain.split() == ["2", *["-"] * 8]
    assert metrics([line(1, None)]) == {}
    best = best_by_validation([line(0, 0.5), line(1, None)])
    assert best is not None
    assert best["round"] == 0
    assert best_by_validation([line(1, None)]) is None


def test_a_simulation_that_diverges_ends_with_dashes_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = toy_runs.Told()
    run = toy_runs.run(tmp_path, observer=told, precision="float32", parameters={"optim.lr": 1e30, "optim.kind": "sgd"})
    assert run.finished
    assert "bug" not in " ".join(told.sentences)
    from rich.console import Console

    terminal.closing(Console(), run.summary, run.rounds)
