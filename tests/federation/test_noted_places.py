"""Clients that send some entries of tensors get these alone: what goes out, what differences are taken from, their size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from weft.contract import ClientInfo, Masked, Message, MethodInfo, Optim, Pack, ServerState, Tune, Tuned, Update
from weft.federation.usual import moved
from weft.testing.sites import remote

A = "lora/bert.encoder.layer.0.attention.self.query/A"


class Halves(Tuned):
    """Each client trains and sends every other entry of A, of its own parity."""

    info: ClassVar[MethodInfo] = MethodInfo(slug="halves", title="", paper="", family="selective", sends="")
    in_part: ClassVar[tuple[str, ...]] = ("lora/*/A",)
    tune: Tune = Tune("lora", rank=2, at="q")
    batch: int = 2
    optim: Optim = Optim("sgd", lr=0.5, schedule="constant")

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        return server.stale_in_part(client)

    def train(self, pack: Pack) -> Iterable[Update]:
        self.fit(pack)
        return pack.updates(
            masks={n: torch.stack([half(c.id, v[0]) for c in pack.clients]) for n, v in pack.params("*/A").items()}
        )

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(server.noting_places(updates))


def half(client: str, like: Tensor) -> Tensor:
    return (torch.arange(like.numel()).view(like.shape) + int(client[-1])) % 2 == 0


def play(codec: str = "identity", down: str = "identity", **more: Any) -> Any:
    settings = {"sizes": (6, 5, 7, 4), "rounds": 6, "participation": 0.75, "precision": "float32", "download_codec": down} | more
    return remote(Halves(), codec, model="bert", **settings)


@pytest.mark.parametrize("codec", ["identity", "quant8", "topk:share=0.3+quant8"])
def test_both_ends_agree_on_entries_that_came_long_ago(codec: str) -> None:
    """Behind a round in which nothing counts there is no news, and yet both must know which entries the client holds."""
    run, _ = play(codec)
    for t in range(6):
        with pytest.MonkeyPatch.context() as patch:
            if t in (2, 4):
                patch.setattr(Halves, "aggregate", lambda self, server, updates: list(updates))
            record = run.simulation.round(t)
        assert record is not None
        assert not record["refused"]


def test_who_is_up_to_date_gets_its_entries_and_who_may_have_lost_them_gets_all() -> None:
    run = tiny.federation(Halves(), "bert", sizes=(6, 5), rounds=2)
    client = run.clients[1].info(())
    assert not run.method.send(run.server, client).tensors
    run.run(1)
    sent = run.method.send(run.server, client).tensors[A]
    assert isinstance(sent, Masked)
    assert torch.equal(sent.mask, half("client-1", sent.mask))
    whole = run.server.shared[A]
    assert isinstance(whole, Tensor)
    assert torch.equal(sent.entries, whole[sent.mask])
    run.server.synced["client-1"] = 0
    assert run.method.send(run.server, client).tensors[A] is whole


def test_what_is_noted_is_undone_with_its_round() -> None:
    run = tiny.federation(Halves(), "bert", sizes=(6, 5), rounds=2)
    undo = run.server.snapshot()
    run.run(1)
    assert run.server.notes.get("client-0")
    undo()
    assert not run.server.notes.get("client-0")


def test_entries_of_a_value_go_exact_where_downloads_are_coded() -> None:
    """Their own largest is another than the whole's, so that others would arrive than the server holds."""
    run, loop = play("quant8", "quant8", participation=1.0)
    for t in range(6):
        record = run.simulation.round(t)
        assert record is not None
        assert not record["refused"]
        if t == 4:
            before = by_hand.shared(run)
    for site in loop.sites.values():
        value = site.copy[A]
        assert isinstance(value, Masked)
        assert torch.equal(value.entries, before[A][value.mask])


def test_an_update_of_some_entries_is_as_large_as_these() -> None:
    """Else a stranger could send anything, if only in part."""
    mask = torch.tensor([True, False, True, True])
    sent = Masked(torch.tensor([3.0, 0.0, 4.0]), mask)
    assert moved({A: sent}, {}) == pytest.approx(5.0)
    assert moved({A: sent}, {A: torch.tensor([3.0, 7.0, 1.0, 4.0])}) == pytest.approx(1.0)
    assert moved({A: sent}, {A: Masked(torch.tensor([3.0, 9.0]), torch.tensor([True, True, False, False]))}) == pytest.approx(4.0)
    assert moved({A: sent}, {A: torch.zeros(5)}) == pytest.approx(5.0)
    assert moved({A: torch.tensor([3.0, 1.0, 0.0, 4.0])}, {A: sent}) == pytest.approx((1 + 16 - 16) ** 0.5)


def test_a_pack_tells_what_its_clients_began_with_and_hold() -> None:
    start = {"head/classifier/bias": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    run = tiny.federation(Halves(), "bert", sizes=(6, 5), rounds=2, start=start)
    first = by_hand.shared(run)
    run.run(1)
    pack = run.pack([0, 1], 1)
    for k in range(2):
        found = pack.start_values(k)
        assert found.keys() == pack.shapes.keys()
        assert all(torch.equal(v, first[n]) for n, v in found.items())
        held = pack.turns[k].held[A]
        assert isinstance(held, Masked)
        assert torch.equal(pack.value(k, A), held.dense())
    assert torch.equal(first["head/classifier/bias"], start["head/classifier/bias"])
