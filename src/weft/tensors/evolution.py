"""CMA-ES: a small vector is fitted by trying out points and ranking them, without a gradient.

N. Hansen, A. Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", Evolutionary Computation 9(2), 2001.
The implementation is its author's own, the package ``cma``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

WORST = 1e300
"""What a loss that is not finite counts for."""

Losses = Callable[[np.ndarray], np.ndarray]


def evolved(losses: Losses, streams: Sequence[torch.Generator], size: int, spread: float, points: int, most: int) -> np.ndarray:
    """The best point that each of several clients has tried, [K, size]: none is worse than 0, which is the first.

    Clients go on side by side, each by itself: a point of each is tried at a time.

    Args:
        losses: of a point of each client, [K, size] -> [K].
        streams: of the clients, that their points are drawn from.
        size: of a point. spread: σ, the standard deviation that the search begins with at 0.
        points: of a generation. most: that a client tries, 0 included; of generations only whole ones are played.
    """
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

    def made(stream: torch.Generator) -> cma.CMAEvolutionStrategy:
        def drawn(*shape: int) -> np.ndarray:
            return torch.randn(shape, generator=stream, dtype=torch.float64).numpy()

        settings = {"popsize": points, "seed": np.nan, "randn": drawn}
        # of the two rules for σ that it has, this is the published one, and the other one draws from NumPy's global stream
        settings |= {"AdaptSigma": CMAAdaptSigmaCSA, "verbose": -9, "verb_log": 0}
        return cma.CMAEvolutionStrategy(np.zeros(size), spread, settings)

    best = np.zeros((len(streams), size))
    least = _comparable(losses(best))
    searches = [made(stream) for stream in streams]
    for _ in range((most - 1) // points):
        tried = np.stack([np.stack(search.ask()) for search in searches])  # [K, points, size]
        found = np.stack([_comparable(losses(tried[:, i])) for i in range(points)], 1)
        for k, search in enumerate(searches):
            search.tell(list(tried[k]), found[k].tolist())
            i = int(found[k].argmin())
            if found[k, i] < least[k]:
                best[k], least[k] = tried[k, i], found[k, i]
    return best


def _comparable(losses: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(losses), losses, WORST)
