"""Where AdapterHub's library ``adapters`` (1.3) has its adapters in a model, and where in that model Weft has its own.

Facts about that library. A layer has a bottleneck of up to three kinds: ``mh_adapter`` for its attention, ``cross_adapter`` for
its look at an encoder, ``output_adapter`` for its feed-forward. f is what such a sublayer gives, r the residual that is added to
it, LN the norm of that sum in post-norm models; in pre-norm models read LN as nothing. A configuration makes

* with ``original_ln_before`` LN(f + r + s·A(LN(f + r))): Weft's placement ``block``;
* with neither flag LN(f + s·A(f) + r): Weft's ``ffn``, and ``sublayers`` where all kinds are on;
* with ``is_parallel`` LN(f + s·A(r) + r). In a post-norm model r is what the feed-forward reads: Weft's ``parallel``. In a
  pre-norm model that reads the norm of r, so that it is something else there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from weft.adaptation.bottleneck import Placement

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

Location = Literal["mh_adapter", "output_adapter", "cross_adapter"]


class Place(NamedTuple):
    """An adapter of the library: its kind, the layer as it counts them, and the module that holds it."""

    location: Location
    layer: int
    module: str


@dataclass(frozen=True)
class Stack:
    """Layers of one shape.

    Attributes:
        ours: path of their list in the model that Weft loads. theirs: in the one that the library loads. Both within the base
            model.
        held: path inside a layer of a module that a part of ours has for its site ("": the layer itself) -> kind of the adapter,
            and path of the module that holds it.
    """

    ours: str
    theirs: str
    held: Mapping[str, tuple[Location, str]]


@dataclass(frozen=True)
class Architecture:
    """What the library makes of a model.

    Attributes:
        stacks: in the order in which the library counts their layers. post_norm: see the head of this file.
        prefix: path of the base model in the model with a head, for both; "": it is not inside one.
        apart: placements of which the library makes something else here.
    """

    stacks: tuple[Stack, ...]
    post_norm: bool
    prefix: str = ""
    apart: tuple[Placement, ...] = ()

    @property
    def start(self) -> str:
        """What names in the base model begin with."""
        return f"{self.prefix}." if self.prefix else ""


Held: TypeAlias = Mapping[str, tuple[Location, str]]


def _held(attention: str, attention_at: str, ffn: str, ffn_at: str, norm: str = "", **more: str) -> Held:
    """What a stack has.

    Args:
        attention, ffn: last linear layers of the sublayers. norm: the last norm of a post-norm layer. attention_at, ffn_at: what
            holds the adapters. more: ``cross`` and ``cross_at``.
    """
    found: dict[str, tuple[Location, str]] = {
        attention: ("mh_adapter", attention_at),
        ffn: ("output_adapter", ffn_at),
        norm: ("output_adapter", ffn_at),
    }
    return found | ({more["cross"]: ("cross_adapter", more["cross_at"])} if more else {})


BOTH = ("attention_adapters", "output_adapters")
BERT = _held("attention.output.dense", "attention.output", "output.dense", "output", "output.LayerNorm")
DISTILBERT = _held("attention.out_lin", BOTH[0], "ffn.lin2", BOTH[1], "output_layer_norm")
ALBERT = _held("attention.dense", f"attention.{BOTH[0]}", "ffn_output", BOTH[1], "full_layer_layer_norm")
GPT2 = _held("attn.c_proj", BOTH[0], "mlp.c_proj", BOTH[1])
LLAMA = _held("self_attn.o_proj", BOTH[0], "mlp.down_proj", BOTH[1])
CLIP = _held("self_attn.out_proj", BOTH[0], "mlp.fc2", BOTH[1])
VIT = _held("attention.o_proj", BOTH[0], "mlp.fc2", f"output.{BOTH[1]}")
BEIT = _held("attention.o_proj", BOTH[0], "mlp.fc2", BOTH[1])


def _bart(norm: str) -> tuple[Stack, Stack]:
    cross = {"cross": "encoder_attn.out_proj", "cross_at": "cross_attention_adapters"}
    encoder = _held("self_attn.out_proj", BOTH[0], "fc2", BOTH[1], norm)
    decoder = _held("self_attn.out_proj", BOTH[0], "fc2", BOTH[1], norm, **cross)
    return Stack("encoder.layers", "encoder.layers", encoder), Stack("decoder.layers", "decoder.layers", decoder)


def _t5() -> tuple[Stack, Stack]:
    attention = ("layer.0.SelfAttention.o", "layer.0")
    cross = {"cross": "layer.1.EncDecAttention.o", "cross_at": "layer.1"}
    encoder = _held(*attention, "layer.1.DenseReluDense.wo", "layer.1")
    decoder = _held(*attention, "layer.2.DenseReluDense.wo", "layer.2", **cross)
    return Stack("encoder.block", "encoder.block", encoder), Stack("decoder.block", "decoder.block", decoder)


def _one(ours: str, theirs: str, held: Held) -> tuple[Stack]:
    return (Stack(ours, theirs, held),)


_BERT = _one("encoder.layer", "encoder.layer", BERT)
_LLAMA = Architecture(_one("layers", "layers", LLAMA), False, "model")
_TOWERS = tuple(Stack(f"{tower}.encoder.layers", f"{tower}.encoder.layers", CLIP) for tower in ("text_model", "vision_model"))
_GROUPS = "encoder.albert_layer_groups.0.albert_layers"

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # whose attention hands the library's adapter its input for its output, and its output for the residual
        "albert": Architecture(_one(_GROUPS, _GROUPS, ALBERT), True, "albert", apart=("sublayers",)),
        "bart": Architecture(_bart("final_layer_norm"), True, "model"),
        # whose sublayers scale what they give, in front of the library's adapter and behind ours
        "beit": Architecture(_one("layers", "encoder.layer", BEIT), False, "beit", apart=("ffn", "sublayers")),
        "bert": Architecture(_BERT, True, "bert"),
        "clip": Architecture(_TOWERS, False),
        "deberta-v2": Architecture(_BERT, True, "deberta"),
        "distilbert": Architecture(_one("transformer.layer", "transformer.layer", DISTILBERT), True, "distilbert"),
        "electra": Architecture(_BERT, True, "electra"),
        "gpt2": Architecture(_one("h", "h", GPT2), False, "transformer"),
        "llama": _LLAMA,
        "mbart": Architecture(_bart(""), False, "model"),
        "mistral": _LLAMA,
        "roberta": Architecture(_BERT, True, "roberta"),
        "t5": Architecture(_t5(), False),
        "vit": Architecture(_one("layers", "encoder.layer", VIT), False, "vit"),
        "xlm-roberta": Architecture(_BERT, True, "roberta"),
    }
)
"""By ``model_type``, those that were held to the library (``scripts/check_adapterhub.py``)."""


@dataclass(frozen=True)
class Layout:
    """Where the adapters of a part are in the library's model.

    Attributes:
        known: of the model. found: name of a site -> the adapter there. left_out: layers without any.
    """

    known: Architecture
    found: Mapping[str, Place]
    left_out: list[int]


def architecture(backbone: Backbone) -> Architecture | None:
    """What is known of a backbone's; None if it is not of :data:`ARCHITECTURES`."""
    return ARCHITECTURES.get(backbone.model.config.model_type)


def layout(backbone: Backbone, sites: Sequence[Site]) -> Layout | None:
    """Where adapters at these sites are; None if the library has none at one of them, or can't have them there alone."""
    known = architecture(backbone)
    if known is None:
        return None
    found: dict[str, Place] = {}
    every, first = set[tuple[Location, int]](), 0  # kinds of adapters that there can be in all layers
    for stack in known.stacks:
        path = f"{known.start}{stack.ours}."
        for site in sites:
            number, _, inner = site.name.removeprefix(path).partition(".")
            if site.name.startswith(path) and inner in stack.held:
                location, at = stack.held[inner]
                module = f"{known.start}{stack.theirs}.{number}.{at}"
                found[site.name] = Place(location, first + int(number), module)
        count = len(backbone.model.get_submodule(path[:-1]))
        every |= {(location, first + i) for location, _ in stack.held.values() for i in range(count)}
        first += count
    there = {(place.location, place.layer) for place in found.values()}
    kinds, layers = {kind for kind, _ in there}, {layer for _, layer in there}
    if len(found) < len(sites) or there != {(kind, at) for kind, at in every if kind in kinds and at in layers}:
        return None
    return Layout(known, found, sorted({at for _, at in every} - layers))
