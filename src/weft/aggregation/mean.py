"""Weighted means of named tensors, one update at a time: the rule of FedAvg, FedIT, FedRA and HeteroFL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def shares(weights: Sequence[float]) -> list[float]:
    """The weights over their sum: p_k = w_k / sum_j w_j of those taking part (McMahan et al., AISTATS 2017).

    Raises:
        ValueError: if a weight is negative or not finite, or all are 0.
    """
    for weight in weights:
        _check_weight(weight)
    total = math.fsum(weights)
    if total == 0:
        raise ValueError("weights must not all be 0")
    return [weight / total for weight in weights]


Weight = float | Mapping[str, float | Tensor]
"""Of an update: one number, or by name one of a tensor, or one of each of its entries."""


class WeightedMean:
    """The weighted mean of each name over the updates that hold it, in the memory of one update.

    For a name l and the updates S_l that hold it: theta_l = sum_{k in S_l} w_k theta_{k,l} / sum_{k in S_l}
    w_k. With all names everywhere and w_k the example counts this is FedAvg (McMahan et al., AISTATS 2017)
    and, on LoRA factors, FedIT (arXiv 2305.05644); with w_k = 1 and each client holding a subset of the
    blocks it is FedRA's server step (arXiv 2311.11227). Where clients hold parts of a tensor the same holds
    of each entry: those of weight 0 are as if absent, and a smaller tensor is the leading slice of a larger
    one (HeteroFL, arXiv 2010.01264, eq. 2-4), if ``leading`` allows it.

    The mean moves by (w_k / weight so far) * (theta_k - mean) per update, in float32, or float64 where an
    update is. So the mean of one update, or of equal ones, is that update bit for bit. Updates are read,
    never written to. The order of ``add`` decides the rounding: add in an order that does not depend on
    arrival.

    Args:
        leading: tensors of one name may have several shapes, of as many dimensions.
    """

    def __init__(self, leading: bool = False) -> None:
        self.leading = leading
        self._mean: dict[str, Tensor] = {}
        self._weight: dict[str, float | Tensor] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: Weight) -> None:
        """Take one update into the mean; nothing of it is taken if any of it is refused.

        Args:
            tensors: floating-point tensors by name.
            weight: the update's weight, or one for each of its names, or for each entry of a name; what has weight 0 is as
                if absent.

        Raises:
            ValueError: if a shape or dtype does not fit, or a weight is missing, negative or not finite.
        """
        weights = {name: self._checked(name, tensor, weight) for name, tensor in tensors.items()}
        for name, w in weights.items():
            if bool(torch.as_tensor(w > 0).any()):
                self._take(name, tensors[name].detach(), w)

    def result(self, held: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The means so far, float32 or float64; a name that no update held with weight > 0 is absent.

        Args:
            held: values of entries that no update held, by name, at least as large as the updates'.

        Raises:
            ValueError: some entries of a name have no mean, and ``held`` has no value for them.
        """
        return {name: self._whole(name, (held or {}).get(name)) for name in self._mean}

    def reached(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which entries have a mean [bool], of the names of which only some entries have one.

        Args:
            held: as in :meth:`result`.
        """
        found = {}
        for name, mean in self._mean.items():
            weight = self._weight[name]
            here = weight > 0 if isinstance(weight, Tensor) else torch.ones(mean.shape, dtype=torch.bool)
            if name in held and held[name].shape != mean.shape:
                here, inside = torch.zeros(held[name].shape, dtype=torch.bool), here
                here[_leading(mean)] = inside
            if not bool(here.all()):
                found[name] = here
        return found

    def _whole(self, name: str, held: Tensor | None) -> Tensor:
        mean, weight = self._mean[name], self._weight[name]
        lacking = isinstance(weight, Tensor) and not bool((weight > 0).all())
        if not lacking and (held is None or held.shape == mean.shape or not self.leading):
            return mean.clone()
        if held is None:
            raise ValueError(f"some entries of {name!r} were held by nobody")
        found = held.to(mean, copy=True)
        inside = found[_leading(mean)]
        inside.copy_(torch.where(weight > 0, mean, inside) if isinstance(weight, Tensor) else mean)
        return found

    def _checked(self, name: str, tensor: Tensor, weight: Weight) -> float | Tensor:
        if not tensor.is_floating_point():
            raise ValueError(f"{name!r} is {tensor.dtype}, which has no mean")
        mean = self._mean.get(name)
        if mean is not None and mean.shape != tensor.shape and not (self.leading and mean.dim() == tensor.dim()):
            raise ValueError(f"{name!r} has shape {tuple(tensor.shape)} here, {tuple(mean.shape)} before")
        if isinstance(weight, Mapping) and name not in weight:
            raise ValueError(f"{name!r} has no weight")
        own = weight[name] if isinstance(weight, Mapping) else weight
        if not isinstance(own, Tensor):
            _check_weight(own)
            return float(own)
        if own.shape != tensor.shape:
            raise ValueError(f"the weights of {name!r} have shape {tuple(own.shape)}, it has {tuple(tensor.shape)}")
        for extreme in (own.min(), own.max()) if own.numel() else ():
            _check_weight(float(extreme))
        return own

    def _take(self, name: str, tensor: Tensor, weight: float | Tensor) -> None:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        mean = self._mean.get(name)
        if mean is None:
            self._mean[name], self._weight[name] = tensor.to(dtype, copy=True), weight
            return
        if mean.dtype != torch.promote_types(mean.dtype, dtype):
            mean = self._mean[name] = mean.to(dtype)
        if isinstance(weight, float) and isinstance(whole := self._weight[name], float) and mean.shape == tensor.shape:
            self._weight[name] = whole + weight
            mean.add_(tensor.to(mean) - mean, alpha=weight / (whole + weight))
            return
        mean, sums = self._spread(name, tensor.shape)
        inside, entries = mean[_leading(tensor)], sums[_leading(tensor)]
        entries += weight
        share = torch.where(entries > 0, weight / entries, 0.0)
        inside += share.to(mean) * (tensor.to(mean) - inside)

    def _spread(self, name: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Mean and weights of each entry, large enough for a tensor of a shape; new entries have weight 0."""
        mean, weight = self._mean[name], self._weight[name]
        size = tuple(max(a, b) for a, b in zip(mean.shape, shape, strict=True))
        sums = weight.to(torch.float64) if isinstance(weight, Tensor) else torch.full(mean.shape, weight, dtype=torch.float64)
        found = mean.new_zeros(size), sums.new_zeros(size)
        for large, small in zip(found, (mean, sums), strict=True):
            large[_leading(small)] = small
        self._mean[name], self._weight[name] = found
        return found


def _leading(tensor: Tensor) -> tuple[slice, ...]:
    """Where a tensor lies in a larger one."""
    return tuple(slice(0, n) for n in tensor.shape)


def weighted_mean(
    updates: Iterable[tuple[Mapping[str, Tensor], Weight]],
) -> dict[str, Tensor]:
    """The :class:`WeightedMean` of (tensors, weight) pairs, in the order given; empty if there are none."""
    mean = WeightedMean()
    for tensors, weight in updates:
        mean.add(tensors, weight)
    return mean.result()


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a weight must be finite and >= 0, not {weight}")
