"""What stands in for a mean when some of the updates may be malicious: clipping, medians, trimmed means, Krum.

All functions take dicts of tensors, hold no state and draw nothing at random. Medians, trimmed means and distances are the same
of values as of their differences to a common value, so only the norm needs differences. An update may lack names that others
hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def assumed_bad(count: int, share: float) -> int:
    """How many of ``count`` updates are taken for bad: ``share`` of them, rounded up.

    Raises:
        ValueError: for a share outside [0, 0.5): no rule survives a majority.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"the share of bad updates must be at least 0 and less than 0.5, not {share}")
    return math.ceil(share * count - 1e-9)  # 0.29 * 100 is a little more than 29


# clipping ---------------------------------------------------------------------------------------------------------------


def norm(update: Tensors) -> float:
    """The Euclidean norm of all tensors of an update together, computed in float64; 0 of nothing."""
    largest = max((float(t.abs().max()) for t in update.values() if t.numel()), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return largest
    # over the largest element first: squares of a stranger's numbers can leave the range of float64
    return largest * math.sqrt(math.fsum(float((t.double() / largest).square().sum()) for t in update.values()))


def clip(value: Tensors, held: Tensors, limit: float) -> dict[str, Tensor]:
    """The value pulled towards what the server holds until the norm of the difference is at most ``limit``.

    With d = value - held over all tensors together: held + d min(1, limit / ||d||), as in Sun et al., "Can You Really Backdoor
    Federated Learning?" (arXiv 1911.07963). A value within the limit is returned as it is, bit for bit; one whose distance can't
    be told in floating point comes back as ``held``.

    Args:
        value: tensors by name. held: at least those names, of the same shapes. limit: from 0.
    """
    apart = _differences(value, held)
    size = norm(apart)
    if size <= limit:
        return dict(value)
    factor = limit / size if math.isfinite(size) else 0.0
    return {n: _wide(held[n]).to(d) + (d * factor if factor else 0.0) for n, d in apart.items()}


def distance(value: Tensors, held: Tensors) -> float:
    """How far an update leads away from what the server holds: the :func:`norm` of the difference."""
    return norm(_differences(value, held))


# one coordinate at a time -------------------------------------------------------------------------------------------------


def median(updates: Sequence[Tensors]) -> dict[str, Tensor]:
    """The coordinate-wise median of each name over the updates that hold it; of an even number, the mean of the middle two.

    D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
    2018, arXiv 1803.01498, definition 1. Every coordinate lies in the range of the honest ones while these are a majority.
    """
    return {name: _middle(rows, (len(rows) - 1) // 2) for name, rows in _by_name(updates)}


def trimmed_mean(updates: Sequence[Tensors], share: float) -> dict[str, Tensor]:
    """The coordinate-wise mean without the largest and the smallest values of each coordinate, over the updates that hold a name.

    Yin et al. (ICML 2018, arXiv 1803.01498), definition 2. From m values, :func:`assumed_bad` (m, share) are cut off at either
    end; a name of which nothing would be left is absent from the result. Unweighted.
    """
    found = {}
    for name, rows in _by_name(updates):
        cut = assumed_bad(len(rows), share)
        if 2 * cut < len(rows):
            found[name] = _middle(rows, cut)
    return found


# one update among all -----------------------------------------------------------------------------------------------------


def krum_scores(updates: Sequence[Tensors], bad: int) -> list[float]:
    """Of each of n updates, the sum of squared distances to its n - bad - 2 nearest others; the smaller the better.

    P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, arXiv 1703.02757. Distances are over all tensors together, in float64.

    Raises:
        ValueError: unless n >= 2 bad + 3, which the paper's guarantee needs, or if the updates do not all hold the same names.
    """
    n = len(updates)
    if bad < 0 or n < 2 * bad + 3:
        raise ValueError(f"with {bad} bad updates Krum needs at least {2 * bad + 3}, not {n}")
    if any(u.keys() != updates[0].keys() for u in updates):
        raise ValueError("Krum compares whole updates: they must all hold the same names")
    squares = torch.zeros(n, n, dtype=torch.float64)
    for _, rows in _by_name(updates):
        flat = rows.reshape(n, rows[0].numel()).double()
        # by differences, not by products: a stranger's large numbers must not cost the others their digits
        squares += torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    squares.fill_diagonal_(torch.inf)
    return squares.sort(dim=1).values[:, : n - bad - 2].sum(dim=1).tolist()


def krum(updates: Sequence[Tensors], bad: int) -> int:
    """Which update Krum chooses: that of the smallest :func:`krum_scores`, the first of equals."""
    scores = krum_scores(updates, bad)
    return scores.index(min(scores))


def multi_krum(updates: Sequence[Tensors], bad: int) -> list[int]:
    """Which n - bad - 2 updates have the smallest :func:`krum_scores`, in their order: Multi-Krum takes the mean of these.

    The paper leaves their number open; here it is the number of neighbours that a score is taken over.
    """
    scores = krum_scores(updates, bad)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    return sorted(order[: len(scores) - bad - 2])


# helpers ------------------------------------------------------------------------------------------------------------------


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _differences(value: Tensors, held: Tensors) -> dict[str, Tensor]:
    found = {}
    for name, tensor in value.items():
        if held[name].shape != tensor.shape:
            raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, but what is held has {tuple(held[name].shape)}")
        wide = torch.promote_types(_wide(tensor).dtype, held[name].dtype)
        found[name] = tensor.detach().to(wide) - held[name].to(wide)
    return found


def _by_name(updates: Sequence[Tensors]) -> Iterator[tuple[str, Tensor]]:
    """Each name with the values of those that hold it, [m, …]; names in sorted order, one stack in memory at a time."""
    for name in sorted(set().union(*updates)) if updates else ():
        rows = [u[name].detach() for u in updates if name in u]
        if any(not r.is_floating_point() or r.shape != rows[0].shape for r in rows):
            raise ValueError(f"{name!r} is not floating point of one shape in all updates")
        wide = torch.float32
        for row in rows:
            wide = torch.promote_types(wide, row.dtype)
        yield name, torch.stack([r.to(wide) for r in rows])


def _middle(rows: Tensor, cut: int) -> Tensor:
    """The mean of each coordinate without its ``cut`` smallest and largest values; the order of rows makes no difference."""
    kept = rows.sort(dim=0).values[cut : len(rows) - cut]
    return kept[0].clone() if len(kept) == 1 else kept.double().mean(dim=0).to(rows.dtype)
