"""FFA-LoRA against its card: A stays, B is averaged exactly, and the scale does not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import SITES, Case, one_factor
from weft.adaptation.optim import Optim
from weft.errors import WeftError
from weft.federation.scope import Scope
from weft.methods import FFALoRA

SMALL = FFALoRA(rank=2, alpha=6.0, steps=3, batch=4)


def factors(run: tiny.Federation, role: str) -> dict[str, Tensor]:
    return {n: v for n, v in by_hand.shared(run).items() if n.startswith("lora/") and n.endswith(f"/{role}")}


def weights(run: tiny.Federation, scale: float) -> dict[str, Tensor]:
    """Site -> W - W0."""
    b = factors(run, "B")
    return {n: scale * b[n[:-1] + "B"] @ a for n, a in factors(run, "A").items()}


def test_a_is_the_same_bits_everywhere_for_ever() -> None:
    run = tiny.federation(SMALL, rounds=3, participation=0.7)
    drawn = factors(run, "A")
    assert len({tuple(a.flatten().tolist()) for a in drawn.values()}) == len(drawn), "a draw of its own for each site"
    assert all(bool((a != 0).all()) for a in drawn.values())
    seen = by_hand.record(run)
    for t in range(3):
        run.simulation.round(t)
        pack = run.pack(t=t)
        list(run.method.train(pack))
        for name, a in drawn.items():
            assert torch.equal(by_hand.shared(run)[name], a)
            assert torch.equal(pack.tensors[name], a.expand_as(pack.tensors[name]))
    assert seen[2]
    assert all(n.endswith("/B") for updates in seen for u in updates for n in u.tensors)


def test_no_optimizer_can_hold_a_or_the_frozen_head() -> None:
    run = tiny.federation(SMALL)
    held = run.pack().optimizer("*", settings=SMALL.optim).params
    assert held
    assert all(n.startswith("lora/") and n.endswith("/B") for n in held)
    for name in ("lora/*/A", "head"):
        with pytest.raises(WeftError, match="no trainable tensor"):
            run.pack().optimizer(name, settings=SMALL.optim)


def test_weight_decay_does_not_shrink_a() -> None:
    method = replace(SMALL, optim=Optim("adamw", lr=0.1, weight_decay=0.5))
    run = tiny.federation(method, rounds=1)
    drawn = factors(run, "A")
    run.run()
    assert all(torch.equal(a, drawn[n]) for n, a in factors(run, "A").items())


def test_the_averaged_model_is_exactly_the_mean_of_the_clients_models() -> None:
    run = tiny.federation(SMALL, rounds=2)
    seen = by_hand.record(run)
    run.run()
    counts = {c.id: c.n for c in run.clients}
    a = factors(run, "A")
    for site in by_hand.sites(run):
        frozen = run.bench.backbone.module(site).weight.detach()
        mean = torch.zeros_like(frozen)
        for u in seen[-1]:
            b = u.tensors[f"lora/{site}/B"]
            assert isinstance(b, Tensor)
            mean += counts[u.client.id] / sum(counts.values()) * (frozen + 3.0 * b @ a[f"lora/{site}/A"])
        found = frozen + weights(run, 3.0)[f"lora/{site}/A"]
        assert not torch.equal(found, frozen)
        by_hand.close(found, mean, 1e-12)


@pytest.mark.parametrize("train_head", [False, True])
def test_one_full_batch_step_of_everybody_is_one_step_on_the_pooled_data(train_head: bool) -> None:
    method = replace(SMALL, steps=1, batch=16, train_head=train_head)
    run = tiny.federation(method, rounds=1)
    pooled = np.concatenate([c.data.train for c in run.clients])

    def trains(name: str) -> bool:
        return name.endswith("/B") or (train_head and name.startswith("head/"))

    start = by_hand.shared(run)
    wanted = by_hand.train(run, start, [pooled], lambda p: torch.optim.SGD(p, lr=0.5), scale=3.0, only=trains)
    run.run()
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, wanted[name])
        assert torch.equal(found, start[name]) != trains(name)


def test_one_client_is_lora_with_a_frozen_a() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=2)
    steps = [rows for t in range(2) for rows in by_hand.steps_of(run, 0, t)]
    assert len(steps) == 6
    wanted = by_hand.train(
        run,
        by_hand.shared(run),
        steps,
        lambda p: torch.optim.SGD(p, lr=0.5),
        scale=3.0,
        only=lambda n: n.endswith("/B"),
    )
    run.run()
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, wanted[name])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_scale_is_a_learning_rate_in_disguise(kind: str) -> None:
    """(α, lr) and (cα, lr/c²) walk the same way with SGD; with Adam and ε → 0 it is (cα, lr/c)."""
    c, lr = 4.0, 0.5 if kind == "sgd" else 0.01
    paths = []
    for alpha, rate in ((6.0, lr), (c * 6.0, lr / (c**2 if kind == "sgd" else c))):
        method = replace(SMALL, alpha=alpha, optim=Optim(kind, lr=rate, eps=1e-300, schedule="constant"))
        run = tiny.federation(method, rounds=3)
        path = []
        for t in range(3):
            run.simulation.round(t)
            path.append(weights(run, alpha / 2))
        paths.append(path)
    for one, other in zip(*paths, strict=True):
        for site, w in one.items():
            assert w.norm() > 1e-4
            by_hand.close(other[site], w, by_hand.ADAM)


def test_the_update_never_leaves_the_row_space_of_a() -> None:
    run = tiny.federation(SMALL, rounds=3)
    a = factors(run, "A")
    for t in range(3):
        run.simulation.round(t)
        for site, w in weights(run, 3.0).items():
            assert torch.linalg.matrix_rank(w, rtol=1e-9) == 2
            rows = torch.linalg.qr(a[site].T)[0]
            by_hand.close(w @ rows @ rows.T, w, 1e-12)


def test_before_the_first_round_only_b_has_a_gradient_to_follow() -> None:
    """∂L/∂B = s·G·A0ᵀ with G = ∂L/∂W: nothing would ever move if A0 were zero."""
    run = tiny.federation(replace(SMALL, steps=1, batch=16), sizes=(9,), rounds=1)
    (rows,) = by_hand.steps_of(run, 0, 0)
    site = by_hand.sites(run)[0]
    delta = torch.zeros(32, 32, dtype=torch.float64, requires_grad=True)
    head = {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}
    out = by_hand.logits(run, head | {f"base/{site}/delta": delta}, rows)
    (g,) = torch.autograd.grad(F.cross_entropy(out, by_hand.labels(run, rows)), delta)
    a = factors(run, "A")[f"lora/{site}/A"]
    run.run()
    by_hand.close(factors(run, "B")[f"lora/{site}/B"], -0.5 * 3.0 * g @ a.T)


def test_on_roberta_base_a_client_sends_half_of_lora() -> None:
    sent = by_hand.elements(FFALoRA(), by_hand.roberta_base(), Scope.UP)
    assert sent == {"lora": 12 * 2 * 8 * 768}
    trained = by_hand.elements(FFALoRA(train_head=True), by_hand.roberta_base(), Scope.UP)
    assert trained == sent | {"head": 592_130}


def test_defaults_are_those_of_the_replications_and_nothing_claims_to_rest_on_the_paper() -> None:
    method = FFALoRA()
    # no official code; of the paper the abstract was read
    assert method.info.evidence == "reconstructed"
    assert "no official code" in method.info.deviations
    # "r=8, alpha=8, read as alpha/r = 1", "option, default query+value"
    assert (method.rank, method.alpha, method.sites) == (8, 8.0, "q,v")
    # "randomly initialised and FROZEN in the paper's protocol"
    assert method.train_head is False
    # "SGD, τ=10 local steps, batch 200", "lr grid: FFA {0.1, 0.2, 0.5, 1.0}"
    assert (method.steps, method.batch) == (10, 200)
    assert method.optim.lr in (0.1, 0.2, 0.5, 1.0)
    assert method.optim == Optim("sgd", lr=method.optim.lr, momentum=0.0, weight_decay=0.0, schedule="constant")
    # "data-size weights"
    assert method.weighting == "examples"


# what other tests ask of this method --------------------------------------------------------------------------------------


BYTES = Case(SITES | {"rank": 2}, one_factor(lambda t: "B"), one_factor(lambda t: "B"), head_stays=True)
