"""Clients of one pack whose parts sit at other layers, have other ranks, or are others: each trains what it has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.optim import Optim
from weft.adaptation.part import Part
from weft.backbones.backbone import Backbone
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.federation.scope import SHARED
from weft.federation.server import ServerState
from weft.methods import FedIT
from weft.tasks.task import Task
from weft.tensors.init import Init, leading
from weft.testing import laws
from weft.testing.sites import remote

LAWS = ("pack", "return", "sums", "sites", "scores", "ledger", "resuming", "counting", "reading", "roll-back", "nobody")
KINDS: list[dict[str, Any]] = [{"rank": 4, "blocks": 3}, {"rank": 2, "blocks": 1, "more": 1}, {"rank": 3, "blocks": 2}]


class Ragged(Method):
    """HeteroFL's rule on leading slices of LoRA ranks, with lower blocks for some and a bottleneck for others."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="ragged", title="Ragged", paper="none", family="selective", sends="what each has", asks=("rank", "blocks", "more")
    )
    batch: int = 3
    optim: Optim = Optim("sgd", lr=0.1, momentum=0.5, weight_decay=0.01, schedule="constant")

    def profile(self, position: int) -> dict[str, Any]:
        return KINDS[position % len(KINDS)]

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank, blocks = client.facts.get("rank", 4), client.facts.get("blocks", 3)
        lora = LoRA(rank, 1.5 * rank, "q,v", blocks=tuple(range(blocks)), of=4)
        more = {"x": (Bottleneck(4), SHARED)} if client.facts.get("more", not client.facts) else {}
        return {"lora": (lora, SHARED), **more, "head": (task.head, SHARED)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, leading=True)


@pytest.mark.parametrize("law", LAWS)
def test_clients_that_have_other_parts_keep_the_laws(law: str) -> None:
    laws.check(Ragged(), law)


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_a_pack_gives_each_client_the_pass_and_the_gradient_that_it_has_alone(kind: str) -> None:
    bench = tiny.bench(kind)
    site = "q,v" if kind != "gpt2" else "all"
    parts: list[dict[str, Part]] = [
        {"lora": LoRA(2, 4.0, site, blocks=(0, 1)), "x": Bottleneck(8), "head": Head()},
        {"head": Head(), "delta": Delta(site), "lora": LoRA(3, 4.0, site, blocks=(1, 2))},
        {"lora": LoRA(1, 1.0, "all", blocks=(2,)), "head": Head()},
    ]
    values = [values_for(bench, own, seed=i) for i, own in enumerate(parts)]
    together = leaves(pack_of(bench, parts, values), "*")
    batch = batch_of(bench, INDEX)
    out = together(batch)
    slopes = grads(together, together.loss(out, batch), "*")
    for k, (own, value) in enumerate(zip(parts, values, strict=True)):
        alone = leaves(pack_of(bench, [own], [value]), "*")
        mine = batch_of(bench, INDEX[k : k + 1])
        found = alone(mine)
        torch.testing.assert_close(out.logits[k], found.logits[0], **CLOSE)
        wanted = grads(alone, alone.loss(found, mine), "*")
        for name, whole in slopes.items():
            if name in wanted:
                size = wanted[name].shape[1:]
                torch.testing.assert_close(leading(whole[k], tuple(size)), wanted[name][0], **CLOSE)
            else:
                assert not bool(whole[k].any()), f"{name} is none of client {k}'s"


def test_what_a_client_has_no_part_for_stays_with_the_others() -> None:
    run = tiny.federation(Ragged(), sizes=(9, 5, 6), rounds=1)
    start = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    messages = [run.method.send(run.server, c.info(run.method.info.asks)) for c in run.clients]
    assert all(not m.tensors for m in messages), "start values are drawn"
    run.run()
    after = [run.method.send(run.server, c.info(run.method.info.asks)).tensors for c in run.clients]
    deep = next(n for n in run.server.shared if n.startswith("lora/") and ".2." in n and n.endswith("/A"))
    low = next(n for n in run.server.shared if n.startswith("lora/") and ".0." in n and n.endswith("/A"))
    assert [deep in m for m in after] == [True, False, False]
    assert [next(iter(m[low].shape)) for m in after] == [4, 2, 3]
    assert [any(n.startswith("x/") for n in m) for m in after] == [False, True, False]
    whole = run.server.shared[low]
    assert isinstance(whole, Tensor)
    assert all(torch.equal(leading(whole, tuple(m[low].shape)), m[low]) for m in after)  # type: ignore[arg-type]
    assert bool((whole != start[low]).any(1).all())


def test_start_values_of_slices_are_those_of_the_whole() -> None:
    whole = Init((6, 5), "uniform", 0.3)
    for shape in ((6, 5), (3, 5), (2, 4)):
        part = Init(shape, "uniform", 0.3, within=(6, 5))
        assert torch.equal(part.draw(7, "a"), whole.draw(7, "a")[: shape[0], : shape[1]])
    assert torch.equal(Init((3,), "value", value=torch.arange(3.0), within=(3,)).draw(0), torch.arange(3.0))
    for shape in ((7, 5), (6,)):
        with pytest.raises(ValueError, match="no leading slice"):
            leading(torch.zeros(6, 5), shape)


def test_a_site_scores_the_servers_model_only_where_it_holds_the_whole_of_it() -> None:
    run, loop = remote(Ragged(), sizes=(6, 5, 6), rounds=1)
    assert [site.whole for site in loop.sites.values()] == [False, False, False], "the server has the bottleneck too"
    run.run()
    scores = run.simulation.evaluate(0)
    assert "global test" in {e.people for e in scores}
    assert "own test" not in {e.people for e in scores}
    run, loop = remote(replace(FedIT(rank=2), batch=3), sizes=(6, 5, 6), rounds=1)
    run.run()
    assert all(site.whole for site in loop.sites.values())
    assert "own test" in {e.people for e in run.simulation.evaluate(0)}
