"""FRLoRA against its card: the principal part of the weights at the start of every round, its change on the frozen rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import HEAD, SITES, Case, Sizes, Turn, factors_and_head, lora
from weft.contract import Optim
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import FRLoRA
from weft.tensors.principal import principal

SCALE = 3.0
SMALL = FRLoRA(rank=2, alpha=6.0, sites="q", steps=2, batch=2, optim=Optim("sgd", lr=0.3, schedule="constant", warmup=0.0))
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}


def cut(weight: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(weight)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def start(run: tiny.Federation) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in run.server.start.items()}


def test_the_model_begins_as_the_pretrained_one_and_its_factors_are_the_principal_part() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    for site in by_hand.sites(run):
        weight = run.bench.backbone.module(site).weight.detach()
        product = SCALE * start(run)[f"lora/{site}/B"] @ start(run)[f"lora/{site}/A"]
        by_hand.close(product, cut(weight, 2), 1e-9)
    rows = run.clients[0].data.test
    wanted = by_hand.logits(run, {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}, rows)
    by_hand.close(run.global_logits(rows, dtype=torch.float64), wanted.detach(), 1e-9)


def test_four_rounds_by_hand_with_clients_that_are_away() -> None:
    """Ŵ is followed as a dense matrix, which the method never forms."""
    run = tiny.federation(SMALL, **ABOUT)
    first, head = start(run), {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}
    rest = {s: -SCALE * first[f"lora/{s}/B"] @ first[f"lora/{s}/A"] for s in by_hand.sites(run)}  # of what is added to W0
    rows = run.clients[0].data.test
    for t, present in enumerate(cohorts.ABSENT):
        values = head | first | {f"base/{s}/delta": v for s, v in rest.items()}
        ends = [
            by_hand.train(
                run,
                values,
                by_hand.steps_of(run, k, t),
                lambda p: torch.optim.SGD(p, 0.3),
                scale=SCALE,
                only=lambda n: not n.startswith("base/"),
            )
            for k in present
        ]
        cohorts.play(run, t, present)
        mean = {n: sum(e[n] for e in ends) / len(ends) for n in values}
        head = {n: v for n, v in mean.items() if n.startswith("head/")}
        for site in rest:
            a, b = f"lora/{site}/A", f"lora/{site}/B"
            moved = SCALE * (mean[b] @ mean[a] - first[b] @ first[a])
            assert moved.norm() > 1e-4
            assert int((torch.linalg.svdvals(moved) > 1e-10).sum()) <= 4
            rest[site] = rest[site] + moved
        for name, value in head.items():
            by_hand.close(by_hand.shared(run)[name], value, 1e-9)
        # the model is Ŵ + s B0 A0
        values = head | first | {f"base/{s}/delta": v for s, v in rest.items()}
        wanted = by_hand.logits(run, values, rows, SCALE).detach()
        by_hand.close(run.global_logits(rows, dtype=torch.float64), wanted, 1e-9)


def test_every_round_begins_at_the_same_factors_and_at_the_last_global_model() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(2)
    rows = run.clients[0].data.test
    last = run.global_logits(rows, dtype=torch.float64)
    pack = run.pack(t=2)
    for logits in pack.predict(run.method.forward, [rows] * 3, dtype=torch.float64):
        by_hand.close(logits, last, 1e-9)
    for name, value in start(run).items():
        assert all(torch.equal(pack.value(k, name), value) for k in range(3))


def test_without_a_step_a_hundred_rounds_do_not_drift() -> None:
    still = FRLoRA(rank=2, sites="q", steps=1, batch=2, optim=Optim("sgd", lr=0.0))
    run = tiny.federation(still, **ABOUT | {"rounds": 100, "precision": "float32", "sizes": (3, 3)})
    rows = run.clients[0].data.test
    before = run.global_logits(rows)
    run.run()
    assert float((run.global_logits(rows) - before).abs().max()) < 1e-4
    assert run.server.shared["merged/values/rounds"].tolist() == [100.0]  # type: ignore[union-attr]


def test_the_rate_falls_along_one_cosine_over_the_whole_run() -> None:
    method = FRLoRA(rank=2, sites="q", steps=3, batch=2, optim=Optim("sgd", lr=0.2, schedule="cosine", warmup=0.0))
    run = tiny.federation(method, **ABOUT | {"sizes": (6,), "rounds": 2})
    for t in range(2):
        pack = run.pack([0], t)
        list(method.train(pack))
        wanted = sum(0.1 * (1 + math.cos(math.pi * i / 6)) for i in range(3 * t, 3 * t + 3))
        assert float(pack.travelled(next(iter(pack.params("head/*"))))) == pytest.approx(wanted)
        run.simulation.round(t)


def test_a_rank_beyond_a_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"rank 40 is more than .* has, a matrix of 32 x 32"):
        tiny.federation(FRLoRA(rank=40), **ABOUT)


@pytest.mark.parametrize(("shape", "rank"), [((30, 50), 4), ((50, 30), 30), ((300, 200), 5)])
def test_principal_triplets_are_those_of_a_dense_svd(shape: tuple[int, int], rank: int) -> None:
    g = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=g, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=g, dtype=torch.float64))
    s = 3 * 0.8 ** torch.arange(min(shape), dtype=torch.float64)
    matrix = (u * s) @ v.mT
    U, S, Vh = principal(matrix, rank, torch.Generator().manual_seed(1))
    torch.testing.assert_close(S, s[:rank], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((U * S) @ Vh, (u[:, :rank] * s[:rank]) @ v[:, :rank].mT, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(rank, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    again = principal(-matrix, rank, torch.Generator().manual_seed(1))
    torch.testing.assert_close(again[2], Vh)  # signs are chosen, and not left to the library


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
def test_the_weight_of_a_layer_is_that_which_it_multiplies_with(model: str) -> None:
    backbone = tiny.backbone(model)
    for site in backbone.sites("attention"):
        weight = backbone.weight(site)
        assert tuple(weight.shape) == (site.d_out, site.d_in)
        module = backbone.module(site.name)
        x = torch.randn(3, site.d_in, dtype=backbone.dtype)
        with torch.no_grad():
            by_hand.close((module(x) - module(0 * x)).to(weight.dtype), x.to(weight.dtype) @ weight.mT, 1e-6)


def test_defaults_and_what_roberta_base_sends() -> None:
    method, backbone = FRLoRA(), by_hand.roberta_base()
    assert by_hand.elements(method, backbone, Scope.UP)["lora"] == 12 * 2 * 16 * (768 + 768)
    assert (method.rank, method.alpha, method.sites, method.steps, method.batch) == (16, 32.0, "q,v", 30, 32)
    assert method.optim == Optim("adamw", lr=2e-4, schedule="cosine", warmup=0.03)
    assert method.weighting == "uniform"


# what other tests ask of this method --------------------------------------------------------------------------------------


def mean_bytes(turn: Turn) -> Sizes:
    """The mean of both factors, as in federated averaging, and how many there were."""
    return {"base": lora(2), "merged": [1], "head": HEAD}


BYTES = Case({"rank": 2, **SITES}, mean_bytes, factors_and_head)
