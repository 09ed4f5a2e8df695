"""One client's own parameters in the place of the frozen ones: the numbers of a model that holds them, and nothing stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, own_model, pack_of, values_for
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.weights import Weights
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.freeze import describe_model
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.full.fedavg import FedAvg
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION, MASKED
from weft.tensors import output_layer

ALL: dict[str, Part] = {"weights": Weights(), "head": Head()}


def parameter(name: str) -> str:
    """The model's own name of one of our tensors."""
    _, site, role = name.split("/")
    return f"{site}.{role}" if site else role


def parts_for(b: Backbone, which: str = "all") -> dict[str, Part]:
    return {"weights": Weights(which)} | ({"head": Head()} if b.heads else {})


def plain(b: Backbone, values: Mapping[str, Any]) -> Any:
    """A copy of the model that holds these values, and is trained as any other."""
    model = own_model(b)
    held = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in values.items():
            held[parameter(name)].copy_(value)
    return model.requires_grad_(True)


def pack_and_plain(bench: Bench, which: str = "all", scale: float = 0.3) -> tuple[Pack, Any]:
    """One client with random values, and a plain model with the same."""
    parts = parts_for(bench.backbone, which)
    values = values_for(bench, parts, seed=1, scale=scale)
    return leaves(pack_of(bench, [parts], [values]), "*"), plain(bench.backbone, values)


def assert_gradients(pack: Pack, loss: Tensor, model: Any, wanted: Tensor) -> None:
    """Those of every tensor of the pack, by the gradients of a plain model with a loss of its own."""
    found = grads(pack, loss, "*")
    held = dict(model.named_parameters(remove_duplicate=False))
    names = [n for n in pack.tensors if n in pack.shapes]
    slopes = torch.autograd.grad(wanted, [held[parameter(n)] for n in names], allow_unused=True)
    assert len(names) > 10
    assert found.keys() == {n for n, slope in zip(names, slopes, strict=True) if slope is not None}
    for name, slope in zip(names, slopes, strict=True):
        if slope is not None:
            torch.testing.assert_close(found[name][0], slope, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


KINDS = ("bert", "roberta", "distilbert", "albert", "deberta-v2", "modernbert", "gpt2", "llama", "qwen3", "gemma", "bloom", "t5")


@pytest.mark.parametrize("kind", [*KINDS, "vit"])
def test_logits_and_gradients_are_those_of_a_model_that_holds_the_values(kind: str) -> None:
    bench = tiny.bench(kind)
    pack, model = pack_and_plain(bench)
    batch, rows = batch_of(bench, INDEX[:1]), INDEX[0]
    out = pack(batch)
    expected = model(**bench.table.collate(rows)).logits
    torch.testing.assert_close(out.logits[0], expected, **CLOSE)
    frozen = bench.backbone.model(**bench.table.collate(rows)).logits
    assert float((frozen - expected).detach().abs().max()) > 0.1, "random values would prove nothing"
    assert_gradients(pack, pack.loss(out, batch), model, F.cross_entropy(expected, torch.from_numpy(bench.table.labels[rows])))


def test_both_towers_of_a_clip_and_their_scale_are_trained() -> None:
    bench = tiny.bench("clip")
    b = bench.backbone
    pack, model = pack_and_plain(bench, scale=0.1)
    assert b.names is not None
    batch, rows = batch_of(bench, INDEX[:1]), INDEX[0]
    expected = model(**bench.table.collate(rows), input_ids=b.names.ids()).logits
    out = pack(batch)
    torch.testing.assert_close(out.logits[0], expected, **CLOSE)
    assert_gradients(pack, pack.loss(out, batch), model, F.cross_entropy(expected, torch.from_numpy(bench.table.labels[rows])))
    names = {parameter(n) for n in pack.tensors}
    assert {"logit_scale", "text_projection.weight", "visual_projection.weight"} < names
    towers = {s.tower for s in Weights().sites(b)}
    assert towers == {"", "text"}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "gemma2", "t5", "bart"])
def test_language_models_train_their_output_layer_tied_or_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", 1)
    monkeypatch.setattr(output_layer, "ROWS", 3)  # several chunks of logits
    bench = tiny.federation(FedAvg(), kind, task=GENERATION, sizes=(6, 6)).bench
    pack, model = pack_and_plain(bench)
    batch, rows = batch_of(bench, INDEX[:1]), INDEX[0]
    logits = model(**bench.table.collate(rows)).logits
    labels, mask = bench.table.targets(rows)  # type: ignore[union-attr]
    places = bench.table.places(rows)  # type: ignore[union-attr]
    wanted = F.cross_entropy(logits[places], labels[mask])
    loss = pack.loss(pack(batch), batch)
    torch.testing.assert_close(loss[0], wanted, **CLOSE)
    assert_gradients(pack, loss, model, wanted)


def test_a_bias_of_the_output_layer_alone_gets_its_gradient() -> None:
    bench = tiny.federation(FedAvg(), "bert", task=MASKED, sizes=(6, 6)).bench
    pack, _ = pack_and_plain(bench, "cls.predictions.bias")
    assert list(pack.tensors) == ["weights/cls.predictions/bias"]
    batch = batch_of(bench, INDEX[:1])
    (slope,) = grads(pack, pack.loss(pack(batch), batch), "*").values()
    assert bool(slope.abs().sum() > 1e-3)


TIED = {
    "gpt2": {"transformer.wte.weight": ("lm_head.weight",)},
    "llama": {},
    "t5": {"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")},
}


@pytest.mark.parametrize("kind", TIED)
def test_tied_parameters_are_one_tensor(kind: str) -> None:
    b = tiny.backbone(kind, classes=1, checkpoint="pair" if kind == "t5" else "lm", task=GENERATION)
    assert {n: places[1:] for n, places in b.own.items() if len(places) > 1} == TIED[kind]
    part = Weights()
    elements = sum(i.numel for s in part.sites(b) for i in part.tensors(b, s).values())
    assert elements == sum(p.numel() for p in b.model.parameters())


# nothing stays --------------------------------------------------------------------------------------------------------


def state_of(b: Backbone) -> tuple[str, list[int], list[str]]:
    """Bits, objects and hooks."""
    objects = [id(p) for _, p in b.model.named_parameters(remove_duplicate=False)]
    return frozen_fingerprint(b), objects, list(tiny.hooks(b.model))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_the_backbone_is_as_it_was_after_training_and_after_an_error_in_a_pass(kind: str) -> None:
    bench = tiny.federation(FedAvg(), kind, task=GENERATION if kind != "bert" else "auto", sizes=(6, 6)).bench
    b = bench.backbone
    before = state_of(b)
    parts = parts_for(b)
    pack = pack_of(bench, [parts], [values_for(bench, parts, seed=1)])
    pack.minimise(lambda p, batch: p.loss(p(batch), batch), ("*",), FedAvg().optim, 1.0, None, 4)
    assert state_of(b) == before
    seen: list[Tensor] = []

    def fail(module: nn.Module, _args: object) -> None:
        seen.append(next(iter(module.parameters())))
        raise RuntimeError("in the middle of a pass")

    last = b.module(b.blocks[-1])
    handle = last.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            pack(batch_of(bench, INDEX[:1]))
    finally:
        handle.remove()
    assert not isinstance(seen[0], nn.Parameter), "another tensor stood there"
    assert state_of(b) == before
    with pytest.raises(RuntimeError, match="in the middle"), pack.woven(None, 1, None):
        raise RuntimeError("in the middle of what is generated")
    assert state_of(b) == before


@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "albert", "gpt2"])
def test_blocks_computed_once_more_have_the_same_parameters_again(kind: str) -> None:
    bench = tiny.bench(kind)
    parts = parts_for(bench.backbone)
    values = values_for(bench, parts, seed=1)
    before, found = state_of(bench.backbone), []
    for recompute in (False, True):
        pack = leaves(pack_of(replace(bench, recompute=recompute), [parts], [values]), "*")
        batch = batch_of(bench, INDEX[:1])
        found.append(grads(pack, pack.loss(pack(batch), batch), "*"))
        assert state_of(bench.backbone) == before
    assert found[0].keys() == found[1].keys()
    for name, slope in found[0].items():
        assert torch.equal(slope, found[1][name]), name


def test_a_parameter_that_changed_before_the_backward_pass_is_an_error() -> None:
    bench = replace(tiny.bench("t5"), recompute=True)
    pack = leaves(pack_of(bench, [ALL], [values_for(bench, ALL, seed=1)]), "*")
    batch = batch_of(bench, INDEX[:1])
    loss = pack.loss(pack(batch), batch)
    with torch.no_grad():
        pack.tensors["weights/encoder.block.0.layer.0.SelfAttention.q/weight"].add_(1.0)
    with pytest.raises(WeftError, match=r"SelfAttention\.q/weight\" was changed between"):
        loss.sum().backward()
    assert state_of(bench.backbone)[2] == []


# precision ------------------------------------------------------------------------------------------------------------


def test_in_half_precision_values_are_single_and_the_pass_is_that_of_their_rounded_ones() -> None:
    bench = tiny.bench(tiny.backbone("bert", precision="bfloat16"))
    b = bench.backbone
    values = values_for(bench, ALL, seed=1)
    pack = leaves(pack_of(bench, [ALL], [values]), "*")
    assert {t.dtype for t in pack.tensors.values()} == {torch.float32}
    model = plain(b, {n: v for n, v in values.items() if n.startswith("weights/")})
    batch, rows = batch_of(bench, INDEX[:1]), INDEX[0]
    hidden: list[Tensor] = []
    for one in (model, b.model):
        one.classifier.register_forward_pre_hook(lambda _m, args: hidden.append(args[0].detach().clone()))
    model(**bench.table.collate(rows))
    found = grads(pack, pack.loss(pack(batch), batch), "*")
    b.model.classifier._forward_pre_hooks.clear()
    assert torch.equal(hidden[0], hidden[1].to(hidden[0].dtype))
    assert hidden[0].dtype == torch.bfloat16
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert all(bool(found[n].any()) for n in found if "key/bias" not in n)


def test_start_values_are_the_pretrained_ones_of_biases_and_norms_to_the_last_digit() -> None:
    half, single = (tiny.backbone("bert", precision=p) for p in ("bfloat16", "float32"))
    run = tiny.federation(FedAvg(), half, precision="bfloat16")
    held = dict(single.model.named_parameters())
    norms = {f"weights/{s.name}/weight" for s in single.norms}
    for name, value in run.server.shared.items():
        if name.startswith("weights/"):
            assert isinstance(value, Tensor)
            wanted = held[parameter(name)]
            exact = name.endswith("/bias") or name in norms
            assert torch.equal(value, wanted if exact else wanted.bfloat16().float()), name


# which ----------------------------------------------------------------------------------------------------------------


def chosen(b: Backbone, which: str) -> set[str]:
    part = Weights(which)
    return {s.parameter(role) for s in part.sites(b) for role in part.tensors(b, s)}


def test_which_are_trained_is_said_by_words_and_patterns() -> None:
    b = tiny.backbone("bert")
    everything = {n for n, _ in b.model.named_parameters() if not n.startswith("classifier.")}
    inside = {n for n in everything if ".layer." in n}
    assert chosen(b, "all") == everything
    assert chosen(b, "blocks") == inside
    assert chosen(b, "*.layer.2.*, *embeddings.LayerNorm.bias") == {
        n for n in everything if ".layer.2." in n or n.endswith("embeddings.LayerNorm.bias")
    }
    assert chosen(b, "blocks,bert.pooler.*") == inside | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    with pytest.raises(UserError, match=r'no parameter of backbone .* is meant by "layer\.2": use all, blocks, or patterns'):
        chosen(b, "layer.2")


def test_each_site_knows_its_block_and_what_several_share_is_in_none() -> None:
    b = tiny.backbone("bert")
    for site in Weights().sites(b):
        inside = [i for i, path in enumerate(b.blocks) if site.name.startswith(path + ".")]
        assert [site.block] == (inside or [None]), site.name
    tied = tiny.fresh("bert")
    first, last = (tied.module(tied.blocks[i]).output.dense for i in (0, 2))
    last.weight = first.weight
    again = describe_model(tied.model, tied.tokenizer, {"classifier.weight", "classifier.bias"}, name="tied")
    at = {s.name: s.block for s in Weights().sites(again)}
    assert at[f"{tied.blocks[0]}.output.dense"] is None
    assert at[f"{tied.blocks[2]}.output.dense"] == 2, "its bias is its own"


def test_what_the_checkpoint_lacks_is_not_trained() -> None:
    """transformers leaves in such a tensor whatever the memory held."""
    whole = tiny.fresh("vit")
    whole.model.vit.embeddings.mask_token = nn.Parameter(torch.full((1, 1, 32), torch.nan))
    lacking = {"vit.embeddings.mask_token", "classifier.weight", "classifier.bias"}
    b = describe_model(whole.model, None, lacking, processor=whole.processor, name="vit")
    assert "vit.embeddings.mask_token" not in chosen(b, "all")
    assert "vit.embeddings.cls_token" in chosen(b, "all")


def test_the_head_is_no_part_of_it_nor_a_pooler_that_the_checkpoint_lacks() -> None:
    b = tiny.backbone("bert", checkpoint="mlm")
    assert {h.name for h in b.heads} == {"bert.pooler.dense", "classifier"}
    assert not any("pooler" in n or "classifier" in n for n in chosen(b, "all"))


def test_quantised_weights_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    b = tiny.fresh("bert")
    monkeypatch.setattr(b.model, "is_quantized", True, raising=False)
    with pytest.raises(UserError, match=r"are quantised, so that they can't be trained .* load it in full precision"):
        Weights().sites(b)


# one client a pass ----------------------------------------------------------------------------------------------------


def test_a_pass_takes_one_client_and_says_so() -> None:
    bench = tiny.bench("bert")
    pack = pack_of(bench, [ALL] * 2, [values_for(bench, ALL, seed=i) for i in range(2)])
    with pytest.raises(WeftError, match="a pass takes those of one client alone: make packs of one"):
        pack(batch_of(bench, INDEX[:2]))
    assert list(tiny.hooks(bench.backbone.model)) == []
    each = [pack(batch_of(bench, INDEX[i : i + 1], [i])).logits[0] for i in range(2)]  # one after the other it can
    for i, logits in enumerate(each):
        model = plain(bench.backbone, values_for(bench, ALL, seed=i))
        torch.testing.assert_close(logits, model(**bench.table.collate(INDEX[i])).logits, **CLOSE)


@pytest.mark.parametrize("pack", ["auto", 1, 4])
def test_an_engine_makes_packs_of_one_whatever_is_asked_for(pack: str | int) -> None:
    run = tiny.federation(FedAvg(batch=4, epochs=1.0), pack=pack, rounds=1).run()
    assert run.simulation.turns.capacity.k == 1
    assert tiny.federation(FedIT(rank=2), pack=4).simulation.turns.capacity.k == 4
    assert run.simulation.evaluate(0)


def test_gradients_of_rows_are_taken_one_after_the_other() -> None:
    bench = tiny.bench("bert")
    pack = leaves(pack_of(bench, [ALL], [values_for(bench, ALL, seed=1)]), "*")
    batch = batch_of(bench, INDEX[:1])

    def loss_of(p: Pack, b: Any) -> Tensor:
        return p.loss(p(b), b)

    rows, whole = pack.row_gradients(loss_of, batch, "*"), grads(pack, loss_of(pack, batch), "*")
    for name, value in whole.items():
        assert rows[name].shape == (1, 4, *value.shape[1:])
        torch.testing.assert_close(rows[name].mean(1), value, **CLOSE)
    assert not torch.equal(rows["head/classifier/weight"][0, 0], rows["head/classifier/weight"][0, 1])


# with other things ----------------------------------------------------------------------------------------------------


def test_off_it_is_the_frozen_model_and_in_between_on_the_line_between_both() -> None:
    bench = tiny.bench("bert")
    values = values_for(bench, ALL, seed=1)
    pack = pack_of(bench, [ALL], [values])
    batch, rows = batch_of(bench, INDEX[:1]), INDEX[0]
    frozen = dict(bench.backbone.model.named_parameters())
    head = {n: v for n, v in values.items() if n.startswith("head/")}
    for weight in (0.0, 0.25, torch.tensor([0.25], dtype=torch.float64)):
        w = float(weight)
        between = {n: (1 - w) * frozen[parameter(n)] + w * v for n, v in values.items() if n not in head}
        expected = plain(bench.backbone, between | head)(**bench.table.collate(rows)).logits
        torch.testing.assert_close(pack(batch, {"weights": weight}).logits[0], expected, **CLOSE)
    torch.testing.assert_close(pack(batch, {}).logits, pack(batch, {"weights": 0.0}).logits, **CLOSE)
    with pytest.raises(WeftError, match="can't have a weight for each row"):
        pack(batch, {"weights": torch.ones(1, 4)})


def test_lora_sits_on_trained_weights_as_on_frozen_ones() -> None:
    bench = tiny.bench("bert")
    b, parts = bench.backbone, ALL | {"lora": LoRA(2, 4.0, "q")}
    values = values_for(bench, parts, seed=1)
    own = {n: v for n, v in values.items() if not n.startswith("lora/")}
    for site in b.sites("q"):
        low = 2.0 * values[f"lora/{site.name}/B"] @ values[f"lora/{site.name}/A"]  # type: ignore[operator]
        own[f"weights/{site.name}/weight"] = own[f"weights/{site.name}/weight"] + low
    expected = plain(b, own)(**bench.table.collate(INDEX[0])).logits
    torch.testing.assert_close(pack_of(bench, [parts], [values])(batch_of(bench, INDEX[:1])).logits[0], expected, **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_block_that_a_client_lacks_is_skipped_and_its_weights_do_not_move(kind: str) -> None:
    bench = tiny.bench(kind)
    b = bench.backbone
    values = values_for(bench, ALL, seed=1)
    pack = pack_of(bench, [ALL], [values])
    pack.hold(torch.tensor([[True, False, True]]))
    model = plain(b, values)
    stack = model.get_submodule(b.blocks[0].rsplit(".", 1)[0])
    del stack[1]
    batch = batch_of(bench, INDEX[:1])
    torch.testing.assert_close(pack(batch).logits[0], model(**bench.table.collate(INDEX[0])).logits, **CLOSE)
    before = {n: v.clone() for n, v in pack.tensors.items()}
    pack.minimise(lambda p, x: p.loss(p(x), x), ("*",), FedAvg().optim, 1.0, None, 4)
    moved = {n for n, v in pack.tensors.items() if not torch.equal(v, before[n])}
    assert moved
    assert not any(b.blocks[1] in n for n in moved)
    (update,) = pack.updates()
    assert not any(b.blocks[1] in n for n in update.tensors)
    assert any(b.blocks[2] in n for n in update.tensors)


def test_rows_that_share_a_line_give_the_same_losses_and_gradients() -> None:
    bench = tiny.federation(FedAvg(), "llama", task=GENERATION, sizes=(6, 6)).bench
    parts: dict[str, Part] = {"weights": Weights()}
    values, found = values_for(bench, parts, seed=1), []
    for on in (False, True):
        pack = leaves(pack_of(replace(bench, sequence_packing=on), [parts], [values]), "*")
        batch = batch_of(bench, INDEX[:1])
        loss = pack.loss(pack(batch), batch)
        found.append({"loss": loss} | grads(pack, loss, "*"))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
@pytest.mark.parametrize(
    ("which", "cut"),
    [("all", 0), ("blocks", 0), ("*embeddings*,*embed_tokens*", 0), ("*.layer.2.*,*layers.2.*", 2), ("*.1.*", 1)],
)
def test_the_prefix_cache_ends_below_what_is_trained(kind: str, which: str, cut: int) -> None:
    cached, bare = (tiny.bench(kind, prefix=on) for on in (True, False))
    parts = parts_for(cached.backbone, which)
    values = values_for(cached, parts, seed=1)
    batch = batch_of(cached, INDEX[:1])
    pack, whole = (pack_of(bench, [parts], [values]) for bench in (cached, bare))
    assert (pack.cut(), whole.cut()) == (cut, 0)
    for _ in range(2):  # filled, then read
        torch.testing.assert_close(pack(batch).logits, whole(batch).logits, **CLOSE)


def test_nothing_is_downloaded_for_start_values() -> None:
    run = tiny.federation(FedAvg(batch=4, epochs=1.0), rounds=2)
    ledger = run.simulation.setup.exchange.ledger
    run.simulation.round(0)
    assert ledger.totals(round=0, direction="down").payload == 0
    run.simulation.round(1)
    elements = sum(p.numel() for p in run.bench.backbone.model.parameters())
    assert ledger.totals(round=1, direction="down").payload == len(run.clients) * 8 * elements


def test_a_parameter_of_the_model_itself_travels_too() -> None:
    """A CLIP's scale, whose module has an empty path."""
    run = tiny.federation(FedAvg(batch=4, epochs=1.0), "clip", rounds=2).run()
    assert run.server.stamps["weights//logit_scale"] > 0
    scale = run.server.shared["weights//logit_scale"]
    assert isinstance(scale, Tensor)
    assert scale.shape == ()
    assert float(scale) != float(run.bench.backbone.model.logit_scale)
