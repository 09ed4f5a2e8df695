"""SGD, Adam and AdamW on tensors with a client axis: every client has its own step count, learning rate, schedule and clipping.

``torch.optim`` keeps one of each for a whole tensor, so that a pack of unequal clients could not equal its clients trained
alone. Rows of clients that are not in the batch, or that lack the block, keep their value and their moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from weft.errors import WeftError
from weft.typed import Called, NonNegative, Positive, Share, check

Beta = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Optim:
    """Settings of a local optimizer; a new one is made for each client and round.

    Attributes:
        kind: ``adamw`` (Loshchilov & Hutter, 2019), ``adam`` (Kingma & Ba, 2015) or ``sgd``.
        lr: learning rate. weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        decay_biases: whether weight decay acts on biases and norms too.
        betas, eps: of Adam and AdamW. momentum: of SGD.
        clip: largest gradient norm of one client over all its tensors in the step; None = off.
        schedule: of the learning rate over the client's own steps of the round: ``linear`` or ``cosine`` (to 0), ``constant``.
        warmup: fraction of the steps over which the rate rises from 0.
        prox: μ of FedProx (T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127): each
            client's loss gains μ/2 ‖θ - θ_received‖² over the tensors that it was sent, as its optimizer began; 0 = off.
    """

    kind: Annotated[Literal["adamw", "adam", "sgd"], Called("optimizer")] = "adamw"
    lr: NonNegative = 1e-3
    weight_decay: NonNegative = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: NonNegative = 1e-8
    momentum: NonNegative = 0.0
    clip: Positive | None = None
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup: Share = 0.0
    decay_biases: bool = True
    prox: NonNegative = 0.0

    def __post_init__(self) -> None:
        check(self)

    def but(self, **changes: Any) -> Optim:
        return replace(self, **changes)

    @property
    def moments(self) -> int:
        """How many tensors it remembers beside each that it moves."""
        return int(self.momentum > 0) if self.kind == "sgd" else 2

    @property
    def coupled(self) -> bool:
        """Whether its weight decay is a part of the gradient (L2), and not of the step."""
        return self.kind != "adamw"

    @property
    def copies(self) -> int:
        """Of all that it moves, held beside the values: moments, and anchors."""
        return self.moments + int(self.prox > 0)


class Moments(NamedTuple):
    """What an optimizer remembers of one tensor of K clients.

    Attributes:
        steps: [K] updates so far, for the bias correction of Adam. values: :attr:`Optim.moments` tensors [K, …].
    """

    steps: Tensor
    values: tuple[Tensor, ...]


class Optimizer:
    """One local optimizer over K clients.

    Args:
        params: name -> leaf tensor [K, …]; exactly these can move, and only when :meth:`step` is told so.
        total: [K] steps that each client will take (its schedule's length).
        anchored: names that ``prox`` holds near where they are now.
        offsets: name -> [K, …], added to every gradient: those of FedDyn, FedLin and their like.
        factors: name -> multiple of the learning rate, one or [K]; 1 where none is given.
        corrections: name -> [K, …], added to what the optimizer makes of a gradient, so that a step is rate · (its own + this):
            those of SCAFFOLD.
        fixed: name -> what every step begins with and none changes, Mime's.

    Raises:
        WeftError: ``fixed`` are not the moments of an optimizer of this kind.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        settings: Optim,
        total: Tensor,
        anchored: Iterable[str] = (),
        offsets: Mapping[str, Tensor] | None = None,
        factors: Mapping[str, float | Tensor] | None = None,
        corrections: Mapping[str, Tensor] | None = None,
        fixed: Mapping[str, Moments] | None = None,
    ):
        self.params = dict(params)
        self.settings = settings
        self.anchors = {n: self.params[n].detach().clone() for n in anchored} if settings.prox else {}
        self.offsets, self.corrections = dict(offsets or {}), dict(corrections or {})
        # counts and rates in float64, except on Apple's MPS, which has none
        exact = torch.float32 if total.device.type == "mps" else torch.float64
        self.total = total.clamp(min=1).to(exact)
        self.ticks = torch.zeros_like(self.total)  # batches seen, for the schedule
        self.places = {n: i for i, n in enumerate(self.params)}
        self.steps = self.total.new_zeros(len(self.params), len(self.total))  # a tensor's updates, for Adam's bias correction
        self.factors = torch.ones_like(self.steps)
        for name, factor in (factors or {}).items():
            self.factors[self.places[name]] = factor
        self.paths = torch.zeros_like(self.steps)
        self.moments: dict[str, tuple[Tensor, ...]] = {}
        self.moved: set[str] = set()
        self.fixed = [n for n in self.params if n in (fixed or {})]
        for name in self.fixed:
            begun, moments = (fixed or {})[name]
            if len(moments) != settings.moments:
                raise WeftError(f'"{name}" can\'t begin with {len(moments)} moments where {settings.kind} has {settings.moments}')
            self.moments[name], self.steps[self.places[name]] = moments, begun.to(self.steps)

    def remembered(self) -> dict[str, Moments]:
        """What it remembers of each tensor that it has moved."""
        return {n: Moments(self.steps[self.places[n]], values) for n, values in self.moments.items()}

    def go_on(self, moments: Mapping[str, Moments]) -> None:
        """Remember what another optimizer of this kind did (:meth:`remembered`)."""
        for name, (steps, values) in moments.items():
            self.steps[self.places[name]], self.moments[name] = steps.to(self.steps), values

    def travelled(self, name: str) -> Tensor:
        """[K] the sum of the rates at which a tensor was moved."""
        return self.paths[self.places[name]]

    def rates(self) -> Tensor:
        """[K] learning rates of the coming step."""
        s = self.settings
        done = self.ticks / self.total
        warm = torch.ones_like(done)
        start = math.floor(s.warmup * 1e9) / 1e9
        if start > 0:
            length = (start * self.total).clamp(min=1)
            warm = ((self.ticks + 1) / length).clamp(max=1.0)
        rest = ((done - start) / (1 - start) if start < 1 else torch.zeros_like(done)).clamp(0, 1)
        if s.schedule == "linear":
            fall = 1 - rest
        elif s.schedule == "cosine":
            fall = 0.5 * (1 + torch.cos(math.pi * rest))
        else:
            fall = torch.ones_like(done)
        return s.lr * torch.where(warm < 1, warm, fall)

    def step(
        self,
        loss: Tensor,
        clients: Tensor | None,
        rows: Mapping[str, Tensor],
        only: Iterable[str] = (),
        tick: bool = True,
        entries: Mapping[str, Tensor] | None = None,
        shifts: Mapping[str, Tensor] | None = None,
        watch: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> None:
        """Differentiate Σ loss and move the tensors named in ``only`` (all, if empty).

        Args:
            loss: [k], one per client in the batch; a client's loss must depend on its own rows alone.
            clients: [k] their indices in the pack, None = all.
            rows: name -> [K] bool, the clients that have the tensor.
            tick: advance the schedule (False for the first of two updates on one batch).
            entries: name -> bool [K, …], those that may move; the others keep value and moments.
            shifts: name -> [K, …], added to the gradients of this step.
            watch: is given the gradients before anything is made of them.
        """
        names = [n for n in (only or self.params) if n in self.params]
        if not names:
            raise WeftError("a step was asked for tensors that no optimizer holds")
        found = torch.autograd.grad(loss.sum(), [self.params[n] for n in names], allow_unused=True)
        grads = {n: g for n, g in zip(names, found, strict=True) if g is not None}
        if watch is not None:
            watch(grads)
        self.descend(grads, clients, rows, tick, entries, shifts)

    def descend(
        self,
        grads: Mapping[str, Tensor],
        clients: Tensor | None,
        rows: Mapping[str, Tensor],
        tick: bool = True,
        entries: Mapping[str, Tensor] | None = None,
        shifts: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Move the tensors that have a gradient [K, …] here; the rest is as of :meth:`step`."""
        active = torch.zeros(len(self.total), dtype=torch.bool, device=self.total.device)
        active[slice(None) if clients is None else clients] = True
        with torch.no_grad():
            free = entries or {}
            shift = shifts or {}
            pairs = [(n, self._corrected(n, g if n not in shift else g + shift[n], free.get(n))) for n, g in grads.items()]
            rates = self.rates()
            if pairs:
                masks = torch.stack([active & rows[n] for n, _ in pairs])
                if self.settings.clip is not None:
                    pairs = self._clipped(pairs, masks)
                self._move(pairs, masks, rates, free)
        if tick:
            self.ticks += active

    def _corrected(self, name: str, grad: Tensor, free: Tensor | None) -> Tensor:
        """A gradient with what pulls a tensor to its anchor and what a rule adds, over the entries that may move."""
        if name in self.anchors:
            grad = grad + self.settings.prox * (self.params[name] - self.anchors[name])
        if name in self.offsets:
            grad = grad + self.offsets[name]
        return grad if free is None else grad * free

    @contextmanager
    def _held(self, name: str, free: Tensor | None) -> Iterator[None]:
        """Entries that are not ``free`` come out as they went in."""
        if free is None:
            yield
            return
        value = self.params[name].clone()
        moments = [t.clone() for t in self.moments.get(name, ())]
        yield
        after = self.moments.get(name, ())
        before = moments or [torch.zeros_like(t) for t in after]
        for tensor, old in zip((self.params[name], *after), (value, *before), strict=True):
            tensor.copy_(torch.where(free, tensor, old))

    def _clipped(self, pairs: list[tuple[str, Tensor]], masks: Tensor) -> list[tuple[str, Tensor]]:
        assert self.settings.clip is not None
        square = torch.zeros_like(self.total)
        for (_, grad), mask in zip(pairs, masks, strict=True):
            square += torch.where(mask, grad.to(square.dtype).square().flatten(1).sum(1), 0.0)
        factor = (self.settings.clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
        return [(n, g * _wide(factor, g).to(g.dtype)) for n, g in pairs]

    def _move(self, pairs: list[tuple[str, Tensor]], masks: Tensor, rates: Tensor, free: Mapping[str, Tensor]) -> None:
        """One update of each tensor of ``pairs`` (name, gradient), for its row of ``masks`` [n, K].

        What depends on a tensor and a client alone is computed for all tensors at once, and the tensors that all clients move
        go through fused kernels: a tensor's own few numbers cost a GPU as much as its thousands.
        """
        s = self.settings
        at = [self.places[name] for name, _ in pairs]
        self.moved.update(name for name, _ in pairs)
        self.steps[at] += masks
        rate = rates * masks * self.factors[at]
        self.paths[at] += rate
        dtype = pairs[0][1].dtype
        plain = s.kind == "sgd"
        if plain:
            scale, width = rate, rate
        else:
            done = self.steps[at].clamp(min=1)
            scale, width = rate / (1 - s.betas[0] ** done), (1 - s.betas[1] ** done).sqrt()
        scale, width, rate = scale.to(dtype), width.to(dtype), rate.to(dtype)
        together: list[_Update] = []
        for i, ((name, grad), everyone) in enumerate(zip(pairs, masks.all(1).tolist(), strict=True)):
            p = self.params[name]
            if name not in self.moments:
                self.moments[name] = tuple(torch.zeros_like(p) for _ in range(s.moments))
            moments = tuple(m.clone() for m in self.moments[name]) if name in self.fixed else self.moments[name]
            decay = s.weight_decay if s.decay_biases or p.dim() > 2 else 0.0
            update = _Update(p, grad, moments, _wide(scale[i], p), _wide(width[i], p), _wide(rate[i], p), decay)
            if everyone and not plain and name not in free:
                together.append(update)
                continue
            with self._held(name, free.get(name)):
                (_sgd if plain else _adam)(update, _wide(masks[i], p), s)
        for chunk in _chunks(together):
            _adam_together(chunk, s)
        for i, (name, _) in enumerate(pairs):
            if name in self.fixed:
                self.steps[self.places[name]] -= masks[i].to(self.steps)
            if name in self.corrections:
                moved = _wide(rate[i], self.params[name]) * self.corrections[name]
                self.params[name].sub_(moved * free[name] if name in free else moved)


_CHUNK = 2**24
"""Entries that are moved at once: what is computed on the way is held for all of them."""


class _Update(NamedTuple):
    """One tensor [K, …] and what moves it; ``scale``, ``width`` and ``rate`` are one number a client."""

    value: Tensor
    grad: Tensor
    moments: tuple[Tensor, ...]
    scale: Tensor
    width: Tensor
    rate: Tensor
    decay: float

    def slope(self, s: Optim) -> Tensor:
        """The gradient, with the weight decay that is a part of it."""
        return self.grad + self.decay * self.value if self.decay and s.coupled else self.grad

    def shrink(self, s: Optim) -> None:
        """The weight decay that is a part of the step."""
        if self.decay and not s.coupled:
            self.value.mul_(1 - self.rate * self.decay)


def _sgd(u: _Update, here: Tensor, s: Optim) -> None:
    grad = u.slope(s)
    for velocity in u.moments:
        velocity.copy_(torch.where(here, velocity * s.momentum + grad, velocity))
        grad = velocity
    u.value.sub_(u.rate * grad)


def _adam(u: _Update, here: Tensor, s: Optim) -> None:
    mean, square = u.moments
    b1, b2 = s.betas
    grad = u.slope(s)
    mean.copy_(torch.where(here, mean.lerp(grad, 1 - b1), mean))
    square.copy_(torch.where(here, (square * b2).addcmul_(grad, grad, value=1 - b2), square))
    u.shrink(s)
    u.value.sub_(u.scale * mean / square.sqrt().div_(u.width).add_(s.eps))


def _adam_together(updates: list[_Update], s: Optim) -> None:
    """:func:`_adam` of tensors that all clients move, in kernels over lists of tensors, as ``torch.optim`` has them."""
    values, grads = [u.value for u in updates], [u.slope(s) for u in updates]
    means, squares = [u.moments[0] for u in updates], [u.moments[1] for u in updates]
    b1, b2 = s.betas
    torch._foreach_lerp_(means, grads, 1 - b1)
    torch._foreach_mul_(squares, b2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - b2)
    for u in updates:
        u.shrink(s)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [u.width for u in updates])
    torch._foreach_add_(roots, s.eps)
    moves = torch._foreach_mul(means, [u.scale for u in updates])
    torch._foreach_div_(moves, roots)
    torch._foreach_sub_(values, moves)


def _chunks(updates: list[_Update]) -> Iterator[list[_Update]]:
    """Of about ``_CHUNK`` numbers each."""
    chunk: list[_Update] = []
    held = 0
    for update in updates:
        chunk.append(update)
        held += update.value.numel()
        if held >= _CHUNK:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """[K] shaped to broadcast over [K, …]."""
    return value.view(-1, *[1] * (like.dim() - 1))
