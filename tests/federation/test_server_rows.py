"""Public rows at the server: a pack of their own, drawn by seed and round, of which clients' packs hold nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from taught import Taught
from weft.errors import WeftError
from weft.federation.pack import Pack
from weft.tasks.kinds import GENERATION, PREFERENCE, TOKENS
from weft.testing.compare import assert_same
from weft.testing.plays import Plays

SETTINGS = {"sizes": (5, 3, 4), "rounds": 3}


def drawn(pack: Pack, stream: str = "server") -> list[list[int]]:
    return [b.index[0].tolist() for b in pack.batches(steps=3, size=4, stream=stream)]


def test_batches_follow_from_seed_round_and_stream_and_see_every_row_in_an_epoch() -> None:
    run, again, other = (tiny.federation(Taught(), public=12, seed=s, **SETTINGS) for s in (0, 0, 1))
    server = run.server
    first = drawn(server.pack(public=True))
    assert first == drawn(server.pack(public=True)) == drawn(again.server.pack(public=True))
    assert first not in (drawn(other.server.pack(public=True)), drawn(server.pack(public=True), "another"))
    assert sorted(i for rows in first for i in rows) == list(range(12))
    server.round = replace(server.round, index=1)
    second = drawn(server.pack(public=True))
    assert second != first
    assert sorted(i for rows in second for i in rows) == list(range(12))


def test_public_rows_are_in_no_table_of_a_client() -> None:
    run = tiny.federation(Taught(), public=12, **SETTINGS)
    public = run.server.public
    assert public is not None
    assert len(public.table) == 12
    assert public.table is not run.bench.table
    whole = np.concatenate([c.data.train for c in run.clients])
    assert len(run.bench.table) == len(tiny.federation(Taught(), **SETTINGS).bench.table) > whole.max()
    assert run.pack().bench is run.bench
    assert run.server.pack().bench is run.bench
    assert run.server.pack(public=True).bench is public


def test_the_server_trains_what_clients_only_receive_and_they_get_it() -> None:
    run, without = (tiny.federation(Taught(), public=n, **SETTINGS).run(1) for n in (12, 0))
    names = [n for n in run.server.shared if n.startswith("ours/") and n.endswith("/B")]
    assert names
    for name in names:
        value = run.server.shared[name]
        assert isinstance(value, torch.Tensor)
        assert value.abs().sum() > 0
        assert not without.server.shared[name].any()  # type: ignore[union-attr]
        assert torch.equal(run.pack([0], 1).value(0, name), value)
    before = {n: run.server.shared[n] for n in names}
    pack = run.pack(t=1)
    list(run.method.train(pack))
    assert all(torch.equal(pack.value(0, n), v) for n, v in before.items())  # type: ignore[arg-type]


def test_without_public_rows_there_is_no_pack_of_them() -> None:
    with pytest.raises(WeftError, match="there are no public rows"):
        tiny.federation(Taught(), **SETTINGS).server.pack(public=True)


@pytest.mark.parametrize(("model", "task"), [("bert", TOKENS), ("vit", "auto"), ("llama", GENERATION), ("llama", PREFERENCE)])
def test_a_server_trains_on_rows_of_every_kind(model: str, task: str) -> None:
    run = tiny.federation(Taught(), model, task=task, public=8, **SETTINGS).run(1)
    assert all(v.any() for n, v in run.server.shared.items() if n.startswith("ours/") and n.endswith("/B"))  # type: ignore[union-attr]


def test_packs_sites_workers_and_a_resumed_run_leave_the_same() -> None:
    played = Plays(Taught(), public=10)
    assert_same(played.packed.state, played.alone.state, 1e-9)
    assert_same(played.packed.state, played.workers.state, 1e-9)
    assert_same(played.packed.state, played.again.state, 0.0)
    assert_same(played.packed.state, played.resumed.state, 0.0)
    assert_same({n: v for n, v in played.packed.state.items() if n in played.sites.state}, played.sites.state, 1e-9)
    bare = Plays(Taught())
    assert any(not torch.equal(v, bare.packed.state[n]) for n, v in played.packed.state.items())
