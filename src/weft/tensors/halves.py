"""Numbers of 16 bits as integers, so that they cross the wire as they are: each integer below the bound is a finite number."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 0x7C00
"""Of one sign: 0, and all positive float16 below infinity."""
HALVES = 2 * HALF


def halves(values: Tensor) -> Tensor:
    """int64 below :data:`HALVES` for the nearest finite float16: its bits, or those of its absolute value and ``HALF`` more."""
    largest = torch.finfo(torch.float16).max
    bits = values.clamp(-largest, largest).to(torch.float16).view(torch.int16).long() & 0xFFFF
    return (bits & 0x7FFF) + (bits >> 15) * HALF


def numbers(codes: Tensor) -> Tensor:
    """float16: undo :func:`halves`."""
    negative = codes >= HALF
    found = (codes - HALF * negative).to(torch.int16).view(torch.float16)
    return torch.where(negative, -found, found)
