"""Parts that are drawn as another one: what has another name begins alike, on both sides of the wire and in every size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

import by_hand
import tiny
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import ChosenHead
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.scope import PERSONAL, SENT, SHARED
from weft.tasks.task import Task
from weft.tensors.init import Init, drawn_like
from weft.testing import laws
from weft.testing.sites import remote

RANKS = ({"rank": 4}, {"rank": 2}, {"rank": 3})


@dataclass(frozen=True)
class DrawnLike(LoRA):
    """LoRA that begins as the part of a name."""

    like: str = ""

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        return drawn_like(self.like, super().tensors(backbone, site))


class Twins(Method):
    """A common and a personal LoRA that begin as FedIT's, and another that does not; each client has a rank of its own."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="twins", title="Twins", paper="none", family="reparameterized", sends="one of them", asks=("rank",)
    )
    batch: int = 3
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")

    def profile(self, position: int) -> dict[str, Any]:
        return dict(RANKS[position % len(RANKS)])

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank = client.facts.get("rank", 4)
        part = DrawnLike(rank, 1.5 * rank, "q", of=4, like="lora")
        return {
            "ours": (part, SHARED),
            "mine": (part, PERSONAL),
            "other": (replace(part, like=""), PERSONAL),
            "own_head": (ChosenHead(like="head"), PERSONAL),
            "head": (task.head, SHARED),
        }

    def aggregate(self, server: Any, updates: Any) -> None:
        server.mean(updates, leading=True)


def test_a_draw_depends_on_the_part_that_it_is_like_and_on_nothing_of_its_own() -> None:
    plain = Init((4, 6), "normal", 0.5)
    for kind in ({}, {"kind": "uniform"}, {"kind": "orthogonal"}, {"kind": "odd"}):
        init = replace(plain, **kind)
        wanted = init.draw(3, "lora/layer.0/A")
        (same,) = drawn_like("lora", {"A": init}).values()
        assert torch.equal(same.draw(3, "mine/layer.0/A"), wanted)
        assert not torch.equal(init.draw(3, "mine/layer.0/A"), wanted)
        for other in ("mine/layer.1/A", "mine/layer.0/E"):
            assert not torch.equal(same.draw(3, other), wanted)
        again = [same.draw(3, part, 1, "client-0") for part in ("mine/layer.0/A", "lora/layer.0/A")]  # as in a round
        assert torch.equal(*again)
        assert not torch.equal(again[0], wanted)
    leading = Init((2, 6), "normal", 0.5, within=(4, 6), like="lora")
    assert torch.equal(leading.draw(3, "mine/layer.0/A"), plain.draw(3, "lora/layer.0/A")[:2])
    assert Init((2,), "normal") != Init((2,), "normal", like="lora")


def test_clients_of_every_rank_begin_alike_with_what_the_server_holds_and_nothing_is_sent_for_it() -> None:
    run = tiny.federation(Twins(), "bert", sizes=(6, 5, 7))
    bench = run.bench
    part = LoRA(4, 6.0, "q")
    for k, client in enumerate(run.clients):
        rank = RANKS[k]["rank"]
        start = by_hand.start_of(run, k)
        for site in part.sites(bench.backbone):
            drawn = bench.draw(part.tensors(bench.backbone, site)["A"], f"lora/{site.name}/A")
            assert torch.equal(run.server.shared[f"ours/{site.name}/A"], drawn)
            ours, mine, other = (start[f"{name}/{site.name}/A"] for name in ("ours", "mine", "other"))
            assert torch.equal(ours, drawn[:rank])
            assert torch.equal(mine, ours)
            assert not torch.equal(other, ours)
        assert torch.equal(start["own_head/classifier/weight"], start["head/classifier/weight"])
        assert not run.method.send(run.server, client.info(("rank",))).tensors


def test_real_sites_hold_the_same_before_anything_was_sent() -> None:
    run, loop = remote(Twins(), model="bert", sizes=(6, 5, 7))
    loop.start()
    for k, site in enumerate(loop.sites.values()):
        for name, value in site.copy.items():
            whole = run.server.shared[name]
            assert isinstance(value, torch.Tensor)
            assert isinstance(whole, torch.Tensor)
            size = value.shape if name.startswith("head/") else (RANKS[k]["rank"], whole.shape[1])
            assert not name.endswith("/A") or value.shape == size
            assert torch.equal(value, whole[tuple(slice(0, n) for n in value.shape)])


def test_what_is_handed_out_under_a_name_is_the_start_of_all_that_is_like_it(tmp_path: Any) -> None:
    given = {"head/classifier/weight": torch.full((3, 32), 0.5, dtype=torch.float64)}
    run = tiny.federation(Twins(), "bert", sizes=(6, 5, 7), start=given)
    start = by_hand.start_of(run)
    assert all(torch.equal(start[f"{part}/classifier/weight"], next(iter(given.values()))) for part in ("head", "own_head"))
    pack = run.pack([1])
    assert torch.equal(pack.start_values(0)["own_head/classifier/weight"], next(iter(given.values())))
    assert not pack.start_values(0)["own_head/classifier/bias"].any()


@pytest.mark.parametrize("law", ["pack", "sites", "ledger"])
def test_parts_that_begin_alike_keep_the_laws(law: str) -> None:
    laws.check(Twins(), law)


def test_adapters_that_are_like_each_other_begin_alike_and_fresh_ones_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def adapt(self: Twins, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        one = Bottleneck(8, like="x")
        return {"a": (one, SENT), "b": (one, SENT), "c": (Bottleneck(8), SENT)}

    monkeypatch.setattr(Twins, "adapt", adapt)
    run = tiny.federation(Twins(), "bert", sizes=(6, 5))
    seen = []
    for t in range(2):
        pack = run.pack(t=t)
        for name, value in pack.params("a/*/down").items():
            assert torch.equal(pack.tensors[name.replace("a/", "b/", 1)], value)
            assert not torch.equal(pack.tensors[name.replace("a/", "c/", 1)], value)
            seen.append(value)
    assert not torch.equal(seen[0], seen[len(seen) // 2])
