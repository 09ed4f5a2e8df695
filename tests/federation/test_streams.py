"""What is drawn anew for every round, client or place is: nothing is common to two of them by mistake."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from weft.communication.codecs import codec
from weft.communication.strict import read_tensors
from weft.communication.wire import _split
from weft.engines.cohort import drops_out
from weft.federation import plans
from weft.federation.client import ClientState
from weft.federation.exchange import write_update
from weft.federation.message import ClientInfo, Update
from weft.federation.round import Round
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.methods import FedIT, FedRA, FlexLoRA

NOBODY = Turn(ClientState(""), {}, {})


def all_differ(found: Iterable[Any]) -> bool:
    return all(not np.array_equal(a, b) for a, b in itertools.combinations(map(np.asarray, found), 2))


def levels(client: str, t: int, seed: int = 0, name: str = "lora/x/A") -> Tensor:
    """How a client's upload of one and the same tensor is rounded: half-way between two levels, but for its last element."""
    x = torch.cat([torch.full((200,), 0.5 / 127), torch.ones(1)])
    update = Update(tensors={name: x}, client=ClientInfo(client), weight=1.0)
    frame = write_update(FedIT(), Round(t), seed, update, codec("quant8"), NOBODY)
    return read_tensors(_split(frame.data, 1 << 20)[1])[name]


def test_an_upload_is_rounded_by_a_stream_of_its_client_round_and_seed() -> None:
    assert torch.equal(levels("a", 0), levels("a", 0))
    assert all_differ([levels("a", 0), levels("a", 1), levels("a", 2), levels("b", 0), levels("b", 1), levels("a", 0, seed=1)])


def seed_of_places(common: bool, client: str, t: int, seed: int = 0) -> int:
    """What a client's upload says of the places of its entries."""
    update = Update(tensors={"lora/x/A": torch.ones(200)}, client=ClientInfo(client), weight=1.0)
    held = {"lora/x/A": torch.zeros(200)}
    uplink = codec(f"randk:common={'true' if common else 'false'}")
    frame = write_update(FedIT(), Round(t), seed, update, uplink, replace(NOBODY, held=held))
    return _split(frame.data, 1 << 20)[0]["meta"]["seed"]


def test_places_that_are_common_are_those_of_all_clients_of_a_round_and_of_no_other() -> None:
    def drawn(common: bool) -> list[int]:
        return [seed_of_places(common, *of) for of in (("a", 0), ("b", 0), ("a", 1), ("a", 0, 1), ("a", 0))]

    one, two, later, other, again = drawn(True)
    assert one == two == again
    assert len({one, later, other}) == 3
    assert len(set(drawn(False))) == 4


def groups(client: str = "a", epoch: int = 0, seed: int = 0, stream: str = "main", by_length: bool = True) -> frozenset[Any]:
    """Which rows share a batch, in whatever order: rows of three lengths."""
    lengths = np.repeat([3, 5, 9], 16)
    cuts = plans.epoch_batches(lengths, 4, seed, client, epoch, stream, by_length)
    return frozenset(frozenset(c.tolist()) for c in cuts)


@pytest.mark.parametrize("by_length", [True, False])
def test_rows_share_batches_with_others_in_every_epoch_and_at_every_client(by_length: bool) -> None:
    assert groups(by_length=by_length) == groups(by_length=by_length)
    found = [
        groups(by_length=by_length),
        groups(epoch=1, by_length=by_length),
        groups(epoch=2, by_length=by_length),
        groups("b", by_length=by_length),
        groups(seed=1, by_length=by_length),
        groups(stream="other", by_length=by_length),
    ]
    assert len(set(found)) == len(found)
    for one, two in itertools.combinations(found, 2):
        assert len(one & two) < len(one) / 3


def test_batches_of_like_length_are_visited_in_an_order_that_clients_of_one_size_share() -> None:
    """Lengths within a pack stay alike; the order is another in every epoch, of every seed and stream."""
    lengths = np.arange(40)

    def order(client: str = "a", epoch: int = 0, seed: int = 0, stream: str = "main") -> list[int]:
        return [int(min(c)) for c in plans.epoch_batches(lengths, 4, seed, client, epoch, stream)]

    assert order() == order("b") != sorted(order())
    assert all_differ([order(), order(epoch=1), order(epoch=2), order(seed=1), order(stream="other")])


GROUPS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, 0])  # five rows, three and four


@pytest.mark.parametrize("by_length", [True, False])
def test_rows_of_different_groups_share_no_batch_and_others_do_in_every_epoch(by_length: bool) -> None:
    lengths = np.array([3, 9] * 6)

    def epoch(e: int) -> list[list[int]]:
        found = plans.turn(
            lengths, size=2, seed=0, client="a", turn=e, epochs=1.0, steps=None, groups=GROUPS, by_length=by_length
        )
        return [b.tolist() for b in found.batches]

    each = [epoch(e) for e in range(6)]
    for batches in each:
        assert sorted(map(len, batches)) == [1, 1, 2, 2, 2, 2, 2]
        assert all(len(set(GROUPS[own].tolist())) == 1 for own in batches)
        assert sorted(i for own in batches for i in own) == list(range(12))
    mixed = [len(set(lengths[own].tolist())) > 1 for batches in each for own in batches]
    assert sum(mixed) <= 3 * 6 if by_length else sum(mixed) > 0
    assert len({frozenset(map(frozenset, batches)) for batches in each}) > 3, "rows share batches with others"
    assert all_differ([[GROUPS[own[0]] for own in batches] for batches in each]), "and groups come in another order"


def test_only_batches_by_length_keep_lengths_apart() -> None:
    lengths = np.repeat([3, 9], 16)
    for by_length in (True, False):
        cuts = plans.epoch_batches(lengths, 4, 0, "a", 0, by_length=by_length)
        assert all(len(set(lengths[own].tolist())) == 1 for own in cuts) == by_length


def test_a_turn_has_a_batch_at_least_and_a_capped_epoch_as_many_as_its_cap() -> None:
    lengths = np.full(12, 5)

    def turn(t: int, **more: Any) -> list[list[int]]:
        asked: dict[str, Any] = {"size": 4, "seed": 0, "client": "a", "turn": t, "epochs": 1.0, "steps": None} | more
        return [b.tolist() for b in plans.turn(lengths, **asked).batches]

    each = [[b.tolist() for b in plans.epoch_batches(lengths, 4, 0, "a", e)] for e in range(4)]
    assert [len(turn(t, epochs=0.01)) for t in range(3)] == [1, 1, 1]
    assert turn(0, cap=0) == turn(0, cap=1) == each[0][:1]
    assert turn(0, cap=2, epochs=2.0) == each[0][:2] + each[1][:2]
    assert turn(1, cap=2, epochs=2.0) == each[2][:2] + each[3][:2]
    assert turn(0, steps=4) == each[0] + each[1][:1]
    assert turn(1, steps=4) == each[1][1:] + each[2][:2]


def test_rows_are_scored_longest_first_and_as_many_at_once_as_their_padded_tokens_allow() -> None:
    lengths = np.array([2, 7, 0, 3, 7, 5])
    assert [c.tolist() for c in plans.chunks_by_length(lengths, 15)] == [[1, 4], [5, 3, 0], [2]]
    assert [c.tolist() for c in plans.chunks_by_length(lengths, 1)] == [[1], [4], [5], [3], [0], [2]]
    assert not list(plans.chunks_by_length(lengths[:0], 15))


def test_each_round_goes_on_with_the_next_epoch() -> None:
    """A turn of one epoch in round t is epoch t, of two epochs 2t and 2t + 1."""
    lengths = np.full(12, 5)

    def turn(t: int, epochs: float) -> list[list[int]]:
        found = plans.turn(lengths, size=4, seed=0, client="a", turn=t, epochs=epochs, steps=None)
        return [b.tolist() for b in found.batches]

    each = [[b.tolist() for b in plans.epoch_batches(lengths, 4, 0, "a", e)] for e in range(4)]
    assert all_differ([turn(t, 1.0) for t in range(4)])
    assert [turn(t, 1.0) for t in range(4)] == each
    assert [turn(t, 2.0) for t in range(2)] == [each[0] + each[1], each[2] + each[3]]


def test_directions_without_a_singular_value_are_drawn_for_each_client_round_and_layer() -> None:
    method = FlexLoRA(rank=2, mix="none", sites="q,v")
    facts = [{"rank": r, "ffn_rank": r} for r in (1, 4, 4)]
    run = tiny.federation(method, sizes=(9, 5, 7), facts=facts)
    run.server.clock += 1
    run.method.aggregate(run.server, by_hand.invented(run, [9.0]))  # of rank 1 everywhere
    drawn: dict[tuple[str, int, str], Tensor] = {}
    for t in range(2):
        run.server.round = Round(t)
        for client in run.server.clients[1:]:
            sent = method.send(run.server, client).tensors
            again = method.send(run.server, client).tensors
            for site in by_hand.sites(run):
                a = sent[f"lora/{site}/A"]
                assert isinstance(a, Tensor)
                assert torch.equal(a, again[f"lora/{site}/A"])  # type: ignore[arg-type]
                drawn[client.id, t, site] = a[1:]
    assert len(drawn) == 2 * 2 * 6
    # projected onto each other they would be 1 if they were the same; up to the parts along the first direction they are random
    for one, two in itertools.combinations(drawn.values(), 2):
        assert float((one * two).sum().abs()) < 2.0, "rows of two draws, three each of length 1"


@pytest.mark.parametrize(("share", "count"), [(1.0, 6), (0.92, 6), (0.9, 5), (0.6, 4), (0.58, 3), (0.25, 2), (0.1, 1), (0.01, 1)])
def test_a_cohort_is_the_share_of_the_clients_rounded_to_the_nearest_and_never_nobody(share: float, count: int) -> None:
    run = tiny.federation(FedIT(rank=1), rounds=2, participation=share)
    seen = set()
    for t in range(6):
        run.server.round = Round(t)
        cohort = [c.id for c in run.cohort()]
        assert len(set(cohort)) == len(cohort) == count
        assert cohort == sorted(cohort)
        seen |= set(cohort)
    assert len(seen) > count or count == 6, "others in other rounds"


def test_who_drops_out_is_drawn_for_each_client_and_round() -> None:
    lost = np.array([[drops_out(0, c, t, 0.3) for t in range(200)] for c in ("a", "b")])
    assert abs(lost.mean() - 0.3) < 0.1
    assert len({tuple(row) for row in lost.tolist()}) == 2, "clients apart"
    for row in lost:  # given that it was lost, a client is lost next time as often as ever
        assert abs(row[1:][row[:-1]].mean() - 0.3) < 0.2


def test_the_client_of_a_domain_is_drawn_at_random_apart_from_other_domains() -> None:
    facts = [{"domain": "xy"[i % 2], "capacity": 1.0} for i in range(4)]
    run = tiny.federation(FedRA(), sizes=(3,) * 4, facts=facts)
    draws = []
    for t in range(24):
        run.server.round = Round(t, who=("domain",))
        draws.append([int(c.id[-1]) // 2 for c in run.cohort()])
    one, two = np.array(draws).T
    for row in (one, two):
        assert 4 <= row.sum() <= 20
        assert 4 <= (row[1:] == row[:-1]).sum() <= 19, "neither always another nor always the same"
    assert 4 <= (one == two).sum() <= 20


class Twice(FedIT):
    """Every second round is with the clients of the one before."""

    def plan(self, server: ServerState, t: int) -> Round | None:
        return Round(t, who="same" if t % 2 else "sample") if t < server.rounds else None


def test_the_same_cohort_takes_part_again_when_a_plan_says_so() -> None:
    run = tiny.federation(Twice(rank=1, steps=1, batch=2), rounds=8, participation=0.5)
    records = [run.simulation.round(t) for t in range(8)]
    cohorts = [r["cohort"] for r in records if r is not None]
    assert all(len(c) == 3 for c in cohorts)
    assert cohorts[::2] == cohorts[1::2]
    assert len({tuple(c) for c in cohorts}) > 1
