"""Find the parts of an unknown Hugging Face model by structure: its block stack, linear roles, head and bottleneck places.

Names differ from architecture to architecture and from one release of transformers to the next, so that only the role of a
linear layer inside a block is read from its name; stack, head and norm form are found by what the modules are and do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.backbones.options import NO_SITE
from weft.errors import UserError, nearest

# endings of linear-layer names inside a block -> role. Tried in order; the first match wins.
ROLES = (
    (r"(c_attn|qkv|qkv_proj|Wqkv|query_key_value|in_proj)$", "q+k+v"),
    (r"(query|q_proj|q_lin|query_proj|q)$", "q"),
    (r"(key|k_proj|k_lin|key_proj|k)$", "k"),
    (r"(value|v_proj|v_lin|value_proj|v)$", "v"),
    (r"(attention\.output\.dense|attention\.dense|attn\.c_proj|o_proj|out_lin|out_proj|self_attn\.dense|attn\.Wo|o)$", "o"),
    (r"(gate_proj|wi_0|w3)$", "ffn.gate"),
    (r"(gate_up_proj|mlp\.Wi)$", "ffn.in+ffn.gate"),
    (r"(intermediate\.dense|up_proj|lin1|c_fc|fc1|dense_h_to_4h|ffn|wi|wi_1|w1|mlp\.Wi)$", "ffn.in"),
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
    """Whether what it gives is affine in its weight and bias: not of a batch norm that knows no statistics but the batch's."""
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def find_blocks(base: nn.Module, prefix: str, layers: int, wanted: str = "", depths: Sequence[int] = ()) -> list[str]:
    """Paths of the transformer blocks: the list of modules of one class with the most parameters; of those as long as
    ``layers``, if there are any. Where these are stages, the blocks are those inside them.

    Args:
        prefix: path of the base model. layers: number of blocks by its configuration, 0 = unknown.
        wanted: path of the list, if a person names it. depths: blocks of each stage by its configuration.

    Raises:
        UserError: there is none, or not the one that was named.
    """
    above = prefix + "." if prefix else ""
    lists = {above + n: m for n, m in base.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)}
    if wanted:
        if wanted not in lists:
            raise UserError(f'this backbone has no list of blocks "{wanted}": it has {", ".join(lists)}.{nearest(wanted, lists)}')
        return within(lists, wanted, depths)
    alike = {n: m for n, m in lists.items() if len({type(member) for member in m.children()}) == 1}
    fitting = {n: m for n, m in alike.items() if len(m) == layers} or {n: m for n, m in alike.items() if len(m) <= max(layers, 1)}
    best, size = "", 0
    for name, module in (fitting if layers else alike).items():
        parameters = sum(p.numel() for p in module.parameters())
        if parameters >= max(size, 1):  # the innermost list of one size: ALBERT nests its block in two lists
            best, size = name, parameters
    if not best:
        raise UserError(
            "no stack of transformer blocks was found in this backbone: name its list of blocks with --blocks PATH, or choose "
            "an encoder or decoder of transformers."
        )
    return within(lists, best, depths)


def within(lists: Mapping[str, nn.Module], path: str, depths: Sequence[int]) -> list[str]:
    """Paths of the members of a list, or, if each is a stage with a list as long as ``depths`` says, of the members of these."""
    members = [f"{path}.{name}" for name, _ in lists[path].named_children()]
    if len(members) != len(depths):
        return members
    found = []
    for stage, depth in zip(members, depths, strict=True):
        inner = [n for n, m in lists.items() if n.startswith(stage + ".") and len(list(m.children())) == depth]
        if not inner:
            return members
        found += [f"{inner[0]}.{name}" for name, _ in lists[inner[0]].named_children()]
    return found


def stack(blocks: Sequence[str]) -> str:
    """Path of the list that blocks are in, ``*`` for the stages that have one each."""
    parts = [path.split(".")[:-1] for path in blocks]
    return ".".join(some[0] if len(set(some)) == 1 else "*" for some in zip(*parts, strict=True))


def ends_in(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def role_of(name_in_block: str, endings: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """By the ends of its name: first those that a person gave, then ``ROLES``."""
    for ending, role in endings.items():
        if ends_in(name_in_block, ending):
            return role
    for pattern, role in ROLES:
        if re.search(r"(^|\.)" + pattern, name_in_block):
            return role
    return None


CROSS = r"(^|\.)(encoder_attn|EncDecAttention|cross_?attn|crossattention|encoder_decoder_attention)(\.|$)"
"""Of names of a decoder's modules that look at what its encoder has read."""


def stacks(model: Any) -> dict[str, list[str]]:
    """Paths of the blocks of an encoder-decoder: ``encoder`` and ``decoder``, in this order."""
    found = {}
    for stack, tower in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        prefix = next(n for n, m in model.named_modules() if m is tower)
        found[stack] = find_blocks(tower, prefix, 0)
    return found


def linear_sites(
    model: nn.Module,
    blocks: list[str],
    common: Collection[str] = (),
    endings: Mapping[str, str] = MappingProxyType({}),
    stacks: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> list[Site]:
    """Linear layers inside the blocks.

    Args:
        common: those that are called with something else than rows. endings: roles that a person gave.
        stacks: of :func:`stacks`, for an encoder-decoder.
    """
    side = {path: stack for stack, paths in stacks.items() for path in paths}
    modules = dict(model.named_modules())
    found = []
    for index, path in enumerate(blocks):
        for name, module in modules[path].named_modules():
            size = features(module)
            if size is None:
                continue
            if re.search(ROUTED, name):  # experts see only the tokens routed to them, and a router is not a place for LoRA
                continue
            role = role_of(name, endings)
            if role == NO_SITE:
                continue
            if role is None:  # unknown name: an expanding layer feeds the feed-forward, a shrinking one ends it
                role = "ffn.in" if size[1] > size[0] else "ffn.out" if size[1] < size[0] else "o"
            bias = getattr(module, "bias", None) is not None
            full = f"{path}.{name}"
            stack = "cross" if path in side and re.search(CROSS, name) else side.get(path, "")
            found.append(Site(full, role, *size, block=index, bias=bias, per_row=full not in common, stack=stack))
    return found


def feed_forward_entry(linears: Iterable[Site], end: Site) -> Site | None:
    """The first linear layer of the feed-forward whose last one is ``end``: of those in its block, the nearest to it by its path.

    A gate (LLaMA) reads what the layer beside it does, and either is found.
    """
    found = [s for s in linears if s.block == end.block and {"ffn.in", "ffn.gate"} & set(s.roles)]
    return max(found, key=lambda s: _shared(s.name, end.name), default=None)


def _shared(path: str, other: str) -> int:
    """Leading names that two paths have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path.split("."), other.split("."), strict=False)))


def check_endings(model: nn.Module, blocks: list[str], endings: Collection[str]) -> None:
    """
    Raises:
        UserError: no linear layer of these blocks ends like that.
    """
    names = [n for path in blocks for n, m in model.get_submodule(path).named_modules() if features(m) is not None]
    for ending in endings:
        if not any(ends_in(n, ending) for n in names):
            have = sorted({n.rsplit(".", 1)[-1] for n in names})
            raise UserError(f'no linear layer of a block ends in "{ending}": there are {", ".join(have)}.{nearest(ending, have)}')


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


def convolution_sites(model: nn.Module, blocks: list[str], reader: Site | None) -> list[Site]:
    """Convolutions but for the one that reads pictures."""
    return [
        Site(name, "convolution", m.in_channels, m.out_channels, block=block_index(name, blocks), bias=m.bias is not None)
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and (reader is None or name != reader.name)
    ]


def block_index(name: str, blocks: list[str]) -> int | None:
    for index, path in enumerate(blocks):
        if name == path or name.startswith(path + "."):
            return index
    return None


def head_sites(
    model: nn.Module, base_prefix: str, fresh: set[str], wanted: tuple[str, ...] = (), other: tuple[str, ...] = ()
) -> list[Site]:
    """The task head, and a pooler that the checkpoint lacks: everything that may be drawn at random.

    Args:
        fresh: names of parameters that the checkpoint lacked.
        wanted: names of the modules of the head, if a person names them. other: beginnings of names of what is none of it.

    Raises:
        UserError: there is no module of such a name, or one that can't be trained.
    """
    found = []
    names = [n for n, m in model.named_modules() if n and any(True for _ in m.parameters())]
    for name in wanted:
        if name not in names:
            top = [n for n in names if "." not in n]
            raise UserError(
                f'this backbone has no module "{name}" to be its head: it has {", ".join(top)}.{nearest(name, names)}'
            )
    for name, module in model.named_modules():
        own = [f"{name}.{p}" for p, _ in module.named_parameters(recurse=False)]
        if not own or name.startswith(other):
            continue
        if wanted:
            outside = any(name == w or name.startswith(w + ".") for w in wanted)
        elif base_prefix:
            outside = not (name == base_prefix or name.startswith(base_prefix + "."))
        else:  # the model is its own base: its head is at its top, and has one output for each class
            outside = "." not in name and (features(module) or (0, 0))[1] == model.config.num_labels  # type: ignore[union-attr]
        pooler = "pooler" in name.split(".") and all(o in fresh for o in own)
        if not (outside or pooler):
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
                "name its head with --head, or choose a backbone whose head is made of linear layers and layer norms."
            )
    return found


def text_tower(backbone: Backbone, endings: Mapping[str, str]) -> None:
    """Describe the text tower of a backbone with two: its linear layers, its token embedding, and the joint embedding."""
    joint = backbone.class_inputs()["text_embeds"].shape[-1]
    model = backbone.model
    stack = find_blocks(model.text_model, "text_model", int(model.config.text_config.num_hidden_layers))
    backbone.text_linears = [replace(s, tower="text", bias=False) for s in linear_sites(model, stack, (), endings)]
    table = next(n for n, m in model.named_modules() if m is model.text_model.get_input_embeddings())
    width = int(model.config.text_config.hidden_size)
    backbone.words = Site(table, "words", width, width, block=None, tower="text")
    backbone.embedding = Site("image_embedding", "embedding", joint, joint, block=None)
