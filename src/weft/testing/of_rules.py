"""Laws of a method's rule: what it makes of the updates that a run has brought, taken again by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from weft.aggregation.mean import WeightedMean
from weft.federation.layout import named
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.scope import Scope
from weft.testing.compare import assert_same, equal, server_state
from weft.testing.plays import Plays, plays, shallow, steady, unflushed
from weft.testing.sites import remote
from weft.testing.watch import Aggregation, Snapshot


def check_additive(method: Method) -> None:
    """aggregate([u1 … uK]) = aggregate([their weighted mean]) for exactly the methods that declare it."""
    p, slug = plays(method), method.info.slug
    turns = [turn for turn in p.packed.seen.turns.values() if turn.updates]
    same = all(_of_the_mean_alone(p, turn) for turn in turns)
    if method.info.additive:
        assert same, (
            f"{slug} breaks the additive law: it says that the server sees nothing but a weighted mean, and the mean alone gives "
            "something else than the updates. Weigh by the clients' examples, or say additive=False."
        )
    else:
        assert not same, f"{slug} says additive=False, and a weighted mean of the updates gives all the same: say additive=True."


def _of_the_mean_alone(p: Plays, turn: Aggregation) -> bool:
    wanted = after(p, turn, turn.fresh)
    mean = WeightedMean()
    try:
        for u in turn.fresh:
            tensors = {n: v for n, v in u.tensors.items() if isinstance(v, Tensor)}
            mean.add(tensors, 1.0 if p.method.weighting == "uniform" else u.weight)
        total = sum(u.weight for u in turn.updates)
        found = after(p, turn, [replace(turn.fresh[0], tensors=dict(mean.result()), weight=total)])
    except (ValueError, KeyError, RuntimeError):  # updates of several sizes have no mean at all
        return False
    return equal(wanted, found, 1e-9)


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
    """To roll a round back is not to have played it.

    For all that the server holds at once, and in later rounds too unless clients have learnt in it for themselves.
    """
    slug = method.info.slug

    def play(undone: bool) -> dict[str, Tensor]:
        run, _ = remote(steady(method), model=shallow(method), sizes=(3, 2), rounds=4)
        personal = any(Scope.KEEP in scope for _, _, scope in named(run.server.adaptation, run.bench.backbone))
        changed = False
        for t in range(4):
            if t in (1, 3):
                if not personal:
                    run.simulation.round(t)
            elif undone:
                before, snapshot = server_state(run), Snapshot.of(run.server)
                run.simulation.round(t)
                changed = changed or not equal(before, server_state(run))
                run.server.roll_back(snapshot.tensors, snapshot.plain)
                assert_same(before, server_state(run), 0.0, f"{slug}: round {t} is rolled back, and something of it stays; there")
        assert changed or not undone, f"{slug}: no round changes what the server holds."
        return {} if personal else server_state(run)

    with unflushed():
        found = play(undone=True)
        wanted = play(undone=False) if found else {}
    if found:
        assert_same(found, wanted, 1e-9, f"{slug}: rounds that were rolled back show in later ones; there")
