"""Backbones of many architectures are found, described and frozen alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from weft.backbones.load import load
from weft.backbones.site_choice import GROUPS
from weft.errors import UserError

# Endings of a block's linear layers by role, as the model cards and papers name them, and whether they have a bias.
BERT = {
    "q": ["self.query"],
    "k": ["self.key"],
    "v": ["self.value"],
    "o": ["attention.output.dense"],
    "ffn.in": ["intermediate.dense"],
    "ffn.out": ["output.dense"],
}
GATED = {
    "q": ["q_proj"],
    "k": ["k_proj"],
    "v": ["v_proj"],
    "o": ["o_proj"],
    "ffn.gate": ["gate_proj"],
    "ffn.in": ["up_proj"],
    "ffn.out": ["down_proj"],
}
EXPECTED: dict[str, dict[str, list[str]]] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "electra": BERT,
    "deberta-v2": BERT | {"q": ["query_proj"], "k": ["key_proj"], "v": ["value_proj"]},
    "distilbert": {
        "q": ["q_lin"],
        "k": ["k_lin"],
        "v": ["v_lin"],
        "o": ["out_lin"],
        "ffn.in": ["lin1"],
        "ffn.out": ["lin2"],
    },
    "albert": BERT
    | {
        "q": ["attention.query"],
        "k": ["attention.key"],
        "v": ["attention.value"],
        "o": ["attention.dense"],
        "ffn.in": ["ffn"],
        "ffn.out": ["ffn_output"],
    },
    "modernbert": {"q+k+v": ["Wqkv"], "o": ["attn.Wo"], "ffn.in+ffn.gate": ["Wi"], "ffn.out": ["mlp.Wo"]},
    "gpt2": {"q+k+v": ["c_attn"], "o": ["attn.c_proj"], "ffn.in": ["c_fc"], "ffn.out": ["mlp.c_proj"]},
    "gpt_neox": {
        "q+k+v": ["query_key_value"],
        "o": ["attention.dense"],
        "ffn.in": ["dense_h_to_4h"],
        "ffn.out": ["dense_4h_to_h"],
    },
    "bloom": {
        "q+k+v": ["query_key_value"],
        "o": ["self_attention.dense"],
        "ffn.in": ["dense_h_to_4h"],
        "ffn.out": ["dense_4h_to_h"],
    },
    "opt": {
        "q": ["q_proj"],
        "k": ["k_proj"],
        "v": ["v_proj"],
        "o": ["out_proj"],
        "ffn.in": ["fc1"],
        "ffn.out": ["fc2"],
    },
    "phi": {"q": ["q_proj"], "k": ["k_proj"], "v": ["v_proj"], "o": ["dense"], "ffn.in": ["fc1"], "ffn.out": ["fc2"]},
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma": GATED,
}
HEADS = {
    "bert": ["classifier"],
    "albert": ["classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "xlm-roberta": ["classifier.dense", "classifier.out_proj"],
    "electra": ["classifier.dense", "classifier.out_proj"],
    "distilbert": ["pre_classifier", "classifier"],
    "deberta-v2": ["pooler.dense", "classifier"],
    "modernbert": ["head.dense", "head.norm", "classifier"],
}
POST_NORM = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "deberta-v2")


@pytest.mark.parametrize("kind", tiny.ENCODERS + tiny.DECODERS)
def test_every_linear_layer_of_a_block_has_the_role_its_architecture_gives_it(kind: str) -> None:
    b = tiny.backbone(kind)
    for index in range(len(b.blocks)):
        found = {s.role: s.name for s in b.linears if s.block == index}
        assert found.keys() == EXPECTED[kind].keys()
        for role, (ending,) in EXPECTED[kind].items():
            assert found[role].startswith(b.blocks[index] + ".")
            assert found[role].endswith(ending)
    for s in b.linears:
        weight = b.module(s.name).weight
        assert sorted(weight.shape) == sorted((s.d_in, s.d_out))
        assert s.bias == (getattr(b.module(s.name), "bias", None) is not None)


@pytest.mark.parametrize("kind", tiny.ENCODERS + tiny.DECODERS)
def test_blocks_are_listed_in_the_order_in_which_they_run(kind: str) -> None:
    b = tiny.backbone(kind)
    order: list[str] = []
    handles = [b.module(n).register_forward_hook(lambda _m, _a, _o, n=n: order.append(n)) for n in b.blocks]
    b.model(input_ids=torch.tensor([[5, 6, 7]]))
    for h in handles:
        h.remove()
    layers = b.model.config.num_hidden_layers
    assert order == (b.blocks if not b.shared_blocks else b.blocks * layers)
    assert b.shared_blocks == (kind == "albert")
    assert layers == 3


@pytest.mark.parametrize("kind", tiny.ENCODERS + tiny.DECODERS)
def test_the_head_is_everything_between_the_stack_and_the_logits(kind: str) -> None:
    b = tiny.backbone(kind)
    names = [h.name for h in b.heads]
    assert names == HEADS.get(kind, ["score"])
    # the head's parameters and the base model's are all parameters there are
    base = {f"{b.model.base_model_prefix}.{n}" for n, _ in b.model.base_model.named_parameters()}
    head = {n for n, _ in b.model.named_parameters() if n.rsplit(".", 1)[0] in names}
    assert base | head == {n for n, _ in b.model.named_parameters()}
    assert not base & head


@pytest.mark.parametrize("kind", tiny.ENCODERS + tiny.DECODERS)
def test_bottlenecks_sit_before_the_last_norm_of_post_norm_blocks_and_after_other_blocks(kind: str) -> None:
    b = tiny.backbone(kind)
    assert [s.block for s in b.bottlenecks] == list(range(len(b.blocks)))
    for s in b.bottlenecks:
        if kind in POST_NORM:
            assert s.role == "ffn.norm"
            assert isinstance(b.module(s.name), torch.nn.LayerNorm)
            assert s.name.startswith(b.blocks[s.block or 0])
        else:
            assert (s.role, s.name) == ("block", b.blocks[s.block or 0])


@pytest.mark.parametrize("kind", tiny.ENCODERS + tiny.DECODERS)
def test_the_tokens_that_the_head_reads_are_found_by_their_influence(kind: str) -> None:
    """Changing another token's last hidden state must not change the logits, changing the pooled one must."""
    b = tiny.backbone(kind)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, b.tokenizer.pad_token_id, b.tokenizer.pad_token_id]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def logits(row: int, token: int) -> torch.Tensor:
        def hook(_m: object, _a: object, out: object) -> object:
            hidden = (out[0] if isinstance(out, tuple) else out).clone()  # type: ignore[index,union-attr]
            if token >= 0:
                hidden[row, token] += torch.linspace(-1, 1, hidden.shape[-1]).to(hidden)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handle = b.module(b.blocks[-1]).register_forward_hook(hook)
        try:
            return b.model(input_ids=ids, attention_mask=mask).logits.detach()
        finally:
            handle.remove()

    for row, length in ((0, 4), (1, 2)):
        still = logits(row, -1)
        moves = [not torch.equal(logits(row, t), still) for t in range(4)]
        read = {"first": 0, "last": length - 1}[b.pools]
        if b.shared_blocks:  # a perturbed first call spreads over the later ones: only the pooled one is certain
            assert moves[read]
        else:
            assert moves == [t == read for t in range(4)]
    assert b.pools == ("last" if kind in tiny.DECODERS else "first")


def test_mean_pooling_reads_all_tokens() -> None:
    assert tiny.backbone("modernbert", classifier_pooling="mean").pools == "all"


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "qwen2", "roberta", "modernbert"])
def test_biases_and_norms_are_remembered_in_full_precision_whatever_the_precision_of_the_model(kind: str) -> None:
    path = tiny.folder(kind)
    b = load(path, classes=3, device="cpu", precision="bfloat16")
    prefix = b.model.base_model_prefix
    norms = {f"{s.name}.weight".removeprefix(prefix + ".") for s in b.norms}
    stored = {n: t for n, t in load_file(Path(path) / "model.safetensors").items() if n.endswith("bias") or n in norms}
    assert norms <= stored.keys()
    kept = {n: t for n, t in b.originals.items() if n.startswith(prefix + ".")}
    there = {n.removeprefix(prefix + ".") for n, _ in b.model.named_parameters()}  # RoBERTa leaves its pooler out
    assert {n.removeprefix(prefix + ".") for n in kept} == stored.keys() & there
    for name, value in kept.items():
        assert torch.equal(value, stored[name.removeprefix(prefix + ".")])
    assert b.dtype == torch.bfloat16


def test_a_base_module_without_weights_belongs_to_the_head() -> None:
    """A masked-LM checkpoint of BERT has no pooler: transformers draws one, so that it must be trained and sent."""
    b = tiny.backbone("bert", checkpoint="mlm")
    assert [h.name for h in b.heads] == ["bert.pooler.dense", "classifier"]
    assert [h.name for h in tiny.backbone("bert").heads] == ["classifier"]


def test_a_head_that_the_checkpoint_holds_is_where_training_starts(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from weft.adaptation.head import Head

    path = tiny.folder("roberta")
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    tiny.scramble(model, 5)
    model.save_pretrained(tmp_path)
    tiny.tokenizer("roberta").save_pretrained(tmp_path)
    b = load(str(tmp_path), classes=3, device="cpu", precision="float32")
    for site in b.heads:
        for role, init in Head().tensors(b, site).items():
            assert torch.equal(init.draw(0, site.name, role), model.get_parameter(f"{site.name}.{role}"))
    other = load(str(tmp_path), classes=4, device="cpu", precision="float32")  # another number of classes: a new last layer
    inits = {s.name: Head().tensors(other, s) for s in other.heads}
    assert inits["classifier.dense"]["weight"].kind == "value"
    assert inits["classifier.out_proj"]["weight"].kind == "normal"


def test_fresh_modules_are_the_same_in_every_process_and_the_global_random_state_is_left_alone() -> None:
    path = tiny.folder("roberta")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = load(path, classes=3, device="cpu", precision="float32")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second = load(path, classes=3, device="cpu", precision="float32")
    for (name, a), (_, b) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", tiny.ENCODERS + tiny.DECODERS)
def test_a_loaded_backbone_is_frozen_in_eval_mode_and_carries_no_hooks(kind: str) -> None:
    b = tiny.fresh(kind)
    assert not any(p.requires_grad for p in b.model.parameters())
    assert not any(m.training for m in b.model.modules())
    assert list(tiny.hooks(b.model)) == []
    assert b.device.type == "cpu"
    assert b.dtype == torch.float64


# sites ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama", "modernbert", "albert"])
@pytest.mark.parametrize("group", [*GROUPS, "q", "v", "q,v", "o,ffn.out"])
def test_groups_are_the_union_of_their_roles(kind: str, group: str) -> None:
    b = tiny.backbone(kind)
    wanted = {r for word in group.split(",") for r in GROUPS.get(word, (word,))}
    assert b.sites(group) == [s for s in b.linears if wanted & set(s.role.split("+"))]
    assert b.sites(group, blocks=[0]) == [s for s in b.sites(group) if s.block == 0]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", "query,value"),
        ("bert", "dense"),
        ("bert", "output.dense"),
        ("bert", "layer.1.attention.self.key"),
        ("distilbert", "q_lin,lin2"),
        ("gpt2", "c_attn"),
        ("gpt2", "c_proj"),
        ("llama", "q_proj,k_proj,v_proj,o_proj"),
        ("modernbert", "Wqkv,Wo"),
    ],
)
def test_sites_given_by_names_are_the_modules_that_peft_targets(kind: str, names: str) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModel

    ends = names.split(",")
    model = AutoModel.from_pretrained(tiny.folder(kind))
    chosen = get_peft_model(model, LoraConfig(r=1, target_modules=ends))
    adapted = {n.removeprefix("base_model.model.") for n, m in chosen.named_modules() if isinstance(m, LoraLayer)}
    b = tiny.backbone(kind)
    prefix = b.model.base_model_prefix + "."
    inside = {n for n in adapted if any((prefix + n).startswith(block + ".") for block in b.blocks)}
    assert {s.name.removeprefix(prefix) for s in b.sites("names:" + names)} == inside


def test_a_layer_outside_of_the_blocks_goes_by_its_whole_name_and_stands_behind_theirs() -> None:
    b = tiny.backbone("bert")
    (pooler,), (head,) = b.outer, b.heads
    inside = b.sites("names:query")
    assert b.sites(f"names:{head.name},query,{pooler.name}") == [*inside, pooler, head]
    assert b.sites(f"names:{pooler.name}") == [pooler]
    assert pooler not in b.sites("names:dense")
    assert b.sites(f"names:query,{pooler.name}", blocks=[1]) == [inside[1]], "no block holds it"
    roberta = tiny.backbone("roberta")
    assert [s.name for s in roberta.sites("names:" + ",".join(s.name for s in roberta.heads))] == [s.name for s in roberta.heads]
    deberta = tiny.backbone("deberta-v2")
    assert {s.role for s in deberta.sites("names:query_proj," + ",".join(s.name for s in deberta.heads))} == {"q", "head"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("quer", ['unknown site "quer"', "names:ENDING"]),
        ("q,vv", ['unknown site "vv"', 'Did you mean "v"?']),
        ("ffn.gate", ['no site "ffn.gate"', "method.sites=all"]),
        ("names:q_proj", ["ends in q_proj", "query", "key"]),
        ("re:query", ['"query" is the whole name of no linear layer', "bert.encoder.layer.0.attention.self.query", "with .*"]),
        ("re:.*(query", ['".*(query" is no regular expression', "re:.*query"]),
    ],
)
def test_a_site_that_is_not_there_is_refused_with_what_there_is(spec: str, words: list[str]) -> None:
    with pytest.raises(UserError) as e:
        tiny.backbone("bert").sites(spec)
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(
    ("kind", "pattern", "ends", "blocks"),
    [
        ("bert", r".*\.layer\.[01]\..*(query|output\.dense)", ("query", "output.dense"), (0, 1)),
        ("llama", r"model\.layers\.1\.mlp\..*", ("gate_proj", "up_proj", "down_proj"), (1,)),
        ("gpt2", ".*attn.c_.*", ("attn.c_attn", "attn.c_proj"), (0, 1, 2)),
    ],
)
def test_sites_of_a_pattern_are_the_layers_whose_whole_name_it_is(
    kind: str, pattern: str, ends: tuple[str, ...], blocks: tuple[int, ...]
) -> None:
    b = tiny.backbone(kind)
    found = b.sites(f"re:{pattern}")
    assert {s.name for s in found} == {s.name for s in b.linears if s.block in blocks and s.name.endswith(ends)}
    assert {s.block for s in found} == set(blocks)
    assert {s.block for s in b.sites(f"re:{pattern}", [1])} == {1}


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5", "vit", "modernbert", "deberta-v2"])
def test_all_are_the_linear_layers_inside_the_blocks(kind: str) -> None:
    b = tiny.backbone(kind)
    layers = {n for n, m in b.model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert {s.name for s in b.sites("all")} == {n for n in layers if any(n.startswith(f"{block}.") for block in b.blocks)}


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_routed_experts_and_routers_are_no_sites(kind: str, tmp_path: Path) -> None:
    """They see the tokens routed to them, not the rows of the batch: the client axis cannot be found there."""
    from transformers import AutoConfig, AutoModel

    extra = {
        "num_local_experts": 4,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    words = tiny.tokenizer("llama")
    config = AutoConfig.for_model(kind, **(tiny.GROUPED | extra))
    config.pad_token_id = words.eos_token_id
    AutoModel.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    b = load(str(tmp_path), classes=2, device="cpu", precision="float32")
    assert {s.role for s in b.linears} >= {"q", "k", "v", "o"}
    for s in b.linears:
        assert ".experts" not in s.name
        assert not s.name.endswith("gate")
