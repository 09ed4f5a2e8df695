"""A block whose activations are not kept gives the same numbers, bit for bit, and keeps less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from weaving import INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.in_flight import Weight
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.part import Part
from weft.adaptation.tokens import ImageTokens
from weft.errors import WeftError
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION

HOLD = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])


def packs(bench: Bench, parts: Mapping[str, Part], hold: Tensor | None = None) -> tuple[Pack, Pack]:
    """Without recomputation, and with it."""
    found = []
    for recompute in (False, True):
        values = [values_for(bench, parts, seed=i) for i in range(3)]
        pack = leaves(pack_of(replace(bench, recompute=recompute), [parts] * 3, values), "*")
        pack.hold(hold)
        found.append(pack)
    return found[0], found[1]


def assert_bit_equal(pair: tuple[Pack, Pack], use: Mapping[str, Weight] | None = None, clients: list[int] | None = None) -> None:
    found = []
    for pack in pair:
        batch = batch_of(pack.bench, INDEX if clients is None else INDEX[clients], clients)
        loss = pack.loss(pack(batch, use), batch)
        found.append((loss, grads(pack, loss, "*")))
        assert list(tiny.hooks(pack.backbone.model)) == []
    (loss, slopes), (again, others) = found
    assert torch.equal(loss, again)
    assert slopes.keys() == others.keys()
    assert any(bool(g.any()) for g in slopes.values())
    for name, slope in slopes.items():
        assert torch.equal(slope, others[name]), name


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "deberta-v2", "albert", "t5"])
def test_losses_and_gradients_keep_every_bit(kind: str, precision: str) -> None:
    """DeBERTa runs its clients one by one, ALBERT one block three times, T5 hands positions on from its first block."""
    bench = tiny.bench(tiny.backbone(kind, precision=precision))
    parts = {
        "lora": LoRA(2, 4.0, "all"),
        "x": Bottleneck(8),
        "beside": Bottleneck(8, placement="parallel"),
        "delta": Delta("q"),
        "head": Head(),
    }
    assert_bit_equal(packs(bench, parts))


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_it_goes_with_blocks_that_clients_lack_weights_of_parts_and_clients_that_have_left(kind: str) -> None:
    bench = tiny.bench(kind)
    pair = packs(
        bench,
        {"lora": LoRA(2, 4.0, "all"), "x": Bottleneck(8), "beside": Bottleneck(8, placement="parallel"), "head": Head()},
        HOLD,
    )
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    assert_bit_equal(pair, {"lora": weight, "x": 0.5, "beside": weight})
    assert_bit_equal(pair, {"x": 1.0, "beside": 1.0}, [2, 0])


def test_it_goes_with_tokens_that_enter_and_with_a_cached_prefix() -> None:
    assert_bit_equal(packs(tiny.bench("vit"), {"tokens": ImageTokens(2, deep=True), "head": Head()}))
    assert_bit_equal(
        packs(tiny.bench("bert", prefix=True), {"lora": LoRA(2, 4.0, "names:2.attention.self.query"), "head": Head()})
    )


@pytest.mark.parametrize("model", ["llama", "t5"])
def test_a_round_of_a_language_model_keeps_every_bit(model: str) -> None:
    found = []
    for recompute in (False, True):
        run = tiny.federation(FedIT(rank=2), model, task=GENERATION, sizes=(5, 4, 3), pack=3, rounds=1)
        run.bench.recompute = recompute
        found.append(dict(run.run().server.shared))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def kept(pack: Pack) -> int:
    """Bytes that a pass leaves for the backward pass, but for the weights."""
    own = {p.untyped_storage().data_ptr() for p in pack.backbone.model.parameters()}
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or note(t), lambda t: t):
        batch = batch_of(pack.bench, INDEX)
        held.append(pack(batch).logits)
    return sum(sizes.values())


def test_it_keeps_a_small_part() -> None:
    plain, again = packs(tiny.bench("llama"), {"lora": LoRA(2, 4.0, "all"), "head": Head()})
    assert kept(again) * 4 < kept(plain)


def test_without_gradients_a_block_is_called_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", None)
    _, pack = packs(tiny.bench("bert"), {"lora": LoRA(2, 4.0, "all"), "head": Head()})
    with torch.no_grad():
        pack(batch_of(pack.bench, INDEX))


def test_second_derivatives_and_two_backward_passes_of_one_loss_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(tiny.backbone("llama").model.config, "_attn_implementation", "eager")  # the fused one has no second
    for pack in packs(tiny.bench("llama"), {"lora": LoRA(2, 4.0, "q,v"), "head": Head()}):
        batch = batch_of(pack.bench, INDEX)
        loss = pack.loss(pack(batch), batch).sum()
        x = list(pack.params("lora").values())
        first = torch.autograd.grad(loss, x, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), x, retain_graph=True)
        found.append((*first, *second, *torch.autograd.grad(loss, x)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_tensors_that_changed_before_the_backward_pass_are_an_error() -> None:
    _, pack = packs(tiny.bench("bert"), {"lora": LoRA(2, 4.0, "q"), "head": Head()})
    batch = batch_of(pack.bench, INDEX)
    names = list(pack.params("lora"))
    assert len(names) == 6
    for name in names:
        loss = pack.loss(pack(batch), batch)
        with torch.no_grad():
            pack.tensors[name].add_(1.0)
        with pytest.raises(WeftError, match=f'"{name}" was changed between'):
            loss.sum().backward()
        assert list(tiny.hooks(pack.backbone.model)) == []


def test_values_and_blocks_that_a_pack_gets_after_a_pass_are_no_part_of_its_backward_pass() -> None:
    found = []
    for pack in packs(tiny.bench("bert"), {"lora": LoRA(2, 4.0, "q"), "head": Head()}, HOLD):
        batch = batch_of(pack.bench, INDEX)
        loss, own = pack.loss(pack(batch), batch).sum(), list(pack.params("lora").values())
        for name in pack.params("lora"):
            pack.tensors[name] = torch.ones_like(pack.tensors[name]).requires_grad_()
        pack.hold(None)
        found.append(torch.autograd.grad(loss, own))
    for plain, again in zip(*found, strict=True):
        assert bool(plain.any())
        assert torch.equal(plain, again)


def test_a_backward_pass_inside_another_forward_pass_is_an_error() -> None:
    _, pack = packs(tiny.bench("bert"), {"lora": LoRA(2, 4.0, "q"), "head": Head()})
    batch = batch_of(pack.bench, INDEX)
    loss = pack.loss(pack(batch), batch).sum()
    handle = pack.backbone.model.register_forward_hook(lambda *given: loss.backward())
    try:
        with pytest.raises(WeftError, match="a backward pass was started inside a forward pass on the same pack"):
            pack(batch)
    finally:
        handle.remove()
    assert list(tiny.hooks(pack.backbone.model)) == []
