"""Bytes of n entries are those of each codec's formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import ceil, log2

import pytest
import torch

from weft.communication.codecs import codec
from weft.tensors.keyed import generator


def kept(share: float, n: int) -> int:
    return min(max(round(share * n), 1), n)


def places(share: float, n: int) -> int:
    k = kept(share, n)
    return 0 if k == n else min(ceil(k * ceil(log2(n)) / 8), ceil(n / 8))


FORMULAS: dict[str, Callable[[int], int]] = {
    "identity": lambda n: 4 * n,
    "quant8": lambda n: n + 4,
    "qsgd": lambda n: ceil(n * 4 / 8) + 4 * ceil(n / 512),
    "qsgd:levels=1,bucket=10": lambda n: ceil(n * 2 / 8) + 4 * ceil(n / 10),
    "qsgd:levels=4,bucket=64,norm=l2": lambda n: ceil(n * 4 / 8) + 4 * ceil(n / 64),
    "qsgd:levels=15": lambda n: ceil(n * 5 / 8) + 4 * ceil(n / 512),
    "qsgd:levels=127": lambda n: n + 4 * ceil(n / 512),
    "qsgd:levels=32767": lambda n: 2 * n + 4 * ceil(n / 512),
    "adaptive:bits=2": lambda n: ceil(n * 2 / 8) + 4 * ceil(n / 512) + 1,
    "block8": lambda n: n + 4 * ceil(n / 256),
    "nf4": lambda n: ceil(n / 2) + 4 * ceil(n / 64),
    "fp4:block=7": lambda n: ceil(n / 2) + 4 * ceil(n / 7),
    "half": lambda n: 2 * n + 4,
    "half:format=bf16": lambda n: 2 * n + 4,
    "sign": lambda n: ceil(n / 8) + 4,
    "topk:share=0.01": lambda n: 4 * kept(0.01, n) + places(0.01, n),
    "topk:share=0.5": lambda n: 4 * kept(0.5, n) + places(0.5, n),
    "topk:share=1.0": lambda n: 4 * n,
    "randk:share=0.1": lambda n: 4 * kept(0.1, n),
    "topk:share=0.01+quant8": lambda n: kept(0.01, n) + 4 + places(0.01, n),
    "topk:share=0.1+nf4": lambda n: ceil(kept(0.1, n) / 2) + 4 * ceil(kept(0.1, n) / 64) + places(0.1, n),
    "randk:share=0.25+qsgd:levels=3,bucket=100": lambda n: ceil(kept(0.25, n) * 3 / 8) + 4 * ceil(kept(0.25, n) / 100),
}


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 64, 65, 511, 513, 1000, 4097])
@pytest.mark.parametrize("text", FORMULAS)
def test_bytes_are_the_formula(text: str, n: int) -> None:
    x = torch.randn(n, generator=generator(0, "x"))
    wire, _ = codec(text).encode({"a/x": x}, generator(0), common=generator(1))
    assert sum(t.numel() * t.element_size() for t in wire.values()) == FORMULAS[text](n)


@pytest.mark.parametrize("weight", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("power", [1e-6, 1e-2, 1.0, 1e3])
def test_bytes_of_nnadq_follow_from_the_range(weight: float, power: float) -> None:
    x = torch.randn(1001, generator=generator(0, "x")) * power
    span = float(x.max()) - float(x.min())
    levels = math.ceil(max(1, math.sqrt(span * 32 * math.log(4) / weight)))
    bits = min(max(math.ceil(math.log2(levels)), 1), 16)
    wire, _ = codec(f"nnadq:weight={weight}").encode({"a/x": x}, None)
    assert sum(t.numel() * t.element_size() for t in wire.values()) == ceil(1001 * bits / 8) + 8


@pytest.mark.parametrize("bits", [2, 3.5, 4, 8, 12])
def test_adaptive_keeps_to_its_budget_and_uses_it_up(bits: float) -> None:
    tensors = {f"a/{i}": torch.randn(100 + i, generator=generator(i, "x")) * 10.0**-i for i in range(6)}
    wire, _ = codec(f"adaptive:bits={bits}").encode({n: x.clone() for n, x in tensors.items()}, generator(0))
    each = {n: int(wire[n + "::bits"]) for n in tensors}
    spent = sum(b * tensors[n].numel() for n, b in each.items())
    total = sum(x.numel() for x in tensors.values())
    assert bits * total - 106 < spent <= bits * total  # the largest tensor's next bit does not fit any more
    payload = sum(t.numel() * t.element_size() for t in wire.values())
    assert payload == sum(ceil(tensors[n].numel() * b / 8) + 4 + 1 for n, b in each.items())
