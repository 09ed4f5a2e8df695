"""The output layer of a language model, of which a pass never holds more than a few rows of logits at once.

With a vocabulary of 50,000 to 250,000 tokens the logits of a batch and their gradient may be larger than all activations.
Where the layer is frozen, the gradient of a cross-entropy by what the layer reads can be formed in the forward pass, chunk by
chunk, and is all that is kept. Where it is trained, the logits of a chunk are made once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 23
"""Logits held at once: 32 MiB in float32."""

ROWS = 256
"""Rows whose logits are held at once, at the least: fewer take longer than all rows together, as each chunk reads all weights."""


@dataclass(frozen=True)
class OutputLayer:
    """logits = h Wᵀ + b.

    Attributes:
        weight: [C, d]; None where the rows that it is given are logits already, of a model that does more than a product.
        bias: [C] or None.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, h: Tensor) -> Tensor:
        """Logits [r, C] of [r, d], at least float32."""
        z = h if self.weight is None else F.linear(h.to(self.weight), self.weight, self.bias).to(h.device)
        return z if z.dtype == torch.float64 else z.float()

    def size(self, h: Tensor) -> int:
        """C, for rows like these."""
        return int(h.shape[-1] if self.weight is None else self.weight.shape[0])

    def chunks(self, h: Tensor) -> Iterator[slice]:
        """Slices of rows whose logits are held at once."""
        step = max(CHUNK // max(self.size(h), 1), ROWS)
        for start in range(0, len(h), step):
            yield slice(start, start + step)

    def cross_entropy(self, h: Tensor, labels: Tensor) -> Tensor:
        """-log softmax at the label: [r, d], [r] -> [r]. Of a frozen layer it has no second derivative; :func:`each` has."""
        if self.weight is None:
            return F.cross_entropy(self(h), labels, reduction="none")
        if self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad):
            return each(lambda z, y: F.cross_entropy(z, y, reduction="none"), [(h, self)], [labels])
        losses: Tensor = _CrossEntropy.apply(h, labels, self)
        return losses


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, labels: Tensor, layer: OutputLayer) -> Tensor:
        weight, wanted = layer.weight, ctx.needs_input_grad[0]
        assert weight is not None
        losses = h.new_empty(len(h), dtype=torch.float64 if h.dtype == torch.float64 else torch.float32)
        slope = torch.empty_like(h) if wanted else None
        for part in layer.chunks(h):
            z, y = layer(h[part].to(weight.device)), labels[part].unsqueeze(1).to(weight.device)
            total = z.logsumexp(-1, keepdim=True)
            losses[part] = (total - z.gather(1, y)).squeeze(1).to(losses.device)
            if slope is not None:
                p = z.sub_(total).exp_()
                p.scatter_add_(1, y, p.new_full(y.shape, -1.0))
                slope[part] = (p.to(weight.dtype) @ weight).to(slope)
        if slope is not None:
            ctx.save_for_backward(slope)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * up.unsqueeze(1).to(slope.dtype), None, None


def each(fn: Callable[..., Tensor], read: Sequence[tuple[Tensor, OutputLayer]], more: Sequence[Tensor] = ()) -> Tensor:
    """``fn`` of the logits of several passes, row by row in chunks: [r].

    Where a gradient is wanted, a chunk's logits are computed once more in the backward pass instead of being kept.

    Args:
        fn: logits [c, C] of each pass, then rows [c, …] of ``more`` -> [c].
        read: of each pass what its layer reads, [r, d], and the layer. more: tensors [r, …].
    """
    hidden, layers = [h for h, _ in read], [layer for _, layer in read]

    def one(*rows: Tensor) -> Tensor:
        logits = [layer(h) for layer, h in zip(layers, rows, strict=False)]
        return fn(*logits, *rows[len(layers) :])

    parts = list(layers[0].chunks(hidden[0]))
    if not parts:
        return one(*hidden, *more)
    kept = not torch.is_grad_enabled() or len(parts) == 1
    if not kept:
        from torch.utils.checkpoint import checkpoint  # takes seconds to import
    found = []
    for part in parts:
        rows = [t[part] for t in (*hidden, *more)]
        found.append(one(*rows) if kept else checkpoint(one, *rows, use_reentrant=False))
    return torch.cat(found)
