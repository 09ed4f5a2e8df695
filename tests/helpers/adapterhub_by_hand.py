"""Exports in AdapterHub's form, read by the rules of its library in plain PyTorch on transformers' own modules, in float64.

f is what a sublayer's last layer gives, r the residual that is added to it, LN the norm behind the sum, if there is one. What the
library makes of the three is written down here as its documentation has it (settings of ``BnConfig``), step by step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from adapters_by_hand import gelu_new
from exporting import tensors_in

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu_new": gelu_new}


class Sublayer(NamedTuple):
    """Modules within a layer, in this transformers.

    Attributes:
        f: gives f; "" = the layer, which gives f + r. r: r is what goes into it, or, behind a ``>``, what it gives. norm: LN.
    """

    f: str
    r: str
    norm: str | None = None


BERT = {
    "attention.output": Sublayer("attention.output.dense", "attention", "attention.output.LayerNorm"),
    "output": Sublayer("output.dense", "intermediate.dense", "output.LayerNorm"),
}
DISTILBERT = {
    "attention_adapters": Sublayer("attention.out_lin", "attention.q_lin", "sa_layer_norm"),
    "output_adapters": Sublayer("ffn.lin2", "ffn.lin1", "output_layer_norm"),
}
GPT2 = {"attention_adapters": Sublayer("attn.c_proj", "ln_1"), "output_adapters": Sublayer("mlp.c_proj", "ln_2")}
LLAMA = {
    "attention_adapters": Sublayer("self_attn.o_proj", "input_layernorm"),
    "output_adapters": Sublayer("mlp.down_proj", "post_attention_layernorm"),
}
VIT = {
    "attention_adapters": Sublayer("attention.o_proj", "layernorm_before"),
    "output.output_adapters": Sublayer("mlp.fc2", "layernorm_after"),
}
CLIP = {
    "attention_adapters": Sublayer("self_attn.out_proj", "layer_norm1"),
    "output_adapters": Sublayer("mlp.fc2", "layer_norm2"),
}
BART = {
    "attention_adapters": Sublayer("self_attn.out_proj", "self_attn.q_proj", "self_attn_layer_norm"),
    "cross_attention_adapters": Sublayer("encoder_attn.out_proj", ">self_attn_layer_norm", "encoder_attn_layer_norm"),
    "output_adapters": Sublayer("fc2", "fc1", "final_layer_norm"),
}
MBART = {
    "attention_adapters": Sublayer("self_attn.out_proj", "self_attn_layer_norm"),
    "cross_attention_adapters": Sublayer("encoder_attn.out_proj", "encoder_attn_layer_norm"),
    "output_adapters": Sublayer("fc2", "final_layer_norm"),
}
T5_ENCODER = {
    "layer.0": Sublayer("layer.0.SelfAttention.o", "layer.0.layer_norm"),
    "layer.1": Sublayer("layer.1.DenseReluDense.wo", "layer.1.layer_norm"),
}
T5_DECODER = {
    "layer.0": T5_ENCODER["layer.0"],
    "layer.1": Sublayer("layer.1.EncDecAttention.o", "layer.1.layer_norm"),
    "layer.2": Sublayer("layer.2.DenseReluDense.wo", "layer.2.layer_norm"),
}
ALBERT = {"output_adapters": Sublayer("ffn_output", "ffn", "full_layer_layer_norm")}
BEIT = {"output_adapters": Sublayer("", "layernorm_after")}

# model type -> the library's layers, those of this transformers, and what is in one
LAYERS: dict[str, list[tuple[str, str, dict[str, Sublayer]]]] = {
    "albert": [
        ("albert.encoder.albert_layer_groups.0.albert_layers", "albert.encoder.albert_layer_groups.0.albert_layers", ALBERT)
    ],
    "bart": [(f"model.{side}coder.layers", f"model.{side}coder.layers", BART) for side in ("en", "de")],
    "beit": [("beit.encoder.layer", "beit.layers", BEIT)],
    "bert": [("bert.encoder.layer", "bert.encoder.layer", BERT)],
    "clip": [(f"{tower}_model.encoder.layers", f"{tower}_model.encoder.layers", CLIP) for tower in ("text", "vision")],
    "deberta-v2": [("deberta.encoder.layer", "deberta.encoder.layer", BERT)],
    "distilbert": [("distilbert.transformer.layer", "distilbert.transformer.layer", DISTILBERT)],
    "electra": [("electra.encoder.layer", "electra.encoder.layer", BERT)],
    "gpt2": [("transformer.h", "transformer.h", GPT2)],
    "llama": [("model.layers", "model.layers", LLAMA)],
    "mbart": [(f"model.{side}coder.layers", f"model.{side}coder.layers", MBART) for side in ("en", "de")],
    "mistral": [("model.layers", "model.layers", LLAMA)],
    "roberta": [("roberta.encoder.layer", "roberta.encoder.layer", BERT)],
    "t5": [("encoder.block", "encoder.block", T5_ENCODER), ("decoder.block", "decoder.block", T5_DECODER)],
    "vit": [("vit.encoder.layer", "vit.layers", VIT)],
    "xlm-roberta": [("roberta.encoder.layer", "roberta.encoder.layer", BERT)],
}
BASES = {"clip": "", "t5": ""} | {k: layers[0][0].split(".")[0] for k, layers in LAYERS.items() if k not in ("clip", "t5")}


def linear(own: dict[str, Tensor], module: str, rule: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer, or the library's PHM layer: x Σ_i A_i ⊗ (W_left,i W_right,i) + b."""
    if rule is None:
        weight, bias = own[f"{module}.weight"], own[f"{module}.bias"]
        return lambda x: x @ weight.T + bias
    left, right, b = own[f"{module}.W_left"], own[f"{module}.W_right"], own[f"{module}.b"]
    whole = torch.stack([torch.kron(rule[i], left[i] @ right[i]) for i in range(len(rule))]).sum(0)
    return lambda x: x @ whole + b


def bottleneck(config: dict[str, Any], own: dict[str, Tensor], rule: Tensor | None) -> Callable[..., Tensor]:
    """What the library puts in the place of LN(f + r), as a function of f, r and LN (None where there is none)."""
    down, up = linear(own, "adapter_down.0", rule), linear(own, "adapter_up", rule)
    scale = own["scaling"] if config["scaling"] == "learned" else config["scaling"]
    assert config["non_linearity"] in ACTIVATIONS
    assert not any(config[more] for more in ("ln_before", "ln_after", "use_gating", "inv_adapter", "dropout"))

    def made(x: Tensor) -> Tensor:
        return scale * up(ACTIVATIONS[config["non_linearity"]](down(x)))

    def normed(x: Tensor, norm: Callable[[Tensor], Tensor] | None) -> Tensor:
        return x if norm is None else norm(x)

    def run(f: Tensor, r: Tensor, norm: Callable[[Tensor], Tensor] | None) -> Tensor:
        if config["is_parallel"]:
            h = f + made(r)
        else:
            read = normed(f + r, norm) if config["original_ln_before"] else f
            h = made(read) + (f if config["residual_before_ln"] else read)
        return normed(h + r, norm) if config["original_ln_after"] else h

    return run


def attach(model: nn.Module, folder: Path) -> None:
    """Put the adapter of a folder onto a model of float64, for good, and its head in the place of the model's own."""
    content = json.loads((folder / "adapter_config.json").read_text())
    config, name, kind = content["config"], content["name"], content["model_type"]
    tensors = {n: t.double() for n, t in tensors_in(folder / "adapter.safetensors").items()}
    start = f"{BASES[kind]}." if BASES[kind] else ""
    rule = tensors.pop(f"{start}shared_parameters.{name}.phm_rule") if config["phm_layer"] else None
    number = 0
    for theirs, ours, held in LAYERS[kind]:
        for i, layer in enumerate(model.get_submodule(ours)):  # type: ignore[arg-type]
            for at, sublayer in held.items():
                where = f"{theirs}.{i}.{at}.adapters.{name}."
                own = {n.removeprefix(where): tensors.pop(n) for n in list(tensors) if n.startswith(where)}
                on = config[_location(at, theirs)] and number not in config["leave_out"]
                on = on and hasattr_path(layer, sublayer.f)
                assert bool(own) == on, f"the library {'has' if on else 'has no'} adapter at {where}"
                if own:
                    size = own["adapter_up.b" if rule is not None else "adapter_up.bias"]
                    width = own["adapter_down.0.b" if rule is not None else "adapter_down.0.bias"]
                    assert int(len(size) // config["reduction_factor"]) == len(width)
                    _hook(layer, sublayer, bottleneck(config, own, rule))
            number += 1
    assert not tensors, f"the library has no place for {sorted(tensors)}"
    if (folder / "model_head.safetensors").is_file():
        head = {n: t.double() for n, t in tensors_in(folder / "model_head.safetensors").items()}
        assert not model.load_state_dict(head, strict=False).unexpected_keys


def hasattr_path(layer: nn.Module, path: str) -> bool:
    return not path or any(n == path for n, _ in layer.named_modules())


def _location(at: str, stack: str) -> str:
    """The setting that switches an adapter on."""
    if at.startswith("cross") or (at == "layer.1" and stack.startswith("decoder")):
        return "cross_adapter"
    return "mh_adapter" if at in ("attention.output", "attention_adapters", "layer.0") else "output_adapter"


def _hook(layer: nn.Module, sublayer: Sublayer, run: Callable[..., Tensor]) -> None:
    seen: dict[str, Tensor] = {}
    source = layer.get_submodule(sublayer.r.removeprefix(">"))
    if sublayer.r.startswith(">"):
        source.register_forward_hook(lambda _m, _a, out: seen.update(r=out))
    else:

        def before(_m: nn.Module, args: Any, kwargs: Any) -> None:
            seen["r"] = args[0] if args else next(iter(kwargs.values()))

        source.register_forward_pre_hook(before, with_kwargs=True)
    if not sublayer.f:

        def whole(_m: nn.Module, _a: Any, out: Any) -> Any:
            x = out[0] if isinstance(out, tuple) else out
            found = run(x - seen["r"], seen["r"], None)
            return (found, *out[1:]) if isinstance(out, tuple) else found

        layer.register_forward_hook(whole)
        return
    of = layer.get_submodule(sublayer.f)
    if sublayer.norm is None:  # the model adds r itself
        of.register_forward_hook(lambda _m, _a, f: run(f, seen["r"], None) - seen["r"])
        return
    norm = layer.get_submodule(sublayer.norm)
    plain = norm.forward
    of.register_forward_hook(lambda _m, _a, f: seen.update(f=f))
    norm.register_forward_hook(lambda _m, _a, _out: run(seen["f"], seen["r"], plain))


@torch.no_grad()
def logits(base: str, folder: Path, inputs: dict[str, Tensor], classes: int | None = 3, padding: int | None = None) -> Tensor:
    """Of transformers' class that the folder names, on the files of a base."""
    kind = json.loads((folder / "adapter_config.json").read_text())["model_class"]
    assert re.fullmatch(r"[A-Za-z0-9]+", kind)
    torch.manual_seed(97)
    labels = {} if classes is None else {"num_labels": classes}
    model = getattr(transformers, kind).from_pretrained(base, dtype=torch.float64, **labels)
    if padding is not None:
        model.config.pad_token_id = padding
    attach(model, folder)
    out = model.eval()(**{n: t.double() if t.is_floating_point() else t for n, t in inputs.items()})
    found: Tensor = out.logits_per_image if hasattr(out, "logits_per_image") else out.logits
    return found
