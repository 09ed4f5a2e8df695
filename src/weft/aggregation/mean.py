"""Weighted means of named tensors, one update at a time: the rule of FedAvg, FedIT and FedRA."""

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


class WeightedMean:
    """The weighted mean of each name over the updates that hold it, in the memory of one update.

    For a name l and the updates S_l that hold it: theta_l = sum_{k in S_l} w_k theta_{k,l} / sum_{k in S_l}
    w_k. With all names everywhere and w_k the example counts this is FedAvg (McMahan et al., AISTATS 2017)
    and, on LoRA factors, FedIT (arXiv 2305.05644); with w_k = 1 and each client holding a subset of the
    blocks it is FedRA's server step (arXiv 2311.11227).

    The mean moves by (w_k / weight so far) * (theta_k - mean) per update, in float32, or float64 where an
    update is. So the mean of one update, or of equal ones, is that update bit for bit. Updates are read,
    never written to. The order of ``add`` decides the rounding: add in an order that does not depend on
    arrival.
    """

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self._weight: dict[str, float] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float | Mapping[str, float]) -> None:
        """Take one update into the mean; nothing of it is taken if any of it is refused.

        Args:
            tensors: floating-point tensors by name; each name has one shape over all updates.
            weight: the update's weight, or one for each of its names; a tensor of weight 0 is as if absent.

        Raises:
            ValueError: if a shape or dtype does not fit, or a weight is missing, negative or not finite.
        """
        weights = {name: self._checked(name, tensor, weight) for name, tensor in tensors.items()}
        for name, w in weights.items():
            if w > 0:
                self._take(name, tensors[name].detach(), w)

    def result(self) -> dict[str, Tensor]:
        """The means so far, float32 or float64; a name that no update held with weight > 0 is absent."""
        return {name: mean.clone() for name, mean in self._mean.items()}

    def _checked(self, name: str, tensor: Tensor, weight: float | Mapping[str, float]) -> float:
        if not tensor.is_floating_point():
            raise ValueError(f"{name!r} is {tensor.dtype}, which has no mean")
        mean = self._mean.get(name)
        if mean is not None and mean.shape != tensor.shape:
            raise ValueError(f"{name!r} has shape {tuple(tensor.shape)} here, {tuple(mean.shape)} before")
        if isinstance(weight, Mapping):
            if name not in weight:
                raise ValueError(f"{name!r} has no weight")
            weight = weight[name]
        _check_weight(weight)
        return float(weight)

    def _take(self, name: str, tensor: Tensor, weight: float) -> None:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        mean = self._mean.get(name)
        if mean is None:
            self._mean[name], self._weight[name] = tensor.to(dtype, copy=True), weight
            return
        if mean.dtype != torch.promote_types(mean.dtype, dtype):
            mean = self._mean[name] = mean.to(dtype)
        self._weight[name] += weight
        mean.add_(tensor.to(mean) - mean, alpha=weight / self._weight[name])


def weighted_mean(
    updates: Iterable[tuple[Mapping[str, Tensor], float | Mapping[str, float]]],
) -> dict[str, Tensor]:
    """The :class:`WeightedMean` of (tensors, weight) pairs, in the order given; empty if there are none."""
    mean = WeightedMean()
    for tensors, weight in updates:
        mean.add(tensors, weight)
    return mean.result()


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a weight must be finite and >= 0, not {weight}")
