"""FedKSeed against its card: two losses for a step, scalars that travel, and a model that is made anew of them to the bit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import exporting
import tiny
from bytes_of import Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.errors import UserError
from weft.federation.batch import Batch
from weft.federation.pack import Pack
from weft.federation.robust_mean import Robust
from weft.methods import FedKSeed
from weft.methods.full import fedkseed
from weft.methods.full.fedkseed import PI, SUMS, probabilities
from weft.tensors.directions import direction
from weft.tensors.keyed import generator
from weft.testing import laws
from weft.testing.sites import remote

SGD = Optim("sgd", lr=2e-3, schedule="constant")
SMALL = FedKSeed(seeds=40, steps=None, batch=2, optim=SGD, tune=Tune(rank=2, alpha=6.0))
THREE: dict[str, Any] = {"sizes": (9, 5, 3), "rounds": 3, "participation": 0.6, "seed": 1}


# by hand ------------------------------------------------------------------------------------------------------------------


class Reference:
    """The card's algorithm in plain PyTorch: merged weights, one client and one tensor after another, lists of scalars.

    Attributes:
        a: [K] what the seeds have gathered. history: of each seed, its scalars, the first of which is a 0.
    """

    def __init__(self, run: tiny.Federation):
        assert isinstance(run.method, FedKSeed)
        self.run, self.method = run, run.method
        self.start = {n: v for n, v in by_hand.start_of(run).items() if not n.startswith("seeds/")}
        self.a = torch.zeros(self.method.seeds, dtype=torch.float64)
        self.history: list[list[float]] = [[0.0] for _ in range(self.method.seeds)]
        self.pi: list[float] = [1 / self.method.seeds] * self.method.seeds

    def z(self, j: int) -> dict[str, Tensor]:
        """One direction, cut into tensors in the order of their names."""
        names = sorted(self.start)
        lengths = [self.start[n].numel() for n in names]
        pieces = torch.from_numpy(direction(self.run.bench.seed, j, sum(lengths))).double().split(lengths)
        return {n: piece.reshape(self.start[n].shape) for n, piece in zip(names, pieces, strict=True)}

    def model(self) -> dict[str, Tensor]:
        """w_0 - η Σ_j a_j z_j."""
        found = {n: v.clone() for n, v in self.start.items()}
        for j in range(self.method.seeds):
            for n, z in self.z(j).items():
                found[n] -= self.method.optim.lr * self.a[j] * z
        return found

    def loss(self, values: Mapping[str, Tensor], rows: np.ndarray) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(by_hand.logits(self.run, values, rows, 3.0), by_hand.labels(self.run, rows)))

    def turn(self, k: int, t: int, steps: list[np.ndarray]) -> tuple[dict[str, Tensor], list[tuple[int, float]]]:
        """A client's local model, and its seeds and scalars."""
        w, made, epsilon = self.model(), [], self.method.epsilon
        stream = generator(self.run.bench.seed, "seeds", t, self.run.clients[k].id)
        for rows in steps:
            place, j, share = float(torch.rand((), generator=stream, dtype=torch.float64)) * sum(self.pi), 0, self.pi[0]
            while share <= place:
                j, share = j + 1, share + self.pi[j + 1]
            z = self.z(j)
            up, down = (self.loss({n: v + far * z[n] for n, v in w.items()}, rows) for far in (epsilon, -epsilon))
            if self.method.largest_gap is None or abs(up - down) <= self.method.largest_gap:
                g = (up - down) / (2 * epsilon)
                w = {n: v - self.method.optim.lr * g * z[n] for n, v in w.items()}
                made.append((j, g))
        return w, made

    def round(self, t: int, cohort: list[int], steps: Mapping[int, list[np.ndarray]]) -> dict[str, Tensor]:
        """Σ p_k w_k of the local models; the scalars go to the seeds."""
        total = sum(self.run.clients[k].n for k in cohort)
        mean = {n: torch.zeros_like(v) for n, v in self.start.items()}
        turns = {k: self.turn(k, t, steps[k]) for k in cohort}
        for k, (w, made) in turns.items():
            p = self.run.clients[k].n / total
            for n, v in w.items():
                mean[n] += p * v
            for j, g in made:
                self.a[j] += p * g
                self.history[j].append(g)
        if self.method.pro:
            means = [sum(min(abs(g), 1000.0) for g in own) / len(own) for own in self.history]
            scaled = [(m - min(means)) / (max(means) - min(means)) for m in means]
            self.pi = [math.exp(s) / sum(map(math.exp, scaled)) for s in scaled]
        return mean


def model_of(pack: Pack) -> dict[str, Tensor]:
    """What a pack of one predicts with."""
    return {n: v[0] for n, v in pack.tensors.items() if not n.startswith("seeds/")}


@pytest.mark.parametrize(
    "method",
    [SMALL, replace(SMALL, pro=True), replace(SMALL, largest_gap=3e-3), replace(SMALL, upload="sums")],
    ids=["plain", "pro", "with a largest gap", "sums"],
)
def test_rounds_are_the_cards_algorithm_and_the_rebuilt_model_is_the_mean_of_the_local_ones(method: FedKSeed) -> None:
    run = tiny.federation(method, **THREE)
    steps = {(k, t): by_hand.steps_of(run, k, t) for k in range(3) for t in range(3)}
    assert len({len(steps[k, 0]) for k in range(3)}) == 3, "unequal numbers of steps"
    hand = Reference(run)
    cohorts, left_out = [], 0
    for t in range(3):
        record = run.simulation.round(t)
        assert record is not None
        cohort = [int(c[-1]) for c in record["cohort"]]
        cohorts.append(set(cohort))
        gathered = sum(len(own) for own in hand.history)
        mean = hand.round(t, cohort, {k: steps[k, t] for k in cohort})
        left_out += sum(len(steps[k, t]) for k in cohort) - (sum(len(own) for own in hand.history) - gathered)
        by_hand.close(by_hand.shared(run)[SUMS], hand.a)
        rebuilt = model_of(run.server.pack())
        for name, value in mean.items():
            torch.testing.assert_close(rebuilt[name], value, rtol=0, atol=1e-12)
            torch.testing.assert_close(hand.model()[name], value, rtol=0, atol=1e-12)
        if method.pro:
            torch.testing.assert_close(by_hand.shared(run)[PI], torch.tensor(hand.pi, dtype=torch.float64), rtol=1e-6, atol=0)
    assert all(len(c) == 2 for c in cohorts), "one is always absent"
    assert len(set.union(*cohorts)) == 3, "and comes back"
    assert (left_out > 0) == (method.largest_gap is not None)
    by_hand.close(run.global_logits(), by_hand.logits(run, hand.model(), None, 3.0).detach().float(), 1e-5)
    assert max(float((v - hand.start[n]).abs().max()) for n, v in hand.model().items()) > 1e-3


@pytest.mark.parametrize("upload", ["scalars", "sums"])
def test_the_rebuilt_model_is_the_weighted_mean_of_what_clients_have_trained(upload: str) -> None:
    """Of the very packs of the run, so that it holds to the last places; bottlenecks, biases and a head as well as LoRA."""
    for kind in ("lora", "bottleneck", "bias", "head"):
        run = tiny.federation(replace(SMALL, upload=upload, tune=Tune(kind=kind)), sizes=(9, 5, 0, 3), rounds=2)
        for t in range(2):
            packs = [run.pack([k], t) for k in (0, 1, 3)]
            for pack in packs:
                list(run.method.train(pack))
            run.simulation.round(t)
            rebuilt = model_of(run.server.pack())
            for name, value in rebuilt.items():
                mean = sum(n / 17 * model_of(p)[name] for n, p in zip((9, 5, 3), packs, strict=True))
                torch.testing.assert_close(value, mean, rtol=0, atol=1e-12)
                assert not torch.equal(model_of(packs[0])[name], model_of(packs[1])[name])


# the model --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["identity", "quant8"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_everybody_makes_the_same_model_to_the_bit_whoever_was_away(precision: str, codec: str) -> None:
    run = tiny.federation(SMALL, **THREE, precision=precision, codec_name=codec)
    for t in range(3):
        run.simulation.round(t)
    server = model_of(run.server.pack())
    fedkseed.moved.cache_clear()
    together = run.pack(None, 3)
    for k in range(3):
        fedkseed.moved.cache_clear()
        alone = run.pack([k], 3)
        for name, value in server.items():
            assert torch.equal(value, alone.tensors[name][0])
            assert torch.equal(value, together.tensors[name][k])
    start = model_of(tiny.federation(SMALL, **THREE, precision=precision).server.pack())
    assert all(not torch.equal(v, start[n]) for n, v in server.items())


def test_a_site_that_was_away_needs_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own bytes: a site reads nothing but its messages."""
    seen: dict[str, list[dict[str, Tensor]]] = {}
    load = FedKSeed.load

    def noted(self: FedKSeed, pack: Pack) -> None:
        load(self, pack)
        for k, client in enumerate(pack.clients):
            seen.setdefault(f"{client.id} {pack.round.index}", []).append({n: v[k] for n, v in pack.tensors.items()})

    monkeypatch.setattr(FedKSeed, "load", noted)
    run, _ = remote(SMALL, **THREE)
    cohorts = [run.simulation.round(t)["cohort"] for t in range(3)]  # type: ignore[index]
    back = [c for c in cohorts[2] if c not in cohorts[1]]
    stayed = [c for c in cohorts[2] if c in cohorts[1]]
    assert back
    assert stayed
    one, other = seen[f"{back[0]} 2"][0], seen[f"{stayed[0]} 2"][0]
    assert one[SUMS].any()
    assert all(torch.equal(v, other[n]) for n, v in one.items())


def test_with_one_seed_all_motion_is_on_one_line() -> None:
    run = tiny.federation(replace(SMALL, seeds=1), **THREE)
    start, moves = model_of(run.server.pack()), []
    for t in range(3):
        run.simulation.round(t)
        now = model_of(run.server.pack())
        moves.append(torch.cat([(now[n] - start[n]).flatten() for n in sorted(start)]))
    z = torch.from_numpy(direction(run.bench.seed, 0, len(moves[0]))).double()
    for move in moves:
        assert move.norm() > 1e-4
        assert abs(float(torch.cosine_similarity(move, z, 0))) == pytest.approx(1, abs=1e-9)


def test_a_step_costs_two_passes_forward_and_keeps_no_gradient() -> None:
    asked: list[bool] = []

    class Watched(FedKSeed):
        info = replace(FedKSeed.info, slug="watched")

        def objective(self, pack: Pack, batch: Batch) -> Tensor:
            loss = super().objective(pack, batch)
            asked.append(torch.is_grad_enabled() or loss.requires_grad)
            return loss

    run = tiny.federation(Watched(seeds=40, steps=3, batch=2, tune=SMALL.tune), sizes=(9,), rounds=1).run()
    assert asked == [False] * 6
    assert torch.is_grad_enabled()
    assert by_hand.shared(run)[SUMS].any()


def test_scalars_along_random_directions_add_up_to_the_gradient() -> None:
    """E[g z] = ∇L, of a head, from steps at a rate of 0: they are all taken at one place."""
    method = replace(SMALL, seeds=100_000, steps=300, batch=9, optim=SGD.but(lr=0.0), tune=Tune("head"))
    run = tiny.federation(method, sizes=(9,), rounds=1)
    pack = run.pack([0])
    names = sorted(n for n in pack.tensors if n.startswith("head/"))
    found = pack.gradients(method.objective, "head", size=9)
    gradient = torch.cat([found[n].flatten() for n in names])
    (sent,) = method.train(pack)
    g = sent.tensors["scalars"]
    assert isinstance(g, Tensor)
    stream = generator(0, "seeds", 0, run.clients[0].id)
    numbers = (torch.rand(300, generator=stream, dtype=torch.float64) * 100_000).long()
    z = torch.stack([torch.from_numpy(direction(0, int(j), len(gradient))).double() for j in numbers])
    mean = (g.unsqueeze(1) * z).mean(0)
    assert float(torch.cosine_similarity(mean, gradient, 0)) > 0.75
    assert float(mean @ gradient / gradient.square().sum()) == pytest.approx(1, abs=0.25)  # variance 2/300
    torch.testing.assert_close(g, z @ gradient, rtol=1e-3, atol=1e-4)  # each is the slope along its own direction


# seeds --------------------------------------------------------------------------------------------------------------------


def seeds_of(run: tiny.Federation, t: int) -> dict[str, set[int]]:
    """Client -> the seeds that it steps along in round t, of a method that sends sums."""
    updates = list(run.method.train(run.pack(None, t)))
    before = by_hand.shared(run)[SUMS]
    return {u.client.id: set((u.tensors[SUMS] - before).nonzero().flatten().tolist()) for u in updates}  # type: ignore[operator]


def test_clients_of_a_pack_and_rounds_of_a_client_draw_seeds_of_their_own() -> None:
    run = tiny.federation(replace(SMALL, seeds=100_000, upload="sums", steps=5), sizes=(9, 5, 3))
    first, second = seeds_of(run, 0), seeds_of(run, 1)
    every = [*first.values(), *second.values()]
    assert [len(s) for s in every] == [5] * 6
    assert len(set.union(*every)) == 30


def test_whoever_goes_on_when_others_of_its_pack_have_done_keeps_its_own_steps() -> None:
    run = tiny.federation(SMALL, **THREE)
    together = {u.client.id: u.tensors["scalars"] for u in run.method.train(run.pack([2, 0, 1]))}
    assert [len(together[f"client-{k}"]) for k in range(3)] == [5, 3, 2]  # type: ignore[arg-type]
    for k in range(3):
        (alone,) = run.method.train(run.pack([k]))
        torch.testing.assert_close(together[f"client-{k}"], alone.tensors["scalars"], rtol=1e-9, atol=1e-12)


def test_the_server_knows_the_seeds_of_scalars() -> None:
    """What sums say of single steps, scalars without any seed say too."""
    runs = [tiny.federation(replace(SMALL, upload=upload), **THREE).run() for upload in ("scalars", "sums")]
    one, other = (by_hand.shared(run)[SUMS] for run in runs)
    assert one.any()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_sums_can_be_protected_and_scalars_cannot() -> None:
    Robust("median").check("fedkseed", replace(SMALL, upload="sums").sums, 5)
    with pytest.raises(UserError, match="needs each update by itself"):
        Robust("median").check("fedkseed", SMALL.sums, 5)
    run = tiny.federation(replace(SMALL, upload="sums"), sizes=(9, 5, 3), rounds=1)
    run.server.robust = Robust("median")
    updates = {u.client.id: u.tensors[SUMS] for u in run.method.train(run.pack(None, 0))}
    run.run()
    wanted = torch.stack([v for v in updates.values() if isinstance(v, Tensor)]).median(0).values
    torch.testing.assert_close(by_hand.shared(run)[SUMS], wanted)
    assert not torch.equal(wanted, torch.zeros_like(wanted))


def test_probabilities_are_the_softmax_of_mean_sizes_between_0_and_1() -> None:
    histories = [[0.0, 3.0, -5.0], [0.0], [0.0, -4000.0], [0.0, 0.5, 0.5, 0.5]]
    means = [8 / 3, 0.0, 500.0, 1.5 / 4]  # 4000 counts for 1000
    scaled = [m / 500.0 for m in means]
    total = sum(map(math.exp, scaled))
    sizes = torch.tensor([sum(min(abs(g), 1000.0) for g in own) for own in histories])
    counts = torch.tensor([float(len(own) - 1) for own in histories])
    found = probabilities(sizes, counts)
    torch.testing.assert_close(found, torch.tensor([math.exp(s) / total for s in scaled], dtype=torch.float64))


def test_probabilities_begin_at_the_least_mean_size_there_is() -> None:
    """Also where every seed has been drawn, so that none has a mean of 0."""
    found = probabilities(torch.tensor([10.0, 4.0, 6.0]), torch.tensor([1.0, 1.0, 2.0]))  # means 5, 2 and 2
    torch.testing.assert_close(found, torch.tensor([math.e, 1.0, 1.0], dtype=torch.float64) / (math.e + 2))


@pytest.mark.parametrize("size", [0.0, 2.5])
def test_equal_histories_give_equal_probabilities(size: float) -> None:
    found = probabilities(torch.full((8,), 3 * size), torch.full((8,), 3.0))
    assert torch.equal(found, torch.full((8,), 0.125, dtype=torch.float64))


def test_pro_counts_no_scalar_for_more_than_a_thousand_and_none_of_a_step_that_was_left_out() -> None:
    run = tiny.federation(replace(SMALL, pro=True, seeds=3), sizes=(9, 5), rounds=1)
    sent = [torch.tensor(own, dtype=torch.float64) for own in ([2e6, -3.0, 0.0], [0.0, 0.0, -1.0, 7e3])]
    run.server.round = run.method.plan(run.server, 0)  # type: ignore[assignment]
    updates = [by_hand.update(run, k, {"scalars": own}, 1.0) for k, own in enumerate(sent)]
    run.method.aggregate(run.server, iter(updates))
    left_out = [0, 0, 0]
    history: list[list[float]] = [[0.0] for _ in range(3)]
    for k, own in enumerate(sent):
        stream = generator(0, "seeds", 0, run.clients[k].id)
        for g in own.tolist():
            j = int(float(torch.rand((), generator=stream, dtype=torch.float64)) * 3)
            history[j] += [min(abs(g), 1000.0)] if g else []
            left_out[j] += g == 0
    assert any(missed and len(own) > 1 for missed, own in zip(left_out, history, strict=True)), "it would not show"
    means = [sum(own) / len(own) for own in history]
    wanted = [math.exp((m - min(means)) / (max(means) - min(means))) for m in means]
    found = by_hand.shared(run)[PI]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64) / sum(wanted), rtol=1e-6, atol=0)
    assert float(found.max()) == pytest.approx(math.e / sum(wanted), rel=1e-6)


def test_pro_draws_a_seed_as_often_as_its_probability_says() -> None:
    pi = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    drawn = fedkseed.seeds_at(fedkseed.edges_of(pi, 3), generator(0, "seeds"), 20_000)
    torch.testing.assert_close(torch.bincount(drawn, minlength=3) / 20_000, pi.float(), rtol=0, atol=0.015)
    one_by_one = generator(0, "seeds")
    again = [int(fedkseed.seeds_at(fedkseed.edges_of(pi, 3), one_by_one, 1)) for _ in range(50)]
    assert again == drawn[:50].tolist()


def test_a_step_without_a_finite_loss_counts_for_nothing() -> None:
    class Broken(FedKSeed):
        info = replace(FedKSeed.info, slug="broken")

        def objective(self, pack: Pack, batch: Batch) -> Tensor:
            loss = super().objective(pack, batch)
            return torch.where(torch.tensor([pack.clients[i].id == "client-0" for i in range(len(loss))]), loss * math.nan, loss)

    made: dict[str, Any] = {"seeds": 40, "steps": 3, "batch": 2, "optim": SGD, "tune": SMALL.tune}
    run = tiny.federation(Broken(**made), sizes=(4, 4), rounds=1)
    (alone,) = FedKSeed(**made).train(tiny.federation(FedKSeed(**made), sizes=(4, 4), rounds=1).pack([1], 0))
    record = run.simulation.round(0)
    assert record is not None
    assert record["refused"] == {}
    numbers = (torch.rand(3, generator=generator(0, "seeds", 0, "client-1"), dtype=torch.float64) * 40).long()
    g = alone.tensors["scalars"]
    assert isinstance(g, Tensor)
    by_hand.close(by_hand.shared(run)[SUMS], torch.zeros(40, dtype=torch.float64).index_add_(0, numbers, g / 2))


def test_a_step_is_left_out_where_its_losses_differ_by_more_than_the_largest_gap() -> None:
    up, down = torch.tensor([1.5, 1.75, 1.0, 0.25, math.nan]), torch.ones(5)
    slopes = FedKSeed(epsilon=0.25, largest_gap=0.5)._slope(up, down)
    assert slopes.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert FedKSeed(epsilon=0.25)._slope(up, down).tolist() == [1.0, 1.5, 0.0, -1.5, 0.0]


def test_the_loss_that_is_told_is_that_in_the_middle_of_a_step() -> None:
    run = tiny.federation(replace(SMALL, batch=9, steps=2, optim=SGD.but(lr=0.0)), sizes=(9,), rounds=1)
    record = run.simulation.round(0)
    assert record is not None
    start = {n: v for n, v in by_hand.start_of(run).items() if not n.startswith("seeds/")}
    assert record["loss"] == pytest.approx(Reference(run).loss(start, run.clients[0].data.train), rel=1e-4)


# what travels -------------------------------------------------------------------------------------------------------------


def cost(tune: Tune, steps: int) -> list[int]:
    """Payload of a client's second round, down and up."""
    run = tiny.federation(FedKSeed(tune=tune, steps=steps), sizes=(3,), rounds=2, precision="float32").run()
    ledger = run.simulation.setup.exchange.ledger
    return [ledger.totals(round=1, phase="train", direction=way).payload for way in ("down", "up")]  # type: ignore[arg-type]


def test_a_round_of_200_steps_and_4096_seeds_costs_less_than_18_kilobytes_both_ways() -> None:
    assert cost(Tune("head"), 200) == [4 * 4096, 4 * 200]
    assert 4 * 4096 + 4 * 200 < 18_000


def test_what_travels_does_not_depend_on_what_is_tuned() -> None:
    for tune in (Tune("head"), Tune(rank=2), Tune(rank=8, at="all"), Tune("bottleneck")):
        assert cost(tune, 2) == [4 * 4096, 4 * 2]


def test_an_exported_adapter_predicts_what_the_servers_model_does(tmp_path: Path) -> None:
    run = exporting.trained(replace(SMALL, optim=SGD.but(lr=2e-2)))
    report = exporting.exported(run, tmp_path)
    assert report.kind == "peft"
    rows = np.arange(len(run.bench.table))
    backbone = run.bench.backbone
    found = exporting.by_peft(backbone.path, tmp_path, run.bench.table.collate(rows), 3, backbone.model.config.pad_token_id)
    torch.testing.assert_close(found, run.global_logits(), **exporting.RUN_CLOSE)
    untrained = tiny.federation(SMALL, precision="float32").global_logits()
    assert (found - untrained).abs().max() > 1e-2


def test_an_adapter_of_another_kind_is_exported_without_what_belongs_to_the_seeds(tmp_path: Path) -> None:
    run = exporting.trained(replace(SMALL, optim=SGD.but(lr=2e-2), tune=Tune("bottleneck")))
    report = exporting.exported(run, tmp_path)
    assert report.kind == "adapters"
    names = exporting.tensors_in(tmp_path / "adapter.safetensors")
    assert {re.sub(r".*\.adapters\.fedkseed\.", "", n) for n in names} == {
        f"{where}.{role}" for where in ("adapter_down.0", "adapter_up") for role in ("weight", "bias")
    }


# settings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "adamw"},
        {"schedule": "linear"},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"warmup": 0.1},
        {"prox": 0.1},
        {"clip": 1.0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_whatever_makes_steps_unequal_is_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(UserError, match=rf"plain ones at one rate: set optim\.{name} = (sgd|constant|0\.0|none)\.$"):
        FedKSeed(optim=SGD.but(**change))


def test_numbers_out_of_range_are_refused() -> None:
    for name, value, least in (("seeds", 0, "≥ 1"), ("epsilon", 0.0, "> 0"), ("largest_gap", 0.0, "> 0"), ("steps", 0, "≥ 1")):
        with pytest.raises(UserError, match=f"{name} {least}"):
            FedKSeed(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'unknown upload "sum".*Did you mean "sums"'):
        FedKSeed(upload="sum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pro has to know the scalar of each step"):
        FedKSeed(pro=True, upload="sums")


def test_clients_on_which_other_tensors_are_tuned_are_refused() -> None:
    wide = tiny.backbone("bert", hidden_size=48, intermediate_size=96)
    with pytest.raises(UserError, match=r"other tensors.*give all clients one backbone"):
        tiny.mixed_federation(SMALL, [tiny.backbone("bert"), wide])


def test_an_update_without_scalars_is_refused() -> None:
    run = tiny.federation(SMALL, sizes=(4, 4), rounds=1)
    pack_update = run.simulation.setup.exchange.pack_update

    def empty(server: Any, update: Any, *more: Any) -> Any:
        return pack_update(server, replace(update, tensors={}) if update.client.id == "client-0" else update, *more)

    run.simulation.setup.exchange.pack_update = empty  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    assert list(record["refused"]) == ["client-0"]
    assert "missing" in record["refused"]["client-0"]


def test_an_update_of_more_scalars_than_there_are_steps_is_refused() -> None:
    run = tiny.federation(replace(SMALL, steps=3), sizes=(4, 4), rounds=1)
    pack_update = run.simulation.setup.exchange.pack_update

    def many(server: Any, update: Any, *more: Any) -> Any:
        more_of_them = replace(update, tensors={"scalars": torch.ones(7, dtype=torch.float64)})
        return pack_update(server, more_of_them if update.client.id == "client-0" else update, *more)

    run.simulation.setup.exchange.pack_update = many  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    assert list(record["refused"]) == ["client-0"]


def test_defaults_are_the_codes() -> None:
    method = FedKSeed()
    # "K = 4096 default argument"; "τ = 200 steps, batch 1"; "ε = 5e−4"
    assert (method.seeds, method.steps, method.batch, method.epsilon) == (4096, 200, 1, 5e-4)
    # "if clip c>0": off where nothing is said; "|clip(history_j, ±1000)|"
    assert (method.largest_gap, method.pro, fedkseed.LARGEST) == (None, False, 1000.0)
    # "weight decay λ … default 0"; "constant η required"
    assert method.optim.but(lr=0.0) == Optim("sgd", lr=0.0, schedule="constant")
    # "p_k = number of local batches/total", which at one row a batch is that of rows
    assert method.weighting == "examples"


test_laws_of_pro = laws.over(replace(SMALL, pro=True), replace(SMALL, upload="sums"))


# what other tests ask of this method --------------------------------------------------------------------------------------


def one_for_each(name: str, *sizes: int) -> Callable[[Turn], Sizes]:
    return lambda turn: {name: list(sizes)}


STEPS = one_for_each("scalars", 2)
BYTES = Case({"seeds": 64}, one_for_each("seeds", 64), STEPS, head_stays=True)
BYTES_VARIANTS = {
    "pro": Case({"seeds": 64, "pro": True}, one_for_each("seeds", 64, 64), STEPS, head_stays=True),
    "sums": Case({"seeds": 64, "upload": "sums"}, one_for_each("seeds", 64), one_for_each("seeds", 64), head_stays=True),
    "bottlenecks": Case({"seeds": 64, "tune.kind": "bottleneck"}, one_for_each("seeds", 64), STEPS, head_stays=True),
}
