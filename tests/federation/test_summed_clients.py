"""A round's mean from one sum of whole numbers: what it comes to, whom it is over, and what noise is in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from every_method import METHODS, small
from sums_of_sites import SIZES, here, plan
from weft.communication.strict import Refused
from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.soundness import unsound
from weft.federation.summed_clients import SummedClients
from weft.methods import FedBF, FedIT, registry
from weft.privacy.mechanism import SecAgg
from weft.testing.compare import equal, server_state
from weft.testing.plays import shallow

QUICK = ("fedit", "fedsa-lora", "heterofl", "frlora", "promptfl", "rolora")
ALONE = "legend"
"""Gives each client a size of its own, so that some entries are one's alone."""
SUMS = [slug for slug in METHODS if slug != ALONE and not unsound(small(slug), SecAgg())]


def steady(slug: str) -> Any:
    """Rounding decides on no step."""
    made = small(slug)
    return replace(made, optim=made.optim.but(eps=max(made.optim.eps, 1e-4)))


@pytest.mark.parametrize("slug", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in SUMS])
def test_it_is_the_plain_mean_but_for_levels(slug: str) -> None:
    """Whoever sends a tensor, whole or in part, in whatever kind of round; finer levels are closer."""
    method, rounds = steady(slug), 1 if slug in STEEP else 2
    sizes = (3,) * 12 if slug in RAGGED else SIZES
    plain = tiny.federation(method, shallow(method), sizes=sizes, rounds=2, seed=3).run(rounds)
    apart = []
    for bits in (22, 27):
        text = f"secagg:bits={bits},heaviest=6,clip={CLIPS.get(slug, 30)},least=2"
        summed = here(method, text, sizes=sizes).run(rounds)
        apart.append(gap(server_state(plain), server_state(summed)))
    assert apart[1] < max(apart[0] / 8, 1e-9)


CLIPS = {"pfcr": 1e5}  # a gradient, which has another size than a change
"""Norms that no update exceeds, where 30 is not one."""

RAGGED = ("depthfl", "fjord", "heterofl")
"""Methods of clients of several sizes, of which there are some of each."""

STEEP = ("c2a",)  # whose second round makes much of a small difference in what the first has given
"""Methods of which one round is compared."""


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].is_floating_point() and a[n].numel())


# one round of given updates -----------------------------------------------------------------------------------------------


def moved_by(run: tiny.Federation, sizes: list[float], weights: list[float] | None = None) -> list[Update]:
    """An update of each client, that leads so far away in a direction of its own."""

    def each() -> Iterator[Update]:
        for k, (info, size) in enumerate(zip(run.server.clients, sizes, strict=False)):
            g = torch.Generator().manual_seed(k)
            step = {n: torch.randn(v.shape, generator=g, dtype=v.dtype) for n, v in run.server.shared.items()}
            norm = math.sqrt(sum(float(v.square().sum()) for v in step.values()))
            tensors = {n: run.server.shared[n] + step[n] * size / norm for n in step}
            weight = 1.0 + k if weights is None else weights[k]
            yield Update(tensors=tensors, client=info, weight=weight, adaptation=run.server.adaptation)

    return list(each())


def changed(text: str, updates: Any, **more: Any) -> tuple[SummedClients, dict[str, Tensor]]:
    """What a round of these updates makes the server's values change by."""
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan(text), **more)
    came = updates(run)
    hidden = SummedClients(run.method, run.server, run.bench.privacy)
    held = {u.client.id: dict(run.server.shared) for u in came}
    given = list(hidden.passing(hidden.added(iter(came), held)))
    assert [u.client.id for u in given] == [u.client.id for u in came]
    for update in given[1:]:
        assert equal(update.tensors, given[0].tensors, 0), "all are made of the mean"
    return hidden, {n: v - run.server.shared[n] for n, v in given[0].tensors.items()}


def wanted(updates: list[Update], run: tiny.Federation) -> dict[str, Tensor]:
    total = sum(u.weight for u in updates)
    return {n: sum(u.weight * (u.tensors[n] - v) for u in updates) / total for n, v in run.server.shared.items()}  # type: ignore[misc, operator]


@pytest.mark.parametrize("bits", [8, 16, 29])
def test_the_mean_is_within_half_a_level_of_each_client(bits: int) -> None:
    """m · step · W / (2 Σ w), as the code says of itself."""
    seen: list[Any] = []

    def updates(run: tiny.Federation) -> list[Update]:
        seen.append((came := moved_by(run, [0.5, 0.2, 1.0, 0.9]), run))
        return came

    hidden, found = changed(f"secagg:bits={bits},clip=1,heaviest=4", updates)
    exact, bound = wanted(*seen[0]), 4 * hidden.code.step * 4 / (2 * 10)
    assert gap(exact, found) <= bound + 1e-12
    assert gap(exact, found) > bound / 100, "the bound is no idle one"


def test_a_client_counts_no_more_than_the_heaviest_may() -> None:
    def updates(weights: list[float]) -> Any:
        return lambda run: moved_by(run, [0.5, 0.2, 1.0, 0.9], weights)

    _, capped = changed("secagg:bits=26,heaviest=3", updates([1, 2, 3, 1000]))
    _, same = changed("secagg:bits=26,heaviest=3", updates([1, 2, 3, 3]))
    assert equal(capped, same, 0)


def test_a_large_change_is_scaled_down_over_all_tensors_together() -> None:
    _, found = changed("secagg:bits=26,clip=0.5,heaviest=1", lambda run: moved_by(run, [1e12] * 4, [1] * 4))
    _, same = changed("secagg:bits=26,clip=0.5,heaviest=1", lambda run: moved_by(run, [0.5] * 4, [1] * 4))
    assert gap(found, same) < 1e-4


def test_a_weight_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"an update weighs 1\.5, and secagg sums whole numbers"):
        changed("secagg", lambda run: moved_by(run, [1.0] * 4, [1, 1, 1, 1.5]))


def test_fewer_than_the_least_make_no_sum() -> None:
    with pytest.raises(Refused, match=r"Only 2 clients are left, where a sum is of 3 or more\."):
        changed("secagg", lambda run: moved_by(run, [1.0] * 4)[:2])
    changed("secagg:least=2", lambda run: moved_by(run, [1.0] * 4)[:2])


def test_a_round_without_a_sum_leaves_the_model_and_says_so() -> None:
    run = here(FedIT(rank=2), "secagg:least=5")
    before = {n: v.clone() for n, v in server_state(run).items()}
    said: list[str] = []
    run.simulation.setup.observer.say = said.append  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    assert said == ["round 1 counts for nothing: Only 4 clients are left, where a sum is of 5 or more."]
    assert equal(before, server_state(run), 0)


@pytest.mark.parametrize("text", ["secagg", "dp-fedavg:noise=1+secagg:bits=16"])
def test_packs_are_no_matter(text: str) -> None:
    one, many = (here(small("fedit"), text, pack=pack).run() for pack in (1, 4))
    assert equal(server_state(one), server_state(many), 1e-9)


def test_nothing_of_single_updates_is_told() -> None:
    record = here(FedIT(rank=2), "secagg", max_factor=2.0).simulation.round(0)
    assert record is not None
    assert record["loss"] is None
    assert not {"drift", "aggregation_error", "effective_rank", "privacy"} & record.keys()


# noise of the clients' ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [2, 4])
def test_each_client_adds_a_part_of_the_noise(least: int) -> None:
    """Of as many clients as may be the least, it is z C in each entry of the sum; of more it is more."""
    z, clip = 2.0, 0.5
    _, found = changed(f"dp-fedavg:noise={z},clip={clip}+secagg:bits=16,least={least}", lambda run: moved_by(run, [0.0] * 4))
    noise = torch.cat([v.flatten() for v in found.values()])
    assert float(noise.std()) == pytest.approx(z * clip * math.sqrt(4 / least) / 4, rel=0.05)
    assert abs(float(noise.mean())) < 4 * z * clip / math.sqrt(len(noise))


@pytest.mark.parametrize("size", [0.01, 3.0, 1e12])
def test_one_client_moves_a_sum_by_the_norm_at_most(size: float) -> None:
    """Whatever it sends: the vector of whole numbers is within the norm that the noise is reckoned for."""
    run = tiny.federation(FedIT(rank=2), sizes=SIZES, privacy=plan("dp-fedavg:noise=0,clip=0.1+secagg:bits=16"))
    hidden = SummedClients(run.method, run.server, run.bench.privacy)
    (update,) = moved_by(run, [size])[:1]
    total = hidden.added(iter([update]), {update.client.id: dict(run.server.shared)}).total
    levels = total[: hidden.code.layout.numbers].view("int32").astype(float)
    assert 0 < math.sqrt((levels**2).sum()) <= 2**15 - 1
    if size > 0.1:
        assert math.sqrt((levels**2).sum()) > 0.99 * (2**15 - 1)


def test_the_sum_is_divided_by_the_expected_cohort() -> None:
    text = "dp-fedavg:noise=0,clip=10+secagg:bits=26,least=2"
    seen: list[Any] = []

    def two(run: tiny.Federation) -> list[Update]:
        seen.append((moved_by(run, [1.0, 1.0], [1, 1]), run))
        return list(seen[-1][0])

    _, found = changed(text, two)
    exact = {n: v / 2 for n, v in wanted(*seen[0]).items()}  # two of four
    assert gap(exact, found) < 1e-5


def test_rounds_are_paid_for() -> None:
    run = here(FedBF(), "dp-fedavg:noise=2+secagg:bits=16").run()
    assert run.simulation.spent()["client_epsilon"] == pytest.approx(run.bench.privacy.spent_on_clients(2))


def test_a_budget_finds_its_noise() -> None:
    privacy = plan("dp-fedavg+secagg", epsilon=8.0, rounds=10)
    assert privacy.spent_on_clients(10) <= 8.0 < privacy.spent_on_clients(11)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secagg:bits=30", "values of 30 bits from 5 clients, .* can't be added up in 32 bits"),
        ("dp-fedavg:noise=1+secagg:bits=4", "leaves nothing of .* values that are rounded within a norm: give more bits"),
        (
            "dp-fedavg:noise=9+secagg:bits=20",
            "secagg:bits=20 makes noise of .* levels, and a client's part has at most 6.55e.04: give fewer bits",
        ),
    ],
)
def test_levels_that_do_not_fit_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        here(small("fedit"), text, sizes=(2,) * 5).simulation.round(0)


def test_clients_of_different_sizes_have_no_noise_in_common() -> None:
    method = registry.build("heterofl", {"rank": 16})
    facts = [{"rate": r} for r in (1.0, 0.5, 0.5, 1.0)]
    run = tiny.federation(method, sizes=SIZES, facts=facts, privacy=plan("dp-fedavg:noise=1+secagg:least=2"))
    with pytest.raises(UserError, match="clients have parts of different sizes"):
        run.simulation.round(0)
    tiny.federation(method, sizes=SIZES, facts=facts, privacy=plan("secagg:least=2")).simulation.round(0)


def test_what_few_clients_have_is_no_sum() -> None:
    """The entries behind those that all have would be the large clients' own."""
    method = registry.build("heterofl", {"rank": 16})
    facts = [{"rate": r} for r in (1.0, 0.5, 0.5, 0.5)]
    with pytest.raises(UserError, match=r"1 client alone may send some of .*, and a sum of secagg is of 2 or more"):
        tiny.federation(method, sizes=SIZES, facts=facts, privacy=plan("secagg:least=2")).simulation.round(0)
    with pytest.raises(UserError, match=r"1 client alone may send some of"):
        here(small(ALONE), "secagg", sizes=(3,) * 12).simulation.round(0)
    facts[1]["rate"] = 1.0
    run = tiny.federation(method, sizes=SIZES, facts=facts, privacy=plan("secagg:least=2"))
    hidden = SummedClients(run.method, run.server, run.bench.privacy)
    hidden.check(["client-0", "client-1"])
    hidden.check(["client-2", "client-3"])
    with pytest.raises(Refused, match=r"Only 1 of those who are left may send some of .*, where a sum is of 2 or more"):
        hidden.check(["client-0", "client-2", "client-3"])
