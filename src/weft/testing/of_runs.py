"""Laws that compare a method's runs: whoever trains, wherever, in whatever order, the numbers are the same."""

from __future__ import annotations

import math
from unittest import mock

import torch

from weft.federation.info import common
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.tensors.masked import Masked
from weft.testing.compare import assert_same, dense, equal
from weft.testing.plays import ABSENT, FAILING, ROUNDS, PlayedRun, Plays, plays


def check_packs(method: Method) -> None:
    """A pack of K clients gives what K packs of one give, whose clients see nothing but the bytes addressed to them."""
    p, slug = plays(method), method.info.slug
    assert not equal(p.packed.before, p.packed.state), f"{slug}: a run changes nothing, so that no law can tell anything of it."
    if equal(p.packed.logits, p.messages.logits, 1e-8):
        return
    assert_same(
        p.packed.logits, p.alone.logits, 1e-8, f"{slug} breaks the pack law: in packs and one by one the run differs; there"
    )
    assert_same(
        p.packed.logits,
        p.messages.logits,
        1e-8,
        f"{slug} breaks the message law: clients that have only read what was addressed to them come to something else; there",
    )


def check_return(method: Method) -> None:
    """The same turn from the same states gives the same bytes, whoever takes it, in whatever order, and whatever came between."""
    p, slug = plays(method), method.info.slug
    assert not p.packed.moved_streams, f"{slug} moves a global random stream: draw from pack.generators or server.generator."
    assert any(p.packed.frames), f"{slug}: nobody has sent anything."
    if _alike(p.packed, p.workers):
        return
    again = Plays(method).again
    assert _alike(again, Plays(method).again), (
        f"{slug} breaks the return law: the same run gives other bytes the second time. Something is hidden on the method, drawn "
        "from a global random stream, or left on the backbone."
    )
    assert _alike(again, p.packed), f"{slug} breaks the return law: to test clients between rounds changes a later round."
    _alike(
        p.packed, p.workers, f"{slug} breaks the return law: trained by workers, and the last pack first, the run differs; there"
    )


def check_sites(method: Method) -> None:
    """Sites that see nothing but bytes leave what the simulation leaves, at the coordinator and at themselves."""
    p, slug = plays(method), method.info.slug
    here = p.messages.state
    away = {n: v for n, v in p.sites.state.items() if n in here or not n.startswith("client-")}
    assert_same(here, away, 1e-9, f"{slug} gives other values with real sites than in the simulation; there")


def check_scores(method: Method) -> None:
    """Scores that sites tell are those of the simulation."""
    p, slug = plays(method), method.info.slug
    wanted, found = ({(e.view, e.people, e.metric, e.pooling): e for e in scores} for scores in (p.packed.scores, p.sites.scores))
    # whoever has failed in its turn, and was not asked again before the run's end, has no say in the scores of sites
    whole = len(p.packed.frames) == ROUNDS
    partial = any(not site.whole for site in p.sites.loop.sites.values())  # who holds less than the server can't score its model
    for view in method.views:
        if partial and common(view):
            continue
        key = (view, "own test", p.packed.run.bench.task.metrics[0], "mean over clients")
        assert key in wanted, f"{slug}: the simulation does not score clients' own tests by the view {view}."
        assert key in found, f"{slug}: sites do not score their own tests by the view {view}."
    for key in found.keys() & wanted.keys():
        if partial and common(key[0]) and key[1] not in ("global test", "new clients"):
            continue
        here, there = wanted[key], found[key]
        assert here.n == there.n or not whole, (
            f"{slug}: {' '.join(key)} is of {here.n} in the simulation, of {there.n} with sites."
        )
        assert here.n != there.n or math.isclose(here.value, there.value, rel_tol=1e-6, abs_tol=1e-12), (
            f"{slug}: {' '.join(key)} is {here.value} in the simulation and {there.value} with real sites."
        )


def check_ledger(method: Method) -> None:
    """Real sites are billed the payloads of the simulation; whoever has failed in between gets everything anew."""
    p, slug = plays(method), method.info.slug
    here, there = p.packed.ledger, p.sites.ledger
    for t in range(ROUNDS):
        for way in ("up", "down"):
            mine, theirs = (x.totals(round=t, phase="train", direction=way) for x in (here, there))
            if (t, way) != (ROUNDS - 1, "down"):
                assert mine.parts == theirs.parts, f"{slug}: round {t} {way}: {mine.parts} here, {theirs.parts} with sites."
                framed = mine.wire == theirs.wire if way == "down" else mine.wire <= theirs.wire  # an answer is framed
                assert framed, f"{slug}: round {t} {way}: {mine.wire} bytes here, {theirs.wire} with sites."
    mine_by, theirs_by = (x.by_client(phase="train", direction="down") for x in (here, there))
    for client in mine_by.keys() - {FAILING}:
        assert mine_by[client] == theirs_by.get(client), (
            f"{slug}: {client} was sent {mine_by[client]} here and {theirs_by.get(client)} with sites."
        )
    assert ABSENT in mine_by
    assert theirs_by[FAILING].payload >= mine_by[FAILING].payload


def check_resuming(method: Method) -> None:
    """A coordinator that has read its checkpoint goes on as one that never stopped."""
    p, slug = plays(method), method.info.slug
    assert_same(
        p.packed.state,
        p.resumed.state,
        0.0,
        f"{slug} does not survive a checkpoint: resumed before the last round, it differs; there",
    )
    assert p.packed.frames[ROUNDS - 1 :] == p.resumed.frames, (
        f"{slug} does not survive a checkpoint: resumed before the last round, its clients send other bytes."
    )


def check_backbone(method: Method) -> None:
    """Nothing is left on the backbone."""
    touched = plays(method).packed.touched
    assert not touched, f"{method.info.slug} leaves something on the backbone: {', '.join(touched)}."


def check_loading(method: Method) -> None:
    """What a client sends is what is read of it, and what it is sent is what it enters with."""
    p, slug = plays(method), method.info.slug
    seen = p.packed.seen
    for t, turn in seen.turns.items():
        sent = seen.sent.get(t, {})
        read = {u.client.id: u.tensors for u in turn.updates}
        assert sent.keys() == read.keys(), f"{slug}: in round {t} {sorted(sent)} send, and {sorted(read)} are read."
        for client, tensors in sent.items():
            assert tensors, f"{slug}: in round {t} {client} sends an update without tensors."
            assert_same(
                tensors,
                {n: dense(v) for n, v in read[client].items()},
                0.0,
                f"{slug}: what {client} sends in round {t} is not what is read",
            )
    run = p.scratch
    p.put(p.packed.run)
    for k, person in enumerate(run.clients):
        info = person.info(method.info.asks)
        run.server.cohort = [info]
        message = run.method.send(run.server, info)
        held = run.server.held_by(info, adapted(method, run.bench, info), message)
        free = method.downloads(run.bench.of(person), info).keys()
        lost = sorted({n.removesuffix("+") for n in message.tensors} - held.keys() - free)
        assert not lost, f"{slug}: {person.id} is sent {lost[0]}, which is none of its tensors."
        with mock.patch.object(type(method), "load", Method.load):  # which may make something else of it for its model
            pack = run.pack([k], t=ROUNDS)
        for name, value in held.items():
            if isinstance(value, torch.Tensor | Masked):
                entered = pack.value(0, name)
                same = torch.equal(entered[value.mask], value.entries) if isinstance(value, Masked) else entered.equal(value)
                assert same, f"{slug}: {person.id} does not enter with the {name} that it was sent."


def check_learning(method: Method) -> None:
    """What a client sends is what it has learnt, and everybody with rows sends something in the first round."""
    p, slug = plays(method), method.info.slug
    seen = p.packed.seen
    people = {c.id for c in p.packed.run.clients if c.n} & set(seen.entered[0])
    assert set(seen.sent.get(0, {})) == people, (
        f"{slug}: {sorted(people)} train in the first round, {sorted(seen.sent.get(0, {}))} send."
    )
    still: dict[str, bool] = {}
    size = {c.id: c.n for c in p.packed.run.clients}
    for t, clients in seen.sent.items():
        for client, tensors in clients.items():
            before = seen.entered[t][client]
            if size[client] <= p.method.batch:  # in one step a factor does not move whose other factor is zero
                continue
            for name, value in tensors.items():
                # 0: what is no part of the model (prototypes)
                unmoved = torch.equal(value, before.get(name, torch.zeros_like(value)))
                still[name] = still.get(name, True) and unmoved
            assert any(not torch.equal(v, before.get(n, torch.zeros_like(v))) for n, v in tensors.items()), (
                f"{slug}: {client} sends in round {t} what it has received, as if it had not trained."
            )
    idle = sorted(n for n, unmoved in still.items() if unmoved and not _flat(p, n))
    assert not idle, f"{slug}: {idle[0]} is sent by clients none of which has ever moved it."


def _flat(p: Plays, name: str) -> bool:
    """Whether the loss does not depend on a tensor: a bias of keys shifts all scores of a query alike, which softmax ignores.

    A plain step of its gradient, a rounding error, is too small to move it.
    """
    run = p.scratch
    p.put(p.packed.run)
    for k, person in enumerate(run.clients):
        run.server.cohort = [person.info(p.method.info.asks)]
        pack = run.pack([k], t=ROUNDS)
        if name not in pack.tensors:
            return False
        slopes = pack.gradients(p.method.objective, name, size=p.method.batch)
        if float(slopes[name].abs().max()) > 1e-12:
            return False
    return True


def _alike(a: PlayedRun, b: PlayedRun, what: str = "") -> bool:
    """Bit for bit, what was sent and what is left."""
    if not what:
        return a.frames == b.frames and equal(a.state, b.state)
    assert_same(a.state, b.state, 0.0, what)
    raise AssertionError(f"{what} other bytes are sent.")
