"""Where a language model turns hidden states into logits of tokens, and how a pass stops before that for most of them.

Only the output at positions that predict an answer is of interest. A hook in front of the output layer keeps the hidden states
there, and lets the layer itself see as little as it can; what is kept is read later, in chunks, by whoever needs logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft.errors import UserError
from weft.tensors.output_layer import OutputLayer


@dataclass
class Rows:
    """What a pass leaves for its answers: ``hidden`` [r, d], and the layer that reads it."""

    hidden: Tensor | None = None
    layer: OutputLayer | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The output layer of a model.

    Attributes:
        name: of its module. plain: the model's logits are what this layer gives; others (a soft cap, a scale) do more to them.
        size: of the vocabulary.
    """

    name: str
    plain: bool
    size: int

    @contextmanager
    def at(self, model: nn.Module, places: Tensor) -> Iterator[Rows]:
        """A pass inside leaves its hidden states at ``places`` (bool [n, T]) in what is given; its logits mean nothing.

        Of a model that is not plain, :meth:`finish` reads the rows off the pass's logits.
        """
        found = Rows()
        module: Any = model.get_submodule(self.name)

        def select(_m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            rows = hidden[places.to(hidden.device)]
            if self.plain:
                found.hidden, found.layer = rows, OutputLayer(module.weight, module.bias)
                return (hidden[:1, :1], *args[1:])
            return (rows.unsqueeze(0), *args[1:])

        handle = module.register_forward_pre_hook(select)
        try:
            yield found
        finally:
            handle.remove()

    def finish(self, found: Rows, logits: Tensor) -> tuple[Tensor, OutputLayer]:
        """Rows [r, d], and the layer that reads them."""
        if found.hidden is not None and found.layer is not None:
            return found.hidden, found.layer
        return logits[0], OutputLayer()


@torch.no_grad()
def vocabulary(name: str, model: nn.Module, inputs: Mapping[str, Tensor]) -> Vocabulary:
    """Find and try the output layer.

    Args:
        name: of the backbone. inputs: of a few rows.

    Raises:
        UserError: there is none, or it can't be given single rows.
    """
    module = model.get_output_embeddings()  # type: ignore[operator]
    if module is None:
        raise UserError(f'backbone "{name}" has no output layer over a vocabulary, so it generates nothing: choose a decoder.')
    path = next(n for n, m in model.named_modules() if m is module)
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    weight = getattr(module, "weight", None)
    linear = isinstance(module, nn.Linear) and weight is not None and weight.dim() == 2 and weight.is_floating_point()
    plain = linear and len(seen) == 1 and torch.equal(module(seen[0]), logits)
    found = Vocabulary(path, plain, int(logits.shape[-1]))
    places = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
    places[0, 1], places[-1, 0] = True, True
    try:
        with found.at(model, places) as rows:
            alone, layer = found.finish(rows, model(**inputs).logits)
        same = torch.allclose(layer(alone).float(), logits[places].float(), rtol=1e-3, atol=1e-3)
    except Exception as e:  # of a model that counts on its own shape there
        raise _too_much(name) from e
    if not same:
        raise _too_much(name)
    return found


def _too_much(name: str) -> UserError:
    return UserError(f'backbone "{name}" does more between its output layer and its logits than Weft can follow.')
