"""Stand-ins for weights that many rows use at once, of which every use is noted in a book (:mod:`weft.tensors.ghost_book`).

Nobody gets at the value of a :class:`Ghost` but by the few functions that are known here: these compute the same with the plain
value, and note what it takes to know each row's gradient. Any other raises :class:`~weft.tensors.ghost_book.Unknown`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.tensors.ghost_book import Book, Unknown


class Ghost(Tensor):
    """A weight of which every use is noted in a book."""

    _book: Book
    _name: str
    _value: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KNOWN:
            try:
                given = _SIGNATURES[func].bind(*args, **(kwargs or {}))
            except TypeError:
                raise Unknown from None
            return _KNOWN[func](*given.args, **given.kwargs)
        if func in _SEEN:  # nothing of its values
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise Unknown


def stand_in(book: Book, name: str, value: Tensor) -> Ghost:
    """For a weight of that name, [1, …]."""
    book.shapes[name] = value.shape[1:]
    return _ghost(book, name, value)


def _ghost(book: Book, name: str, value: Tensor) -> Ghost:
    made = Tensor._make_subclass(Ghost, value)
    made._book, made._name, made._value = book, name, value
    return made


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = _multiplied(input, weight, True, F.linear)
    return out if bias is None else _add(out, bias)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _add(_multiplied(x, weight, False, torch.matmul), bias)


def _multiplied(x: Tensor, weight: Tensor, first: bool, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if isinstance(x, Ghost):
        raise Unknown
    if not isinstance(weight, Ghost):
        return product(x, weight)
    book = weight._book
    return book.note(weight._name, book.rows(x), first, product(x, weight._value))


def _embedding(
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if not isinstance(weight, Ghost) or max_norm is not None or scale_grad_by_freq or sparse or ids.dim() < 2:
        raise Unknown
    book = weight._book
    if len(ids) == 1 and ids.shape[1] > 1:  # places, the same of all rows
        ids = ids.expand(book.n, *ids.shape[1:])
    given = book.rows(ids.unsqueeze(-1)).squeeze(-1)
    skipped = None if padding_idx is None else (given == padding_idx % len(weight._value)).unsqueeze(-1)
    return book.note(weight._name, given, False, F.embedding(ids, weight._value), skipped)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    if isinstance(x, Ghost) or not isinstance(weight, Ghost) or groups != 1 or padding == "same" or x.dim() != 4:
        raise Unknown
    padding = 0 if padding == "valid" else padding
    book, value = weight._book, weight._value
    met = F.unfold(x.detach(), value.shape[2:], dilation, padding, stride).mT
    out = book.note(weight._name, book.rows(met), True, F.conv2d(x, value, None, stride, padding, dilation), maps=True)
    if not isinstance(bias, Ghost):
        return out if bias is None else out + bias.view(-1, 1, 1)
    return out + book.copy(bias._name, bias._value, out.shape[:2]).view(len(out), -1, 1, 1)


def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    if isinstance(x, Ghost):
        raise Unknown
    out = F.layer_norm(x, shape, None, None, eps)
    out = out if weight is None else _mul(out, weight)
    return out if bias is None else _add(out, bias)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if isinstance(x, Ghost):
        raise Unknown
    out = F.rms_norm(x, shape, None, eps)
    return out if weight is None else _mul(out, weight)


def _mul(x: Tensor, y: Tensor) -> Tensor:
    x, y = _spread(x, y)
    return x * y


def _add(x: Tensor, y: Tensor) -> Tensor:
    x, y = _spread(x, y)
    return x + y


def _spread(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two that are to be broadcast to each other, with a copy for each row in the place of a ghost."""
    if isinstance(x, Ghost):
        if not isinstance(y, Tensor) or isinstance(y, Ghost):
            raise Unknown
        return _spread(y, x)
    if not isinstance(y, Ghost):
        return x, y
    if len(y._value) == 1 and y.dim() == x.dim():  # its first axis is that of the rows
        return x, y._book.copy(y._name, y._value, (len(x), *[1] * y.dim())).squeeze(1)
    return x, y._book.copy(y._name, y._value, x.shape)


def _expand(x: Ghost, *sizes: Any) -> Tensor:
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if len(sizes) != x.dim() or len(x._value) != 1 or any(s != -1 for s in sizes[1:]):
        raise Unknown
    return x._book.copy(x._name, x._value, (sizes[0], *[1] * x.dim())).squeeze(1)


def _to(x: Any, *args: Any, **kwargs: Any) -> Any:
    plain: list[Any] = [a._value if isinstance(a, Ghost) else a for a in args]
    return _ghost(x._book, x._name, x._value.to(*plain, **kwargs)) if isinstance(x, Ghost) else x.to(*plain, **kwargs)


def _squeeze(x: Ghost, dim: int) -> Ghost:
    """Without the axis of clients."""
    if dim != 0 or x._value.shape[1:] != x._book.shapes[x._name]:
        raise Unknown
    return _ghost(x._book, x._name, x._value.squeeze(0))


_KNOWN: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.conv2d: _conv2d,
    Tensor.mul: _mul,
    Tensor.add: _add,
    Tensor.expand: _expand,
    Tensor.to: _to,
    Tensor.squeeze: _squeeze,
}
_SIGNATURES = {func: inspect.signature(run) for func, run in _KNOWN.items()}
_SEEN = {
    Tensor.dim,
    Tensor.size,
    Tensor.numel,
    Tensor.stride,
    Tensor.is_floating_point,
    Tensor.__len__,
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_leaf")),
}
