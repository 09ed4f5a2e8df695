"""DP-SGD over any method: against opacus and plain loops, what noise it has, and that nothing else of rows gets out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import opacus
import pytest
import torch
from opacus.optimizers.adaclipoptimizer import AdaClipDPOptimizer
from torch import Tensor, nn

import tiny
from weft.adaptation.optim import Optim
from weft.devices import Budget
from weft.errors import UserError
from weft.federation.batch import Batch
from weft.federation.hidden_rows import MEMO, HiddenRows
from weft.federation.hidden_turn import trained
from weft.federation.message import Message, Update
from weft.federation.pack import Pack
from weft.federation.rounds import enter
from weft.federation.turn import Turn
from weft.methods import FedBF, FedIT, HetLoRA, registry
from weft.privacy import accounting
from weft.privacy.hiding import Privacy, mechanisms
from weft.privacy.mechanism import DPSGD
from weft.runs.baselines import Probe
from weft.testing.compare import dense, equal, state
from weft.testing.sites import remote

SGD = Optim("sgd", lr=0.5, schedule="constant")
SIZES = (9, 5, 7)


def plan(text: str, **more: Any) -> Privacy:
    return Privacy(mechanisms(text), **{"insecure": True, "rounds": 2} | more)


def play(method: Any, text: str = "", **settings: Any) -> tiny.Federation:
    privacy = plan(text) if text else Privacy()
    return tiny.federation(method, **{"sizes": SIZES, "rounds": 2, "privacy": privacy} | settings).run()


def records(run: tiny.Federation) -> list[dict[str, Any]]:
    return [r for t in range(run.rounds) if (r := run.simulation.round(t)) is not None]


def packed(run: tiny.Federation) -> Pack:
    """All clients before their first turn."""
    own = {c.id: run.method.adapt(run.bench.backbone, run.bench.task, c) for c in run.clients}
    turns = [Turn(c, own[c.id], run.server.held_by(c, own[c.id], Message())) for c in run.clients]
    return enter(run.method, run.bench, turns, run.server.round, hides=True)


# arithmetic -----------------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_opacus() -> None:
    """A linear head on frozen features, all rows in one batch, no noise: opacus clips the same gradients to the same sum."""

    clip, n = 0.3, 9
    method = Probe(rounds=1, optim=SGD, batch=n)
    run = tiny.federation(method, sizes=(n,), rounds=1, privacy=plan(f"dp-sgd:noise=0,clip={clip}"))
    pack = packed(run)
    rows = run.clients[0].data.train
    batch = tiny_batch(pack, rows)
    features = pack.features(batch)[0].detach()
    names = {n.rpartition("/")[2]: n for n in pack.tensors if n.startswith("head/")}
    head = nn.Linear(features.shape[1], len(run.bench.task.classes), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(pack.tensors[names["weight"]][0])
        head.bias.copy_(pack.tensors[names["bias"]][0])
    model = opacus.GradSampleModule(head, loss_reduction="mean")
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.5), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=n
    )
    nn.functional.cross_entropy(model(features), batch.labels[0]).backward()
    optimizer.step()
    run.run()
    for role, wanted in (("weight", head.weight), ("bias", head.bias)):
        # it adds 1e-6 to norms before it divides by them
        torch.testing.assert_close(run.server.shared[names[role]], wanted.detach(), rtol=1e-5, atol=1e-7)


def test_a_norm_follows_its_quantile_as_that_of_opacus() -> None:
    """Four steps on all rows, no noise: each has the norm that opacus has, and moves the head as far."""
    clip, n = 0.01, 9
    text = f"dp-sgd:noise=0,clip={clip},quantile=0.4,rate=0.7"
    method = Probe(rounds=4, optim=SGD, batch=n)
    run = tiny.federation(method, sizes=(n,), rounds=4, privacy=plan(text, rounds=4))
    pack = packed(run)
    batch = tiny_batch(pack, run.clients[0].data.train)
    features = pack.features(batch)[0].detach()
    names = {name.rpartition("/")[2]: name for name in pack.tensors if name.startswith("head/")}
    head = nn.Linear(features.shape[1], len(run.bench.task.classes), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(pack.tensors[names["weight"]][0])
        head.bias.copy_(pack.tensors[names["bias"]][0])
    model = opacus.GradSampleModule(head, loss_reduction="mean")
    optimizer = AdaClipDPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.5), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=n,
        target_unclipped_quantile=0.4, clipbound_learning_rate=0.7, max_clipbound=1e9, min_clipbound=1e-9, unclipped_num_std=1e-9,
    )  # fmt: skip
    norms = []
    for t in range(4):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - t / 4)  # a probe's falls over its rounds
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), batch.labels[0]).backward()
        optimizer.step()
        optimizer.max_grad_norm = float(optimizer.max_grad_norm)
        norms.append(optimizer.max_grad_norm)
        run.simulation.round(len(norms) - 1)
        run.simulation.setup.store.load(run.clients[0])
        assert run.clients[0].memo[MEMO]["clip"] == pytest.approx(norms[-1], rel=1e-4)
    assert norms[0] > clip
    for role, wanted in (("weight", head.weight), ("bias", head.bias)):
        torch.testing.assert_close(run.server.shared[names[role]], wanted.detach(), rtol=1e-4, atol=1e-6)


def test_each_client_has_a_norm_of_its_own_and_noise_of_its_size() -> None:
    """One has rows under the norm alone, the other beyond it: the noise of each is its norm times z."""
    run = tiny.federation(FedBF(optim=SGD), "bert", sizes=(4, 4), privacy=plan("dp-sgd:noise=2,clip=1,quantile=0.5,counting=4"))
    pack = packed(run)
    names = list(pack.params("*"))
    hidden = HiddenRows(pack, run.bench.privacy, [2.0, 2.0])
    hidden.clips = [1e-9, 1e3]
    (batch,) = list(hidden.over(pack).batches(size=4))
    assert batch.behind is not None
    grads = hidden._noisy(pack, run.method.objective, batch.behind, names)
    z = (2.0**-2 - 8.0**-2) ** -0.5
    for k, clip in ((0, 1e-9), (1, 1e3)):
        values = torch.cat([grads[n][k].flatten() for n in names])
        assert float(values.std()) == pytest.approx(z * clip / 4, rel=0.1)
    assert hidden.clips[0] != 1e-9
    assert hidden.clips[1] != 1e3


@pytest.mark.parametrize("z", [0.5, 2.0])
@pytest.mark.parametrize("counting", [None, 3.0])
def test_a_sum_and_a_count_together_cost_what_the_noise_says(z: float, counting: float | None) -> None:
    """One contribution more or less moves the one by C and the other by a half, as far as its noise is concerned."""
    link = DPSGD(quantile=0.5, rate=0.3, counting=counting)
    of_sum, of_count = link.divided(z, 8.0)
    assert of_sum**-2 + (0.5 / of_count) ** 2 == pytest.approx(z**-2)
    for within, came in ((3, 7), (0, 4)):
        for short in (0, 1):
            before, after = (link.moved(1.0, within + short * more, came + more, 0.0, 8.0) for more in (0, 1))
            assert abs(math.log(after / before)) == pytest.approx(0.3 * 0.5 / 8)


def tiny_batch(pack: Pack, rows: np.ndarray) -> Batch:
    from weft.federation.batch import make_batch

    seen = pack if pack.hidden is None else None
    assert seen is not None
    return make_batch(pack.task, pack.bench.table, rows[None], None, pack.device)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_whose_gradient_has_no_norm_adds_nothing(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would else undo the turn, by which it could be told."""
    run = tiny.federation(FedIT(rank=2, optim=SGD), sizes=SIZES, privacy=plan("dp-sgd:noise=0,clip=0.05"))
    pack = packed(run)
    hidden = HiddenRows(pack, run.bench.privacy, [0.0] * 3)
    names = list(pack.params("lora", "head"))
    (batch,) = list(hidden.over(pack).batches(size=9))
    assert batch.behind is not None
    gradients = Pack.gradients_of_rows

    def spoilt(self: Pack, objective: Any, each: Tensor, index: Any, keys: Any, only: Any) -> dict[str, Tensor]:
        found = gradients(self, objective, each, index, keys, only)
        found[names[0]][each == 1] = bad
        return found

    whole, _ = hidden._clipped(pack, run.method.objective, batch.behind, names, torch.arange(3))
    monkeypatch.setattr(Pack, "gradients_of_rows", spoilt)
    found, within = hidden._clipped(pack, run.method.objective, batch.behind, names, torch.arange(3))
    for name in names:
        assert not found[name][1].any()
        torch.testing.assert_close(found[name][[0, 2]], whole[name][[0, 2]], rtol=0, atol=0)
    assert within[1] == 0


@pytest.mark.parametrize("model", ["bert", "llama", "vit"])
def test_clipped_sums_are_those_of_one_row_after_the_other(model: str) -> None:
    clip = 0.05
    run = tiny.federation(FedIT(rank=2, optim=SGD), model, sizes=SIZES, privacy=plan(f"dp-sgd:noise=0,clip={clip}"))
    pack = packed(run)
    hidden = HiddenRows(pack, run.bench.privacy, [0.0] * 3)
    names = list(pack.params("lora", "head"))
    (batch,) = list(hidden.over(pack).batches(size=9))
    assert batch.behind is not None
    found, _ = hidden._clipped(pack, run.method.objective, batch.behind, names, torch.arange(3))
    for k, client in enumerate(run.clients):
        total = {n: torch.zeros_like(pack.tensors[n][k]) for n in names}
        for row in client.data.train:
            leaves = {n: pack.tensors[n].detach().requires_grad_(True) for n in names}
            alone = np.full((3, 1), run.clients[0].data.train[0])
            alone[k] = row
            with pack.values(leaves):
                loss = run.method.objective(pack, tiny_index(pack, alone))[k]
            grads = dict(zip(names, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
            own = {n: torch.zeros_like(total[n]) if g is None else g[k] for n, g in grads.items()}
            norm = math.sqrt(sum(float(g.square().sum()) for g in own.values()))
            for n, g in own.items():
                total[n] += g * min(1.0, clip / norm)
        for n in names:
            torch.testing.assert_close(found[n][k], total[n], rtol=1e-7, atol=1e-9)


def tiny_index(pack: Pack, index: np.ndarray) -> Batch:
    from weft.federation.batch import make_batch

    return make_batch(pack.task, pack.bench.table, index, None, pack.device)


def test_one_row_more_or_less_moves_the_sum_by_the_norm_at_most() -> None:
    """Neighbours, without noise: what a step descends differs by C over the expected rows."""
    clip = 0.02
    for without in range(3):
        moved = []
        for rows in (slice(None), slice(1, None)):
            run = tiny.federation(FedIT(rank=2, optim=SGD), sizes=SIZES, privacy=plan(f"dp-sgd:noise=0,clip={clip}"))
            client = run.clients[without]
            client.data = replace(client.data, train=client.data.train[rows])
            pack = packed(run)
            hidden = HiddenRows(pack, run.bench.privacy, [0.0] * 3)
            (batch,) = list(hidden.over(pack).batches(size=9))
            assert batch.behind is not None
            moved.append(hidden._clipped(pack, run.method.objective, batch.behind, list(pack.params("*")), torch.arange(3))[0])
        gap = math.sqrt(sum(float((moved[0][n][without] - moved[1][n][without]).square().sum()) for n in moved[0]))
        assert 0 < gap <= clip * (1 + 1e-9)


def test_noise_has_the_size_that_it_says_and_is_divided_by_the_expected_rows() -> None:
    """With a norm near 0 a step is noise alone: lr z C / (q n) in each entry."""
    z, clip = 3.0, 1e-9
    run = tiny.federation(FedBF(optim=SGD, batch=4), sizes=SIZES, rounds=1, privacy=plan(f"dp-sgd:noise={z},clip={clip}"))
    before = packed(run).tensors
    pack = packed(run)
    updates = {u.client.id: u for u in trained(run.method, pack)}
    for k, client in enumerate(run.clients):
        steps = -(-client.n // 4)
        moved = torch.cat([(dense(v) - before[n][k]).flatten() for n, v in updates[client.id].tensors.items()])
        wanted = 0.5 * z * clip / min(4, client.n) * math.sqrt(steps)
        assert float(moved.std()) == pytest.approx(wanted, rel=0.15)
        assert abs(float(moved.mean())) < 4 * wanted / math.sqrt(len(moved))


def test_clients_have_noise_of_their_own_and_every_step_of_every_round_another() -> None:
    run = tiny.federation(FedBF(optim=SGD, batch=4), sizes=(8, 8, 8), rounds=1, privacy=plan("dp-sgd:noise=1,clip=1e-9"))
    grads = []
    for t in range(2):
        pack = packed(run)
        pack.round = replace(pack.round, index=t)
        hidden, names = HiddenRows(pack, run.bench.privacy, [1.0] * 3), list(pack.params("bias"))
        for batch in hidden.over(pack).batches(size=4):
            assert batch.behind is not None
            grads.append(hidden._noisy(pack, run.method.objective, batch.behind, names))
    flat = torch.stack([torch.cat([g[n][k].flatten() for n in names]) for g in grads for k in range(3)])
    close = torch.corrcoef(flat) - torch.eye(len(flat), dtype=flat.dtype)
    assert float(close.abs().max()) < 0.2


def test_padding_of_smaller_ranks_stays_zero() -> None:
    run = tiny.federation(
        HetLoRA(optim=SGD, batch=3), sizes=SIZES, facts=[{"rank": r} for r in (2, 4, 3)], privacy=plan("dp-sgd:noise=1")
    )
    pack = packed(run)
    list(trained(run.method, pack))
    name = next(n for n in pack.tensors if n.endswith("/A"))
    assert bool((pack.tensors[name][0, 2:] == 0).all())
    assert bool((pack.tensors[name][0, :2] != 0).all())


# batches ----------------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_each_by_itself() -> None:
    run = tiny.federation(FedIT(rank=2), sizes=(40, 10), privacy=plan("dp-sgd:noise=1"))
    counts = np.zeros((2, 40))
    sizes: list[int] = []
    for t in range(30):
        run.server.round = replace(run.server.round, index=t)
        pack = packed(run)
        pack.round = run.server.round
        hidden = HiddenRows(pack, run.bench.privacy, [1.0, 1.0])
        for batch in hidden.over(pack).batches(size=8):
            assert batch.behind is not None
            for k, rows in batch.behind.own(2):
                where = {r: i for i, r in enumerate(run.clients[k].data.train)}
                assert len(set(rows.tolist())) == len(rows), "no row twice in a step"
                sizes += [len(rows)] if k == 0 else []
                for r in rows:
                    counts[k, where[r]] += 1
    assert len(set(sizes)) > 5, "sizes differ"
    assert np.mean(sizes) == pytest.approx(8, rel=0.1)
    assert counts[0].min() > 0, "every row comes up"
    assert counts[1, :10].mean() == pytest.approx(30 * 2 * 0.8, rel=0.1)


def test_a_step_without_any_row_is_noise() -> None:
    run = tiny.federation(FedBF(optim=SGD, batch=1), sizes=(30,), rounds=1, privacy=plan("dp-sgd:noise=1"))
    pack = packed(run)
    hidden = HiddenRows(pack, run.bench.privacy, [1.0])
    found = [b for b in hidden.over(pack).batches(size=1) if b.behind is not None and not (b.behind.index >= 0).any()]
    assert found, "of thirty steps some have none"
    grads = hidden._noisy(pack, run.method.objective, found[0].behind, list(pack.params("bias")))  # type: ignore[arg-type]
    assert all(bool((g != 0).all()) for g in grads.values())


def test_noise_and_lots_are_secret() -> None:
    """Two runs of one seed differ, and only --insecure-noise makes them alike."""
    for insecure in (True, False):
        privacy = plan("dp-sgd:noise=1", insecure=insecure)
        runs = [tiny.federation(FedIT(rank=2), sizes=SIZES, rounds=1, privacy=privacy).run() for _ in range(2)]
        assert equal(state(runs[0]), state(runs[1]), 0.0) == insecure


# nothing else gets out --------------------------------------------------------------------------------------------------


class Peeking(FedIT):
    """A method that looks at rows in one more way."""

    info: ClassVar = replace(FedIT.info, slug="peeking")
    how: str = "pass"

    def train(self, pack: Pack) -> Iterable[Update]:
        if self.how == "pass":
            for batch in pack.batches():
                pack(batch)
        elif self.how == "features":
            for batch in pack.batches():
                pack.features(batch)
        elif self.how == "labels":
            pack.labels(pack.clients[0].data.train)
        elif self.how == "gradients":
            pack.gradients(self.objective, "lora")
        elif self.how == "observe":
            pack.observe(lambda p, b: self.forward(p, b), [c.data.train for c in pack.clients])
        elif self.how == "limited":
            pack.limited(np.ones(len(pack.bench.table), dtype=bool))
        elif self.how == "own rows":
            optimizer = pack.optimizer("lora", settings=self.optim)
            pack.step(optimizer, self.objective, tiny_index(pack, np.array([[0], [1], [2]])))
        return self.fit(pack)


@pytest.mark.parametrize("how", ["pass", "features", "labels", "gradients", "observe", "limited", "own rows"])
def test_a_method_that_looks_at_rows_otherwise_fails(how: str) -> None:
    with pytest.raises(UserError, match='privacy = "dp-sgd" can\'t put noise on'):
        play(Peeking(rank=2, how=how), "dp-sgd:noise=1")
    play(Peeking(rank=2, how=how))


def test_a_turn_knows_no_rows_and_no_losses() -> None:
    seen: list[Any] = []

    class Curious(FedIT):
        info: ClassVar = replace(FedIT.info, slug="curious")

        def train(self, pack: Pack) -> Iterable[Update]:
            seen.extend(c.data for c in pack.clients)
            optimizer = pack.optimizer("*", settings=self.optim)
            for batch in pack.batches():
                seen.append((batch.index, batch.labels, pack.step(optimizer, self.objective, batch)))
            return pack.updates()

    run = tiny.federation(Curious(rank=2), sizes=SIZES, privacy=plan("dp-sgd:noise=1"))
    assert all(record["loss"] is None for record in records(run))
    for found in seen:
        if isinstance(found, tuple):
            index, labels, loss = found
            assert (index == -1).all()
            assert bool((labels == labels.flatten()[0]).all())
            assert bool(loss.isnan().all())
        else:
            assert (found.train == -1).all()
            assert not len(found.val)
            assert not len(found.test)


# what it costs ----------------------------------------------------------------------------------------------------------


def test_clients_tell_what_it_costs_them_and_the_round_says_the_largest() -> None:
    run = tiny.federation(FedIT(rank=2, batch=4), sizes=SIZES, rounds=3, privacy=plan("dp-sgd:noise=1.5", rounds=3))
    said = [record["privacy"] for record in records(run)]
    each = []
    for client in run.clients:
        steps = 3 * -(-client.n // 4)
        each.append(accounting.epsilon(1.5, min(4 / client.n, 1.0), steps, 1e-5))
    assert said[-1]["row_epsilon"] == pytest.approx(max(each))
    assert said[-1]["epsilon"] == pytest.approx(max(each))
    assert said[0]["epsilon"] < said[1]["epsilon"] < said[2]["epsilon"]


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora"])
def test_a_client_without_rows_spends_nothing_and_no_noise_is_found_for_it(slug: str) -> None:
    """It may get some: noise that was found for none would hide them from nobody."""
    method = replace(registry.build(slug), batch=4)
    run = tiny.federation(method, sizes=(6, 0, 4), rounds=2, privacy=plan("dp-sgd", epsilon=4.0, rounds=2)).run()
    for client in run.clients:
        run.simulation.setup.store.load(client)
    assert [MEMO in c.memo for c in run.clients] == [True, False, True]
    assert all(c.memo[MEMO]["noise"] > 0 for c in run.clients if MEMO in c.memo)


def test_an_update_of_a_client_without_rows_finds_it_no_noise_either() -> None:
    run = tiny.federation(FedIT(rank=2, batch=4), sizes=(6, 0), privacy=plan("dp-sgd:noise=2"))
    hidden, memo = HiddenRows(packed(run), run.bench.privacy, [2.0, 0.0]), dict[str, object]()
    assert hidden.spent(1, memo) == {"epsilon": 0.0, "next": 0.0}
    assert memo == {}


def test_each_step_on_a_batch_counts() -> None:
    """FedDAT moves two adapters in turn on every batch."""
    method = replace(registry.build("feddat"), batch=4)
    run = tiny.federation(method, sizes=(8,), rounds=1, privacy=plan("dp-sgd:noise=1")).run()
    run.simulation.setup.store.load(run.clients[0])
    assert run.clients[0].memo[MEMO]["steps"] > 2


def test_a_budget_is_kept_to_the_last_round_and_a_client_without_any_left_is_not_asked() -> None:
    privacy = plan("dp-sgd", epsilon=5.0, rounds=2)
    run = tiny.federation(FedIT(rank=2, batch=4), sizes=SIZES, rounds=4, privacy=privacy)
    records = [run.simulation.round(t) for t in range(2)]
    assert 4.9 < records[-1]["privacy"]["epsilon"] <= 5.0 * (1 + 1e-9)
    assert run.simulation.over(run.server.round, Budget()) is not None
    with pytest.raises(UserError, match="round 3 is not played: all clients have spent their budgets of epsilon 5"):
        run.simulation.round(2)


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora", "feddat", "promptfl"])
def test_packs_clients_alone_and_sites_are_alike(slug: str, tmp_path: Path) -> None:
    method = replace(registry.build(slug), batch=3)
    privacy = plan("dp-sgd:noise=1,clip=0.1")
    runs = [tiny.federation(method, sizes=SIZES, rounds=2, privacy=privacy, pack=pack).run() for pack in (1, 3)]
    apart, _ = remote(method, sizes=SIZES, rounds=2, privacy=privacy)
    apart.run()
    assert equal(state(runs[0]), state(runs[1]), 1e-9)
    assert equal(run_server(runs[0]), run_server(apart), 1e-9)
    assert apart.simulation.spent() == runs[0].simulation.spent()


def run_server(run: tiny.Federation) -> dict[str, Tensor]:
    return {n: v for n, v in run.server.tensors_and_json()[0].items() if v.is_floating_point()}
