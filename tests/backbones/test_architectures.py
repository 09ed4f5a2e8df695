"""Thirteen architectures: each is described by its structure, trains a round of four methods, is exported and comes back.

What an architecture can't do is refused in a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from exporting import FAST, RUN_CLOSE, by_readme, exported
from weft.backbones.backbone import Backbone
from weft.errors import UserError
from weft.export import load
from weft.federation.method import Method
from weft.methods.adapters.feddat import FedDAT
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.selective.fedbf import FedBF
from weft.methods.selective.fedra import FedRA

D, FFN, HALF = 32, 64, 16  # hidden size, width of the feed-forward, two of four heads
PLAIN = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "ffn.in": (D, FFN), "ffn.out": (FFN, D)}
FUSED = {"q+k+v": (D, 3 * D), "o": (D, D), "ffn.in": (D, FFN * 2), "ffn.out": (FFN * 2, D)}
GATED = PLAIN | {"k": (D, HALF), "v": (D, HALF), "ffn.gate": (D, FFN)}


@dataclass(frozen=True)
class Expected:
    """What is known of an architecture from its paper and its configuration.

    Attributes:
        linears: role -> (from, to). biases: roles whose layers have one. norms: in a block, outside blocks.
        reader: (from, to) of the token embedding or of the convolution over patches. head: names. pools: what it reads.
    """

    type: str
    linears: dict[str, tuple[int, int]]
    biases: str = "all"
    norms: tuple[int, int] = (2, 1)
    reader: tuple[int, int] = (100, D)
    head: tuple[str, ...] = ("classifier",)
    pools: str = "first"
    task: str = "auto"
    blocks: int = 3


ROBERTA = Expected("roberta", PLAIN, head=("classifier.dense", "classifier.out_proj"))
LLAMA = Expected("llama", GATED, "", head=("score",), pools="last")
VIT = Expected("vit", PLAIN, reader=(3, D))
KNOWN: dict[str, Expected] = {
    "bert": Expected("bert", PLAIN),
    "roberta": ROBERTA,
    "distilbert": Expected("distilbert", PLAIN, head=("pre_classifier", "classifier")),
    "albert": Expected("albert", PLAIN, reader=(100, 16), blocks=1),
    "deberta-v2": Expected("deberta-v2", PLAIN, norms=(2, 1), head=("pooler.dense", "classifier")),
    "xlm-roberta": replace(ROBERTA, type="xlm-roberta"),
    "gpt2": Expected("gpt2", FUSED, head=("score",), pools="last"),
    "bloom": Expected(
        "bloom", FUSED | {"ffn.in": (D, D * 4), "ffn.out": (D * 4, D)}, norms=(2, 2), head=("score",), pools="last"
    ),
    "llama": LLAMA,
    "mistral": replace(LLAMA, type="mistral"),
    "qwen2": replace(LLAMA, type="qwen2", biases="q,k,v"),
    "t5": Expected("t5", PLAIN, "", pools="all"),
    "vit": VIT,
    "clip": replace(VIT, type="clip", norms=(2, 2), pools="all", task="classification"),
    "clip by similarity": replace(VIT, type="clip", norms=(2, 2), head=(), task="similarity"),
}


def backbone(name: str) -> Backbone:
    return tiny.backbone(KNOWN[name].type, precision="float32", task=KNOWN[name].task)


@pytest.mark.parametrize("name", KNOWN)
def test_its_structure_is_found(name: str) -> None:
    b, want = backbone(name), KNOWN[name]
    assert len(b.blocks) == want.blocks
    assert b.d == D
    assert b.shared_blocks == (name == "albert")
    assert not b.chained_blocks
    biased = want.linears.keys() if want.biases == "all" else set(want.biases.split(",")) - {""}
    for index in range(want.blocks):
        found = {s.role: s for s in b.linears if s.block == index}
        assert {role: (s.d_in, s.d_out) for role, s in found.items()} == want.linears
        assert {role for role, s in found.items() if s.bias} == set(biased)
        assert sum(s.block == index for s in b.norms) == want.norms[0]
    assert len(b.linears) == want.blocks * len(want.linears)
    assert sum(s.block is None for s in b.norms) == want.norms[1]
    assert b.reader is not None
    assert (b.reader.d_in, b.reader.d_out) == want.reader
    assert tuple(s.name for s in b.heads) == want.head
    assert b.pools == want.pools
    assert [s.block for s in b.bottlenecks] == list(range(want.blocks))


@pytest.mark.parametrize("name", KNOWN)
def test_nothing_in_a_block_is_overlooked(name: str) -> None:
    """Every parameter of a block is one of a linear layer or a norm that was found, but for T5's table of positions."""
    b = backbone(name)
    found = {s.name for s in (*b.linears, *b.norms)}
    rest = [
        n
        for path in b.blocks
        for n in (f"{path}.{p}" for p, _ in b.module(path).named_parameters())
        if n.rsplit(".", 1)[0] not in found
    ]
    assert rest == (["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] if name == "t5" else [])
    for s in b.linears:
        weight = b.module(s.name).weight
        assert isinstance(weight, Tensor)
        assert tuple(weight.shape) in ((s.d_in, s.d_out), (s.d_out, s.d_in))


METHODS: dict[str, Method] = {
    "fedit": FedIT(rank=2, alpha=4.0, sites="all", batch=4, optim=FAST),
    "fedbf": FedBF(batch=4, optim=FAST),
    "feddat": FedDAT(reduction=8, batch=4, optim=FAST),
    "fedra": FedRA(rank=2, alpha=4.0, batch=4, optim=FAST),
}
REFUSED = {
    "fedbf": (("llama", "mistral", "t5"), r'^backbone ".*" has no bias vectors .* --set method\.add_missing=true\.$'),
    "fedra": (("albert",), r'^backbone ".*" calls one block many times, .* choose another --model, such as minilm\.$'),
}
SIZES = (5, 4, 0, 3)


def logits(run: tiny.Federation, view: str) -> Tensor:
    """[n, C] of a client that was never here, on all rows."""
    pack = run.server.pack()
    run.method.personalise(pack)
    return pack.predict(lambda p, b: run.method.forward(p, b, view), [np.arange(len(run.bench.table))])[0]


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_round_of_it_is_trained_exported_and_loaded_again_or_refused(name: str, slug: str, tmp_path: Path) -> None:
    method, b = METHODS[slug], backbone(name)
    refused, sentence = REFUSED.get(slug, ((), ""))
    if name in refused:
        with pytest.raises(UserError, match=sentence) as e:
            tiny.federation(method, b, sizes=SIZES, rounds=1).run()
        assert "\n" not in str(e.value)
        return
    run = tiny.federation(method, b, sizes=SIZES, rounds=1)
    view = method.info.views[0]
    before = logits(run, view)
    run.run()
    after = logits(run, view)
    assert bool(torch.isfinite(after).all())
    # a new client's personal head is drawn, not learnt: FedDAT's adapter still moves its logits
    assert not torch.allclose(after, before, **RUN_CLOSE)
    report = exported(run, tmp_path)
    low_rank = slug in ("fedit", "fedra")
    assert report.kind == ("peft" if low_rank and name != "t5" else "weft")
    assert report.difference <= report.tolerance
    again = load(tmp_path, device="cpu", precision="float32")
    rows = tiny.states(SIZES, reads=b.reads)[0]
    torch.testing.assert_close(again.logits_of(rows), after, **RUN_CLOSE)
    if report.kind == "peft":
        torch.testing.assert_close(by_readme(tmp_path, rows), after, **RUN_CLOSE)


@pytest.mark.parametrize("name", ["llama", "mistral", "t5"])
def test_biases_that_an_architecture_lacks_can_be_added(name: str, tmp_path: Path) -> None:
    run = tiny.federation(FedBF(add_missing=True, batch=4, optim=FAST), backbone(name), sizes=SIZES, rounds=1).run()
    exported(run, tmp_path)
    got = load(tmp_path, device="cpu", precision="float32").logits_of(tiny.states(SIZES)[0])
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)
    assert any(bool(v.any()) for n, v in run.server.shared.items() if n.startswith("bias/"))  # type: ignore[union-attr]


# what is no stack of blocks on hidden states ---------------------------------------------------------------------------


def test_convolutional_networks_without_batch_norms_are_refused_with_a_reason(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from weft.backbones.load import load as load_backbone

    shape = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    AutoModel.from_config(AutoConfig.for_model("convnext", **shape)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="nor maps of convolutions with batch norms") as e:
        load_backbone(str(tmp_path), classes=3, device="cpu", precision="float32")
    assert "\n" not in str(e.value)


def test_a_model_whose_library_is_not_installed_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """timm's come through a class of transformers, and need timm."""
    import json

    from weft.backbones.load import load as load_backbone

    config = {"architecture": "mixer_b16_224", "model_type": "timm_wrapper", "num_classes": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a model of timm, which is not installed") as e:
        load_backbone(str(tmp_path), classes=3, device="cpu", precision="float32")
    assert "\n" not in str(e.value)


def test_an_mlp_mixer_is_a_stack_of_blocks_too() -> None:
    """No attention, blocks in an ``nn.Sequential``, and linear layers that mix tokens instead of features."""
    from mixer import Mixer
    from weaving import assert_as_alone
    from weft.adaptation.bottleneck import Bottleneck
    from weft.adaptation.head import Head
    from weft.adaptation.lora import LoRA

    b = Mixer.backbone()
    assert b.blocks == ["mixer.blocks.0", "mixer.blocks.1"]
    assert (b.d, b.picture_tokens, b.pools) == (24, 4, "all")
    assert b.reader is not None
    assert (b.reader.name, b.reader.d_in, b.reader.d_out) == ("mixer.stem", 3, 24)
    sizes = {s.name.removeprefix("mixer.blocks.1."): (s.role, s.d_in, s.d_out) for s in b.linears if s.block == 1}
    assert sizes == {
        "tokens.fc1": ("ffn.in", 4, 8),
        "tokens.fc2": ("ffn.out", 8, 4),
        "features.fc1": ("ffn.in", 24, 48),
        "features.fc2": ("ffn.out", 48, 24),
    }
    parts = [{"lora": LoRA(r, 4.0, "ffn"), "x": Bottleneck(8), "head": Head()} for r in (1, 3, 2)]
    assert_as_alone(tiny.bench(b), parts)
    with pytest.raises(UserError, match=r'has no site "o"; try --set method\.sites=all'):
        tiny.federation(METHODS["fedra"], b, sizes=SIZES, rounds=1)
    run = tiny.federation(FedRA(rank=2, alpha=4.0, sites="ffn", batch=4, optim=FAST), b, sizes=SIZES, rounds=1)
    before = run.global_logits()
    assert not torch.allclose(run.run().global_logits(), before, **RUN_CLOSE)


# T5 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("checkpoint", ["encoder", "whole", "language model"])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_any_checkpoint_of_a_t5_gives_the_mean_of_its_encoders_states(
    kind: str, checkpoint: str, feed_forward: str, tmp_path: Path
) -> None:
    import transformers
    from transformers import AutoConfig

    from weft.backbones.load import load as load_backbone

    name = {"encoder": "EncoderModel", "whole": "Model", "language model": "ForConditionalGeneration"}[checkpoint]
    words = tiny.tokenizer("t5")
    special = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(kind, **(tiny.SHAPES["t5"] | special), feed_forward_proj=feed_forward)
    model = getattr(transformers, kind.upper() + name)(config)
    tiny.scramble(model)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    b = load_backbone(str(tmp_path), classes=3, device="cpu", precision="float32")
    roles = {"relu": {"ffn.in": "wi"}, "gated-gelu": {"ffn.gate": "wi_0", "ffn.in": "wi_1"}}[feed_forward]
    found = {s.role: s.name.rsplit(".", 1)[-1] for s in b.linears if s.role.startswith("ffn")}
    assert found == roles | {"ffn.out": "wo"}
    inputs = tiny.table(b).collate(np.arange(8))
    assert not bool(inputs["attention_mask"].all())
    with torch.no_grad():
        hidden = model.eval().get_encoder()(**inputs).last_hidden_state
        head: Any = b.model.classifier
        expected = torch.stack([head(h[m.bool()].mean(0)) for h, m in zip(hidden, inputs["attention_mask"], strict=True)])
        torch.testing.assert_close(b.model(**inputs).logits, expected, rtol=0.0, atol=1e-5)


def test_what_blocks_hand_on_beside_hidden_states_is_noticed_and_never_lost() -> None:
    """A T5 as transformers has it: the first block alone owns the table of positions, and hands on what it reads there."""
    from weaving import CLOSE, INDEX, pack_of, values_for
    from weft.adaptation.head import Head
    from weft.adaptation.lora import LoRA
    from weft.backbones.freeze import describe_model
    from weft.backbones.prefix import PrefixCache
    from weft.federation.batch import make_batch

    ours = tiny.fresh("t5")
    for block in ours.model.encoder.block[1:]:
        attention = block.layer[0].SelfAttention
        attention.has_relative_attention_bias = False
        del vars(attention)["relative_attention_bias"]
    b = describe_model(ours.model, ours.tokenizer, {"classifier.weight", "classifier.bias"}, name="plain", dtype=torch.float64)
    assert b.chained_blocks
    assert not b.separate_blocks
    bench = tiny.bench(b)
    cached = replace(bench, prefix=PrefixCache(b))
    ends = ",".join(s.name for s in b.linears if s.block == 2)
    parts = {"lora": LoRA(2, 4.0, f"names:{ends}"), "head": Head()}
    batch = make_batch(bench.task, bench.table, INDEX, None, b.device)
    values = [values_for(bench, parts, seed=i) for i in range(3)]
    pack = pack_of(cached, [parts] * 3, values)
    torch.testing.assert_close(pack(batch).logits, pack_of(bench, [parts] * 3, values)(batch).logits, **CLOSE)
    with pytest.raises(UserError, match="hands more than hidden states from block to block"):
        pack.hold(torch.ones(3, 3, dtype=torch.bool))
    head = {"head": Head()}  # all blocks are skipped: nobody waits for what they hand on
    own = [values_for(bench, head, seed=i) for i in range(3)]
    whole = pack_of(bench, [head] * 3, own)(batch).logits
    valid = INDEX >= 0
    torch.testing.assert_close(pack_of(cached, [head] * 3, own)(batch).logits[valid], whole[valid], **CLOSE)
