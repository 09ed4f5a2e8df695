"""What a model computes on: a device, a precision and an attention kernel."""

from __future__ import annotations

from typing import Any

import torch

from weft.backbones.options import LANGUAGE
from weft.errors import UserError, nearest

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: a device that this machine lacks.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if have["cuda"] else "mps" if have["mps"] else "cpu"
    kind = name.split(":")[0]
    if kind not in have:
        raise UserError(f'unknown device "{name}": use auto, cpu, cuda or mps.{nearest(name, have)}')
    if not have[kind]:
        raise UserError(f"this machine has no {kind} device that PyTorch can use; use --device cpu.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` = bfloat16 where the processor computes in it, else float32."""
    if name != "auto":
        if name not in PRECISIONS:
            raise UserError(f'unknown precision "{name}": use auto, {", ".join(PRECISIONS)}.{nearest(name, PRECISIONS)}')
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    caps = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(caps.get("avx512_bf16") or caps.get("amx_bf16") or caps.get("amx_tile"))


def move(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Onto a device and into a precision, but for the frequencies of rotary positions: rounded to half precision they turn far
    tokens by other angles, and transformers keeps them in single precision too.
    """
    exact = {name: value for name, value in model.named_buffers() if name.endswith("inv_freq")}
    model.to(device=device, dtype=dtype)
    for name, value in exact.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, value.to(device, torch.promote_types(value.dtype, dtype)))


def attend(model: Any, attention: str, device: torch.device, dtype: torch.dtype, task: str) -> None:
    """Have it attend by a kernel, as of :func:`load`."""
    if attention == "auto":  # the eager kernel takes its softmax in float32, too coarse for float64
        attention = "eager" if device.type == "cpu" and dtype != torch.float64 and task not in LANGUAGE else ""
    if attention:
        model.set_attn_implementation(attention)
