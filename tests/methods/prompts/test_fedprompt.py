"""FedPrompt against its card: transformers' masked language model is given the soft words as embeddings, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import Case, D, Sizes, Turn
from filled_by_hand import logits
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import FedPrompt

M, H = 3, 5
SITE = "bert.embeddings.word_embeddings"
NAME = f"prompt/{SITE}/words"
SMALL = FedPrompt(tokens=M, batch=4, optim=FedPrompt().optim.but(lr=0.05, eps=1e-6))


def tuned(run: tiny.Federation, words: Tensor, steps: list[np.ndarray]) -> Tensor:
    """Prompt tuning of one client: Adam on the cross-entropy over the label words."""
    words = words.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([words], lr=run.method.optim.lr, eps=1e-6)
    for rows in steps:
        optimizer.zero_grad()
        F.cross_entropy(logits(run, words, rows), by_hand.labels(run, rows)).backward()
        optimizer.step()
    return words.detach()


def test_three_rounds_of_half_the_clients_one_of_them_absent_are_those_done_by_hand() -> None:
    run = tiny.federation(SMALL, rounds=3, participation=0.7, seed=5)
    words = by_hand.start_of(run)[NAME]
    taking_part = []
    for t in range(3):
        run.server.round = run.method.plan(run.server, t)  # type: ignore[assignment]
        sizes = {}
        trained = {}
        seen = by_hand.record(run)
        steps = {c.id: by_hand.steps_of(run, k, t) for k, c in enumerate(run.clients) if c.n}
        run.simulation.round(t)
        who = [u.client.id for u in seen[0]]
        taking_part.append(who)
        for u in seen[0]:
            sizes[u.client.id] = u.client.n
            trained[u.client.id] = tuned(run, words, steps[u.client.id])
            assert set(u.tensors) == {NAME}
            by_hand.close(u.tensors[NAME], trained[u.client.id], 1e-6)  # type: ignore[arg-type]
        total = sum(sizes.values())
        words = sum((sizes[c] / total * trained[c] for c in who), torch.zeros(M, D, dtype=torch.float64))
        by_hand.close(by_hand.shared(run)[NAME], words, 1e-6)
    everybody = {c.id for c in run.clients if c.n}
    assert any(set(who) != everybody for who in taking_part), "nobody was absent"
    assert any(len(who) > 1 for who in taking_part)
    rows = np.arange(len(run.bench.table))
    by_hand.close(run.global_logits(), logits(run, words, rows).float(), 1e-4)


def test_one_client_is_prompt_tuning_with_the_same_batches() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=2)
    words = by_hand.start_of(run)[NAME]
    for t in range(2):
        steps = by_hand.steps_of(run, 0, t)
        assert len(steps) == 3
        words = tuned(run, words, steps)
        run.simulation.round(t)
        by_hand.close(by_hand.shared(run)[NAME], words, 1e-6)


@pytest.mark.parametrize("weights", [(4.0, 4.0, 4.0), (9.0, 5.0, 1.0)])
def test_the_server_takes_the_mean_by_examples(weights: tuple[float, ...]) -> None:
    run = tiny.federation(SMALL)
    updates = by_hand.invented(run, list(weights))
    before = by_hand.shared(run)[NAME]
    run.method.aggregate(run.server, updates)
    shares = np.array(weights) / sum(weights)
    wanted = sum((s * u.tensors[NAME] for s, u in zip(shares, updates, strict=True)), torch.zeros(M, D, dtype=torch.float64))  # type: ignore[operator]
    by_hand.close(by_hand.shared(run)[NAME], wanted, 1e-12)
    assert not torch.allclose(before, wanted)


def test_the_order_of_clients_moves_no_more_than_rounding() -> None:
    one, other = tiny.federation(SMALL), tiny.federation(SMALL)
    updates = by_hand.invented(one, [9.0, 5.0, 1.0])
    one.method.aggregate(one.server, updates)
    other.method.aggregate(other.server, updates[::-1])
    by_hand.close(by_hand.shared(one)[NAME], by_hand.shared(other)[NAME], 1e-14)


def test_at_a_rate_of_zero_the_words_stay_bit_for_bit() -> None:
    run = tiny.federation(replace(SMALL, optim=SMALL.optim.but(lr=0.0)), rounds=2)
    before = by_hand.shared(run)[NAME]
    run.run()
    assert torch.equal(by_hand.shared(run)[NAME], before)


def test_the_language_model_is_frozen_and_no_head_is_sent() -> None:
    run = tiny.federation(SMALL, rounds=2)
    before = frozen_fingerprint(run.bench.backbone)
    seen = by_hand.record(run)
    run.run()
    assert frozen_fingerprint(run.bench.backbone) == before
    assert {n for updates in seen for u in updates for n in u.tensors} == {NAME}
    assert not any(by_hand.kept(run).values())
    assert not run.bench.backbone.heads


@pytest.mark.parametrize("scope", [Scope.UP, Scope.DOWN])
def test_a_client_sends_and_gets_m_times_d_numbers(scope: Scope) -> None:
    b = tiny.backbone("bert", task="fill")
    assert by_hand.elements(FedPrompt(), b, scope) == {"prompt": 20 * D}
    mlp = D * H + H + H * H + H + H * D + D
    assert by_hand.elements(replace(SMALL, encoder="mlp", hidden=H), b, scope) == {"prompt": M * D + mlp}


def test_words_stand_in_front_if_asked() -> None:
    run = tiny.federation(replace(SMALL, where="front"), rounds=1).run()
    rows = np.arange(len(run.bench.table))
    words = by_hand.shared(run)[NAME]
    by_hand.close(run.global_logits(), logits(run, words, rows, "front").float(), 1e-4)
    assert not torch.allclose(run.global_logits(), logits(run, words, rows).float(), atol=1e-2)


def test_words_are_kept_in_single_precision_on_a_backbone_of_half() -> None:
    """A rate of 0.3 overflows in float16."""
    run = tiny.federation(SMALL, tiny.backbone("bert", precision="bfloat16", task="fill"), rounds=1).run()
    assert by_hand.shared(run)[NAME].dtype == torch.float32


def test_a_backbone_with_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="has a head, and fedprompt trains none: use --task fill"):
        tiny.federation(SMALL, tiny.backbone("bert"))


def test_defaults_are_the_papers() -> None:
    method = FedPrompt()
    # "m = 20", "K = 10 clients, C = 1.0", "Adam for BERT/RoBERTa", "learning rate 0.3"
    assert (method.tokens, method.encoder, method.weighting) == (20, "none", "examples")
    assert method.optim == Optim("adamw", lr=0.3, weight_decay=0.0, schedule="constant")
    assert (method.info.views, method.sums) == (("global",), True)


# what other tests ask of this method --------------------------------------------------------------------------------------


def words_of(turn: Turn) -> Sizes:
    return {"prompt": [M * D]}


def encoder_of(turn: Turn) -> Sizes:
    return {"prompt": [M * D, H * D, H, H * H, H, D * H, D]}


BYTES = Case({"tokens": M}, words_of, words_of, head=False)
BYTES_VARIANTS = {
    "made by a network": Case({"tokens": M, "encoder": "mlp", "hidden": H}, encoder_of, encoder_of, head=False),
}
