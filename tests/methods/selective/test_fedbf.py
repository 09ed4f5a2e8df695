"""FedBF against its card: biases and the head, exactly those, and everything else as it came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, F, Sizes, Turn
from weft.adaptation.optim import Optimizer
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import FedBF

SMALL = FedBF(batch=4, optim=FedBF().optim.but(lr=3e-2))


def biases(model: nn.Module, prefix: str) -> set[str]:
    """Parameters of the encoder whose last name is exactly "bias"."""
    return {n for n, _ in model.named_parameters() if n.startswith(f"{prefix}.") and n.rsplit(".", 1)[1] == "bias"}


def parameter(name: str) -> str:
    """The model's own name of one of our tensors."""
    _, site, role = name.split("/")
    return f"{site}.{role}"


def test_one_client_is_bitfit_with_a_fresh_optimizer_in_every_round() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=2)
    values = by_hand.shared(run)

    def adamw(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(leaves, lr=3e-2, weight_decay=0.0)

    for t in range(2):
        steps = by_hand.steps_of(run, 0, t)
        unclipped = by_hand.train(run, values, steps, adamw, linear=True)
        values = by_hand.train(run, values, steps, adamw, linear=True, clip=1.0)
        run.simulation.round(t)
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, values[name], by_hand.ADAM)
    assert any((values[n] - v).abs().max() > 1e-3 for n, v in unclipped.items()), "no gradient was long enough to be clipped"
    by_hand.close(run.global_logits(), by_hand.logits(run, values).detach().float(), 1e-5)


def test_biases_start_at_their_pretrained_values() -> None:
    run = tiny.federation(SMALL)
    model = run.bench.backbone.model
    for name, found in by_hand.shared(run).items():
        if name.startswith("bias/"):
            by_hand.close(found, model.get_parameter(parameter(name)).detach(), 1e-6)


@pytest.mark.parametrize("model", ["bert", "roberta", "electra", "albert", "gpt2", "opt"])
def test_what_is_trained_is_every_bias_of_the_encoder_and_the_head_and_nothing_else(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.federation(SMALL, model, rounds=1)
    held: list[set[str]] = []
    made = Optimizer.__init__

    def watched(self: Optimizer, params: dict[str, Any], *more: Any) -> None:
        held.append(set(params))
        made(self, params, *more)

    monkeypatch.setattr(Optimizer, "__init__", watched)
    run.run()
    whole, prefix = run.bench.backbone.model, run.bench.backbone.model.base_model_prefix
    head = {n for n, _ in whole.named_parameters() if not n.startswith(f"{prefix}.")}
    assert biases(whole, prefix)
    assert head
    for names in held:
        assert {parameter(n) for n in names} == biases(whole, prefix) | head


def test_after_training_only_biases_and_head_differ_from_the_checkpoint_and_key_biases_cannot() -> None:
    run = tiny.federation(SMALL, rounds=2).run()
    pristine = dict(tiny.fresh("bert").model.named_parameters())
    learnt = {parameter(n): v[0] for n, v in run.server.pack().tensors.items()}
    now = {n: learnt.get(n, p) for n, p in run.bench.backbone.model.named_parameters()}
    changed = {n for n, p in now.items() if not torch.allclose(p, pristine[n], rtol=0, atol=1e-4)}
    silent = {n for n in learnt if n.endswith("key.bias")}  # shifts all scores of a query alike, which softmax ignores
    assert len(silent) == 3
    assert changed == set(learnt) - silent
    assert all(torch.equal(p, pristine[n]) for n, p in now.items() if n not in learnt)
    assert all(n.endswith(".bias") or n.startswith("classifier.") for n in learnt)


def test_every_bias_is_averaged_with_equal_weights() -> None:
    run = tiny.federation(SMALL, rounds=1)
    seen = by_hand.record(run)
    run.run()
    assert len({u.weight for u in seen[0]}) > 1
    for name, found in by_hand.shared(run).items():
        sent = [u.tensors[name] for u in seen[0]]
        by_hand.close(found, torch.stack([v for v in sent if isinstance(v, torch.Tensor)]).mean(0))


def test_weight_decay_if_any_acts_on_the_heads_weights_alone() -> None:
    first = replace(SMALL, steps=1, batch=16)  # one step, of which the gradients are the same
    decayed, plain = (
        by_hand.shared(tiny.federation(replace(first, optim=first.optim.but(weight_decay=d)), sizes=(9,), rounds=1).run())
        for d in (0.5, 0.0)
    )
    assert {n for n, v in plain.items() if not torch.equal(v, decayed[n])} == {"head/classifier/weight"}


@pytest.mark.parametrize("scope", ["all", "blocks", "linear", "norm"])
def test_on_roberta_base_each_scope_counts_as_the_card_says(scope: str) -> None:
    layer = {"linear": 4 * 768 + 3072 + 768, "norm": 2 * 768}
    wanted = {
        "all": 12 * (layer["linear"] + layer["norm"]) + 768,
        "blocks": 12 * (layer["linear"] + layer["norm"]),
        "linear": 12 * layer["linear"],
        "norm": 12 * layer["norm"] + 768,
    }
    assert wanted["blocks"] == 12 * 8_448 == 101_376
    sent = by_hand.elements(FedBF(bias_scope=scope), by_hand.roberta_base(), Scope.UP)
    assert sent == {"bias": wanted[scope], "head": 768 * 768 + 768 + 768 * 2 + 2}
    assert sent["head"] == 592_130
    if scope == "all":
        assert sum(sent.values()) == 101_376 + 768 + 592_130 == 694_274


def test_a_backbone_without_biases_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"no bias vectors.*method\.add_missing=true"):
        tiny.federation(SMALL, "llama")


def test_zero_biases_can_be_added_where_there_are_none_and_learn() -> None:
    run = tiny.federation(replace(SMALL, add_missing=True), "llama", rounds=1)
    added = {n: v for n, v in by_hand.shared(run).items() if n.startswith("bias/")}
    assert len(added) == 3 * 7
    assert not any(v.any() for v in added.values())
    before = run.global_logits()
    run.run()
    moved = by_hand.shared(run)
    assert all(moved[n].any() for n in added if not n.endswith("k_proj/bias"))
    assert not torch.equal(run.global_logits(), before)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(UserError, match="all, blocks, linear, norm"):
        tiny.federation(replace(SMALL, bias_scope="al"))


def test_defaults_are_the_codes() -> None:
    method = FedBF()
    # SMILELab-FL/FedPETuning, configs/trainers.py: its arguments extend transformers' TrainingArguments, of which
    # trainers/BaseClient/base_client.py clips by max_grad_norm; no weight decay on biases
    assert method.optim == by_hand.trainer(1e-3).but(decay_biases=False)
    # "One epoch of cross-entropy, batch 32"; "w uniform in the code"
    assert (method.epochs, method.steps, method.batch, method.weighting) == (1.0, None, 32, "uniform")
    # "Default of ours: all encoder biases; option bias_scope to restrict"
    assert (method.bias_scope, method.add_missing) == ("all", False)


# what other tests ask of this method --------------------------------------------------------------------------------------


def bias_bytes(turn: Turn) -> Sizes:
    block = [D] * 4 + [F, D] + [D, D]  # query, key, value, output; feed-forward; two norms
    return {"bias": block * LAYERS + [D, D], "head": HEAD}  # embedding norm and pooler


BYTES = Case({}, bias_bytes, bias_bytes)
PAGE_SAYS = {"optim": "clips gradients at the norm of 1"}
