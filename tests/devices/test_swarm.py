"""The invariants of SWARM parallelism: shares by speed, retries that lose nothing, bytes at boundaries, moves of peers."""

from __future__ import annotations

import random

import pytest

from weft.devices.swarm import Peer, Swarm, Wiring, Work, boundary_bytes
from weft.errors import UserError

ONE = Work(stages=1, steps=10, batch=500, samples=4, rebalance=None)


def test_shares_converge_to_those_of_speeds() -> None:
    """Of three peers of 1, 2 and 4 samples a second, over ten thousand tasks: a seventh, two, four, within two points."""
    peers = [Peer("a", 0, 1.0), Peer("b", 0, 2.0), Peer("c", 0, 4.0)]
    told = Swarm(peers, ONE).play()
    assert sum(told.tasks.values()) == 2 * told.done == 10_000
    done = [sum(n for (peer, _), n in told.tasks.items() if peer == name) / 10_000 for name in "abc"]
    assert done == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.02)
    assert told.rate == pytest.approx(7, rel=0.02)  # all are at work all the time
    assert told.retries == 0


def test_the_mean_of_seconds_is_without_bias_and_one_at_first() -> None:
    wiring = Wiring(random.Random(0))
    assert wiring.seconds("a") == 1.0
    wiring.tell("a", 4, 2.0)
    assert wiring.seconds("a") == pytest.approx(0.5)
    wiring.tell("a", 1, 1.5)
    assert wiring.seconds("a") == pytest.approx((0.9 * 0.1 * 0.5 + 0.1 * 1.5) / (1 - 0.81))


def test_the_queue_by_hand() -> None:
    """a takes 1 s a sample, b 3: after one task each, a has two more before b is due; who joins is at the present minimum."""
    wiring = Wiring(random.Random(0))
    for peer, seconds in (("a", 1.0), ("b", 3.0)):
        wiring.join(peer)
        wiring.tell(peer, 1, seconds)
    assert sorted([wiring.choose(1), wiring.choose(1)]) == ["a", "b"]  # type: ignore[type-var]
    assert [wiring.choose(1) for _ in range(2)] == ["a", "a"]  # 1, 2; at 3 both are even
    wiring.ban("a")
    assert [wiring.choose(1) for _ in range(3)] == ["b", "b", "b"]
    wiring.join("a")  # at 12, as b is
    assert {wiring.choose(1), wiring.choose(1)} == {"a", "b"}
    wiring.ban("a")
    wiring.ban("b")
    assert wiring.choose(1) is None


@pytest.mark.parametrize("gone", ["a0", "a1", "b0", "b1"])
def test_no_peer_of_a_stage_of_two_can_take_a_micro_batch_with_it(gone: str) -> None:
    """It goes in the middle of its work and for good: tasks are sent again, and each micro-batch counts once."""
    peers = [
        Peer(f"{stage}{i}", "ab".index(stage), 1.0, away=((7.3, 1e9),) if f"{stage}{i}" == gone else ())
        for stage in "ab"
        for i in range(2)
    ]
    work = Work(stages=2, steps=3, batch=20, samples=2, rebalance=None)
    told, whole = (Swarm(some, work).play() for some in (peers, [Peer(p.name, p.stage, p.rate) for p in peers]))
    assert told.done == whole.done == 60
    assert told.samples == 120
    assert told.retries > 0 == whole.retries
    assert sum(told.tasks.values()) == sum(whole.tasks.values()) == 60 * 4  # finished ones
    assert told.seconds > whole.seconds


def test_a_peer_that_comes_back_is_asked_again_and_a_stage_without_any_waits_for_it() -> None:
    work = Work(stages=1, steps=2, batch=20, samples=1, rebalance=None)
    told = Swarm([Peer("a", 0, 1.0, away=((3.5, 100.0),))], work).play()
    assert (told.done, told.retries > 0) == (40, True)
    assert told.seconds == pytest.approx(100 + 37, abs=1.1)  # what was lost is done once more
    with pytest.raises(UserError, match=r"^stage 0 has lost its last peer after 3.5 s: .*\.$"):
        Swarm([Peer("a", 0, 1.0, away=((3.5, float("inf")),))], work).play()
    with pytest.raises(UserError, match=r"^stage 1 has no peer"):
        Swarm([Peer("a", 0, 1.0)], Work(stages=2, steps=1, batch=1, samples=1))


def test_bytes_are_those_of_boundaries_both_ways() -> None:
    """Three stages have two boundaries, which each micro-batch crosses there and back; int8 takes 1 + 4/64 bytes a number."""
    assert boundary_bytes(2, 16, 128, 64) == 2 * 16 * 128 * 1.0625
    assert boundary_bytes(2, 16, 128, None) == 2 * 16 * 128 * 4
    each = boundary_bytes(1, 16, 128, 64)
    peers = [Peer(f"p{s}", s, 5.0, bandwidth=1e6) for s in range(3)]
    told = Swarm(peers, Work(stages=3, steps=2, batch=5, samples=2, boundary=each, rebalance=None)).play()
    assert told.sent == 2 * 5 * 2 * each * 2 * 2


def test_peers_move_to_where_work_waits() -> None:
    """Stage 1 has one peer and stage 0 three: one moves, downloads the stage and the swarm is faster than without."""
    peers = [Peer(f"a{i}", 0, 1.0, bandwidth=1e6) for i in range(3)] + [Peer("b", 1, 1.0, bandwidth=1e6)]
    about = {"stages": 2, "steps": 4, "batch": 50, "samples": 1, "ahead": 16}
    still = Swarm(peers, Work(**about, rebalance=None)).play()  # type: ignore[arg-type]
    moved = Swarm(peers, Work(**about, rebalance=20.0, weights=2e6)).play()  # type: ignore[arg-type]
    at, who, begin, end = moved.moves[0]
    assert (at, begin, end) == (20.0, 0, 1)
    assert who.startswith("a")
    assert moved.tasks[who, 1] > 0
    assert len(moved.moves) == 1  # two and two are even
    assert moved.done == still.done
    assert moved.rate > 1.4 * still.rate


def test_the_same_seed_gives_the_same_swarm_and_several_trainers_share_it() -> None:
    peers = [Peer(f"p{i}", i % 2, 1.0 + i, away=((5.0 + i, 9.0 + i),) if i < 2 else ()) for i in range(6)]
    work = Work(stages=2, steps=3, batch=40, samples=2, trainers=3, ahead=4, gradients=10.0, rebalance=5.0)
    one, two, three = (Swarm(peers, work, seed).play() for seed in (0, 0, 1))
    assert one == two
    assert one.tasks != three.tasks
    assert one.done == three.done == 120
