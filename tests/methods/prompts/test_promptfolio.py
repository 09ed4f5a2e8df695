"""PromptFolio against its card: two contexts by transformers' CLIP, one of them averaged, and their mixture class by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import clip_rounds
import images_by_hand as hand
import tiny
from bytes_of import TEXT, Case, Sizes, Turn
from clip_rounds import Values
from weft.adaptation.optim import Optim
from weft.federation.scope import Scope
from weft.methods import PromptFL, PromptFolio

L = 3
OURS, OWN = (f"{part}/{clip_rounds.CONTEXT}" for part in ("context", "own"))
SMALL = PromptFolio(tokens=L, epochs=2.0, batch=4, optim=PromptFolio().optim.but(lr=0.1))


def logits(
    run: tiny.Federation, values: Values, rows: np.ndarray, k: int, theta: float | None = None, where: str = "end"
) -> Tensor:
    """s·⟨I, (1−θ)·t_c(p_g) + θ·t_c(p_l)⟩, a row and a class at a time."""
    method, b, names = run.method, run.bench.backbone, run.bench.task.classes
    assert isinstance(method, PromptFolio)
    theta = method.theta if theta is None else theta
    ours, own = (hand.coop(b, names, values[n], where) for n in (OURS, OWN))
    images = hand.image_embedding(b, hand.pictures(run, rows))
    scale = float(hand.clip(b.path).logit_scale.exp())
    found = [
        torch.stack([scale * (i / i.norm()) @ ((1 - theta) * g + theta * p) for g, p in zip(ours, own, strict=True)])
        for i in images
    ]
    return torch.stack(found)


@pytest.mark.parametrize("where", ["end", "front"])
def test_four_rounds_by_hand_with_clients_that_are_away(where: Any) -> None:
    run = tiny.federation(replace(SMALL, where=where), rounds=4)

    def predict(run: tiny.Federation, values: Values, rows: np.ndarray, k: int) -> Tensor:
        return logits(run, values, rows, k, where=where)

    common, own = clip_rounds.play(run, predict)
    assert len({v[OWN].norm().item() for v in own}) == 6, "every client has a prompt of its own"
    rows = np.arange(len(run.bench.table))
    personal = by_hand.personal_logits(run, "personal", rows)
    for k, values in enumerate(own):
        by_hand.close(personal[f"client-{k}"], logits(run, common | values, rows, k, where=where).float(), 1e-5)
        by_hand.close(run.global_logits(rows), logits(run, common | values, rows, k, 0.0, where).float(), 1e-5)


@pytest.mark.parametrize("theta", [0.0, 0.25, 0.4, 1.0])
def test_logits_are_mixed_as_the_features_are_and_no_feature_is_normalised_again(theta: float) -> None:
    run = tiny.federation(replace(SMALL, theta=theta), rounds=2).run()
    pack = run.pack(t=2)
    batch = next(iter(pack.batches(size=3)))
    found = run.method.forward(pack, batch).logits
    ours, own = (pack(batch, {part: 1.0}).logits for part in ("context", "own"))
    by_hand.close(found, (1 - theta) * ours + theta * own, 1e-12)
    lengths = ((1 - theta) * pack.texts({"context": 1.0}) + theta * pack.texts({"own": 1.0})).norm(dim=-1)
    assert (lengths.min() < 1 - 1e-4) == (0 < theta < 1)


def without_decay(method: Any) -> Any:
    return replace(method, optim=method.optim.but(weight_decay=0.0))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_theta_zero_is_promptfl_and_the_private_prompt_has_no_slope(decay: float) -> None:
    optim = SMALL.optim.but(weight_decay=decay)
    run = tiny.federation(replace(SMALL, theta=0.0, optim=optim), rounds=3, participation=0.5)
    start = by_hand.start_of(run)[OWN]
    plain = PromptFL(tokens=L, epochs=2.0, batch=4, weighting="examples", optim=optim)
    twin = tiny.federation(plain, rounds=3, participation=0.5)
    assert torch.equal(by_hand.shared(run)[OURS], by_hand.shared(twin)[OURS])
    for t in range(3):
        run.simulation.round(t)
        twin.simulation.round(t)
        by_hand.close(by_hand.shared(run)[OURS], by_hand.shared(twin)[OURS], 1e-12)
    kept = [v[OWN] for v in by_hand.kept(run).values() if v]
    assert len(kept) > 3
    for value in kept:
        assert torch.equal(value, start) or (decay and value.norm() < start.norm())  # decay alone moves it


def test_theta_one_is_a_prompt_for_each_client_alone() -> None:
    method = without_decay(replace(SMALL, theta=1.0))
    run = tiny.federation(method, rounds=3).run()
    by_hand.close(by_hand.shared(run)[OURS], by_hand.start_of(tiny.federation(method))[OURS], 1e-15)
    start = by_hand.start_of(tiny.federation(method))[OWN]
    for k, n in enumerate(tiny.SIZES):
        alone = {OWN: start, OURS: start}
        for t in range(3):
            if n:
                steps = by_hand.steps_of(run, k, t)
                alone = clip_rounds.trained(run, alone, steps, k, lambda run, v, rows, k: logits(run, v, rows, k, 1.0))
        by_hand.close(by_hand.kept(run)[f"client-{k}"][OWN], alone[OWN])


def test_both_prompts_are_trained_in_every_step_in_shares() -> None:
    run = tiny.federation(SMALL)
    pack = run.pack()
    optimizer = pack.optimizer("*", settings=SMALL.optim)
    assert set(optimizer.params) == {OURS, OWN}
    batch = next(iter(pack.batches(size=4)))
    slopes = torch.autograd.grad(run.method.objective(pack, batch).sum(), [optimizer.params[n] for n in (OURS, OWN)])
    for slope in slopes:
        trained = slope.flatten(1).abs().amax(1) > 0
        assert trained.tolist() == [bool(c.n) for c in run.clients]


def test_the_private_prompt_never_leaves_and_is_bit_for_bit_what_it_was_where_a_client_is_away() -> None:
    run = tiny.federation(SMALL, rounds=4, participation=0.5)
    seen = by_hand.record(run)
    assert by_hand.play_and_see_who_stays(run, 4)
    assert all(set(u.tensors) == {OURS} and not u.facts for updates in seen for u in updates)
    assert set(run.server.shared) == {OURS}
    for client in run.clients:
        message = run.method.send(run.server, client.info(()))
        assert set(message.tensors) <= {OURS}
        assert not message.facts
    for scope in (Scope.UP, Scope.DOWN):
        assert by_hand.elements(PromptFolio(), tiny.backbone("clip"), scope) == {"context": 8 * TEXT}


def test_shared_prompts_are_weighted_by_examples_whatever_their_order() -> None:
    """The released server would give the weight of client i to the i-th of those drawn."""
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        run = tiny.federation(SMALL)
        updates = by_hand.invented(run, [9.0, 5.0, 1.0])
        run.method.aggregate(run.server, [updates[i] for i in order])
        wanted = sum(w / 15 * u.tensors[OURS] for w, u in zip((9, 5, 1), updates, strict=True))  # type: ignore[misc, operator]
        by_hand.close(by_hand.shared(run)[OURS], wanted, 1e-12)  # type: ignore[arg-type]
        found.append(by_hand.shared(run)[OURS])
    by_hand.close(found[0], found[1], 1e-14)


def test_a_step_passes_each_prompt_through_the_text_tower_once_and_no_picture() -> None:
    run = tiny.federation(SMALL, prefix=True)
    pack = run.pack()
    batch = next(iter(pack.batches(size=4)))
    pack.images(batch)
    model = run.bench.backbone.model
    for view, passes in ((None, 2), ("personal", 2), ("global", 1)):
        with (
            mock.patch.object(model, "embed_texts", wraps=model.embed_texts) as texts,
            mock.patch.object(model, "embed_images", wraps=model.embed_images) as images,
        ):
            run.method.forward(pack, batch, view)
        assert texts.call_count == passes
        assert not images.called


def test_a_single_class_has_logits_for_all_and_a_gradient() -> None:
    run = tiny.federation(SMALL)
    pack = run.pack([3])
    optimizer = pack.optimizer("*", settings=SMALL.optim)
    batch = next(iter(pack.batches(size=4)))
    out = run.method.forward(pack, batch)
    assert out.logits.shape == (1, batch.index.shape[1], 3)
    for slope in torch.autograd.grad(pack.loss(out, batch).sum(), list(optimizer.params.values())):
        assert slope.abs().min() > 0


def test_defaults_are_the_codes() -> None:
    method = PromptFolio()
    # argument defaults n_ctx 8, frac_p 0.4; class token at end, N(0, 0.02²); batch 16; MAX_EPOCH 5, yaml's lr 0.002
    assert (method.tokens, method.theta, method.where, method.std) == (8, 0.4, "end", 0.02)
    assert (method.weighting, method.epochs, method.steps, method.batch) == ("examples", 5.0, None, 16)
    assert method.optim == Optim("sgd", lr=2e-3, momentum=0.9, weight_decay=5e-4, schedule="cosine", warmup=1 / 5)
    assert (method.info.views, method.sums) == (("personal", "global"), True)


# what other tests ask of this method --------------------------------------------------------------------------------------


def shared_prompt(turn: Turn) -> Sizes:
    return {"context": [5 * TEXT]}  # l·d


BYTES = Case({"tokens": 5}, shared_prompt, shared_prompt, head=False)
