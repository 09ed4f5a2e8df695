"""FedAdapter against its card: rounds of trials in plain PyTorch, the recorded runs, what grows, what travels, what is left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, Sizes, Turn
from exporting import RUN_CLOSE, exported
from weft.aggregation.side_trials import Group
from weft.backbones.model_site import Site
from weft.contract import ClientInfo, Optim, Tune
from weft.errors import UserError
from weft.experiment import resolve
from weft.export import load
from weft.federation.info import common
from weft.federation.scope import Scope
from weft.methods import FedAdapter, FedAvg
from weft.tasks.kinds import GENERATION, TOKENS
from weft.testing import of_rules, of_runs
from weft.testing.compare import assert_same, logits
from weft.testing.data import states
from weft.testing.plays import Plays

RATE, UNIT = 0.3, 8
SMALL = FedAdapter(
    depth=1,
    trial=0.3,
    per_group=1,
    score_every=2,
    batches=1.0,
    batch=2,
    max_width=24,
    optim=Optim("sgd", lr=RATE, clip=1.0),
)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7, 4, 3), "rounds": 9, "public": 40}
Values = Mapping[str, Tensor]


def federation(method: FedAdapter = SMALL, **more: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **ABOUT | more)


# the reference ------------------------------------------------------------------------------------------------------------


@contextmanager
def stacked(run: tiny.Federation, values: Values) -> Iterator[None]:
    """Stacks of adapters at the norms that end blocks: s ← s + U ReLU(D LN(s) + b) + b', again for each."""
    handles = []
    for site in {n.split("/")[1] for n in values if n.startswith("adapter/")}:
        down, down_bias, up, up_bias = (values[f"adapter/{site}/{role}"] for role in ("down", "down_bias", "up", "up_bias"))

        def after(norm: Any, args: Any, _out: Tensor, w: Any = (down, down_bias, up, up_bias)) -> Tensor:
            s = args[0]
            for d, b, u, c in zip(*w, strict=True):
                z = F.layer_norm(s, s.shape[-1:], norm.weight, norm.bias, norm.eps)
                s = s + torch.clamp(z @ d.T + b, min=0) @ u.T + c
            return F.layer_norm(s, s.shape[-1:], norm.weight, norm.bias, norm.eps)

        handles.append(run.bench.backbone.model.get_submodule(site).register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def predict(run: tiny.Federation, values: Values, rows: np.ndarray) -> Tensor:
    with stacked(run, values):
        return by_hand.logits(run, {n: v for n, v in values.items() if n.startswith("head/")}, rows)


def accuracy(run: tiny.Federation, values: Values) -> float:
    """On the server's rows."""
    public = run.server.public
    assert public is not None
    table, own = run.bench.table, public.table
    try:
        run.bench.table = own
        right = predict(run, values, np.arange(len(own))).argmax(1).numpy() == own.labels
    finally:
        run.bench.table = table
    return float(right.mean())


def starts(run: tiny.Federation, depth: int, width: int) -> dict[str, Tensor]:
    """Start values of a configuration, drawn for the most units that there may be."""
    found = {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}
    method = run.method
    assert isinstance(method, FedAdapter)
    whole = replace(method, depth=LAYERS, width=method.max_width, deeper=0, wider=0)
    fresh = by_hand.start_of(tiny.federation(whole, "bert", sizes=(1,), seed=run.server.seed))
    for i in range(LAYERS - depth, LAYERS):
        found |= {n: v[: width // UNIT] for n, v in fresh.items() if f"layer.{i}." in n and n.startswith("adapter/")}
    return found


def cost(depth: int, width: int, batches: float) -> float:
    return 2 * 4 * (0.02 + 0.05 * depth * width / 32) + batches * (0.02 if depth == 0 else 0.09 * depth)


@dataclass
class Reference:
    """The server, with groups as (depth, width, values, rounds, played, best score, its values)."""

    run: tiny.Federation
    depth: int
    width: int
    values: dict[str, Tensor]
    seconds: float = 0.0
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    switches: list[tuple[str, int, int]] = field(default_factory=list)

    def begin(self) -> None:
        method = self.run.method
        assert isinstance(method, FedAdapter)
        wide = (self.depth, min(self.width + UNIT, method.max_width))
        deep = (min(LAYERS, self.depth + 1 if self.depth else 2), self.width)
        self.groups, self.length = {}, method.trial * (4 * self.depth + 1)
        for name, (depth, width) in {"stay": (self.depth, self.width), "wide": wide, "deep": deep}.items():
            if name != "stay" and (depth, width) == (self.depth, self.width):
                continue
            fresh = starts(self.run, depth, width)
            mine = {n: torch.cat([self.values[n], v[len(self.values[n]) :]]) if n in self.values else v for n, v in fresh.items()}
            price = cost(depth, width, 1.0)
            rounds = max(1, math.floor(self.length / price))
            self.groups[name] = {"depth": depth, "width": width, "now": mine, "cost": price, "rounds": rounds, "played": 0}

    def play(self, t: int, who: Mapping[str, str], away: str) -> tuple[dict[str, Tensor], list[Any]]:
        """What the server holds after round t, and what it says of it."""
        run, method = self.run, self.run.method
        ends: dict[str, list[tuple[int, dict[str, Tensor]]]] = {}
        for k, client in enumerate(run.clients):
            if client.id not in who or client.id == away or not client.n:
                continue
            steps = by_hand.steps_of(run, k, t)
            now = self.groups[who[client.id]]["now"]
            sgd = lambda moving: torch.optim.SGD(moving, RATE)  # noqa: E731
            end = by_hand.train(run, now, steps, sgd, linear=True, clip=1.0, predict=predict)
            ends.setdefault(who[client.id], []).append((client.n if method.weighting == "examples" else 1, end))
        for name, some in ends.items():
            total = sum(n for n, _ in some)
            self.groups[name]["now"] = {x: sum(n / total * end[x] for n, end in some) for x in self.groups[name]["now"]}
        for name in sorted(set(who.values())):
            self.groups[name]["played"] += 1
        last = t == run.rounds - 1
        for name, own in self.groups.items():
            ended = own["played"] == own["rounds"] or own["played"] % method.score_every == 0
            if (ended and name in who.values()) or (last and own["played"]):
                score = accuracy(run, own["now"])
                if score > own.get("score", -1.0):
                    own["score"], own["best"] = score, own["now"]
        scores = {name: self.groups[name]["score"] for name in ("stay", "wide", "deep") if "score" in self.groups.get(name, {})}
        best = max(scores, key=lambda name: scores[name]) if scores else None
        held = self.values if best is None else self.groups[best]["best"]
        at = self.groups[best or "stay"]
        elapsed = max(own["played"] * own["cost"] for own in self.groups.values())
        said = [at["depth"], at["width"], self.seconds + elapsed]
        if all(own["played"] == own["rounds"] for own in self.groups.values()):
            assert best is not None
            self.switches.append((best, at["depth"], at["width"]))
            self.seconds += max(self.length, elapsed)
            self.depth, self.width, self.values = at["depth"], at["width"], held
            self.begin()
        return held, said


def held_by_server(run: tiny.Federation, wanted: Values, tolerance: float) -> None:
    """All of these, and zeros wherever the server has room for more."""
    for name, value in by_hand.shared(run).items():
        own = wanted.get(name, value[:0])
        by_hand.close(value[: len(own)], own, tolerance)
        assert not bool(value[len(own) :].any()), name


@pytest.mark.parametrize(
    ("settings", "seed"),
    [({}, 3), ({}, 7), ({"depth": 0, "trial": 0.8}, 3), ({"per_group": 2}, 3), ({"weighting": "uniform", "per_group": 2}, 3)],
)
def test_rounds_of_trials_are_those_of_plain_pytorch(settings: dict[str, Any], seed: int) -> None:
    """Each client is away for a while: undrawn, or drawn without an answer."""
    method = replace(SMALL, **settings)
    more = {} if method.per_group == 1 else {"sizes": (6, 5, 7, 4, 3, 0, 5)}
    run = federation(method, seed=seed, **more)
    reference = Reference(run, method.depth, UNIT, starts(run, method.depth, UNIT))
    reference.begin()
    held_by_server(run, reference.values, 0.0)
    wanted: Values = {}
    for t in range(run.rounds):
        assert run.method.plan(run.server, t) is not None
        who = dict(run.server.memo["who"])
        away = sorted(who)[-1] if t in (2, 5) else ""
        wanted, said = reference.play(t, who, away)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.drops_out", lambda _seed, client, *_, away=away: client == away)
            record = run.simulation.round(t)
        assert record is not None
        assert record["cohort"] == sorted(who)
        assert record["lost"] == ([away] if away else [])
        held_by_server(run, wanted, 1e-10)
        assert run.server.memo["schedule"][-1] == pytest.approx(said)
    assert {name for name, _, _ in reference.switches} - {"stay"}, "nothing has grown"
    rows = np.arange(8)
    by_hand.close(run.global_logits(rows, dtype=torch.float64), predict(run, wanted, rows), 1e-9)


# the controller -----------------------------------------------------------------------------------------------------------


def scripted(method: FedAdapter, winners: list[str]) -> tuple[list[tuple[int, int, int]], dict[str, int]]:
    """(round, depth, width) after each trial, where nobody trains and the groups named win; and the rounds of each group."""
    run = tiny.federation(method, "bert", sizes=(1, 1, 1), rounds=2000, public=1)
    server, memo, found = run.server, run.server.memo, []
    counts: dict[str, int] = {}
    at, trial = -1, 0

    def scored(self: FedAdapter, server: Any, group: str, own: Group) -> Group:
        self._note(server, "best", group, self._noted(server, "now", group))
        return replace(own, score=float(group == winners[trial]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedAdapter, "_scored", scored)
        for t in range(server.rounds):
            plan = method.plan(server, t)
            assert plan is not None
            server.round = plan
            for group in set(memo["who"].values()):
                counts[f"{trial} {group}"] = counts.get(f"{trial} {group}", 0) + 1
            method.aggregate(server, [])
            if all(own["played"] == 0 for own in memo["groups"].values()):
                at += counts[f"{trial} {winners[trial]}"] - 1
                found.append((at, memo["depth"], memo["width"]))
                trial += 1
                if trial == len(winners):
                    break
    return found, counts


def test_the_server_switches_where_the_recorded_run_on_20news_does() -> None:
    """Its log counts the winner's rounds from -1, less one at each switch."""
    found, counts = scripted(FedAdapter(batches=29), ["wide", "deep", "wide"])
    assert found == [(79, 0, 16), (88, 2, 16), (177, 2, 24)]
    assert counts["0 deep"] == 10
    assert counts["1 stay"] == counts["1 wide"] == 81


def test_the_server_switches_where_the_recorded_run_on_onto_does() -> None:
    found, _ = scripted(FedAdapter(depth=1, batches=20, trial=90), ["wide", "stay", "stay", "deep"])
    assert found == [(206, 1, 16), (413, 1, 16), (620, 1, 16), (727, 2, 16)]


def test_the_last_trial_has_one_group_and_nothing_grows_beyond() -> None:
    method = FedAdapter(depth=2, width=16, max_width=24, batches=30)
    found, counts = scripted(method, ["deep", "wide", "stay", "stay"])
    assert [switch[1:] for switch in found] == [(3, 16), (3, 24), (3, 24), (3, 24)]
    assert {name for name in counts if name[0] == "3"} == {"3 stay"}
    assert {name for name in counts if name[0] == "1"} == {"1 stay", "1 wide"}


def test_a_trial_lasts_as_long_as_its_formula_says_and_batches_follow_from_the_rows() -> None:
    run = federation(replace(SMALL, batches=None, epochs=2.0))
    rows = [6, 5, 7, 4, 3]
    batches = 2 * np.mean([math.ceil(n / SMALL.batch) for n in rows])
    assert {g: own["cost"] for g, own in run.server.memo["groups"].items()} == pytest.approx(
        {"stay": cost(1, 8, batches), "wide": cost(1, 16, batches), "deep": cost(2, 8, batches)}
    )
    steps = federation(replace(SMALL, batches=None, steps=7))
    assert steps.server.memo["groups"]["deep"]["cost"] == pytest.approx(cost(2, 8, 7))
    run = federation()
    for t in range(4):
        run.simulation.round(t)
    assert run.server.memo["seconds"] == pytest.approx(0.3 * 5)
    seconds = [at for _, _, at in run.server.memo["schedule"]]
    assert seconds == sorted(seconds)
    assert seconds[0] == pytest.approx(cost(2, 8, 1))


def test_groups_are_of_other_clients_and_of_as_many_each() -> None:
    run = federation(replace(SMALL, per_group=2), sizes=(3,) * 7)
    plan = run.method.plan(run.server, 0)
    assert plan is not None
    who = run.server.memo["who"]
    assert plan.who == sorted(who)
    assert sorted(who.values()) == ["deep", "deep", "stay", "stay", "wide", "wide"]
    assert run.method.plan(run.server, 0) == plan
    assert run.server.memo["who"] == who
    drawn = [tuple(sorted(run.method._dealt(run.server, run.method._groups(run.server), t))) for t in range(9)]  # type: ignore[attr-defined]
    assert len(set(drawn)) > 3


@pytest.mark.parametrize("clients", [1, 2])
def test_where_there_are_fewer_clients_than_groups_these_take_turns(clients: int) -> None:
    run = federation(sizes=(3,) * clients, rounds=12)
    seen = set[str]()
    for t in range(12):
        run.simulation.round(t)
        seen |= {g for g, own in run.server.memo["groups"].items() if own["played"]}
    assert seen == {"stay", "wide", "deep"}
    assert run.server.memo["seconds"] > 0


# values -------------------------------------------------------------------------------------------------------------------


def noted(run: tiny.Federation, which: str) -> dict[str, dict[str, Tensor]]:
    """Group -> its values in the server's memo."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in run.server.memo.items():
        if key.startswith(f"{which}/"):
            group, name = key.removeprefix(f"{which}/").split("|")
            found.setdefault(group, {})[name] = value
    return found


def test_all_groups_begin_alike_and_losers_leave_no_trace() -> None:
    run, spoilt = federation(seed=3), federation(seed=3)
    for t in range(4):
        if t == 3:  # the wide group wins; what another has come to before its last round is lost
            assert by_hand.known(run).keys() == by_hand.known(spoilt).keys()
            for key, value in spoilt.server.memo.items():
                if key.startswith(("now/stay|adapter", "best/stay|", "best/deep|")):
                    spoilt.server.memo[key] = value + 7.0
        run.simulation.round(t)
        spoilt.simulation.round(t)
    assert (run.server.memo["depth"], run.server.memo["width"]) == (1, 16)
    assert not noted(run, "best")
    held, groups = by_hand.shared(run), noted(run, "now")
    fresh = starts(run, LAYERS, 24)
    assert {name: len(own) for name, own in groups.items()} == {"stay": 6, "wide": 6, "deep": 10}
    for own in groups.values():
        for name, value in own.items():
            had = 0 if "layer.1" in name else 2 if name.startswith("adapter") else len(value)
            assert torch.equal(value[:had], held[name][:had])
            assert torch.equal(value[had:], fresh[name][had : len(value)])
    assert_same(by_hand.known(run), by_hand.known(spoilt), 0.0)


def test_a_client_holds_the_last_blocks_of_its_group_and_no_other() -> None:
    run = federation(seed=3, rounds=8)
    updates = by_hand.record(run)
    seen = set[tuple[int, int]]()
    for t in range(8):
        run.method.plan(run.server, t)
        groups, who = run.server.memo["groups"], dict(run.server.memo["who"])
        run.simulation.round(t)
        for update in updates[-1]:
            own = groups[who[update.client.id]]
            stack = {n: v for n, v in update.tensors.items() if n.startswith("adapter/")}
            assert {int(n.split("layer.")[1][0]) for n in stack} == set(range(LAYERS - own["depth"], LAYERS))
            assert {len(v) for v in stack.values()} == {own["width"] // UNIT}  # type: ignore[arg-type]
            numbers = sum(v.numel() for v in stack.values())  # type: ignore[union-attr]
            assert numbers == own["depth"] * (own["width"] // UNIT) * (2 * UNIT * D + UNIT + D)
            assert sum(v.numel() for n, v in update.tensors.items() if n.startswith("head/")) == sum(HEAD)  # type: ignore[union-attr]
            seen.add((own["depth"], own["width"]))
    assert {(1, 8), (2, 8), (1, 16), (2, 16)} <= seen


def test_a_new_unit_changes_little_and_with_a_zero_projection_nothing() -> None:
    run = federation(seed=3).run(4)
    groups, rows = noted(run, "now"), np.arange(10)
    stay, wide, deep = (predict(run, groups[name], rows) for name in ("stay", "wide", "deep"))
    for other in (wide, deep):
        assert 0 < float((other - stay).abs().max()) < 0.02
    cut = {n: torch.cat([v[:2], torch.zeros_like(v[2:])]) if n.endswith("/up") else v for n, v in groups["wide"].items()}
    by_hand.close(predict(run, cut, rows), stay, 1e-12)
    by_hand.close(run.global_logits(rows, dtype=torch.float64), stay, 1e-12)


def test_score_and_values_are_of_the_same_round() -> None:
    """The best score of the winner is what the server's rows give for what the server holds."""
    falls = 0
    for seed in (3, 7, 9):
        run = federation(seed=seed, rounds=40)
        for t in range(8):
            run.simulation.round(t)
            groups = run.server.memo["groups"]
            scores = [own["score"] for own in groups.values() if own["score"] is not None]
            if not scores:
                continue
            held = {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/") or bool(v.any())}
            assert accuracy(run, held) == max(scores)
            newest = [accuracy(run, own) for name, own in noted(run, "now").items() if groups[name]["score"] == max(scores)]
            falls += min(newest) < max(scores)
    assert falls


# as federated averaging ---------------------------------------------------------------------------------------------------


def test_with_nothing_to_grow_it_is_federated_averaging_of_adapters() -> None:
    about: dict[str, Any] = {"sizes": (6, 5, 7, 0), "rounds": 3, "participation": 0.5}
    optim = Optim("sgd", lr=RATE, clip=1.0)
    mine = FedAdapter(depth=LAYERS, width=8, deeper=0, wider=0, batch=2, optim=optim)
    plain = FedAvg(tune=Tune("bottleneck", reduction=D // 8, placement="block"), epochs=1.0, batch=2, optim=optim)
    g = torch.Generator().manual_seed(0)
    start = {n: 0.1 * torch.randn(v.shape, generator=g, dtype=v.dtype) for n, v in by_hand.shared(federation(mine)).items()}
    run = tiny.federation(mine, "bert", start=start, **about).run()
    same = {n.replace("adapter/", "bottleneck/"): v[0] if n.startswith("adapter/") else v for n, v in start.items()}
    wanted = tiny.federation(plain, "bert", start=same, **about).run()
    found = by_hand.shared(run)
    for name, value in by_hand.shared(wanted).items():
        own = found[name.replace("bottleneck/", "adapter/")]
        by_hand.close(own if name.startswith("head/") else own[0], value, 1e-12)
        assert not torch.equal(value, same[name])
    assert run.method.sums
    assert run.server.memo["schedule"][-1][:2] == [LAYERS, 8]


def test_without_rows_of_the_servers_own_nothing_grows_and_a_run_says_so() -> None:
    about: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 3}
    method = replace(SMALL, width=16)
    run = tiny.federation(method, "bert", **about).run()
    wanted = tiny.federation(replace(method, deeper=0, wider=0), "bert", **about).run()
    rows = np.arange(8)
    by_hand.close(run.global_logits(rows, dtype=torch.float64), wanted.global_logits(rows, dtype=torch.float64), 1e-12)
    (seconds,) = {(d, w) for d, w, _ in run.server.memo["schedule"]}
    assert seconds == (1, 16)
    assert run.server.memo["seconds"] == pytest.approx(3 * cost(1, 16, 1))
    notes = resolve({"method": "fedadapter", "recipes": False}).notes
    assert (
        "fedadapter gets no public rows (--public): no trial can be scored, so that depth and width stay as they begin." in notes
    )


# what is below ------------------------------------------------------------------------------------------------------------


def forward_flops(prefix: bool, depth: int) -> tuple[float, dict[str, Tensor]]:
    """Of the first round, in which clients go over their rows four times."""
    run = federation(replace(SMALL, depth=depth, epochs=4.0), prefix=prefix, flops=True, pack=1, seed=3)
    record = run.simulation.round(0)
    assert record is not None
    return record["work"]["forward"], by_hand.known(run)


def test_blocks_below_the_adapters_are_not_computed_where_a_cache_has_what_leaves_them() -> None:
    (cached, mine), (whole, wanted) = forward_flops(True, 1), forward_flops(False, 1)
    assert_same(mine, wanted, 1e-10)
    assert cached < 0.7 * whole
    deeper, _ = forward_flops(True, 2)
    assert cached < deeper < whole


def test_a_run_with_a_cache_is_that_without_as_it_grows() -> None:
    runs = [federation(seed=3, prefix=prefix, pack=2).run() for prefix in (True, False)]
    assert_same(*(by_hand.known(run) for run in runs), 1e-9)
    assert_same(*(logits(run) for run in runs), 1e-9)
    assert runs[0].server.memo["width"] == 16


# engines ------------------------------------------------------------------------------------------------------------------


def test_packs_sites_workers_and_a_resumed_run_are_the_same_in_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Plays(replace(SMALL, score_every=1), public=10)
    packed = played.packed.state
    assert_same(packed, played.alone.state, 1e-9)
    assert_same(packed, played.messages.state, 1e-9)
    assert_same(packed, played.workers.state, 1e-9)
    assert_same({n: v for n, v in packed.items() if n in played.sites.state}, played.sites.state, 1e-9)
    assert_same(packed, played.again.state, 0.0)
    assert_same(packed, played.resumed.state, 0.0)
    assert any(n.startswith("memo:now/deep|adapter/") for n in packed)
    for module in (of_runs, of_rules):
        monkeypatch.setattr(module, "plays", lambda _: played)
    for law in (of_runs.check_resuming, of_runs.check_backbone, of_runs.check_loading, of_runs.check_learning):
        law(played.method)
    for law in (of_rules.check_sums, of_rules.check_counting, of_rules.check_reading):
        law(played.method)


def test_a_round_that_is_rolled_back_was_not_played() -> None:
    run, wanted = federation(seed=3), federation(seed=3).run(5)
    for t in range(5):
        before = run.server.tensors_and_json()
        if t in (1, 3):  # within a trial, and at the end of one
            run.simulation.round(t)
            run.server.roll_back(*before)
        run.simulation.round(t)
    assert_same(by_hand.known(run), by_hand.known(wanted), 0.0)
    assert run.server.memo["groups"] == wanted.server.memo["groups"]


def test_it_tags_words_and_is_scored_by_their_headline() -> None:
    run = tiny.federation(SMALL, "bert", task=TOKENS, sizes=(6, 5, 7), rounds=3, public=12).run()
    found = [own["score"] for own in run.server.memo["groups"].values()]
    assert all(score is not None and 0 <= score <= 1 for score in found)
    assert run.bench.task.metrics[0] == "entity_f1"


def test_it_trains_a_model_that_writes() -> None:
    run = tiny.federation(SMALL, "llama", task=GENERATION, sizes=(4, 3, 4), rounds=3, public=5)
    before = by_hand.shared(run)
    run.run()
    moved = {n for n, v in by_hand.shared(run).items() if not torch.equal(v, before[n])}
    assert any(n.startswith("adapter/") for n in moved)
    assert {own["score"] is not None for own in run.server.memo["groups"].values()} == {True}


def test_what_has_grown_comes_back_through_our_own_loader(tmp_path: Path) -> None:
    run = federation(seed=3, precision="float32").run()
    assert run.server.memo["schedule"][-1][:2] == [2, 16]
    assert exported(run, tmp_path).kind == "weft"
    texts = states(ABOUT["sizes"], seed=3)[0].texts
    assert texts is not None
    found = load(tmp_path, device="cpu", precision="float32").logits(list(texts))
    torch.testing.assert_close(found, run.global_logits(), **RUN_CLOSE)
    assert (found - federation(seed=3, precision="float32").global_logits()).abs().max() > 1e-2


# settings and sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 12}, "width = 12 is no multiple of 8"),
        ({"max_width": 20}, "max_width = 20 is no multiple of 8"),
        ({"width": 72}, "width = 72 is above max_width = 64"),
        ({"trial": 0.0}, "it needs trial > 0, not 0"),
        ({"depth": -1}, "it needs depth ≥ 0, not -1"),
    ],
)
def test_bad_settings_are_said_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FedAdapter(**settings)


def test_more_blocks_than_there_are_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r'depth = 4, and ".*" has 3 blocks: choose at most as many\.'):
        federation(FedAdapter(depth=4))


@pytest.mark.parametrize(
    "facts", [{"depth": 4}, {"depth": -1}, {"depth": "2"}, {"depth": True}, {"width": 12}, {"width": 0}, {"width": 72}]
)
def test_a_shape_that_no_group_has_is_refused(facts: dict[str, Any]) -> None:
    run = federation()
    with pytest.raises(UserError, match=f"client far has the {next(iter(facts))} "):
        run.method.adapt(run.bench.backbone, run.bench.task, ClientInfo("far", 1, facts))


def test_a_unit_of_bert_base_has_13064_numbers() -> None:
    base = by_hand.roberta_base(20)
    base.bottlenecks = [Site(f"{b}.output.LayerNorm", "ffn.norm", base.d, base.d, block=i) for i, b in enumerate(base.blocks)]
    for depth, width in ((1, 8), (2, 24), (12, 64)):
        method = FedAdapter(depth=depth, width=width, deeper=0, wider=0)
        assert by_hand.elements(method, base, Scope.UP, classes=20)["adapter"] == depth * width // 8 * 13_064


def test_defaults_are_the_cards() -> None:
    method = FedAdapter()
    assert (method.depth, method.width, method.max_width, method.deeper, method.wider) == (0, 8, 64, 1, 1)
    assert (method.trial, method.per_group, method.score_every, method.batch, method.epochs) == (60.0, 5, 10, 4, 1.0)
    assert (method.optim.kind, method.optim.lr, method.optim.schedule) == ("sgd", 0.1, "linear")
    assert all(common(view) for view in method.views)


# what other tests ask of this method --------------------------------------------------------------------------------------


def adapters(depth: int, width: int) -> list[int]:
    units = width // UNIT
    return depth * [units * UNIT * D, units * UNIT, units * D * UNIT, units * D]


def sizes(turn: Turn) -> Sizes:
    return {"adapter": adapters(2, 16), "head": HEAD}


FIXED: dict[str, Any] = {"deeper": 0, "wider": 0}
TINY = FIXED | {"depth": 1, "width": 16}
"""Without rows of the server's own nothing grows, and rules over a method go by what it says of itself."""
BYTES = Case(FIXED | {"depth": 2, "width": 16}, sizes, sizes)
BYTES_VARIANTS = {
    "the head alone": Case(FIXED, lambda turn: {"head": HEAD}, lambda turn: {"head": HEAD}),
    "room to grow": Case({"depth": 2, "width": 16}, sizes, sizes, first=sizes),
}
