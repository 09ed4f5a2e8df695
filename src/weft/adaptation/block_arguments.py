"""What a block is called with: its hidden states, in the first place or by name, and what else has entries for each row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def with_hidden(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The same arguments with other hidden states."""
    return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})


def inserting(block: Callable[..., Any], tokens: Tensor) -> Callable[..., Any]:
    """A block whose rows have tokens [rows, n, d] put behind their first before it runs."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs)
        longer = torch.cat([hidden[:, :1], tokens.to(hidden), hidden[:, 1:]], 1)
        args, kwargs = with_hidden(longer, args, kwargs)
        return block(*args, **kwargs)

    return forward


def rows_of(value: Any, keep: Tensor, n: int, names: Collection[str], path: str = "") -> Any:
    """The rows ``keep`` of arguments that have entries per row; what is common to all rows stays whole.

    Args:
        n: how many rows there are. names: which arguments have them, by their places (``0``, ``mask``, ``positions.1``).
    """
    if isinstance(value, Tensor):
        if path not in names or not value.dim() or value.shape[0] % n:
            return value
        return value.unflatten(0, (n, -1)).index_select(0, keep.to(value.device)).flatten(0, 1)
    if isinstance(value, tuple):
        return tuple(rows_of(v, keep, n, names, f"{path}.{i}" if path else str(i)) for i, v in enumerate(value))
    if isinstance(value, dict):
        return {k: rows_of(v, keep, n, names, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    return value
