"""Clients hidden by noise: on their updates before these leave, or on the server's sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from every_method import METHODS, small
from weft.adaptation.optim import Optim
from weft.engines.cohort import secretly
from weft.engines.noise_budget import Spending
from weft.errors import UserError
from weft.federation.client import ClientState
from weft.federation.hidden_clients import CLIP, HiddenClients
from weft.federation.hidden_turn import trained
from weft.federation.message import Update
from weft.federation.one_mean import OneMean
from weft.federation.round import Round
from weft.federation.rounds import adapted
from weft.federation.soundness import unsound
from weft.methods import FedBF, FedIT, registry
from weft.privacy import accounting
from weft.privacy.factorization import NOISE
from weft.privacy.hiding import Privacy, mechanisms
from weft.privacy.mechanism import DPFedAvg, LocalDP
from weft.tensors.init import leading
from weft.testing.compare import equal, server_state, state
from weft.testing.plays import shallow
from weft.testing.sites import remote

SIZES = (5, 3, 4, 6)
SUMS = [slug for slug in METHODS if not unsound(small(slug), DPFedAvg())]
DIVIDED = ("fedra",)  # a round's clients hold other blocks each, and an entry is divided by all who could hold it
QUICK = ("fedit", "fedsa-lora", "heterofl", "frlora", "promptfl")


def plan(text: str, **more: Any) -> Privacy:
    return Privacy(mechanisms(text), **{"insecure": True, "rounds": 2} | more)


def still(slug: str) -> Any:
    """All clients count alike, and rounding decides on no step."""
    made = small(slug)
    return replace(made, weighting="uniform", optim=made.optim.but(eps=max(made.optim.eps, 1e-4)))


# the server's noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slug", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in SUMS if s not in DIVIDED]
)
def test_without_noise_or_bound_it_is_the_plain_mean(slug: str) -> None:
    method = still(slug)
    plain, hidden = (
        tiny.federation(method, shallow(method), sizes=SIZES, rounds=2, privacy=p, seed=3).run()
        for p in (Privacy(), plan("dp-fedavg:noise=0,clip=1e9"))
    )
    assert equal(server_state(plain), server_state(hidden), 1e-9)


def closed(run: tiny.Federation, updates: list[Update], **more: Any) -> dict[str, Tensor]:
    """What the server holds after a round of these updates, which began from what it holds."""
    held = {u.client.id: dict(run.server.shared) for u in updates}
    hidden = HiddenClients(run.method, run.server, run.bench.privacy, **more)
    run.method.aggregate(run.server, hidden.passing(iter(updates), held))
    return {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}


def moved_by(run: tiny.Federation, sizes: list[float]) -> Iterator[Update]:
    """An update of each client, that leads so far away in a direction of its own."""
    for k, (info, size) in enumerate(zip(run.server.clients, sizes, strict=False)):
        g = torch.Generator().manual_seed(k)
        step = {n: torch.randn(v.shape, generator=g, dtype=v.dtype) for n, v in run.server.shared.items()}
        norm = math.sqrt(sum(float(v.square().sum()) for v in step.values()))
        tensors = {n: run.server.shared[n] + step[n] * size / norm for n in step}
        yield Update(tensors=tensors, client=info, weight=1.0 + k, adaptation=run.server.adaptation)


def of_own(run: tiny.Federation, there: int) -> tuple[list[Update], dict[str, dict[str, Any]]]:
    """Updates of the first clients in their own sizes, and what they began from; the fourth has changed nothing."""
    one = OneMean(run.method, run.server)
    updates, held = [], {}
    for k, info in enumerate(run.server.clients[:there]):
        g = torch.Generator().manual_seed(k)
        begun = {n: leading(run.server.shared.get(n, torch.zeros(s)), s) for n, s in one.own(info).items()}  # type: ignore[arg-type]
        moved = {n: v + (k < 3) * 0.01 * torch.randn(v.shape, generator=g, dtype=v.dtype) for n, v in begun.items()}
        held[info.id] = begun
        updates.append(Update(tensors=moved, client=info, weight=1.0, adaptation=adapted(run.method, run.bench, info)))
    return updates, held


@pytest.mark.parametrize("slug", SUMS)
def test_nothing_but_the_sum_tells_who_takes_part(slug: str) -> None:
    """One that changes nothing is as one that is not there, and the updates that a method sees are the same whoever came."""
    method, ends, seen = still(slug), [], []
    for there in (4, 3, 0):
        privacy = plan("dp-fedavg:noise=0,clip=0.1", participation=0.5)
        run = tiny.federation(method, shallow(method), sizes=SIZES, rounds=2, privacy=privacy)
        updates, held = of_own(run, there)
        given = list(HiddenClients(method, run.server, privacy).passing(iter(updates), held))
        seen.append([(u.client.id, u.weight, u.facts, sorted(u.tensors)) for u in given])
        method.aggregate(run.server, iter(given))
        ends.append({n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)})
    assert equal(ends[0], ends[1], 1e-9)
    assert seen[0] == seen[1] == seen[2] != []


@pytest.mark.parametrize("slug", SUMS)
def test_clients_send_what_is_expected_of_them_in_each_round(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that nobody ever sends would be moved by noise alone."""
    came: list[tuple[set[str], set[str]]] = []
    passing = HiddenClients.passing

    def seen(self: HiddenClients, updates: Any, held: Any) -> Iterator[Update]:
        there = list(updates)
        came.append(({n for u in there for n in u.tensors}, {n for u in there for n in self.one.own(u.client)}))
        return passing(self, iter(there), held)

    monkeypatch.setattr(HiddenClients, "passing", seen)
    method = still(slug)
    tiny.federation(method, shallow(method), sizes=SIZES, rounds=2, privacy=plan("dp-fedavg:noise=0,clip=1e9")).run()
    assert len(came) == 2
    for sent, expected in came:
        assert sent == expected


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in a))


def test_as_many_carry_the_mean_as_take_part_on_average_and_one_of_each_kind() -> None:
    run = tiny.federation(small("heterofl"), shallow(small("heterofl")), sizes=(3,) * 10, rounds=1)
    kinds = [c.facts["rate"] for c in run.server.clients]
    for chance in (1.0, 0.5, 0.01):
        found = [c.facts["rate"] for c in OneMean(run.method, run.server).expected(chance)]
        assert {k: found.count(k) for k in kinds} == {k: max(1, round(chance * kinds.count(k))) for k in kinds}


@pytest.mark.parametrize("size", [0.01, 3.0, 1e12])
def test_one_client_more_or_less_moves_the_model_by_the_norm_over_the_expected_cohort(size: float) -> None:
    """Whatever it sends, and whatever count of rows it claims."""
    privacy = plan("dp-fedavg:noise=0,clip=0.1")
    ends = []
    for there in (4, 3):
        run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=privacy)
        updates = list(moved_by(run, [0.05, 0.2, 1.0, size]))[:there]
        if there == 4:
            updates[3].weight = 1e9
        ends.append(closed(run, updates))
    assert gap(*ends) == pytest.approx(min(size, 0.1) / 4, rel=1e-6)


@pytest.mark.parametrize("size", [math.nan, math.inf])
def test_an_update_without_a_norm_moves_nothing(size: float) -> None:
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan("dp-fedavg:noise=0,clip=0.1"))
    updates = list(moved_by(run, [0.05, 0.05]))
    without = closed(run, updates[:1])
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan("dp-fedavg:noise=0,clip=0.1"))
    next(iter(updates[1].tensors.values())).view(-1)[0] = size  # type: ignore[union-attr]
    assert equal(without, closed(run, updates), 0.0)


def test_noise_has_the_size_that_it_says() -> None:
    """z C / (q N) in each entry, also where nobody's update says anything."""
    z, clip = 2.0, 0.5
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan(f"dp-fedavg:noise={z},clip={clip}"))
    before = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    after = closed(run, list(moved_by(run, [0.0] * 4)))
    noise = torch.cat([(after[n] - before[n]).flatten() for n in before])
    assert float(noise.std()) == pytest.approx(z * clip / 4, rel=0.05)
    assert abs(float(noise.mean())) < 4 * z * clip / 4 / math.sqrt(len(noise))


def test_an_entry_that_some_have_is_divided_by_them() -> None:
    """HeteroFL: a client with half of the ranks has no part in the other half."""
    method = registry.build("heterofl", {"rank": 16, "optim.lr": 0.0, "optim.kind": "sgd"})
    facts = [{"rate": r} for r in (1.0, 0.5, 0.5, 1.0)]
    run = tiny.federation(method, sizes=SIZES, facts=facts, privacy=plan("dp-fedavg:noise=1,clip=1"), rounds=1)
    before = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    run.run()
    moved = {n: run.server.shared[n] - v for n, v in before.items() if n.endswith("/A")}
    rows = torch.cat([m.flatten(1) for m in moved.values()], 1)
    assert float(rows[:8].std()) == pytest.approx(1 / 4, rel=0.1)
    assert float(rows[8:].std()) == pytest.approx(1 / 2, rel=0.1)


def test_a_client_that_fails_is_missing_from_the_sum_and_not_from_what_it_is_divided_by() -> None:
    privacy = plan("dp-fedavg:noise=0,clip=10")
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=privacy)
    before = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    after = closed(run, list(moved_by(run, [2.0]))[:1])
    assert gap(before, after) == pytest.approx(2.0 / 4)


def test_the_norm_finds_its_quantile() -> None:
    """Of updates of norms 1 to 4 the median: C settles between 2 and 3, whatever it began as."""
    for begin in (0.1, 30.0):
        run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan(f"dp-fedavg:noise=0,clip={begin},quantile=0.5"), rounds=80)
        for _ in range(80):
            closed(run, list(moved_by(run, [1.0, 2.0, 3.0, 4.0])))
        assert 1.9 < run.server.hiding[CLIP] < 3.1


def test_counting_is_paid_for_out_of_the_same_noise() -> None:
    """z⁻² = z_Δ⁻² + (2 σ_b)⁻² (Andrew et al. 2021, theorem 1)."""
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan("dp-fedavg:noise=1,quantile=0.5,counting=2"))
    hidden = HiddenClients(run.method, run.server, run.bench.privacy)
    assert hidden._divided[0] ** -2 + (2 * 2.0) ** -2 == pytest.approx(1.0)
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan("dp-fedavg:noise=3,quantile=0.5,counting=1"))
    with pytest.raises(UserError, match=r"give dp-fedavg:counting more than 1\.5"):
        _ = HiddenClients(run.method, run.server, run.bench.privacy)._divided


def nodes(t: int) -> float:
    """Of a tree that are left after t rounds: as many as t has ones in binary."""
    return float(t.bit_count())


def squares(t: int) -> float:
    """Of the whole square root's first t coefficients, which the root of A has again as B; exact, summed up."""
    return sum((math.comb(2 * k, k) / 4**k) ** 2 for k in range(t))


@pytest.mark.parametrize(("factorization", "variance"), [("tree", nodes), ("banded", squares)])
def test_the_noise_of_a_pass_is_that_of_its_factorization(factorization: str, variance: Callable[[int], float]) -> None:
    """In the model after t rounds of a pass."""
    z, rounds = 1.0, 8
    text = f"dp-ftrl:noise={z},clip=1,factorization={factorization}"
    run = tiny.federation(FedBF(), sizes=SIZES, privacy=plan(text, participation=0.1, rounds=rounds), rounds=rounds)
    before = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    for t in range(rounds):
        run.server.round = replace(run.server.round, index=t)
        after = closed(run, list(moved_by(run, [0.0] * 4)), fresh=t == 0)
        noise = torch.cat([(after[n] - before[n]).flatten() for n in before])
        assert float(noise.std()) == pytest.approx(z * math.sqrt(variance(t + 1)) / (0.1 * 4), rel=0.08)


@pytest.mark.parametrize("factorization", ["tree", "banded"])
def test_a_new_pass_takes_nothing_back_of_the_last_one(factorization: str) -> None:
    """Whether its first round sends something, sends nothing, or is undone."""
    privacy = plan(f"dp-ftrl:noise=1,clip=1,factorization={factorization}", participation=0.25, rounds=8)
    run = tiny.federation(FedBF(), sizes=SIZES, privacy=privacy)
    closed(run, list(moved_by(run, [0.0] * 4)), fresh=True)
    assert run.server.hiding
    HiddenClients(run.method, run.server, privacy)
    assert run.server.hiding
    HiddenClients(run.method, run.server, privacy, fresh=True)
    assert not run.server.hiding


def leaf_cohorts(privacy: Privacy, names: list[str], rounds: int) -> list[set[str]]:
    clients = [ClientState(name, 3) for name in names]
    return [{c.id for c in secretly(privacy, Round(t), clients)} for t in range(rounds)]


def test_each_client_takes_part_once_in_a_pass_whoever_comes_or_goes() -> None:
    privacy = plan("dp-ftrl:noise=1", participation=0.25, rounds=12)
    names = [f"client-{i}" for i in range(40)]
    cohorts = leaf_cohorts(privacy, names, 12)
    for once in (cohorts[:4], cohorts[4:8], cohorts[8:]):
        assert sorted(c for cohort in once for c in cohort) == sorted(names)
        assert all(3 <= len(cohort) <= 18 for cohort in once)
    assert cohorts[:4] != cohorts[4:8]
    fewer = leaf_cohorts(privacy, names[::3], 12)
    assert fewer == [cohort & set(names[::3]) for cohort in cohorts]


def test_a_pass_begins_anew_once_everybody_has_taken_part() -> None:
    privacy = plan("dp-ftrl:noise=1", participation=0.25, rounds=8)
    run = tiny.federation(FedIT(rank=2), sizes=(3,) * 8, rounds=8, privacy=privacy, participation=0.25)
    kept = []
    for t in range(8):
        run.simulation.round(t)
        kept.append({len(v) for n, v in run.server.hiding.items() if n.startswith(NOISE)})
    assert kept == [{1}, {2}, {3}, {3}] * 2
    assert run.simulation.setup.spending is not None
    assert run.simulation.setup.spending.passes == 2


@pytest.mark.parametrize(("text", "chance"), [("dp-ftrl:noise=0,clip=10", 0.25), ("dp-fedavg:noise=0,clip=10", 0.3)])
def test_a_sum_is_divided_by_how_many_take_part_on_average(text: str, chance: float) -> None:
    """Of passes that is one of their rounds, also where participation is no fraction of one over a whole number."""
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan(text, participation=0.3))
    before = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    after = closed(run, list(moved_by(run, [2.0]))[:1], fresh=True)
    assert gap(before, after) == pytest.approx(2.0 / (chance * 4))


def test_clients_are_drawn_by_lots_of_their_own() -> None:
    privacy = plan("dp-fedavg:noise=1", participation=0.5, rounds=40)
    run = tiny.federation(FedIT(rank=2, steps=1), sizes=(2,) * 6, rounds=40, privacy=privacy, participation=0.5)
    sizes = []
    for t in range(40):
        record = run.simulation.round(t)
        assert record is not None
        sizes.append(len(record["cohort"]))
    assert len(set(sizes)) > 3
    assert sum(sizes) / 40 == pytest.approx(3, abs=0.7)


def test_nothing_of_single_updates_is_told() -> None:
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan("dp-fedavg:noise=1"), max_factor=2.0)
    record = run.simulation.round(0)
    assert record is not None
    assert record["loss"] is None
    assert not {"drift", "aggregation_error", "effective_rank"} & record.keys()
    assert run.simulation.intake.usual is None
    assert record["privacy"]["clip"] == 0.1


def test_a_site_tells_no_loss() -> None:
    run, loop = remote(FedIT(rank=2), sizes=SIZES, privacy=plan("ldp:noise=1"))
    run.run()
    assert [site.rounds["loss"] for site in loop.sites.values()] == [None] * 4
    run, loop = remote(FedIT(rank=2), sizes=SIZES)
    run.run()
    assert None not in [site.rounds["loss"] for site in loop.sites.values()]


# the client's noise -------------------------------------------------------------------------------------------------------


def sent(text: str) -> list[dict[str, Tensor]]:
    """What each client's update says that it has changed."""
    run = tiny.federation(FedBF(optim=Optim("sgd", lr=100.0)), sizes=SIZES, rounds=1, privacy=plan(text))
    pack = run.pack()
    return [{n: v - run.server.shared[n] for n, v in u.tensors.items()} for u in trained(run.method, pack)]


def test_updates_leave_clipped_and_under_noise() -> None:
    z, clip = 2.0, 0.5
    noise = []
    for noisy, clipped in zip(sent(f"ldp:noise={z},clip={clip}"), sent(f"ldp:noise=0,clip={clip}"), strict=True):
        assert math.sqrt(sum(float(v.square().sum()) for v in clipped.values())) == pytest.approx(clip, rel=1e-6)
        noise.append(torch.cat([(noisy[n] - clipped[n]).flatten() for n in clipped]))
        assert float(noise[-1].std()) == pytest.approx(z * clip, rel=0.1)
    close = torch.corrcoef(torch.stack(noise)) - torch.eye(len(noise), dtype=noise[0].dtype)
    assert float(close.abs().max()) < 0.2, "everybody has noise of its own"


def test_its_turns_are_counted() -> None:
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, rounds=3, privacy=plan("ldp:noise=8", rounds=3)).run()
    wanted = accounting.epsilon(4.0, 1.0, 3, 1e-5)
    assert run.simulation.spent()["client_epsilon"] == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["ldp:noise=1", "dp-fedavg:noise=1", "dp-ftrl:noise=1", "dp-sgd:noise=1+dp-fedavg:noise=1"])
def test_packs_clients_alone_and_sites_are_alike(text: str) -> None:
    method = still("fedit")
    one, many = (tiny.federation(method, sizes=SIZES, rounds=2, privacy=plan(text), pack=pack).run() for pack in (1, 4))
    apart, _ = remote(method, sizes=SIZES, rounds=2, privacy=plan(text))
    apart.run()
    assert equal(state(one), state(many), 1e-9)
    assert equal(server_state(one), server_state(apart), 1e-9)
    assert apart.simulation.spent() == one.simulation.spent()


# every cell -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LocalDP, DPFedAvg], ids=lambda k: k.name)
@pytest.mark.parametrize("slug", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in METHODS])
def test_what_is_said_to_be_sound_runs_and_what_is_not_has_its_reason(slug: str, kind: Any) -> None:
    method = small(slug)
    why = unsound(method, kind())
    run = tiny.federation(method, shallow(method), sizes=(4, 3), rounds=2, privacy=plan(f"{kind.name}:noise=1"))
    if not why:
        run.run()
        assert run.simulation.spent()["client_epsilon"] > 0
        return
    told = method.info.reveals or method.in_part or method.gives_away or method.info.baseline == "central"
    assert told or (kind is DPFedAvg and (method.info.codec or not method.sums)), f"{slug}: {why}"


# a budget -------------------------------------------------------------------------------------------------------------------


def test_a_round_counts_from_the_moment_at_which_it_begins(tmp_path: Path) -> None:
    privacy = plan("dp-fedavg", epsilon=3.0, rounds=3)
    spending = Spending(tmp_path / "privacy.json", privacy)
    spending.begin(0)
    again = Spending(tmp_path / "privacy.json", privacy)  # killed in the round
    assert again.rounds == 1
    again.begin(0)
    again.begin(1)
    assert again.over(2) is not None
    with pytest.raises(UserError, match="round 3 is not played: it would take epsilon to"):
        again.begin(2)
    assert Spending(tmp_path / "privacy.json", privacy).rounds == 3


def test_a_budget_whose_file_is_gone_or_older_is_not_begun_anew(tmp_path: Path) -> None:
    privacy, path = plan("dp-fedavg:noise=1", rounds=5), tmp_path / "privacy.json"
    spending = Spending(path, privacy)
    spending.begin(0)
    older = path.read_bytes()
    spending.begin(1)
    path.write_bytes(older)
    with pytest.raises(UserError, match="an older one and does not count round 2"):
        Spending(path, privacy).begin(2)
    path.unlink()
    with pytest.raises(UserError, match="gone and does not count round 2"):
        Spending(path, privacy).begin(2)
    assert not path.exists()
    Spending(path, privacy).begin(0)


@pytest.mark.parametrize(
    ("factorization", "norm"), [("tree", math.sqrt(3)), ("banded", math.sqrt(1 + 1 / 4 + 9 / 64 + 25 / 256))]
)
def test_a_pass_of_a_round_that_was_begun_twice_is_over(tmp_path: Path, factorization: str, norm: float) -> None:
    """Its noise would else be told twice around two different sums."""
    privacy = plan(f"dp-ftrl:noise=1,factorization={factorization}", participation=0.25, rounds=8)
    spending = Spending(tmp_path / "privacy.json", privacy)
    assert [spending.begin(t) for t in range(3)] == [True, False, False]
    again = Spending(tmp_path / "privacy.json", privacy)
    assert [again.begin(t) for t in range(2, 6)] == [True, False, True, False]
    assert again.passes == 3
    assert again.epsilon == pytest.approx(accounting.epsilon(1 / norm, 1.0, 3, 1e-5, "rdp"))


def test_a_pass_that_would_go_beyond_the_budget_does_not_begin(tmp_path: Path) -> None:
    privacy = plan("dp-ftrl:noise=1", participation=0.5, rounds=8)
    privacy = replace(privacy, epsilon=privacy.spent_on_clients(rounds=4, passes=2))
    spending = Spending(tmp_path / "privacy.json", privacy)
    assert [spending.begin(t) for t in range(4)] == [True, False, True, False]
    assert spending.over(4) is not None
