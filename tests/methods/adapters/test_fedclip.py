"""FedCLIP against its card: the formula, CLIP's contrastive loss and torch's Adam, client by client, and a plain mean."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import images_by_hand as hand
import tiny
from bytes_of import JOINT, Case, Sizes, Turn
from exporting import RUN_CLOSE, exported, tensors_in
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.errors import UserError
from weft.export import load
from weft.federation.scope import Scope
from weft.methods import FedCLIP
from weft.methods.adapters.fedclip import contrastive

WIDTH = 16  # of the tiny CLIP's embedding
NAMES = tuple(f"adapter/image_embedding/{r}" for r in ("W1", "b1", "W2", "b2"))
SMALL = FedCLIP(batch=4, optim=FedCLIP().optim.but(lr=1e-2))
Values = dict[str, Tensor]


def embedded(run: tiny.Federation, values: Values, rows: np.ndarray) -> Tensor:
    """A(z) ⊙ z, not normalised."""
    z = hand.image_embedding(run.bench.backbone, hand.pictures(run, rows))
    w1, b1, w2, b2 = (values[n] for n in NAMES)
    return F.softmax(torch.tanh(z @ w1.T + b1) @ w2.T + b2, -1) * z


def logits(run: tiny.Federation, values: Values, rows: np.ndarray) -> Tensor:
    texts = hand.zero_shot(run.bench.backbone, run.bench.task.classes, "a photo of a {}.")
    return hand.similarity(run.bench.backbone, embedded(run, values, rows), texts)


def loss_of(run: tiny.Federation, values: Values, rows: np.ndarray) -> Tensor:
    """½ [CE(L, arange) + CE(Lᵀ, arange)], L of pictures and the sentences of the same rows; or over all classes."""
    y = by_hand.labels(run, rows)
    method = run.method
    assert isinstance(method, FedCLIP)
    if method.loss == "classes":
        return F.cross_entropy(logits(run, values, rows), y)
    z = logits(run, values, rows)[:, y]
    own = torch.arange(len(rows))
    return (F.cross_entropy(z, own) + F.cross_entropy(z.T, own)) / 2


def trained(run: tiny.Federation, values: Values, k: int, t: int) -> Values:
    """One client's turn: a new Adam with L2 inside, batches of one left out."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    o = run.method.optim
    adam = torch.optim.Adam(leaves.values(), lr=o.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    for rows in by_hand.steps_of(run, k, t):
        if len(rows) == 1 and getattr(run.method, "loss", "") == "pairs":
            continue
        adam.zero_grad()
        loss_of(run, leaves, rows).backward()
        adam.step()
    return {n: v.detach() for n, v in leaves.items()}


@pytest.mark.parametrize("loss", ["pairs", "classes"])
@pytest.mark.parametrize("pack", [1, 3])
def test_rounds_with_absent_clients_are_turns_by_hand_and_their_plain_mean(loss: str, pack: int) -> None:
    """One client has a single row, one has none, and 9 rows in batches of 4 leave a batch of one."""
    run = tiny.federation(replace(SMALL, loss=loss, epochs=2.0), rounds=3, pack=pack)
    common = by_hand.shared(run)
    for t, present in enumerate(((0, 1, 2, 3, 4, 5), (0, 2, 4), (1, 2, 3, 5))):
        ends = [trained(run, common, k, t) for k in present if run.clients[k].n]
        assert any(len(r) == 1 for k in present for r in by_hand.steps_of(run, k, t))
        cohorts.play(run, t, present)
        common = {n: torch.stack([e[n] for e in ends]).mean(0) for n in common}
        for n, v in by_hand.shared(run).items():
            by_hand.close(v, common[n], 1e-9)


def test_a_client_of_one_row_sends_what_it_received_in_any_pack_and_counts() -> None:
    found = []
    for pack in (1, 6):
        run = tiny.federation(SMALL, rounds=1, pack=pack)
        start, seen = by_hand.shared(run), by_hand.record(run)
        run.run()
        (one,) = (u for u in seen[0] if run.clients[int(u.client.id[-1])].n == 1)
        assert set(one.tensors) == set(NAMES)
        assert all(torch.equal(one.tensors[n], start[n]) for n in NAMES)  # type: ignore[arg-type]
        assert len(seen[0]) == 5
        found.append(by_hand.shared(run))
        for n in NAMES:
            by_hand.close(found[-1][n], torch.stack([u.tensors[n] for u in seen[0]]).mean(0), 1e-12)  # type: ignore[misc]
    for n in NAMES:
        by_hand.close(found[0][n], found[1][n], 1e-10)


def test_one_client_is_local_training() -> None:
    run = tiny.federation(SMALL, sizes=(8,), rounds=2)
    values = by_hand.shared(run)
    for t in range(2):
        values = trained(run, values, 0, t)
        run.simulation.round(t)
        for n, v in by_hand.shared(run).items():
            by_hand.close(v, values[n], 1e-9)


def random_pairs(k: int = 2, b: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(k, b, classes, generator=g, dtype=torch.float64) * 4, torch.randint(classes, (k, b), generator=g)


def test_padding_rows_are_in_no_pair() -> None:
    z, y = random_pairs()
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    z.requires_grad_(True)
    found = contrastive(z, y, mask)
    for k, n in enumerate((3, 5)):
        own = z[k, :n][:, y[k, :n]]
        wanted = (F.cross_entropy(own, torch.arange(n)) + F.cross_entropy(own.T, torch.arange(n))) / 2
        by_hand.close(found[k], wanted, 1e-12)
    (slope,) = torch.autograd.grad(found.sum(), z)
    assert bool(torch.isfinite(slope).all())
    assert not slope[0, 3:].any()


def test_pictures_and_sentences_can_change_places() -> None:
    z, _ = random_pairs(1, 4, 4)
    y, mask = torch.arange(4).unsqueeze(0), torch.ones(1, 4, dtype=torch.bool)
    by_hand.close(contrastive(z, y, mask), contrastive(z.mT, y, mask), 1e-12)


def test_a_batch_of_one_class_has_the_loss_of_false_negatives() -> None:
    z, _ = random_pairs(1, 6)
    y, mask = torch.full((1, 6), 2), torch.ones(1, 6, dtype=torch.bool)
    assert float(contrastive(torch.zeros_like(z), y, mask)) == pytest.approx(math.log(6), abs=1e-12)
    assert float(contrastive(z, y, mask)) >= math.log(6)


def test_a_second_layer_of_zeros_is_zero_shot() -> None:
    run = tiny.federation(SMALL)
    rows = np.arange(len(run.bench.table))
    start = run.global_logits(dtype=torch.float64)
    by_hand.close(start, logits(run, by_hand.shared(run), rows), 1e-10)
    for n in NAMES[2:]:
        run.server.write(n, torch.zeros_like(by_hand.shared(run)[n]))
    (plain,) = run.server.pack().predict(lambda p, b: p(b, {}), [rows], dtype=torch.float64)
    assert torch.equal(run.global_logits(dtype=torch.float64), plain)
    assert (start - plain).abs().max() > 1e-3


def test_only_the_adapter_travels_and_the_clip_stays() -> None:
    run = tiny.federation(SMALL, rounds=2)
    before, seen = frozen_fingerprint(run.bench.backbone), by_hand.record(run)
    run.run()
    assert frozen_fingerprint(run.bench.backbone) == before
    assert all(set(u.tensors) == set(NAMES) and not u.facts for updates in seen for u in updates)
    assert not any(by_hand.kept(run).values())
    for scope in (Scope.UP, Scope.DOWN):
        assert by_hand.elements(SMALL, run.bench.backbone, scope) == {"adapter": 2 * (WIDTH**2 + WIDTH)}


def test_the_adapter_comes_back_from_its_export(tmp_path: Path) -> None:
    run = tiny.federation(SMALL, tiny.backbone("clip", precision="float32"), sizes=(6, 5), rounds=2).run()
    assert exported(run, tmp_path).kind == "weft"
    for n in NAMES:
        assert torch.equal(tensors_in(tmp_path / "weft_adapter.safetensors")[n], run.server.shared[n])
    rows, _, _ = tiny.states((6, 5), reads="images")
    assert rows.images is not None
    got = load(tmp_path, device="cpu", precision="float32").logits([rows.images[i] for i in range(len(rows))])
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("model", ["vit", "bert"])
def test_a_backbone_without_a_joint_embedding_is_refused(model: str) -> None:
    with pytest.raises(UserError, match="no joint embedding of images and texts"):
        tiny.federation(SMALL, model)


def test_an_unknown_loss_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r'unknown loss "pair".*Did you mean "pairs"'):
        FedCLIP(loss="pair")  # type: ignore[arg-type]


def test_defaults_are_the_codes() -> None:
    method = FedCLIP()
    # PersonalizedFL/fedclip: wk_iters 1, batch 32, Adam(lr 5e-5, betas (0.9, 0.98), eps 1e-6, weight_decay 0.2), uniform weights
    assert (method.loss, method.weighting, method.epochs, method.steps, method.batch) == ("pairs", "uniform", 1.0, None, 32)
    assert method.optim == Optim("adam", lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, schedule="constant")


# what other tests ask of this method --------------------------------------------------------------------------------------


def adapter_bytes(turn: Turn) -> Sizes:
    """2(D² + D)."""
    return {"adapter": [JOINT * JOINT, JOINT] * 2}


BYTES = Case({}, adapter_bytes, adapter_bytes, head=False)
