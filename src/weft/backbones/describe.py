"""Find the parts of an unknown Hugging Face model by structure: its block stack, linear roles, head and bottleneck places.

Names differ from architecture to architecture and from one release of transformers to the next, so that only the role of a
linear layer inside a block is read from its name; stack, head and norm form are found by what the modules are and do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from weft.backbones.backbone import Backbone, Site
from weft.errors import UserError

# endings of linear-layer names inside a block -> role. Tried in order; the first match wins.
ROLES = (
    (r"(c_attn|qkv|qkv_proj|Wqkv|query_key_value|in_proj)$", "q+k+v"),
    (r"(query|q_proj|q_lin|query_proj|q)$", "q"),
    (r"(key|k_proj|k_lin|key_proj|k)$", "k"),
    (r"(value|v_proj|v_lin|value_proj|v)$", "v"),
    (r"(attention\.output\.dense|attention\.dense|attn\.c_proj|o_proj|out_lin|out_proj|self_attn\.dense|attn\.Wo|o)$", "o"),
    (r"(gate_proj|wi_1|w3)$", "ffn.gate"),
    (r"(gate_up_proj|mlp\.Wi)$", "ffn.in+ffn.gate"),
    (r"(intermediate\.dense|up_proj|lin1|c_fc|fc1|dense_h_to_4h|ffn|wi|wi_0|w1|mlp\.Wi)$", "ffn.in"),
    (r"(output\.dense|down_proj|lin2|mlp\.c_proj|fc2|dense_4h_to_h|ffn_output|wo|w2|mlp\.Wo)$", "ffn.out"),
)

ROUTED = r"(^|\.)(experts?|router|gate|\w*expert_gate)(\.|$)"


def features(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear layer, GPT-2's transposed Conv1D included; None for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        weight: Any = module.weight
        d_in, d_out = weight.shape
        return int(d_in), int(d_out)
    return None


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def find_blocks(base: nn.Module, prefix: str, layers: int) -> list[str]:
    """Paths of the transformer blocks: the module list with the most parameters whose members are of one class."""
    best: tuple[int, list[str]] = (0, [])
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and len({type(m) for m in module}) == 1:
            size = sum(p.numel() for p in module.parameters())
            path = f"{prefix}.{name}" if prefix else name
            # prefer the innermost list of the same size: ALBERT nests its block in two lists
            if size >= best[0] and len(module) <= max(layers, 1):
                best = (size, [f"{path}.{i}" for i in range(len(module))])
    if not best[1]:
        raise UserError("this backbone has no stack of transformer blocks; use an encoder or decoder of transformers.")
    return best[1]


def role_of(name_in_block: str) -> str | None:
    for pattern, role in ROLES:
        if re.search(r"(^|\.)" + pattern, name_in_block):
            return role
    return None


def linear_sites(model: nn.Module, blocks: list[str], common: Collection[str] = ()) -> list[Site]:
    modules = dict(model.named_modules())
    found = []
    for index, path in enumerate(blocks):
        for name, module in modules[path].named_modules():
            size = features(module)
            if size is None:
                continue
            if re.search(ROUTED, name):  # experts see only the tokens routed to them, and a router is not a place for LoRA
                continue
            role = role_of(name)
            if role is None:  # unknown name: an expanding layer feeds the feed-forward, a shrinking one ends it
                role = "ffn.in" if size[1] > size[0] else "ffn.out" if size[1] < size[0] else "o"
            bias = getattr(module, "bias", None) is not None
            full = f"{path}.{name}"
            found.append(Site(full, role, *size, block=index, bias=bias, per_row=full not in common))
    return found


def outer_sites(model: nn.Module, blocks: list[str], apart: Collection[str], other: tuple[str, ...] = ()) -> list[Site]:
    """Linear layers of the base model outside its blocks (a pooler, a projection of embeddings), but for those in ``apart`` and
    below the names ``other``.
    """
    found = []
    for name, module in model.named_modules():
        size = features(module)
        if size is not None and block_index(name, blocks) is None and name not in apart and not name.startswith(other):
            found.append(Site(name, "outer", *size, block=None, bias=getattr(module, "bias", None) is not None))
    return found


def norm_sites(model: nn.Module, blocks: list[str], heads: set[str], other: tuple[str, ...] = ()) -> list[Site]:
    found = []
    for name, module in model.named_modules():
        if name.startswith(other):
            continue
        if is_norm(module) and getattr(module, "weight", None) is not None and name not in heads:
            d = module.weight.shape[0]
            bias = getattr(module, "bias", None) is not None
            found.append(Site(name, "norm", d, d, block=block_index(name, blocks), bias=bias))
    return found


def block_index(name: str, blocks: list[str]) -> int | None:
    for index, path in enumerate(blocks):
        if name == path or name.startswith(path + "."):
            return index
    return None


def head_sites(model: nn.Module, base_prefix: str, fresh: set[str]) -> list[Site]:
    """Everything trainable that the checkpoint does not hold: the task head, and base modules left without weights.

    Args:
        fresh: names of parameters that the checkpoint lacked (a BERT without its pooler, say).
    """
    found = []
    for name, module in model.named_modules():
        own = [f"{name}.{p}" for p, _ in module.named_parameters(recurse=False)]
        if not own:
            continue
        if base_prefix:
            outside = not (name == base_prefix or name.startswith(base_prefix + "."))
        else:  # the model is its own base: its head is at its top, and has one output for each class
            outside = "." not in name and (features(module) or (0, 0))[1] == model.config.num_labels  # type: ignore[union-attr]
        if not (outside or all(o in fresh for o in own)):
            continue
        size = features(module)
        bias = getattr(module, "bias", None) is not None
        if size is not None and isinstance(module, nn.Linear):
            found.append(Site(name, "head", *size, block=None, bias=bias))
        elif isinstance(module, nn.LayerNorm):
            found.append(Site(name, "head.norm", module.weight.shape[0], module.weight.shape[0], block=None, bias=bias))
        else:
            raise UserError(
                f"the head of this backbone holds a {type(module).__name__} ({name}), which Weft can't train; "
                "choose a backbone whose head is made of linear layers and layer norms."
            )
    return found


def text_tower(backbone: Backbone) -> None:
    """Describe the text tower of a backbone with two: its linear layers, its token embedding, and the joint embedding."""
    model = backbone.model
    stack = find_blocks(model.text_model, "text_model", int(model.config.text_config.num_hidden_layers))
    backbone.text_linears = [replace(s, tower="text", bias=False) for s in linear_sites(model, stack)]
    table = next(n for n, m in model.named_modules() if m is model.text_model.get_input_embeddings())
    width, joint = int(model.config.text_config.hidden_size), int(model.config.projection_dim)
    backbone.words = Site(table, "words", width, width, block=None, tower="text")
    backbone.embedding = Site("image_embedding", "embedding", joint, joint, block=None)


@dataclass(frozen=True)
class Trace:
    """What only a run of the model tells.

    Attributes:
        bottlenecks: sites of a bottleneck adapter.
        tuple_blocks: size of the tuple in which blocks return their hidden state; 0 = on its own.
        pools: the tokens that the head reads: ``first``, ``last`` (of a row's own tokens) or ``all``. tokens: in a block.
        common: modules called with something else than the rows of the batch, as DeBERTa's with its table of positions.
        row_arguments: arguments of a block that have one entry per row.
    """

    bottlenecks: list[Site]
    tuple_blocks: int
    pools: str
    tokens: int
    common: frozenset[str]
    row_arguments: frozenset[str]


ROWS, WIDTH = 5, 3  # of the run that is watched: told apart in a shape
PICTURES = 7  # rows, where the number of tokens is the model's: a square and one or two more


def trace(model: nn.Module, blocks: list[str], d: int, inputs: Mapping[str, torch.Tensor], apart: tuple[str, ...] = ()) -> Trace:
    """Run a few rows through the model and watch.

    Args:
        inputs: :func:`words` or :func:`pictures`. apart: prefixes of modules that see other rows (a text tower).

    Bottlenecks follow the feed-forward (Houlsby/Pfeiffer placement). Post-norm blocks (BERT) end in a layer norm: the site is
    that norm, role ``ffn.norm``. Other blocks (LLaMA): the site is the block's output, role ``block``.

    Raises:
        UserError: blocks that do not take hidden states [rows, tokens, d].
    """
    modules = dict(model.named_modules())
    rows = len(inputs["pixel_values"] if "pixel_values" in inputs else inputs["input_ids"])
    outputs: dict[str, torch.Tensor] = {}
    sizes: set[int] = set()
    common: set[str] = set()
    row_arguments: set[str] = set()
    last: list[torch.Tensor] = []
    seen: set[int] = {WIDTH}

    def block_hook(name: str) -> Callable[..., Any]:
        def hook(_m: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            sizes.add(len(out) if isinstance(out, tuple) else 0)
            row_arguments.update(paths_with(rows, args, kwargs))
            hidden = outputs[name] = out[0] if isinstance(out, tuple) else out
            seen.add(hidden.shape[1] if hidden.dim() == 3 else 0)
            if name != blocks[-1]:
                return None
            last[:] = [hidden.detach().requires_grad_()]  # what the head makes of it is differentiated below
            return (last[0], *out[1:]) if isinstance(out, tuple) else last[0]

        return hook

    def leaf_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if is_norm(module):
                outputs[name] = out
            if args[0].shape[0] not in (rows, rows * max(seen)):
                common.add(name)

        return hook

    watched = [modules[path].register_forward_hook(block_hook(path), with_kwargs=True) for path in blocks]
    for name, module in modules.items():
        if (is_norm(module) or features(module) is not None) and not name.startswith(apart):
            watched.append(module.register_forward_hook(leaf_hook(name)))
    try:
        with torch.enable_grad():
            logits = model(**inputs).logits
            tokens = last[0].shape[1] if last[0].dim() == 3 else 0
            if len(last[0]) != rows or not tokens or ("input_ids" in inputs and tokens != inputs["input_ids"].shape[1]):
                raise UserError("this backbone's blocks do not take hidden states of shape [rows, tokens, features].")
            (slope,) = torch.autograd.grad(logits.sum(), last, allow_unused=True)
    finally:
        for handle in watched:
            handle.remove()
    found = []
    for index, path in enumerate(blocks):
        ends = [n for n, out in outputs.items() if n.startswith(path + ".") and torch.equal(out, outputs[path])]
        name, role = (ends[-1], "ffn.norm") if ends else (path, "block")
        found.append(Site(name, role, d, d, block=index))
    return Trace(found, max(sizes), _pooled(slope, inputs), tokens, frozenset(common), frozenset(row_arguments))


def pictures(height: int, width: int) -> dict[str, torch.Tensor]:
    """PICTURES different ones."""
    g = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(PICTURES, 3, height, width, generator=g)}


def words(model: nn.Module) -> dict[str, torch.Tensor]:
    """ROWS rows of WIDTH tokens; the last one of the second row is padding."""
    config: Any = model.config
    pad = int(config.pad_token_id or 0)
    some = [i for i in range(min(config.vocab_size, WIDTH + 6)) if i != pad][-WIDTH:]
    ids = torch.tensor([some] * ROWS, device=next(model.parameters()).device)
    mask = torch.ones_like(ids)
    ids[1, -1], mask[1, -1] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


def _pooled(slope: torch.Tensor | None, inputs: Mapping[str, torch.Tensor]) -> str:
    """From the gradient of the logits, [ROWS, tokens, d]: which tokens reach the head."""
    if slope is None:
        return "all"
    read = slope.abs().sum(-1) > 0
    if "input_ids" not in inputs:
        return "first" if bool(read[:, 0].all()) and not bool(read[:, 1:].any()) else "all"
    for name, full, short in (("first", 0, 0), ("last", WIDTH - 1, WIDTH - 2)):
        at = torch.full((ROWS,), full, device=read.device)
        at[1] = short
        if torch.equal(read, torch.nn.functional.one_hot(at, WIDTH).bool()):
            return name
    return "all"


def paths_with(n: int, args: Any, kwargs: Any) -> set[str]:
    """Paths ("0", "attention_mask", "position_embeddings.1") of the tensors whose first size is n."""
    found: set[str] = set()

    def visit(value: Any, path: str) -> None:
        if isinstance(value, torch.Tensor):
            if value.dim() and value.shape[0] == n:
                found.add(path)
        elif isinstance(value, (tuple, list)):
            for i, v in enumerate(value):
                visit(v, f"{path}.{i}" if path else str(i))
        elif isinstance(value, dict):
            for key, v in value.items():
                visit(v, f"{path}.{key}" if path else str(key))

    visit(args, "")
    visit(kwargs, "")
    return found
