"""Frozen weights of 8 or 4 bits: which library quantises them on a device, and what transformers is told.

Parts are trained in single precision beside them, and no rule ever merges a delta into them. Of a batch nothing but a token's own
row may decide how it is rounded: LLM.int8's search for outlier columns goes over the whole batch, so that one client's rows would
move another's logits; it is switched off.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from weft import distribution
from weft.errors import UserError

EXTRA = "quantised"
LIBRARIES = {
    # On a CPU weight-only int8 leaves activations as they are: hidden states of SmolLM2 are off by 3 %, LLM.int8's by 10 %.
    ("int8", "cpu"): ("torchao", "bitsandbytes"),
    ("int8", "cuda"): ("bitsandbytes", "torchao"),
    ("int4", "cpu"): ("bitsandbytes",),  # torchao's int4 wants a kernel library of CUDA's
    ("int4", "cuda"): ("bitsandbytes",),
}
ALL = ("bitsandbytes", "torchao")
OUTLIERS = 0.0
"""Of LLM.int8: no column is one. Its default, 6.0, mixes clients."""


@dataclass(frozen=True)
class Quantisation:
    """How a base is quantised: ``kind`` is int8 or int4."""

    kind: str
    library: str

    def __str__(self) -> str:
        return f"{self.kind} by {self.library}"

    def config(self, dtype: torch.dtype) -> Any:
        """For from_pretrained.

        Args:
            dtype: of what is computed.

        Raises:
            UserError: the library can't be imported.
        """
        quiet(self.library)
        try:
            if self.library == "torchao":
                from transformers import TorchAoConfig

                return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
            from transformers import BitsAndBytesConfig

            importlib.import_module("bitsandbytes")
            if self.kind == "int8":
                return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIERS)
            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        except Exception as e:  # of a library that was built for another release of PyTorch
            raise UserError(
                f"{self.library} is installed but can't be used ({' '.join(str(e).split())[:200]}): get another."
            ) from e


def quantisation(kind: str, device: torch.device) -> Quantisation | None:
    """The first library for it that is installed; None = weights stay as they are.

    Raises:
        UserError: none is, or nothing does it on this device.
    """
    if kind == "none":
        return None
    able = LIBRARIES.get((kind, device.type), ())
    if not able:
        raise UserError(f"nothing quantises to {kind} on {device.type}: leave --quantise out, or use --device cpu or cuda.")
    for name in able:
        if find_spec(name) is not None:
            return Quantisation(kind, name)
    raise UserError(f"--quantise {kind} needs {' or '.join(able)}: {distribution.install(EXTRA)}.")


def quiet(library: str) -> None:
    """bitsandbytes says at every layer of every pass that it computes in half precision."""
    logging.getLogger({"bitsandbytes": "bitsandbytes.autograd._functions"}.get(library, library)).setLevel(logging.ERROR)


def is_quantised(model: Any) -> bool:
    """By us, or as its checkpoint says."""
    return bool(getattr(model, "is_quantized", False)) or getattr(model, "hf_quantizer", None) is not None


def inner(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of: itself, but for torchao's, which hold their numbers and scales apart."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or type(tensor) in (Tensor, nn.Parameter):
        return [tensor]
    names, _ = flatten()
    return [plain for name in names for plain in inner(getattr(tensor, name))]


def size(tensor: Tensor) -> int:
    """Bytes that it takes."""
    return sum(t.numel() * t.element_size() for t in inner(tensor))


def differentiable(model: Any) -> None:
    """Keep bitsandbytes from packing weights of 4 bits for inference on a CPU, as it does in the first pass without gradients of
    a model in eval mode: from then on its layers would cut the gradient off.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def check(name: str, model: Any, blocks: list[str], by: Quantisation) -> None:
    """
    Raises:
        UserError: the library has left the model as it was, or its layers let no gradient through.
    """
    inside = [m for b in blocks for m in model.get_submodule(b).modules()]
    layers = [m for m in inside if isinstance(m, nn.Linear) and (type(m) is not nn.Linear or len(inner(m.weight)) > 1)]
    if not layers:
        raise UserError(f'{by.library} quantises no layer of backbone "{name}": leave --quantise out.')
    x = torch.ones(2, layers[0].in_features, dtype=model.dtype, device=model.device)
    layers[0](x)
    with torch.enable_grad():
        if not layers[0](x.requires_grad_()).requires_grad:
            raise UserError(f"{by.library} gives no gradients on {model.device.type}: leave --quantise out.")
