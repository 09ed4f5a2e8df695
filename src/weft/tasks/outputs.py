"""What a forward pass gives: a row of logits for each thing to predict, at hand or still to be made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.tensors import output_layer
from weft.tensors.output_layer import OutputLayer


class Output:
    """m things to predict for each of k clients (or for each of b rows).

    Attributes:
        logits: [k, m, C].
    """

    def __init__(self, logits: Tensor):
        self._logits = logits

    @property
    def logits(self) -> Tensor:
        return self._logits

    def each(self, fn: Callable[..., Tensor], *more: Tensor | Output) -> Tensor:
        """``fn`` of every thing to predict: [k, m].

        A method that looks at logits does it here: of a language model they are made in chunks and never all held.

        Args:
            fn: logits [r, C], then rows [r, …] of ``more`` -> [r].
            more: tensors [k, m, …], or outputs of other passes over the same batch, of which ``fn`` gets the logits.
        """
        flat = [(other.logits if isinstance(other, Output) else other).flatten(0, 1) for other in (self, *more)]
        return fn(*flat).view(self.logits.shape[:2])

    def cross_entropy(self, labels: Tensor) -> Tensor:
        """-log softmax at the labels [k, m]: [k, m]."""
        return F.cross_entropy(self.logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)

    def within(self, allowed: Tensor) -> Output:
        """The same without hope for what is not ``allowed``, bool [k, m, C]."""
        # never beyond single precision, in which a task takes what it keeps of a row
        lowest = max(torch.finfo(self.logits.dtype).min, torch.finfo(torch.float32).min)
        return Output(self.logits.masked_fill(~allowed, lowest))

    def of(self, client: int, rows: int, places: int) -> Output:
        """One client's first ``rows`` rows of ``places`` each: [rows, places, C], float32 on the CPU."""
        return Output(self.logits[client].float().cpu().unflatten(0, (-1, places))[:rows])


def average(outputs: Sequence[Output]) -> Output:
    """The mean of the logits of several passes over one batch."""
    first = outputs[0]
    hidden = [out.hidden for out in outputs if isinstance(out, Hidden) and isinstance(first, Hidden) and out.layer == first.layer]
    if isinstance(first, Hidden) and len(hidden) == len(outputs):  # the layer is linear
        return Hidden(torch.stack(hidden).mean(0), first.mask, first.layer)
    return Output(torch.stack([out.logits for out in outputs]).mean(0))


class Hidden(Output):
    """Rows that the frozen output layer of a language model has not read yet.

    Attributes:
        hidden: [r, d], of the valid things to predict, in order. mask: [k, m] bool, which these are. layer: reads them.
    """

    def __init__(self, hidden: Tensor, mask: Tensor, layer: OutputLayer):
        self.hidden, self.mask, self.layer = hidden, mask, layer

    @property
    def logits(self) -> Tensor:
        """[k, m, C], all of them at once; 0 where the mask is off."""
        return self._spread(self.layer(self.hidden))

    def each(self, fn: Callable[..., Tensor], *more: Tensor | Output) -> Tensor:
        """As :meth:`Output.each`, in chunks of the valid ones; 0 for the others."""
        others = [other for other in more if isinstance(other, Output)]
        if any(not isinstance(other, Hidden) for other in others):
            return super().each(fn, *more)
        tensors = [self._valid(other) for other in more if not isinstance(other, Output)]

        def ordered(*rows: Tensor) -> Tensor:
            logits, given = iter(rows[1 : 1 + len(others)]), iter(rows[1 + len(others) :])
            return fn(rows[0], *(next(logits) if isinstance(other, Output) else next(given) for other in more))

        read = [(one.hidden, one.layer) for one in (self, *others) if isinstance(one, Hidden)]
        return self._spread(output_layer.each(ordered, read, tensors))

    def cross_entropy(self, labels: Tensor) -> Tensor:
        return self._spread(self.layer.cross_entropy(self.hidden, self._valid(labels)))

    def within(self, allowed: Tensor) -> Output:
        return Output(self.logits).within(allowed)

    def of(self, client: int, rows: int, places: int) -> Output:
        before = int(self.mask[:client].sum())
        mask = self.mask[client].unflatten(0, (-1, places))[:rows]
        return Hidden(self.hidden[before : before + int(mask.sum())], mask, self.layer)

    def _valid(self, values: Tensor) -> Tensor:
        """[k, m, …] of things to predict, wherever they lie, as [r, …] of the valid ones."""
        return values.to(self.mask.device)[self.mask]

    def _spread(self, rows: Tensor) -> Tensor:
        """[r, …] of the valid ones as [k, m, …]."""
        found = rows.new_zeros(*self.mask.shape, *rows.shape[1:])
        mask = self.mask.view(*self.mask.shape, *[1] * (rows.dim() - 1))
        return found.masked_scatter(mask, rows)
