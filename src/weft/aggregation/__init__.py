"""How the server combines what clients sent: pure functions of tensors, usable without a model."""

from __future__ import annotations

from weft.aggregation.factors import aggregation_bias, redistribute, stack
from weft.aggregation.mean import WeightedMean, shares, weighted_mean

__all__ = ["WeightedMean", "aggregation_bias", "redistribute", "shares", "stack", "weighted_mean"]
