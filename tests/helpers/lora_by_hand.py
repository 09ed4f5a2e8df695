"""LoRA and its options done again in plain PyTorch: hooks on a copy of the Hugging Face model, and masks in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

import by_hand
import tiny

Term = Callable[[str, torch.nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""What is added at a site: of its name, its module, what goes in and comes out, and the values of the part there by role."""


def predict(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray, term: Term, part: str = "lora") -> Tensor:
    """Logits [n, C] of the model with a head put in place, and with a term at each site of a part."""
    model: Any = by_hand.own_copy(run.bench.backbone.model)
    own: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        which, site, role = name.split("/")
        if which == part:
            own.setdefault(site, {})[role] = value
    hooks = []
    for site, w in own.items():

        def add(module: torch.nn.Module, args: Any, out: Tensor, site: str = site, w: Mapping[str, Tensor] = w) -> Tensor:
            return out + term(site, module, args[0], out, w)

        hooks.append(model.get_submodule(site).register_forward_hook(add))
    head = {n: v for n, v in values.items() if n.startswith("head/")}
    try:
        found: Tensor = functional_call(model, by_hand.merged(run, head, 1.0), kwargs=run.bench.table.collate(rows)).logits
    finally:
        for hook in hooks:
            hook.remove()
    return found


def splitmix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, of unsigned integers."""
    value = value.astype(np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def mask(client: int, site: int, row: int, positions: int, features: int, share: float) -> np.ndarray:
    """[positions, features]: what stays of one row, of keys of its client's step and of the site."""
    golden = 0x9E3779B97F4A7C15
    of_row = splitmix(np.array([(client + (row + 1) * golden) % 2**64], np.uint64))
    begin = splitmix(of_row ^ np.uint64(site))
    with np.errstate(over="ignore"):
        places = np.arange(positions * features, dtype=np.uint64) * np.uint64(golden)
        found = splitmix(begin + places) % np.uint64(2**24)
    return (found >= int(share * 2**24)).reshape(positions, features)
