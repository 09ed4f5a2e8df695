"""CMA-ES side by side: each client as if it were alone, never worse than where it began, and no global stream is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.tensors.evolution import evolved

AIMS = np.random.default_rng(9).normal(size=(3, 12))


def far(z: np.ndarray, aims: np.ndarray = AIMS) -> np.ndarray:
    found: np.ndarray = ((z - aims) ** 2).sum(1)
    return found


def streams(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def test_it_comes_near_the_minimum_of_each() -> None:
    best = evolved(far, streams(0, 1, 2), 12, 1.0, 10, 3000)
    assert best.shape == AIMS.shape
    assert far(best).max() < 1e-3
    assert far(np.zeros_like(AIMS)).min() > 1


def test_clients_side_by_side_are_clients_alone_and_go_by_their_own_streams() -> None:
    together = evolved(far, streams(0, 1, 2), 12, 1.0, 6, 80)
    for k in range(3):
        alone = evolved(lambda z, k=k: far(z, AIMS[k : k + 1]), streams(k), 12, 1.0, 6, 80)  # type: ignore[misc]
        assert (alone[0] == together[k]).all()
    other = evolved(far, streams(3, 4, 5), 12, 1.0, 6, 80)
    assert not (other == together).all()


def test_0_is_tried_first_and_nothing_worse_is_given_back() -> None:
    seen: list[np.ndarray] = []

    def uphill(z: np.ndarray) -> np.ndarray:
        seen.append(z.copy())
        found: np.ndarray = (z**2).sum(1)
        return found

    best = evolved(uphill, streams(0, 1), 5, 1.0, 4, 50)
    assert not best.any()
    assert not seen[0].any()
    assert len(seen) == 1 + 12 * 4, "whole generations of 4, within 50"
    assert all(z.any(1).all() for z in seen[1:])


@pytest.mark.parametrize("most", [0, 1, 4])
def test_too_few_for_a_generation_leave_0(most: int) -> None:
    assert not evolved(far, streams(0, 1, 2), 12, 1.0, 4, most).any()


def test_losses_that_are_not_finite_are_the_worst() -> None:
    def broken(z: np.ndarray) -> np.ndarray:
        found = far(z)
        return np.where(z[:, 0] > 0.5, np.nan, np.where(z[:, 1] > 0.5, -np.inf, found))

    best = evolved(broken, streams(0, 1, 2), 12, 1.0, 10, 400)
    assert (best[:, 0] <= 0.5).all()
    assert (best[:, 1] <= 0.5).all()
    assert (far(best) < far(np.zeros_like(AIMS))).all()


def test_it_draws_from_no_global_stream_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = np.random.get_state()  # noqa: NPY002
    evolved(lambda z: (z**2).sum(1) * 0, streams(0), 60, 1.0, 10, 200)
    after = np.random.get_state()  # noqa: NPY002
    assert before[2] == after[2]
    assert (before[1] == after[1]).all()
    assert capfd.readouterr() == ("", "")
