"""Class names with a context before them, through a library's own model: its token embedding is made to give the context."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CONTEXT = 7
"""Id of the token that stands where a vector of the context is put; no class name holds it."""


def in_context(table: nn.Module, context: Tensor, run: Callable[[Tensor], Tensor], rows: list[list[int]]) -> Tensor:
    """What ``run`` makes of token rows, in each of which the i-th ``CONTEXT`` is the i-th vector of the context [p, d].

    Args:
        table: the token embedding of the model that ``run`` runs.
    """
    ids = torch.tensor(rows)
    here = ids == CONTEXT
    assert here.sum(1).eq(len(context)).all()

    def put(_m: nn.Module, _a: Any, out: Tensor) -> Tensor:
        changed = out.clone()
        changed[here] = context.to(out).repeat(len(ids), 1)
        return changed

    handle = table.register_forward_hook(put)
    try:
        return run(ids)
    finally:
        handle.remove()


@contextmanager
def counted(module: nn.Module) -> Any:
    """How many rows go through a module, as a list of one number."""
    seen = [0]
    handle = module.register_forward_pre_hook(lambda _m, args: seen.__setitem__(0, seen[0] + len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()
