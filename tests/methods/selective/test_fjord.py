"""FjORD against its card: widths drawn for each step, the teacher, rings of those who hold them, and a view for each width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import exporting
import tiny
from bytes_of import HEAD, Case, Sizes, Turn, lora
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.export import load
from weft.federation.batch import make_batch
from weft.federation.message import ClientInfo
from weft.methods import FedIT, FjORD
from weft.testing import laws

SGD = Optim("sgd", lr=0.1, weight_decay=1e-2, schedule="constant")
SMALL = FjORD(rank=4, alpha=4.0, sites="q,ffn.in", rates=(0.25, 0.5, 1.0), batch=2, optim=SGD)
Named = dict[str, Tensor]


def federation(method: FjORD = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": (6, 5, 7), "rounds": 2} | settings)


def cut(name: str, value: Tensor, rank: int) -> Tensor:
    if not name.startswith("lora/"):
        return value
    return value[:rank] if name.endswith("/A") else value[:, :rank]


def trained(run: tiny.Federation, k: int, t: int, shared: Named, largest: float, distil: bool) -> Named:
    leaves = {n: cut(n, v, int(4 * largest)).clone().requires_grad_(True) for n, v in shared.items()}
    (draw,) = run.pack([k], t).generators("width")
    own = [p for p in (0.25, 0.5, 1.0) if p <= largest]
    for rows in by_hand.steps_of(run, k, t):
        rows = rows[rows >= 0]
        rank = int(4 * own[int(torch.randint(len(own), (1,), generator=draw))])
        y = by_hand.labels(run, rows)
        narrow = by_hand.logits(run, {n: cut(n, v, rank) for n, v in leaves.items()}, rows)
        if distil:
            wide = by_hand.logits(run, leaves, rows)
            target = wide.detach().softmax(1)
            loss = F.cross_entropy(wide, y) + F.cross_entropy(narrow, target)  # the code's form: probabilities as labels
        else:
            loss = F.cross_entropy(narrow, y)
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            for (name, value), slope in zip(leaves.items(), slopes, strict=True):
                assert slope is not None
                inside = value if distil else cut(name, value, rank)
                inside -= 0.1 * (slope if distil else cut(name, slope, rank)) + 0.1 * 1e-2 * inside
    return {n: v.detach() for n, v in leaves.items()}


@pytest.mark.parametrize("distil", [True, False])
def test_two_rounds_are_those_of_plain_pytorch(distil: bool) -> None:
    """The one client of the whole width is away in the second round."""
    run = federation(replace(SMALL, distil=distil))
    shared = by_hand.shared(run)
    for t, present in enumerate(([0, 1, 2], [0, 1])):
        ends = [trained(run, k, t, shared, (0.25, 0.5, 1.0)[k], distil) for k in present]
        before, shared, last = shared, dict(shared), by_hand.shared(run)
        for name, old in before.items():
            new = old.clone()
            for p in (1.0, 0.5, 0.25):  # from the largest: each writes over the smaller slice of the one before
                who = [i for i, k in enumerate(present) if (0.25, 0.5, 1.0)[k] >= p]
                if who and (name.startswith("lora/") or p == 0.25):
                    n = [run.clients[present[i]].n for i in who]
                    mean = sum(m * cut(name, ends[i][name], int(4 * p)) for i, m in zip(who, n, strict=True)) / sum(n)
                    cut(name, new, int(4 * p)).copy_(mean)
            shared[name] = new
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=[run.clients[k] for k in present]: c)
            run.simulation.round(t)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, shared[name], 1e-12)
            if t == 1 and name.startswith("lora/"):
                outside = value[2:] if name.endswith("/A") else value[:, 2:]
                assert torch.equal(outside, last[name][2:] if name.endswith("/A") else last[name][:, 2:])
    for p in (0.25, 0.5):
        small = {n: cut(n, v, int(4 * p)) for n, v in shared.items()}
        by_hand.close(run.global_logits(view=f"global/width {p:g}", dtype=torch.float64), by_hand.logits(run, small), 1e-11)
    by_hand.close(run.global_logits(dtype=torch.float64), by_hand.logits(run, shared), 1e-11)


def test_one_width_without_a_teacher_is_averaged_lora() -> None:
    whole = federation(replace(SMALL, rates=(1.0,), distil=False)).run()
    plain = tiny.federation(FedIT(rank=4, alpha=4.0, sites="q,ffn.in", batch=2, optim=SGD), sizes=(6, 5, 7), rounds=2).run()
    assert by_hand.shared(whole).keys() == by_hand.shared(plain).keys()
    for name, value in by_hand.shared(whole).items():
        by_hand.close(value, by_hand.shared(plain)[name], 1e-12)


def test_a_width_sees_nothing_beyond_it() -> None:
    run = federation()
    before = run.global_logits(view="global/width 0.5")
    for name, value in by_hand.shared(run).items():
        if name.startswith("lora/"):
            new = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)).to(value)
            cut(name, new, 2).copy_(cut(name, value, 2))
            run.server.write(name, new)
    assert torch.equal(run.global_logits(view="global/width 0.5"), before)
    assert not torch.allclose(run.global_logits(), before, atol=1e-4)


def test_no_gradient_goes_through_the_teacher() -> None:
    """With the widest drawn, the divergence is of a model from itself: the step is that of plain training."""
    method = replace(SMALL, rates=(1.0,))
    taught, plain = (federation(replace(method, distil=on), rounds=1).run() for on in (True, False))
    for name, value in by_hand.shared(taught).items():
        by_hand.close(value, by_hand.shared(plain)[name], 1e-12)


def test_widths_are_drawn_alike_from_those_that_a_client_can_hold() -> None:
    run = federation()
    pack = run.pack([0, 1, 2], 0)
    batch = make_batch(pack.task, run.bench.table, run.clients[0].data.train[None, :1].repeat(3, 0), None, pack.device)
    draws = pack.generators("width")
    seen = torch.stack([SMALL.drawn(pack, batch, draws) for _ in range(300)])
    for k, own in enumerate(([0.25], [0.25, 0.5], [0.25, 0.5, 1.0])):
        share = [float((seen[:, k] == p).double().mean()) for p in own]
        assert share == pytest.approx([1 / len(own)] * len(own), abs=0.1)
        assert sum(share) == pytest.approx(1.0)


def test_rates_out_of_order_and_clients_below_all_widths_are_refused() -> None:
    with pytest.raises(UserError, match="from the smallest to the largest"):
        replace(SMALL, rates=(1.0, 0.5))
    with pytest.raises(UserError, match=r"of 4 ranks the rates 0.1 and 0.25 are both 1"):
        replace(SMALL, rates=(0.1, 0.25))
    with pytest.raises(UserError, match=r"client far has the rate 0.1, less than the smallest width 0.25"):
        SMALL.adapt(tiny.backbone("bert"), tiny.bench("bert").task, ClientInfo("far", 3, {"rate": 0.1}))
    assert FjORD().views == FjORD.info.views
    assert SMALL.views == ("global", "global/width 0.25", "global/width 0.5")


def test_a_width_that_is_exported_is_that_width(tmp_path: Path) -> None:
    run = exporting.trained(SMALL, sizes=(6, 5), rounds=2)
    exporting.exported(run, tmp_path, view="global/width 0.25")
    found = load(tmp_path, device="cpu", precision="float32").logits(list(tiny.states(sizes=(6, 5))[0].texts))
    torch.testing.assert_close(found, run.global_logits(view="global/width 0.25"), **exporting.RUN_CLOSE)
    assert not torch.allclose(found, run.global_logits(), atol=1e-3)


def test_without_a_teacher_the_laws_hold() -> None:
    laws.check(replace(SMALL, distil=False), "pack", "return", "sums", "sites", "resuming", "counting")


def held(turn: Turn) -> Sizes:
    return {"lora": lora(int(4 * turn.facts["rate"])), "head": HEAD}


BYTES = Case(
    {"rank": 4, "sites": "q,ffn.in", "rates": [0.25, 0.5, 1.0]},
    held,
    held,
    facts=tuple({"rate": (0.25, 0.5, 1.0)[k % 3]} for k in range(6)),
)
