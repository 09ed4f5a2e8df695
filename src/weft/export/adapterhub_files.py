"""A model of bottleneck adapters of one kind, and a head, as AdapterHub's library ``adapters`` (1.3) saves them, and back.

C. Poth et al., "Adapters: A Unified Library for Parameter-Efficient and Modular Transfer Learning", EMNLP 2023, arXiv
2311.11077. ``adapter_config.json`` has all fields of the library's ``BnConfig``, ``adapter.safetensors`` the matrices, by the
modules that hold them; the head lies whole in ``model_head.safetensors``, by its names in the class of transformers that
``head_config.json`` names. The library rests on an older transformers than Weft does, so that no export can ask it.

Of a Compacter the library has rows on the left, y = x H with H = Σ_i A_i ⊗ W_i: all factors are transposed there, the A_i that
are common to all matrices too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch as st
from torch import Tensor

from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.compacter import RULE, Compacter
from weft.adaptation.head import Head
from weft.adaptation.hyper_adapter import HyperAdapter
from weft.adaptation.stacked_bottleneck import StackedBottleneck
from weft.adaptation.values import NOWHERE
from weft.export import adapterhub_config, peft_files
from weft.export.about import brings_code, damaged
from weft.export.adapterhub_config import Adapter
from weft.export.adapterhub_places import Layout, architecture, layout
from weft.export.trained import Trained
from weft.storage import files
from weft.tensors.forms import Value

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.export.about import About

CONFIG, TENSORS = FILES = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_TENSORS = HEAD_FILES = "head_config.json", "model_head.safetensors"
VERSION = "adapters.1.3.0"
DOWN, UP = "adapter_down.0", "adapter_up"
PLAIN = {"down": f"{DOWN}.weight", "down_bias": f"{DOWN}.bias", "up": f"{UP}.weight", "up_bias": f"{UP}.bias"}
PRODUCTS = {
    "down_left": f"{DOWN}.W_right",
    "down_right": f"{DOWN}.W_left",
    "down_bias": f"{DOWN}.b",
    "up_left": f"{UP}.W_right",
    "up_right": f"{UP}.W_left",
    "up_bias": f"{UP}.b",
}
"""Roles of ours -> names in an adapter of theirs."""


def concerns(trained: Trained) -> bool:
    """Whether there are bottleneck adapters, of which AdapterHub has some kinds."""
    return any(isinstance(part, Bottleneck | Compacter | HyperAdapter | StackedBottleneck) for part in trained.parts.values())


def against(trained: Trained, backbone: Backbone) -> str | None:
    """Why AdapterHub's library would not predict the same, None where it does.

    Args:
        trained: that this module :func:`concerns`.
    """
    name, *more = [n for n, part in trained.parts.items() if type(part) is not Head]
    part = trained.parts[name]
    if trained.rule is not None:
        return "its method predicts by more than weights of parts, which no file of AdapterHub's says"
    if more or trained.use[name] != 1.0:
        return "it has several adapters at one place, or parts of another kind, and a file of AdapterHub's holds one adapter"
    if not isinstance(part, Bottleneck | Compacter):
        made = isinstance(part, HyperAdapter)
        return (
            "a network makes its adapters anew of every row, and AdapterHub's are the same for all"
            if made
            else "its adapters are stacks that grow, and a file of AdapterHub's holds one adapter"
        )
    if peft_files.plain_class(backbone) is None or brings_code(backbone):
        return "its base is of no class of transformers' own, which are those that AdapterHub's library knows"
    if not peft_files.whole(trained, backbone):
        return "the head of its base is no part of it"
    return _against_place(part, backbone)


def _against_place(part: Adapter, backbone: Backbone) -> str | None:
    known, config = architecture(backbone), backbone.model.config
    if known is None:
        return f"nobody has established where AdapterHub's library has adapters in a model of type {config.model_type}"
    if part.placement == "parallel" and not known.post_norm:
        return "AdapterHub's parallel adapters read what a norm in front of a feed-forward is given, and these what it gives"
    if part.placement in known.apart:
        return f"AdapterHub's library makes something else of the placement {part.placement} in a {config.model_type}"
    there = layout(backbone, adapterhub_config.sites(part, backbone))
    kinds = set() if there is None else {place.location for place in there.found.values()}
    if kinds - {"cross_adapter"} != ({"mh_adapter", "output_adapter"} if part.placement == "sublayers" else {"output_adapter"}):
        return "its adapters are at layers where AdapterHub's library has none"
    towers = [tower for tower in ("text_config", "vision_config") if hasattr(config, tower)]
    if isinstance(part, Compacter) and len({getattr(config, tower).hidden_size for tower in towers}) > 1:
        return "AdapterHub's library shares products among towers of one width, and these are of two"
    return None


def write(trained: Trained, backbone: Backbone, about: About, folder: Path) -> list[str]:
    """Write the adapter, and the head if there is one; returns the names of the files.

    Args:
        trained: with nothing :func:`against` it.
    """
    name = next(n for n, part in trained.parts.items() if type(part) is not Head)
    part, config, called = trained.parts[name], backbone.model.config, about.method["slug"]
    assert isinstance(part, Bottleneck | Compacter)
    sites = adapterhub_config.sites(part, backbone)
    there = layout(backbone, sites)
    assert there is not None
    common = {
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "model_name": about.base.reference,
        "model_class": "CLIPModel" if backbone.names is not None else type(backbone.model).__name__,
        "version": VERSION,
    }
    _write(folder / CONFIG, common | {"name": called, "config": adapterhub_config.of(part, there, sites[0].d_out)})
    names = _names(part, there, called)
    adapter = {theirs: _turned(trained.values[f"{name}/{ours}"], part) for ours, theirs in names.items()}
    files.write(folder / TENSORS, st.save(adapter, {"format": "pt"}))
    head: dict[str, Tensor] = {}
    for tensor, value in trained.values.items():
        of, site, role = tensor.split("/")
        if of != name:
            assert isinstance(value, Tensor)
            head[f"{site}.{role}"] = value.contiguous()
    if not head:
        return list(FILES)
    labels = {"label2id": {label: i for i, label in enumerate(about.classes)}, "num_labels": len(about.classes)}
    _write(folder / HEAD_CONFIG, common | labels | {"name": None, "config": None})
    files.write(folder / HEAD_TENSORS, st.save(head, {"format": "pt"}))
    return [*FILES, *HEAD_FILES]


def _write(path: Path, content: dict[str, Any]) -> None:
    files.write(path, (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _names(part: Adapter, there: Layout, called: str) -> dict[str, str]:
    """Names of all tensors: ours, "site/role", -> theirs.

    Args:
        called: the name of the adapter.
    """
    products = isinstance(part, Compacter)
    names = {f"{NOWHERE.called}/{RULE}": f"{there.known.start}shared_parameters.{called}.phm_rule"} if products else {}
    roles = (PRODUCTS if products else PLAIN) | ({"scaling": "scaling"} if part.scaling == "learned" else {})
    for site, place in there.found.items():
        names |= {f"{site}/{ours}": f"{place.module}.adapters.{called}.{theirs}" for ours, theirs in roles.items()}
    return names


def _turned(value: Value, part: Adapter) -> Tensor:
    """A tensor of ours as theirs is, and back."""
    assert isinstance(value, Tensor)
    return (value.mT if isinstance(part, Compacter) and value.dim() > 1 else value).contiguous()


def read(folder: Path, backbone: Backbone) -> Trained:
    """The model in a folder that :func:`write` wrote.

    Raises:
        UserError: the files are damaged, or do not fit the backbone.
    """
    try:
        content = files.parsed(files.read(folder / CONFIG))
        tensors = st.load(files.read(folder / TENSORS))
        part = adapterhub_config.part_of(content["config"], backbone)
        there = layout(backbone, adapterhub_config.sites(part, backbone))
        if there is None:
            raise ValueError(f"its adapters have no place in a model of type {backbone.model.config.model_type}")
        names = {theirs: ours for ours, theirs in _names(part, there, content["name"]).items()}
        if odd := sorted(tensors.keys() ^ names.keys()):
            raise ValueError(f"{odd[0]} is {'missing' if odd[0] in names else 'not a tensor of this model'}")
        values: dict[str, Value] = {f"adapter/{ours}": _turned(tensors[theirs], part) for theirs, ours in names.items()}
        head = st.load(files.read(folder / HEAD_TENSORS)) if (folder / HEAD_TENSORS).is_file() else {}
        for name, value in head.items():
            site, role = name.rsplit(".", 1)
            values[f"head/{site}/{role}"] = value
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise damaged(folder, e) from e
    trained = Trained({"adapter": part} | ({"head": Head()} if head else {}), values, {"adapter": 1.0})
    peft_files.check_names(trained, backbone, folder)
    return trained
