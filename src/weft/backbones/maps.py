"""Maps of convolutions, [rows, features, height, width]: which networks have them, and what only trying out tells of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mean(of: Tensor) -> Tensor:
    """Over all places, as a map of one place, as networks themselves take it."""
    return F.adaptive_avg_pool2d(of, 1)


def shape_of(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def shapes(
    blocks: list[str], entered: Mapping[str, Tensor], left: Mapping[str, Any], read: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, int, int], ...]:
    """(features, height, width) of what enters each block, and of what leaves the last; () if these are no maps.

    Args:
        entered, left: by block. read: shapes of what convolutions were called with, by name: one in each block reads what enters
            it, for other networks have tokens in four axes too.
    """
    for name in blocks:
        shape, inside = shape_of(entered.get(name)), {s for n, s in read.items() if n.startswith(name + ".")}
        if len(shape) != 4 or len(shape_of(left[name])) != 4 or shape not in inside:
            return ()
    every = [tuple(entered[name].shape[1:]) for name in blocks] + [tuple(left[blocks[-1]].shape[1:])]
    return tuple((c, h, w) for c, h, w in every)


@contextmanager
def _instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules compute something else."""
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


@torch.no_grad()
def start(blocks: list[nn.Module], entered: Tensor, model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor) -> bool:
    """Whether logits stay when the blocks below the last hand on what they get, and the last is given what entered it."""
    last = blocks[-1].forward
    try:
        with _instead({b: lambda hidden, *_a, **_k: hidden for b in blocks[:-1]} | {blocks[-1]: lambda *_a, **_k: last(entered)}):
            return torch.allclose(model(**inputs).logits, logits)
    except Exception:  # whatever lies between the blocks makes of maps of another size
        return False


@torch.no_grad()
def pooled(last: nn.Module, model: nn.Module, inputs: Mapping[str, Tensor], logits: Tensor) -> str:
    """``mean`` if the mean over the places of the last map says all of it, else ``all``."""
    own = last.forward
    try:
        with _instead({last: lambda *args, **kwargs: mean(own(*args, **kwargs))}):
            return "mean" if torch.allclose(model(**inputs).logits, logits) else "all"
    except Exception:  # of a head that counts places
        return "all"
