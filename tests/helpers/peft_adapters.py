"""LoRA adapters made and read by PEFT alone, without a line of ours, for tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiny


def base(kind: str = "bert", classes: int = 3) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(99)
    model = AutoModelForSequenceClassification.from_pretrained(tiny.folder(kind), num_labels=classes)
    model.config.pad_token_id = model.config.pad_token_id or 0
    return model.eval()


def saved(folder: Path, seed: int = 0, kind: str = "bert", classes: int = 3, head: bool = True, **config: Any) -> Path:
    """An adapter of random factors, and a random head if there is to be one, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    usual: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}
    kind_of_task = {"task_type": "SEQ_CLS"} if head else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base(kind, classes), LoraConfig(**(usual | kind_of_task | config)))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.3 if "lora_" in name else 0.5))
    model.save_pretrained(str(folder))
    return folder


def loaded(folder: Path, kind: str = "bert", classes: int = 3) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base(kind, classes), str(folder)).eval()


def deltas(model: Any) -> dict[str, Tensor]:
    """ΔW of each module that PEFT adapts, float64, by PEFT's own arithmetic."""
    layers = {n.removeprefix("base_model.model."): m for n, m in model.double().named_modules() if hasattr(m, "lora_A")}
    return {n: m.get_delta_weight("default").detach() for n, m in layers.items() if "default" in m.lora_A}


def bounds(model: Any) -> dict[str, Tensor]:
    """scale · |B| |A| of each module: what a rounding of B's entries by a share moves ΔW by, at most, in units of that share."""
    found = {}
    for name, m in model.double().named_modules():
        if hasattr(m, "lora_A"):
            a, b = m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach()
            product = m.scaling["default"] * b.abs() @ a.abs()
            found[name.removeprefix("base_model.model.")] = product.mT if m.fan_in_fan_out else product
    return found


def heads(model: Any) -> dict[str, Tensor]:
    """What PEFT has put in the place of modules that were saved whole."""
    mark = ".modules_to_save.default."
    return {n.removeprefix("base_model.model.").replace(mark, "."): p.detach() for n, p in model.named_parameters() if mark in n}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**inputs).logits
    return found
