"""What was found in a backbone, as plain data for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from weft.backbones.backbone import Backbone
from weft.backbones.describe import find_blocks, stack
from weft.backbones.model_site import Site
from weft.backbones.pixels import picture_shape


def inventory(backbone: Backbone) -> dict[str, Any]:
    """Names, sizes and counts of everything that a part can sit on."""
    b = backbone
    biases = [(s.name, s.d_out) for s in (*b.linears, *b.norms, *b.outer, *b.patches, *b.convolutions) if s.bias]
    return {
        "name": b.name,
        "type": b.kind,
        "class": type(b.model).__name__,
        "parameters": b.parameters,
        "reads": b.reads,
        "task": "similarity" if b.names is not None else b.options.task if b.options.task != "auto" else "classification",
        "options": asdict(b.options),
        "input": _site(b.reader),
        "blocks": {
            "path": stack(b.blocks),
            "count": len(b.blocks),
            "hidden_size": b.d,
            "separate": b.separate_blocks,
            "shared": b.shared_blocks,
            "tokens_of_a_picture": (b.blocks and not b.maps and b.picture_tokens) or None,
            "maps": [list(m) for m in b.maps] or None,
        },
        "encoders": [_encoder(one) for one in b.encoders],
        "linears": grouped(b.linears, b.blocks),
        "convolutions": len(b.convolutions) + (len(b.patches) if b.maps else 0),
        "norms": {
            "in_blocks": sum(s.block is not None for s in b.norms),
            "outside": [s.name for s in b.norms if s.block is None],
        },
        "biases": {"vectors": len(biases), "elements": sum(size for _, size in biases)},
        "bottlenecks": {
            "count": len(b.bottlenecks),
            "place": f"before the norm {_inside(b.bottlenecks[0].name, b.blocks)} that ends a block"
            if b.bottlenecks and b.bottlenecks[0].role == "ffn.norm"
            else "after a block",
        },
        "head": {"reads": b.pools, "modules": [_site(s) for s in b.heads]},
        "output_layer": None if b.vocabulary is None else asdict(b.vocabulary),
        "outside": [_site(s) for s in b.outer],
        "text_tower": None if b.names is None else _text_tower(b),
        "checked": checked(b),
        "notes": [*b.notes, *cautions(b)],
    }


def checked(backbone: Backbone) -> dict[str, Any]:
    """What was compared when it was loaded; what did not fit is among the notes, or was refused."""
    b = backbone
    new = {f"{s.name}.{n}" for s in b.heads for n, _ in b.module(s.name).named_parameters()}
    table = None if b.tokenizer is None else (b.model if b.names is None else b.model.text_model).get_input_embeddings()
    return {
        "tensors": sum(n not in new for n, _ in b.model.named_parameters()),
        "new": [s.name for s in b.heads],
        "tokens": None if b.tokenizer is None else len(b.tokenizer),
        "rows_of_the_embedding": getattr(table, "num_embeddings", None),
        "longest_row": b.max_length or None,
    }


def cautions(backbone: Backbone) -> list[str]:
    """What some methods can't do on this backbone, a sentence each."""
    found = []
    if not backbone.separate_blocks:
        staged = "patches are merged between blocks" if backbone.staged_blocks else "blocks hand on more than their hidden states"
        staged = "maps have other sizes from block to block" if backbone.maps else staged
        why = "one block is called several times" if backbone.shared_blocks else staged
        cached = "" if backbone.starts_anywhere else ", and frozen lower blocks are not cached"
        found.append(f"{why}: methods that leave blocks out can't be used{cached}.")
    if not backbone.blocks:
        what = "its encoders are taken as they are" if backbone.encoders else "its tower of pictures is taken as a whole"
        found.append(f"{what}: methods that put something inside {'them' if backbone.encoders else 'it'} can't be used.")
    elif not backbone.linears:
        found.append("there are no linear layers in its blocks: methods of LoRA can't be used.")
    elif not any(s.bias for s in (*backbone.linears, *backbone.norms)):
        found.append("there are no biases: methods that train them need --set method.add_missing=true.")
    if any(isinstance(backbone.module(s.name), _BatchNorm) for s in backbone.norms):
        found.append(
            "batch norms keep the checkpoint's statistics, in training too, unless --batch-norms says averaged or static; their "
            "weights and biases can be trained."
        )
    if not backbone.heads and backbone.names is not None:
        found.append("there is no head: class names in the text tower stand for one.")
    return found


def grouped(sites: Iterable[Site], blocks: list[str]) -> list[dict[str, Any]]:
    """Sites that are alike in all blocks as one, with their number."""
    counts: Counter[tuple[str, str, int, int, bool, bool]] = Counter(
        (s.role, _inside(s.name, blocks), s.d_in, s.d_out, s.bias, s.per_row) for s in sites
    )
    keys = ("role", "name", "d_in", "d_out", "bias", "per_row")
    return [dict(zip(keys, key, strict=True)) | {"count": n} for key, n in counts.items()]


def _text_tower(b: Backbone) -> dict[str, Any]:
    blocks = find_blocks(b.model.text_model, "text_model", int(b.model.config.text_config.num_hidden_layers))
    return {
        "words": _site(b.words),
        "joint_embedding": _site(b.embedding),
        "blocks": {"path": blocks[0].rsplit(".", 1)[0], "count": len(blocks)},
        "linears": grouped((replace(s, bias=b.module(s.name).bias is not None) for s in b.text_linears), blocks),
    }


def _encoder(b: Backbone) -> dict[str, Any]:
    """One of several that stand side by side."""
    height, width = picture_shape(b.model.config, b.processor)[1:]
    return {"name": b.name, "type": b.kind, "height": height, "width": width, "features": b.features}


def _inside(name: str, blocks: list[str]) -> str:
    """A module's name within its block."""
    return next((name.removeprefix(b + ".") for b in blocks if name.startswith(b + ".")), name)


def _site(site: Site | None) -> dict[str, Any] | None:
    return None if site is None else {"name": site.name, "d_in": site.d_in, "d_out": site.d_out, "bias": site.bias}
