"""Features of a pack are what a hook on the last block sees, at the token that the head reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, logits_of, own_model, pack_of, set_head, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods import FedIT
from weft.tasks.kinds import GENERATION

WEIGHT, SCALE = 0.7, 2.0
HIGH: dict[str, Part] = {"lora": LoRA(2, 4.0, "ffn.in", blocks=(1, 2)), "head": Head()}
DEEP: dict[str, Part] = {"lora": LoRA(2, 4.0, "ffn.in"), "head": Head()}
BARE: dict[str, Part] = {"head": Head()}
KINDS = {  # last block, and which token
    "bert": ("bert.encoder.layer.2", "first"),
    "vit": ("vit.layers.2", "first"),
    "gpt2": ("transformer.h.2", "last"),
    "llama": ("model.layers.2", "last"),
    "t5": ("encoder.block.2", "all"),
}


def changed(bench: Bench, part: Part, values: Mapping[str, Any], weight: float = WEIGHT) -> Any:
    """A copy of the model with the LoRA beside its layers, at the weight that it has in the pass."""
    model = own_model(bench.backbone)
    for site in part.sites(bench.backbone):
        a, b = (values[f"lora/{site.name}/{role}"] for role in "AB")
        model.get_submodule(site.name).register_forward_hook(
            lambda _m, args, out, a=a, b=b: out + weight * SCALE * args[0] @ a.T @ b.T
        )
    return model


def by_hook(model: Any, block: str, token: str, bench: Bench, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits and features of each row on its own, so that nothing is padded."""
    seen: list[Tensor] = []
    model.get_submodule(block).register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    logits = torch.cat([logits_of(model, bench, np.array([row])) for row in rows])
    at = {"first": lambda h: h[0, 0], "last": lambda h: h[0, -1], "all": lambda h: h[0].mean(0)}
    return logits, torch.stack([at[token](h) for h in seen])


def packed(bench: Bench, parts: Mapping[str, Part]) -> tuple[Pack, list[Mapping[str, Any]]]:
    values: list[Mapping[str, Any]] = [values_for(bench, parts, seed=i) for i in range(3)]
    return pack_of(bench, [parts] * 3, values), values


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("parts", [DEEP, HIGH, BARE], ids=["all blocks", "upper blocks", "head alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_leaves_the_last_block_where_the_head_reads(kind: str, parts: dict[str, Part], prefix: bool) -> None:
    bench = tiny.bench(kind, prefix=prefix)
    pack, values = packed(bench, parts)
    use = {"lora": WEIGHT} if "lora" in parts else None
    for _ in range(2):  # once to fill the cache, and once to read it
        out, features = pack.with_features(batch_of(bench, INDEX), use)
    assert torch.equal(out.logits, pack(batch_of(bench, INDEX), use).logits) or prefix
    assert features.shape == (3, 4, bench.backbone.d)
    for k in range(3):
        model, rows = own_model(bench.backbone), [int(i) for i in INDEX[k] if i >= 0]
        if "lora" in parts:
            model = changed(bench, parts["lora"], values[k])
        set_head(model, bench.backbone, values[k])
        logits, wanted = by_hook(model, *KINDS[kind], bench, rows)
        torch.testing.assert_close(out.logits[k, : len(rows)], logits, **CLOSE)
        torch.testing.assert_close(features[k, : len(rows)], wanted, **CLOSE)
    if kind != "vit":
        lengths = bench.table.lengths[INDEX[INDEX >= 0]]
        assert len(set(lengths.tolist())) > 3


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_of_features_are_those_of_the_model_alone(kind: str) -> None:
    bench = tiny.bench(kind)
    pack, values = packed(bench, DEEP)
    leaves(pack, "lora")
    _, features = pack.with_features(batch_of(bench, INDEX), {"lora": WEIGHT})
    g = torch.Generator().manual_seed(5)
    direction = torch.randn(features.shape, generator=g, dtype=features.dtype)
    direction[INDEX < 0] = 0
    slopes = grads(pack, (features * direction).sum(), "lora")
    for k in range(3):
        own = {n: v.clone().requires_grad_(n.startswith("lora/")) for n, v in values[k].items()}
        rows = [int(i) for i in INDEX[k] if i >= 0]
        _, wanted = by_hook(changed(bench, DEEP["lora"], own), *KINDS[kind], bench, rows)
        (wanted * direction[k, : len(rows)]).sum().backward()
        for name, slope in slopes.items():
            torch.testing.assert_close(slope[k], own[name].grad, **CLOSE)


def test_each_row_can_have_a_weight_of_its_own_and_a_client_can_be_away() -> None:
    bench = tiny.bench("bert")
    pack, values = packed(bench, DEEP)
    index, weights = INDEX[[0, 2]], torch.tensor([[0.0, 0.2, 0.5, 1.0], [0.9, 0.1, 0.4, 0.0]], dtype=torch.float64)
    _, features = pack.with_features(batch_of(bench, index, [0, 2]), {"lora": weights})
    for place, k in enumerate((0, 2)):
        for i, row in enumerate(index[place]):
            if row >= 0:
                model = changed(bench, DEEP["lora"], values[k], float(weights[place, i]))
                _, wanted = by_hook(model, *KINDS["bert"], bench, [int(row)])
                torch.testing.assert_close(features[place, i], wanted[0], **CLOSE)


@pytest.mark.parametrize("lines", [False, True])
def test_of_a_language_model_they_are_those_of_a_rows_last_token_whether_or_not_rows_lie_in_lines(lines: bool) -> None:
    bench = replace(tiny.federation(FedIT(rank=2), "llama", task=GENERATION).bench, sequence_packing=lines)
    parts: dict[str, Part] = {"lora": DEEP["lora"]}
    pack, values = packed(bench, parts)
    out, features = pack.with_features(batch_of(bench, INDEX), {"lora": WEIGHT})
    loss = pack.loss(pack(batch_of(bench, INDEX), {"lora": WEIGHT}), batch_of(bench, INDEX))
    torch.testing.assert_close(pack.loss(out, batch_of(bench, INDEX)), loss, **CLOSE)
    for k in range(3):
        rows = [int(i) for i in INDEX[k] if i >= 0]
        _, wanted = by_hook(changed(bench, parts["lora"], values[k]), *KINDS["llama"], bench, rows)
        torch.testing.assert_close(features[k, : len(rows)], wanted, **CLOSE)


def test_a_text_that_is_being_written_has_none() -> None:
    bench = tiny.federation(FedIT(rank=2), "llama", task=GENERATION).bench
    pack, _ = packed(bench, {"lora": DEEP["lora"]})
    batch = batch_of(bench, INDEX)
    with pack.reading({"input_ids": torch.zeros(12, 3, dtype=torch.long)}):
        assert pack(batch).logits.shape[:2] == (3, 4)
        with pytest.raises(WeftError, match="text that is being written"):
            pack.with_features(batch)


def test_nothing_stays_of_a_pass_with_features() -> None:
    bench = tiny.bench("bert", prefix=True)
    pack, _ = packed(bench, BARE)
    batch = batch_of(bench, INDEX)
    before = pack(batch).logits
    pack.with_features(batch)
    assert torch.equal(pack(batch).logits, before)
    assert not pack._weave.kept, "hidden states of a pass would be held in memory as long as the pack"


def test_a_model_that_calls_one_block_many_times_has_no_last_one() -> None:
    bench = tiny.bench("albert")
    pack, _ = packed(bench, BARE)
    with pytest.raises(UserError, match="albert"):
        pack.with_features(batch_of(bench, INDEX))


# hidden states of whole rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit"])
@pytest.mark.parametrize("prefix", [False, True])
def test_hidden_states_are_what_leaves_each_block_at_a_rows_own_tokens(kind: str, prefix: bool) -> None:
    bench = tiny.bench(kind, prefix=prefix)
    parts = {"lora": LoRA(2, 4.0, "ffn.in", blocks=(1, 2)), "head": Head()}
    pack, values = packed(bench, parts)
    batch = batch_of(bench, INDEX)
    out, states = pack.with_hidden(batch, (0, 2), use={"lora": WEIGHT})
    wanted = pack(batch, use={"lora": WEIGHT}).logits
    torch.testing.assert_close(out.logits[batch.mask], wanted[batch.mask], **CLOSE)
    stack = KINDS[kind][0].rsplit(".", 1)[0]
    for k, row in enumerate(INDEX):
        model = changed(bench, parts["lora"], values[k])
        for block, (hidden, own) in states.items():
            seen: list[Tensor] = []
            module = model.get_submodule(f"{stack}.{block}")
            module.register_forward_hook(lambda _m, _a, out, s=seen: s.append(out[0] if isinstance(out, tuple) else out))
            for j, i in enumerate(row):
                if i < 0:
                    assert not own[k, j].any()
                    continue
                logits_of(model, bench, np.array([i]))
                torch.testing.assert_close(hidden[k, j][own[k, j]], seen[-1][0], **CLOSE)


def test_a_block_that_a_client_lacks_hands_on_what_came_to_it() -> None:
    bench = tiny.bench("bert")
    pack, _ = packed(bench, DEEP)
    hold = torch.tensor([[True, False, True], [True, True, True], [False, True, True]])
    pack.hold(hold)
    _, states = pack.with_hidden(batch_of(bench, INDEX), (0, 1))
    same = [torch.equal(a, b) for a, b in zip(states[0][0], states[1][0], strict=True)]
    assert same == [True, False, False]


def test_a_decoders_own_tokens_are_those_that_it_writes() -> None:
    run = tiny.federation(FedIT(rank=2, sites="q", batch=3), "bart", task=GENERATION)
    pack = run.pack([0])
    batch = next(iter(pack.batches(size=3)))
    _, states = pack.with_hidden(batch, (1, 3))
    table, rows = run.bench.table, batch.index[0]
    found = {block: own[0].sum(1).tolist() for block, (_, own) in states.items()}
    assert found[1] == table.widths[rows].tolist()  # type: ignore[union-attr]
    assert found[3] == np.diff(table.target_offsets)[rows].tolist()  # type: ignore[union-attr]
    assert states[3][0].shape[:3] == states[3][1].shape
    pack.with_features(batch)
