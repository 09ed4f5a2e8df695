"""DepthFL against its card: exits that teach each other, the mean over those who hold a tensor, and FedDyn."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import by_hand
import tiny
from bytes_of import HEAD, Case, Sizes, Turn, lora
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.batch import make_batch
from weft.federation.message import ClientInfo
from weft.federation.pack import Pack
from weft.methods import DepthFL, FedIT
from weft.tasks.kinds import GENERATION, MASKED
from weft.testing import laws
from weft.testing.plays import shallow

SGD = Optim("sgd", lr=0.1, weight_decay=1e-3, schedule="constant")
SMALL = DepthFL(stages=3, rank=2, alpha=2.0, sites="q,ffn.in", epochs=1.0, batch=3, ramp=3, decay=0.9, optim=SGD)
Named = dict[str, Tensor]


def federation(method: DepthFL = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": (6, 5, 7), "rounds": 2} | settings)


# by hand --------------------------------------------------------------------------------------------------------------


def exits(run: tiny.Federation, values: Named, depth: int, rows: np.ndarray) -> list[Tensor]:
    """Logits [n, C] of the models that end after 1 … depth blocks, with merged weights and heads of their own."""
    found = []
    for i in range(depth):
        model = copy.deepcopy(run.bench.backbone.model)
        del model.bert.encoder.layer[i + 1 :]
        inside = dict(model.named_parameters())
        weights: Named = {}
        for name, value in values.items():
            part, site, role = name.split("/")
            if part == f"exit{i + 1}":
                weights[f"{site}.{role}"] = value
            elif role == "B" and f"{site}.weight" in inside:
                weights[f"{site}.weight"] = inside[f"{site}.weight"].detach() + value @ values[name[:-1] + "A"]  # α = r
        found.append(functional_call(model, weights, kwargs=run.bench.table.collate(rows)).logits)
    return found


def local_loss(run: tiny.Federation, values: Named, depth: int, rows: np.ndarray, weight: float) -> Tensor:
    z = exits(run, values, depth, rows)
    y = by_hand.labels(run, rows)
    loss = torch.stack([F.cross_entropy(one, y) for one in z]).sum()
    for i, mine in enumerate(z):
        for j, theirs in enumerate(z):
            if i != j:
                kl = F.kl_div(mine.log_softmax(1), theirs.detach().softmax(1), reduction="batchmean")
                loss = loss + weight / (depth - 1) * kl
    return loss


def turn(
    run: tiny.Federation, k: int, t: int, received: Named, memory: Named, depth: int, alpha: float, weight: float
) -> tuple[Named, Named]:
    """A client's turn with plain SGD: what it ends with, and its new memory."""
    mine = {n: v for n, v in received.items() if int(stage_of(n)) <= depth}
    leaves = {n: v.clone().requires_grad_(True) for n, v in mine.items()}
    g = {n: memory.get(n, torch.zeros_like(v)) for n, v in mine.items()}
    opt = torch.optim.SGD(leaves.values(), lr=0.1 * 0.9**t, weight_decay=1e-3)
    for rows in by_hand.steps_of(run, k, t):
        opt.zero_grad()
        loss = local_loss(run, leaves, depth, rows[rows >= 0], weight)
        for n, v in leaves.items():
            loss = loss + alpha / 2 * (v - received[n]).square().sum() - (v * g[n]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
    end = {n: v.detach() for n, v in leaves.items()}
    return end, {n: g[n] - alpha * (end[n] - received[n]) for n in end}


def stage_of(name: str) -> int:
    """1, 2 or 3: of three blocks each is a stage."""
    part = name.split("/")[0]
    return int(part[4:]) if part.startswith("exit") else int(name.split("layer.")[1].split(".")[0]) + 1


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_two_rounds_are_those_of_plain_pytorch(alpha: float) -> None:
    """Clients of depth 1, 2 and 3; who holds one stage is away in the second round."""
    run = federation(replace(SMALL, dyn=alpha))
    shared = by_hand.shared(run)
    memories: list[Named] = [{}, {}, {}]
    h = {n: torch.zeros_like(v) for n, v in shared.items()}
    for t, present in enumerate(([0, 1, 2], [1, 2])):
        weight = math.exp(-5 * (1 - t / 3) ** 2)
        ends = []
        for k in present:
            end, memories[k] = turn(run, k, t, shared, memories[k], k + 1, alpha, weight)
            ends.append(end)
        new = dict(shared)
        for name, old in shared.items():
            held = [e[name] for e in ends if name in e]
            if held:
                mean = torch.stack(held).mean(0)
                h[name] = h[name] - alpha * len(held) / 3 * (mean - old)
                new[name] = mean - (h[name] / alpha if alpha else 0)
        shared = new
        run.simulation.setup.settings = replace(run.simulation.setup.settings, participation=len(present) / 3)
        cohort = [run.clients[k] for k in present]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=cohort: c)
            run.simulation.round(t)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, shared[name], 1e-12)
    z = exits(run, shared, 3, np.arange(8))
    by_hand.close(run.global_logits(np.arange(8), dtype=torch.float64), torch.stack(z).mean(0), 1e-12)
    for i, one in enumerate(z):
        by_hand.close(run.global_logits(np.arange(8), f"global/exit {i + 1}", torch.float64), one, 1e-12)


# the card's invariants ------------------------------------------------------------------------------------------------


def test_one_stage_is_averaged_lora_under_another_name() -> None:
    plain = tiny.federation(
        FedIT(rank=2, alpha=2.0, sites="q,ffn.in", weighting="uniform", epochs=1.0, batch=3, optim=SGD), rounds=2
    ).run()
    same = tiny.federation(replace(SMALL, stages=1, dyn=0.0, decay=1.0), rounds=2)
    for name, value in tiny.federation(plain.method).server.shared.items():
        if name.startswith("head/"):
            same.server.write(name.replace("head/", "exit1/"), value)
    same.run()
    renamed = {n.replace("exit1/", "head/"): v for n, v in by_hand.shared(same).items()}
    assert renamed.keys() == by_hand.shared(plain).keys()
    for name, value in by_hand.shared(plain).items():
        by_hand.close(renamed[name], value, 1e-12)


def test_a_stage_is_moved_by_those_who_hold_it() -> None:
    moved: list[set[int]] = []
    for k in range(3):
        run = federation(replace(SMALL, dyn=0.0), rounds=1)
        before = by_hand.shared(run)
        for other in set(range(3)) - {k}:
            run.clients[other].data = replace(run.clients[other].data, train=np.zeros(0, np.int64))
        run.run()
        moved.append({stage_of(n) for n, v in by_hand.shared(run).items() if not torch.equal(v, before[n])})
    assert moved == [{1}, {1, 2}, {1, 2, 3}]


def test_one_client_without_feddyn_gives_the_server_its_model() -> None:
    run = federation(replace(SMALL, dyn=0.0), sizes=(6,), rounds=1)
    run.clients[0].facts["stages"] = 3
    run.server.clients[0].facts["stages"] = 3
    sent = by_hand.record(run)
    run.run()
    assert len(sent[0][0].tensors) == len(run.server.shared)
    assert all(torch.equal(v, sent[0][0].tensors[n]) for n, v in by_hand.shared(run).items())  # type: ignore[arg-type]


def deepest(run: tiny.Federation) -> Pack:
    return run.pack([2], 0)


def test_exits_that_agree_teach_nothing_and_nothing_goes_to_the_teacher() -> None:
    run = federation()
    pack = deepest(run)
    batch = make_batch(pack.task, run.bench.table, run.clients[2].data.train[None, :4], None, pack.device)
    alone = replace(SMALL, ramp=10**9)  # w_0 = e^-5, as ever
    for name, value in pack.params("exit1").items():
        twin = name.replace("exit1", "exit2")
        pack.tensors[name] = value.clone().requires_grad_(True)
        pack.tensors[twin] = pack.tensors[twin].clone().requires_grad_(True)
    out = pack.exits(batch, {"exit1": 0, "exit2": 1})
    from weft.contract import distillation

    assert float(distillation(out["exit1"], out["exit1"], batch.mask, 1.0).detach()) == 0.0
    kl = distillation(out["exit1"], out["exit2"], batch.mask, 1.0).sum()
    teacher = [pack.tensors[n] for n in pack.params("exit1")]
    assert torch.autograd.grad(kl, teacher, allow_unused=True, retain_graph=True) == (None,) * len(teacher)
    assert float(kl.detach()) > 0
    assert bool((alone.objective(pack, batch) != replace(SMALL, ramp=0).objective(pack, batch)).all())


def test_the_ramp_rises_from_a_hundredth_to_one() -> None:
    method = DepthFL()
    assert method.ramped(0) == pytest.approx(math.exp(-5))
    assert [method.ramped(t) for t in (300, 500)] == [1.0, 1.0]
    assert method.ramped(150) == pytest.approx(math.exp(-1.25))
    assert DepthFL(ramp=0).ramped(0) == 1.0


def test_feddyn_moves_nothing_where_nobody_does() -> None:
    run = federation(replace(SMALL, optim=SGD.but(lr=0.0)))
    before = by_hand.shared(run)
    run.run()
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())
    assert all(not bool(v.any()) for n, v in run.server.memo.items() if n.startswith("h/"))
    for client in run.clients:
        run.simulation.setup.store.load(client)
        assert all(not bool(v.any()) for n, v in client.memo.items() if n.startswith("g/"))


def test_stages_are_as_equal_as_can_be_and_devices_are_dealt_out_evenly() -> None:
    for blocks, stages, wanted in ((12, 4, [2, 5, 8, 11]), (6, 4, [0, 2, 3, 5]), (3, 3, [0, 1, 2])):
        named = [f"block.{i}" for i in range(blocks)]
        assert list(DepthFL(stages=stages).ends(replace(tiny.backbone("bert"), blocks=named)).values()) == wanted
    assert [DepthFL().profile(i)["stages"] for i in range(8)] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert DepthFL(stages=2).views == ("global", "global/exit 1", "global/exit 2")
    assert DepthFL().views == DepthFL.info.views


def test_more_stages_than_blocks_and_depths_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match=r'cuts the model into 4 stages, and ".*" has 3 blocks: set method.stages to at most 3'):
        tiny.federation(DepthFL(), "bert")
    with pytest.raises(UserError, match="is an encoder with a decoder"):
        tiny.federation(DepthFL(stages=2), shallow(SMALL, task=GENERATION, kind="t5"), task=GENERATION)
    with pytest.raises(UserError, match="client far holds 4 of 3 stages: give it 1 to 3"):
        SMALL.adapt(tiny.backbone("bert"), tiny.bench("bert").task, ClientInfo("far", 3, {"stages": 4}))


@pytest.mark.parametrize("task", [GENERATION, MASKED])
def test_a_language_model_has_exits_too(task: str) -> None:
    method = replace(SMALL, stages=2, sites="q", batch=2)
    model = shallow(method, task=task)
    run = tiny.federation(method, model, task=task, sizes=(5, 4, 3), rounds=2)
    alone = tiny.federation(method, model, task=task, sizes=(5, 4, 3), rounds=2, pack=1)
    before = by_hand.shared(run)
    scores = []
    for one in (run, alone):
        one.run()
        scores.append({(e.view, e.metric): e.value for e in one.simulation.evaluate(1) if e.people == "global test"})
    found, wanted = scores
    assert found.keys() == wanted.keys()
    assert {v for v, _ in found} == {"global", "global/exit 1", "global/exit 2"}
    for name, value in by_hand.shared(run).items():
        assert not torch.equal(value, before[name])
        by_hand.close(value, by_hand.shared(alone)[name], 1e-10)
    for key, value in found.items():
        assert value == pytest.approx(wanted[key], rel=1e-9, abs=1e-12)
    assert found["global", "loss"] != found["global/exit 1", "loss"]


@pytest.mark.parametrize("changes", [{"dyn": 0.0, "ramp": 0}, {"stages": 1}])
def test_other_settings_keep_the_laws(changes: dict[str, Any]) -> None:
    laws.check(replace(DepthFL(stages=2), **changes), "pack", "return", "sums", "sites", "resuming")


TINY = {"stages": 2}


def held(turn: Turn) -> Sizes:
    """Of 3 blocks in 2 stages the first has one, the second two."""
    depth = turn.facts["stages"]
    return {"lora": lora(2, blocks=(1, 3)[depth - 1])} | {f"exit{i + 1}": HEAD for i in range(depth)}


BYTES = Case(
    {"rank": 2, "sites": "q,ffn.in", "stages": 2},
    held,
    held,
    facts=tuple({"stages": k % 2 + 1} for k in range(6)),
    head=False,
)
