"""A model with parts that PEFT does not know, in ``weft_adapter.safetensors`` and ``weft_adapter.json``, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch as st

from weft.adaptation.adalora import AdaLoRA
from weft.adaptation.attention_adapter import AttentionAdapter
from weft.adaptation.bias import Bias
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.compacter import Compacter
from weft.adaptation.connector import ConnectorAdapter
from weft.adaptation.connector_mixture import ConnectorMixture
from weft.adaptation.dora import DoRA
from weft.adaptation.dylora import DyLoRA
from weft.adaptation.from_weights import FromWeights
from weft.adaptation.head import ChosenHead, Head
from weft.adaptation.hyper_adapter import HyperAdapter
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.norm import Norm
from weft.adaptation.norm_statistics import Statistics
from weft.adaptation.orthogonal import Orthogonal
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.adaptation.residual import Residual
from weft.adaptation.scale import Scale
from weft.adaptation.soft_words import SoftWords
from weft.adaptation.sparse_weights import SparseWeights
from weft.adaptation.stacked_bottleneck import StackedBottleneck
from weft.adaptation.tokens import ClassContext, ImageTokens
from weft.adaptation.vera import VeRA
from weft.adaptation.weights import Weights
from weft.errors import UserError
from weft.export.about import FORMAT, check_format, damaged
from weft.export.peft_files import check_names
from weft.export.trained import Rule, Trained, by_name
from weft.federation.message import ClientInfo
from weft.rules import with_norms, with_options, without_options
from weft.storage import files
from weft.tensors import forms
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.method import Method
    from weft.tasks.task import Task

CONFIG, TENSORS = FILES = "weft_adapter.json", "weft_adapter.safetensors"
MARK = "."  # between the name of a product and the role of its factor, whose scale is in B
LORAS = (LoRA, DoRA, DyLoRA, AdaLoRA, VeRA, Orthogonal, FromWeights)
TOKENS = (ClassContext, ImageTokens, Prefix, SoftWords)
ADAPTERS = (AttentionAdapter, Bottleneck, Compacter, ConnectorAdapter, ConnectorMixture, HyperAdapter, StackedBottleneck)
BESIDES = (Bias, Norm, Residual, Scale, SparseWeights, Statistics)
PARTS = (*LORAS, *TOKENS, *ADAPTERS, *BESIDES, ChosenHead, Delta, Head, Weights)
KINDS: dict[str, type] = {kind.__name__: kind for kind in PARTS}
"""Parts that are described by their settings. A model with others is described by its method."""


def write(trained: Trained, method: Method, view: str, facts: dict[str, Any], backbone: Backbone, folder: Path) -> None:
    """Write both files."""
    from weft.methods import registry

    plain = {n: LowRank(v.B * v.scale, v.A) if isinstance(v, LowRank) else v for n, v in trained.values.items()}
    tensors = {n: t.contiguous() for n, t in forms.flatten(plain, MARK)[0].items()}
    rule = trained.rule
    if rule is None and not all(KINDS.get(type(p).__name__) is type(p) for p in trained.parts.values()):
        rule = by_name(method, view, facts)
    parts = {
        name: {
            "kind": type(part).__name__,
            "settings": asdict(part) if rule is None else {},  # type: ignore[call-overload]
            "sites": [s.name for s in part.sites(backbone)],
            "weight": trained.use.get(name, 1.0),
        }
        for name, part in trained.parts.items()
    }
    by_method = None
    if rule is not None:
        bare = without_options(rule.method)
        by_method = {"slug": bare.info.slug, "settings": registry.values(bare), "view": rule.view, "facts": dict(rule.facts)}
        by_method["lora"] = getattr(rule.method, "lora_options", LoRAOptions()).chosen
        by_method["batch_norms"] = getattr(rule.method, "norm_statistics", "frozen")
    content = {"format": FORMAT, "parts": parts, "forward": by_method}
    files.write(folder / CONFIG, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    files.write(folder / TENSORS, st.save(tensors, {"format": "pt"}))


def read(folder: Path, backbone: Backbone, task: Task) -> Trained:
    """Undo :func:`write`.

    Raises:
        UserError: the files are damaged, do not fit the backbone, or need a method that is not installed.
    """
    try:
        content = files.parsed(files.read(folder / CONFIG))
        check_format(folder / CONFIG, content["format"])
        tensors = st.load(files.read(folder / TENSORS))
        parts, rule = _parts(content, backbone, task)
        use = {name: float(p["weight"]) for name, p in content["parts"].items() if not parts[name].always}
        values = forms.restore(tensors, dict.fromkeys(forms.factored(tensors, MARK), 1.0), MARK)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
        raise damaged(folder, e) from e
    trained = Trained(parts, values, use, rule)
    check_names(trained, backbone, folder)
    return trained


def _parts(content: dict[str, Any], backbone: Backbone, task: Task) -> tuple[dict[str, Part], Rule | None]:
    given = content["parts"]
    asked = content["forward"]
    if asked is None:
        for part in given.values():
            if part["kind"] not in KINDS:
                raise UserError(f"this version of Weft has no part {part['kind']}: use the version that wrote the model.")
        return {n: KINDS[p["kind"]](**p["settings"]) for n, p in given.items()}, None
    from weft.methods import registry

    method = with_options(registry.build(asked["slug"], asked["settings"]), LoRAOptions(**asked.get("lora", {})))
    method = with_norms(method, asked.get("batch_norms", "frozen"))
    adaptation = method.adapt(backbone, task, ClientInfo("", 0, asked["facts"]))
    return {n: adaptation[n][0] for n in given}, Rule(method, asked["view"], asked["facts"])
