"""LowRank against dense float64 matrices: exact algebra that never gets as large as its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weft.aggregation import aggregation_bias, redistribute, stack
from weft.tensors.lowrank import LowRank

quick = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
sides = st.integers(1, 9)
scales = st.floats(-4, 4, allow_subnormal=False)


@st.composite
def lowranks(draw: st.DrawFn, shape: tuple[int, int] | None = None) -> LowRank:
    """Float64 values of rank 0 to beyond both sides, some with repeated columns, of any scale."""
    d_out, d_in = shape or (draw(sides), draw(sides))
    R = draw(st.integers(0, max(d_out, d_in) + 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    B = torch.randn(d_out, R, generator=rng, dtype=torch.float64)
    A = torch.randn(R, d_in, generator=rng, dtype=torch.float64)
    if R > 1 and draw(st.booleans()):
        A[-1] = A[0]  # the matrix has a lower rank than is stored
    return LowRank(B, A, draw(scales))


@st.composite
def of_one_shape(draw: st.DrawFn) -> list[LowRank]:
    shape = draw(sides), draw(sides)
    return draw(st.lists(lowranks(shape), min_size=1, max_size=4))


def reference(value: LowRank) -> Tensor:
    """The full matrix as a sum of outer products, sharing no arithmetic with the class."""
    return value.scale * torch.einsum("or,ri->oi", value.B.double(), value.A.double())


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance * (1 + size_of(expected)))


def size_of(matrix: Tensor) -> float:
    return float(matrix.abs().max()) if matrix.numel() else 0.0


def random(d_out: int, d_in: int, R: int, seed: int = 0, scale: float = 1.0) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=rng, dtype=torch.float64)  # noqa: E731
    return LowRank(draw(d_out, R), draw(R, d_in), scale)


# ---- sums and scales -----------------------------------------------------------------------------


@quick
@given(of_one_shape())
def test_concatenation_is_addition_whatever_the_scales_and_ranks(items: list[LowRank]) -> None:
    total = LowRank.cat(iter(items))
    assert total.rank == sum(item.rank for item in items)
    close(total.dense(), sum(map(reference, items), torch.zeros(items[0].shape, dtype=torch.float64)))
    close((items[0] + items[-1]).dense(), reference(items[0]) + reference(items[-1]))


@quick
@given(lowranks(), st.floats(-3, 3), st.sampled_from([-2.0, 0.25, 3.0]))
def test_scaling_and_rescaling(value: LowRank, factor: float, scale: float) -> None:
    close((value * factor).dense(), reference(value) * factor)
    close((factor * value).dense(), reference(value) * factor)
    assert value.rescaled(scale).scale == scale
    close(value.rescaled(scale).dense(), reference(value))


def test_alpha_over_r_of_each_client_counts_once() -> None:
    alpha, ranks = 16.0, (2, 4, 8)
    clients = [random(12, 10, r, seed=r, scale=alpha / r) for r in ranks]
    expected = sum(alpha / r * c.B @ c.A for r, c in zip(ranks, clients, strict=True))
    close(LowRank.cat(clients).dense(), torch.as_tensor(expected))
    assert LowRank.cat(clients).scale == 1.0


def test_an_empty_sum_is_zero_if_its_shape_is_known() -> None:
    zero = LowRank.cat([], shape=(5, 3))
    assert (zero.shape, zero.rank, zero.numel, zero.norm()) == ((5, 3), 0, 0, 0.0)
    assert torch.equal(zero.dense(), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="shape"):
        LowRank.cat([])


def test_stored_elements_are_rank_times_the_sum_of_the_sides() -> None:
    assert random(11, 7, 3).numel == 3 * (11 + 7)


def test_half_precision_sums_keep_small_updates() -> None:
    large = random(6, 5, 2).to(dtype=torch.bfloat16)
    small = large * 2.0**-12  # vanishes in a bfloat16 sum, whose mantissa has 8 bits
    total = large + small
    assert total.B.dtype == torch.float32
    close(total.dense().double(), reference(large) * (1 + 2.0**-12), tolerance=1e-6)


# ---- decompositions ------------------------------------------------------------------------------


@quick
@given(lowranks())
def test_svd_is_the_svd_of_the_dense_matrix(value: LowRank) -> None:
    U, S, Vh = value.svd()
    dense = reference(value)
    k = min(value.rank, *value.shape)
    assert S.shape == (k,)
    close(S, torch.linalg.svdvals(dense)[:k], tolerance=1e-11)
    close(value.singular_values(), S, tolerance=1e-11)
    close(U * S @ Vh, dense, tolerance=1e-11)
    close(U.mT @ U, torch.eye(k, dtype=torch.float64))
    close(Vh @ Vh.mT, torch.eye(k, dtype=torch.float64))


@quick
@given(lowranks(), st.integers(0, 12))
def test_truncation_is_best_in_the_sense_of_eckart_and_young(value: LowRank, rank: int) -> None:
    cut = value.truncate(rank)
    dense, sigma = reference(value), torch.linalg.svdvals(reference(value))
    k = min(rank, value.rank, *value.shape)
    assert (cut.rank, cut.scale) == (k, 1.0)
    error, dropped = (dense - reference(cut)).square().sum(), sigma[k:].square().sum()
    torch.testing.assert_close(error, dropped, rtol=1e-10, atol=1e-20 + 1e-12 * float(sigma.square().sum()))
    close(cut.A @ cut.A.mT, torch.eye(k, dtype=torch.float64))
    close(cut.B.mT @ cut.B, torch.diag(sigma[:k].square()), tolerance=1e-10)


@quick
@given(lowranks())
def test_compression_keeps_the_value_and_bounds_the_rank(value: LowRank) -> None:
    small = value.compress()
    assert small.rank == min(value.rank, *value.shape)
    close(small.dense(), reference(value), tolerance=1e-11)
    if value.rank <= min(value.shape):
        assert small is value


def test_float32_singular_values_are_right_to_float32() -> None:
    value = random(300, 200, 60)
    exact = torch.linalg.svdvals(reference(value))[:60]
    S = value.to(dtype=torch.float32).svd()[1]
    assert S.dtype == torch.float32
    assert float((S - exact).abs().max() / exact[0]) < 2e-6


def test_randomised_truncation_finds_a_range_it_can_span() -> None:
    value = LowRank.cat([random(40, 30, 5), random(40, 30, 5), random(40, 30, 5)])  # rank 5, stored at 15
    near = value.randomised(5, 3, torch.Generator().manual_seed(1))
    assert near.rank == 5
    close(near.dense(), reference(value), tolerance=1e-11)
    close(near.A @ near.A.mT, torch.eye(5, dtype=torch.float64))


def test_randomised_truncation_is_near_the_best_and_repeatable() -> None:
    value = random(60, 50, 40)
    best = float(torch.linalg.svdvals(reference(value))[6:].square().sum().sqrt())
    results = [value.randomised(6, 6, torch.Generator().manual_seed(3)) for _ in range(2)]
    error = float((reference(value) - reference(results[0])).norm())
    assert best * (1 - 1e-12) <= error <= 1.05 * best
    assert torch.equal(results[0].B, results[1].B)
    assert torch.equal(results[0].A, results[1].A)


def test_finite_factors_of_a_product_that_is_not_have_no_singular_values() -> None:
    huge = LowRank(torch.full((4, 2), 1e200, dtype=torch.float64), torch.full((2, 3), 1e200, dtype=torch.float64))
    for asked in (huge.svd, huge.singular_values, lambda: huge.truncate(1)):
        with pytest.raises(ValueError, match="the product of the factors is not finite"):
            asked()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failing_svd_driver_is_survived(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    value, svd, calls = random(9, 8, 4, scale=-2.0), torch.linalg.svd, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) <= failures:
            raise torch.linalg.LinAlgError("did not converge")
        return svd(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", failing)
    U, S, Vh = value.svd()
    assert len(calls) == failures + 1
    close(U * S @ Vh, reference(value), tolerance=1e-10)
    close(U.mT @ U, torch.eye(4, dtype=torch.float64))


# ---- measures ------------------------------------------------------------------------------------


@quick
@given(of_one_shape())
def test_norm_and_inner_product_are_those_of_frobenius(items: list[LowRank]) -> None:
    one, two = items[0], items[-1]
    bound = 1e-12 * (1 + float(reference(one).norm()) * float(reference(two).norm()))
    assert one.norm() == pytest.approx(float(reference(one).norm()), rel=1e-12, abs=1e-14)
    assert one.inner(two) == pytest.approx(float((reference(one) * reference(two)).sum()), rel=1e-11, abs=bound)


def test_the_norm_of_a_difference_keeps_its_digits() -> None:
    value = random(30, 20, 6)
    # Gram products would leave about 1e-8 of the value's norm: all of the first, 1 % of the second.
    assert (value + value * -1.0).norm() < 1e-14 * value.norm()
    assert (value + value * -(1 - 1e-6)).norm() == pytest.approx(1e-6 * value.norm(), rel=1e-8)


# ---- size ----------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Records the largest number of elements of any tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return result


@contextmanager
def nothing_as_large_as(d_out: int, d_in: int) -> Iterator[None]:
    with Watch() as watch:
        yield
    assert 0 < watch.largest < d_out * d_in, "a tensor of the full matrix's size was formed"


RULES: dict[str, Callable[[list[LowRank], list[float], torch.Generator], object]] = {
    "add": lambda xs, w, g: xs[0] + xs[1],
    "rescaled": lambda xs, w, g: xs[0].rescaled(0.5),
    "svd": lambda xs, w, g: LowRank.cat(xs).svd(),
    "truncate": lambda xs, w, g: LowRank.cat(xs).truncate(4),
    "compress": lambda xs, w, g: LowRank.cat(xs).compress().rescaled(2.0),
    "randomised": lambda xs, w, g: LowRank.cat(xs).randomised(3, 2, g),
    "norm": lambda xs, w, g: LowRank.cat(xs).norm(),
    "inner": lambda xs, w, g: LowRank.cat(xs).inner(xs[0]),
    "stack": lambda xs, w, g: stack(xs, w),
    "redistribute": lambda xs, w, g: redistribute(stack(xs, w), 8, 2.0, g),
    "redistribute, padded": lambda xs, w, g: redistribute(xs[0], 16, 2.0, g),
    "aggregation_bias": lambda xs, w, g: aggregation_bias([x.A for x in xs], [x.B for x in xs], w),
}


@pytest.mark.parametrize("shape", [(48, 48), (96, 40), (40, 96)])
@pytest.mark.parametrize("rule", RULES)
def test_no_rule_forms_a_tensor_of_the_full_matrix_size(rule: str, shape: tuple[int, int]) -> None:
    deltas = [random(*shape, R=4, seed=k, scale=2.0) for k in range(3)]
    with nothing_as_large_as(*shape):
        RULES[rule](deltas, [1.0, 2.0, 3.0], torch.Generator().manual_seed(0))


def test_the_shape_watch_sees_a_dense_matrix() -> None:
    with pytest.raises(AssertionError, match="full matrix"), nothing_as_large_as(48, 40):
        random(48, 40, 3).dense()


@pytest.mark.parametrize("shape", [(24, 24), (48, 20), (20, 48)])
def test_compression_beyond_full_rank_forms_nothing_larger_than_a_factor(shape: tuple[int, int]) -> None:
    value = random(*shape, R=60)
    with nothing_as_large_as(max(shape), value.rank + 1):
        small = value.compress()
    assert small.numel <= 2 * math.prod(shape)


# ---- values are values ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_writes_into_the_factors(rule: str) -> None:
    deltas = [random(12, 10, R=3, seed=k, scale=2.0) for k in range(3)]
    before = [(x.B.clone(), x.A.clone()) for x in deltas]
    RULES[rule](deltas, [1.0, 2.0, 3.0], torch.Generator().manual_seed(0))
    assert all(torch.equal(x.B, B) and torch.equal(x.A, A) for x, (B, A) in zip(deltas, before, strict=True))


@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_decompositions_refuse_factors_that_are_not_finite(name: str, bad: float) -> None:
    value = random(6, 5, 2)
    getattr(value, name)[0, 0] = bad
    for decompose in (
        value.svd,
        lambda: value.truncate(1),
        lambda: value.randomised(1, 0, torch.Generator()),
    ):
        with pytest.raises(ValueError, match=f"factor {name}"):
            decompose()


@pytest.mark.parametrize(
    ("B", "A", "scale", "why"),
    [
        (torch.zeros(4, 2), torch.zeros(3, 5), 1.0, "no product"),
        (torch.zeros(4), torch.zeros(4, 5), 1.0, "no product"),
        (torch.zeros(4, 2), torch.zeros(2, 5, dtype=torch.float64), 1.0, "dtype"),
        (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64), 1.0, "floating"),
        (torch.zeros(4, 2), torch.zeros(2, 5), math.nan, "scale"),
    ],
)
def test_factors_that_do_not_fit_are_refused(B: Tensor, A: Tensor, scale: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LowRank(B, A, scale)


def test_matrices_of_different_shapes_are_not_combined() -> None:
    # Equal element counts and ranks: only the shapes tell them apart.
    one, two = random(6, 4, 2), random(4, 6, 2)
    for combine in (
        lambda: one + two,
        lambda: one.inner(two),
        lambda: LowRank.cat([one], shape=(4, 6)),
    ):
        with pytest.raises(ValueError, match="shapes"):
            combine()


def test_impossible_ranks_and_scales_are_refused() -> None:
    value = random(6, 5, 2)
    for ask in (
        lambda: value.truncate(-1),
        lambda: value.randomised(1, -1, torch.Generator()),
        lambda: value.rescaled(0.0),
    ):
        with pytest.raises(ValueError):
            ask()
