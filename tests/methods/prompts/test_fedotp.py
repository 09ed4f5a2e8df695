"""FedOTP against its card: patches by transformers' CLIP, and transport of one picture and one class at a time in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import clip_rounds
import images_by_hand as hand
import tiny
from bytes_of import TEXT, Case, Sizes, Turn
from clip_rounds import Values
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.batch import make_batch
from weft.federation.scope import Scope
from weft.methods import FedOTP

L = 3
OURS, OWN = (f"{part}/{clip_rounds.CONTEXT}" for part in ("context", "own"))
SMALL = FedOTP(tokens=L, iterations=20, epochs=2.0, batch=4, optim=FedOTP().optim.but(lr=0.1))


def plan(cost: np.ndarray, method: FedOTP) -> np.ndarray:
    """T [V, N] by Sinkhorn's scaling of exp(−C/λ), with the minimum of the code."""
    places, prompts = cost.shape
    mass = 1.0 if method.balanced else method.gamma
    kernel, v = np.exp(-cost / method.entropy), np.ones(prompts)
    for _ in range(method.iterations):
        u = (1 / places) / (kernel @ v)
        if not method.balanced:
            u = np.minimum(u, 1.0)
        v = (mass / prompts) / (kernel.T @ u)
    found: np.ndarray = np.diag(u) @ kernel @ np.diag(v)
    return found


def patches_of(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    """[n, V, e] of unit length: all output tokens but the first, through the last norm and the projection."""
    clip = hand.clip(run.bench.backbone.path)
    states = clip.vision_model(hand.pictures(run, rows), output_hidden_states=True).hidden_states[-1]
    return F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(states[:, 1:])), dim=-1)


def logits(run: tiny.Federation, values: Values, rows: np.ndarray, k: int = 0) -> Tensor:
    """s·Σ T∘S, picture by picture and class by class, T a constant."""
    method, b, names = run.method, run.bench.backbone, run.bench.task.classes
    assert isinstance(method, FedOTP)
    texts = [hand.coop(b, names, values[n], method.where) for n in (OURS, OWN)]
    scale = float(hand.clip(b.path).logit_scale.exp())
    found = []
    for g in patches_of(run, rows):
        for c in range(len(names)):
            s = torch.stack([g @ h[c] for h in texts], 1)
            t = torch.from_numpy(plan(1 - s.detach().numpy(), method))
            found.append(scale * (t * s).sum())
    return torch.stack(found).view(len(rows), len(names))


@pytest.mark.parametrize("changes", [{}, {"balanced": True}, {"gamma": 0.5, "entropy": 0.05, "where": "front"}])
def test_four_rounds_by_hand_with_clients_that_are_away(changes: dict[str, Any]) -> None:
    run = tiny.federation(replace(SMALL, **changes), rounds=4)
    common, own = clip_rounds.play(run, logits)
    rows = np.arange(len(run.bench.table))
    for k, found in enumerate(by_hand.personal_logits(run, "personal", rows).values()):
        by_hand.close(found, logits(run, common | own[k], rows).float(), 1e-5)


def test_settings_of_the_transport_make_a_difference() -> None:
    run = tiny.federation(SMALL, rounds=1).run()
    pack = run.pack()
    batch = next(iter(pack.batches(size=4)))
    found = [
        replace(SMALL, **more).forward(pack, batch).logits
        for more in ({}, {"gamma": 0.5}, {"entropy": 0.01}, {"balanced": True}, {"gamma": 1.0}, {"iterations": 1})
    ]
    for i, z in enumerate(found):
        for other in found[:i]:
            assert (z - other).abs().max() > 1e-6


def test_everybody_trains_in_the_first_round_and_a_sample_in_later_ones() -> None:
    run = tiny.federation(SMALL, rounds=3, participation=0.5)
    sizes = [len(run.simulation.round(t)["cohort"]) for t in range(3)]  # type: ignore[index]
    assert sizes == [6, 3, 3]
    assert run.method.plan(run.server, 3) is None
    assert all(bool(v) for v in by_hand.kept(run).values()), "everybody has a prompt of its own"


def test_no_slope_goes_through_the_plan_and_both_prompts_have_one() -> None:
    run = tiny.federation(SMALL)
    pack = run.pack([0])
    optimizer = pack.optimizer("*", settings=SMALL.optim)
    assert set(optimizer.params) == {OURS, OWN}
    batch = next(iter(pack.batches(size=4)))
    params = list(optimizer.params.values())
    found = torch.autograd.grad(run.method.objective(pack, batch).sum(), params)
    patches = F.normalize(pack.patches(batch), dim=-1)
    texts = torch.stack([pack.texts({part: 1.0}) for part in ("context", "own")], 2)
    s = torch.einsum("kbve,kcne->kbcvn", patches, texts)
    held = SMALL.transport.plan(1 - s.detach())
    loss = F.cross_entropy((pack.scale * (held * s).sum((-2, -1)))[0], batch.labels[0])
    for a, b in zip(found, torch.autograd.grad(loss, params), strict=True):
        by_hand.close(a, b, 1e-12)
        assert a.abs().max() > 0


def test_logits_are_the_scaled_mass_less_the_cost() -> None:
    """So that a softmax of them is the paper's, of 1 − d up to what no class depends on."""
    run = tiny.federation(SMALL, rounds=1).run()
    pack = run.pack([1])
    batch = next(iter(pack.batches(size=4)))
    patches = F.normalize(pack.patches(batch), dim=-1)
    texts = torch.stack([pack.texts({part: 1.0}) for part in ("context", "own")], 2)
    cost = 1 - torch.einsum("kbve,kcne->kbcvn", patches, texts)
    distance = (SMALL.transport.plan(cost) * cost).sum((-2, -1))
    by_hand.close(run.method.forward(pack, batch).logits, pack.scale * (0.8 - distance), 1e-10)


def test_equal_prompts_and_all_patches_are_the_mean_of_the_patches() -> None:
    run = tiny.federation(replace(SMALL, gamma=1.0, iterations=500))
    pack = run.pack([0])
    pack.copy("context", "own")
    batch = next(iter(pack.batches(size=4)))
    mean = F.normalize(pack.patches(batch), dim=-1).mean(2)
    by_hand.close(run.method.forward(pack, batch).logits, pack.scale * mean @ pack.texts({"context": 1.0}).mT, 1e-6)


def test_a_client_sees_no_other_in_its_pack_nor_a_picture_another() -> None:
    run = tiny.federation(replace(SMALL, entropy=0.01, iterations=100), rounds=1).run()
    rows = np.arange(8)
    whole = make_batch(run.bench.task, run.bench.table, np.stack([rows, rows]), None, run.bench.backbone.device)
    together = run.method.forward(run.pack([0, 3]), whole).logits
    for j, k in enumerate((0, 3)):
        pack = run.pack([k])
        for i in rows:
            one = make_batch(run.bench.task, run.bench.table, rows[None, i : i + 1], None, run.bench.backbone.device)
            by_hand.close(together[j, i], run.method.forward(pack, one).logits[0, 0], 1e-11)


def test_a_step_passes_each_prompt_through_the_text_tower_once_and_no_picture() -> None:
    run = tiny.federation(SMALL, prefix=True)
    pack = run.pack()
    batch = next(iter(pack.batches(size=4)))
    pack.patches(batch)
    model = run.bench.backbone.model
    with (
        mock.patch.object(model, "embed_texts", wraps=model.embed_texts) as texts,
        mock.patch.object(model, "embed_patches", wraps=model.embed_patches) as patches,
    ):
        run.method.forward(pack, batch)
    assert texts.call_count == 2
    assert not patches.called


def test_the_private_prompt_never_leaves_and_is_bit_for_bit_what_it_was_where_a_client_is_away() -> None:
    run = tiny.federation(SMALL, rounds=4, participation=0.5)
    seen = by_hand.record(run)
    assert by_hand.play_and_see_who_stays(run, 4)
    assert all(set(u.tensors) == {OURS} and not u.facts for updates in seen for u in updates)
    assert set(run.server.shared) == {OURS}
    for scope in (Scope.UP, Scope.DOWN):
        assert by_hand.elements(FedOTP(), tiny.backbone("clip"), scope) == {"context": 16 * TEXT}


def test_one_client_has_its_own_shared_prompt_after_the_server() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=1)
    seen = by_hand.record(run)
    run.run()
    assert torch.equal(by_hand.shared(run)[OURS], seen[0][0].tensors[OURS])  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"gamma": 0.0}, {"gamma": 1.5}, {"entropy": 0.0}, {"iterations": 0}])
def test_settings_out_of_bounds_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"it needs .*{next(iter(setting))} "):
        FedOTP(**setting)


def test_defaults_are_the_codes() -> None:
    method = FedOTP()
    # few-shot script: N_CTX 16, top_percent 0.8, 5 local epochs, SGD of lr 0.001; the flag's own eps is 0.1
    assert (method.tokens, method.gamma, method.entropy, method.iterations, method.std) == (16, 0.8, 0.1, 100, 0.02)
    assert (method.weighting, method.epochs, method.steps, method.batch) == ("examples", 5.0, None, 32)
    # StepLR with a factor of 1, Dassl's momentum and decay
    assert method.optim == Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="constant")
    assert (method.info.views, method.sums) == (("personal",), True)
    assert "mean over the batch has settled" in method.info.deviations


# what other tests ask of this method --------------------------------------------------------------------------------------


def shared_prompt(turn: Turn) -> Sizes:
    return {"context": [5 * TEXT]}  # l·d


BYTES = Case({"tokens": 5, "iterations": 5}, shared_prompt, shared_prompt, head=False)
