"""Laws of a method's rule: what it makes of the updates that a run has brought, taken again by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from weft.aggregation.mean import WeightedMean
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.part_weights import by_entry, in_full
from weft.tensors.forms import Value
from weft.tensors.integers import Integers
from weft.tensors.masked import Masked
from weft.testing.compare import assert_same, equal, server_state
from weft.testing.plays import Plays, exchanges, plays, shallow, steady, unflushed
from weft.testing.sites import remembering, remote
from weft.testing.watch import Aggregation, Snapshot


def check_sums(method: Method) -> None:
    """A rule that needs sums alone gives the same if all who sent a tensor had sent its mean, and another rule does not."""
    p, slug = plays(method), method.info.slug
    turns = [turn for turn in p.packed.seen.turns.values() if turn.updates]
    same = all(_of_means(p, turn) for turn in turns)
    if method.sums:
        assert same, (
            f"{slug} breaks the sums law: it says that the server needs nothing but weighted sums, and something else comes out "
            "if every update is their mean. Weigh by the clients' examples, or let sums be False."
        )
    else:
        assert not same, f"{slug} says that sums are not enough, and with means in the place of all updates it gives the same."


def _of_means(p: Plays, turn: Aggregation) -> bool:
    wanted = after(p, turn, turn.fresh)
    mean = WeightedMean(leading=True)
    try:
        for u in turn.fresh:
            full = _means_of(u)
            mean.add(full, by_entry(1.0 if p.method.weighting == "uniform" else u.weight, full, u.tensors))
        nothing = {n: v.dense() for u in turn.fresh for n, v in u.tensors.items() if isinstance(v, Masked)}
        means = mean.result({n: torch.zeros_like(v) for n, v in nothing.items()})

        def of(update: Update) -> Update:
            tensors: dict[str, Value] = {}
            for name, value in _means_of(update).items():
                same, sent = means[name][tuple(slice(0, size) for size in value.shape)], update.tensors[name]
                tensors[name] = Masked.of(same, sent.mask) if isinstance(sent, Masked) else same
            return replace(update, tensors=tensors, facts={})

        found = after(p, turn, [of(u) for u in turn.fresh])
    except (ValueError, KeyError, RuntimeError, AssertionError):  # no mean at all, none for ids, or nothing said without facts
        return False
    return equal(wanted, found, 1e-9)


def _means_of(update: Update) -> dict[str, Tensor]:
    """What has a mean, whole: of integers it is one of counts or bits, and no integer."""
    return in_full({n: v.values.double() if isinstance(v, Integers) else v for n, v in update.tensors.items()})


def after(p: Plays, turn: Aggregation, updates: Iterable[Update]) -> dict[str, Tensor]:
    """What the server holds when the rule has read these updates in the place of those of a turn."""
    server = p.scratch.server
    turn.before.onto(server)
    server.round, server.cohort = turn.round, turn.cohort
    p.method.aggregate(server, iter(list(updates)))
    return server_state(p.scratch)


def check_counting(method: Method) -> None:
    """Every client's update counts."""
    p, slug = plays(method), method.info.slug
    turn = p.packed.seen.turns[0]
    whole = after(p, turn, turn.fresh)
    for left_out in turn.updates:
        rest = after(p, turn, [u for u in turn.fresh if u.client.id != left_out.client.id])
        assert not equal(whole, rest), f"{slug}: without the update of {left_out.client.id} the server comes to the same."


def check_reading(method: Method) -> None:
    """A rule writes neither into an update nor into what was broadcast, and keeps no tensor that is an update's."""
    slug = method.info.slug
    for t, turn in plays(method).packed.seen.turns.items():
        assert not turn.overwritten, f"{slug}: in round {t} aggregate writes into {turn.overwritten[0]}: make a new tensor."
        assert not turn.kept, f"{slug}: after round {t} {turn.kept[0]} is an update's own memory: clone it."


def check_roll_back(method: Method) -> None:
    """To roll a round back, or one of each kind that belong together, is not to have played it.

    For all that the server holds at once, and in later rounds too unless clients have learnt in it for themselves.
    """
    slug, together = method.info.slug, exchanges(method)

    def play(undone: bool) -> dict[str, Tensor]:
        run, loop = remote(steady(method), model=shallow(method), sizes=(3, 2), rounds=4 * together)
        changed = personal = False
        for first in range(0, 4 * together, together):
            if first in (together, 3 * together):
                for t in range(first, first + together) if not personal else ():
                    run.simulation.round(t)
            elif undone:
                before, snapshot = server_state(run), Snapshot.of(run.server)
                for t in range(first, first + together):
                    run.simulation.round(t)
                changed = changed or not equal(before, server_state(run))
                personal = personal or remembering(loop)
                run.server.roll_back(snapshot.tensors, snapshot.plain)
                what = f"{slug}: round {first} is rolled back, and something of it stays; there"
                assert_same(before, server_state(run), 0.0, what)
        assert changed or not undone, f"{slug}: no round changes what the server holds."
        return {} if personal else server_state(run)

    with unflushed():
        found = play(undone=True)
        wanted = play(undone=False) if found else {}
    if found:
        assert_same(found, wanted, 1e-9, f"{slug}: rounds that were rolled back show in later ones; there")
