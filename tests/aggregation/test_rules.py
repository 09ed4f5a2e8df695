"""The aggregation rules hold the equations of their papers, in float64, without a model."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paths import ROOT
from weft.aggregation import WeightedMean, aggregation_bias, redistribute, shares, stack, weighted_mean
from weft.tensors.lowrank import LowRank

quick = settings(max_examples=30)
D_OUT, D_IN = 20, 16
Update = tuple[dict[str, Tensor], float]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def client(rank: int, seed: int, scale: float = 2.0) -> LowRank:
    return LowRank(draw(D_OUT, rank, seed=seed), draw(rank, D_IN, seed=seed + 1000), scale)


def dense_mean(deltas: list[LowRank], weights: list[float]) -> Tensor:
    """sum_k p_k s_k B_k A_k, term by term in full space."""
    total = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight / sum(weights) * delta.scale * (delta.B @ delta.A)
    return total


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1))


# ---- weighted mean: FedAvg, FedIT, FedRA ---------------------------------------------------------


@st.composite
def rounds(draw_: st.DrawFn) -> list[Update]:
    """Updates of which each holds some of three names, with weights that may be 0."""
    updates = []
    for k in range(draw_(st.integers(0, 6))):
        names = draw_(st.sets(st.sampled_from(["a", "b", "c"])))
        weight = draw_(st.one_of(st.just(0.0), st.floats(0.01, 1000)))
        updates.append(({name: draw(2, 3, seed=100 * k + ord(name)) for name in sorted(names)}, weight))
    return updates


@quick
@given(rounds())
def test_each_name_is_averaged_over_those_who_hold_it(updates: list[Update]) -> None:
    result = weighted_mean(updates)
    for name in "abc":
        held = [(tensors[name], w) for tensors, w in updates if name in tensors and w > 0]
        if not held:
            assert name not in result
            continue
        total = math.fsum(w for _, w in held)
        for index in range(6):
            expected = math.fsum(w * float(t.flatten()[index]) for t, w in held) / total
            assert float(result[name].flatten()[index]) == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_no_updates_give_no_result() -> None:
    assert weighted_mean([]) == {}
    assert weighted_mean([({"a": draw(2)}, 0.0)]) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_equal_updates_is_that_update_bit_for_bit(dtype: torch.dtype) -> None:
    tensor = draw(50, 4).to(dtype)
    for weights in ([3.0], [0.1, 7.0, 0.3], [1.0] * 10):
        mean = weighted_mean(({"a": tensor}, w) for w in weights)["a"]
        assert mean.dtype == dtype
        assert torch.equal(mean, tensor)


def test_the_mean_ignores_the_order_of_updates_and_the_unit_of_weights() -> None:
    updates = [({"a": draw(5, seed=k)}, float(k + 1)) for k in range(5)]
    mean = weighted_mean(updates)["a"]
    close(weighted_mean(reversed(updates))["a"], mean)
    close(weighted_mean((tensors, w / 37) for tensors, w in updates)["a"], mean)


def test_absentees_have_no_influence() -> None:
    updates = [({"a": draw(5, seed=k)}, float(k + 1)) for k in range(3)]
    absent = ({"a": torch.full((5,), 1e30, dtype=torch.float64)}, 0.0)
    assert torch.equal(weighted_mean([absent, *updates, absent])["a"], weighted_mean(updates)["a"])


def test_each_name_may_have_its_own_weight() -> None:
    one, two = ({"a": draw(3, seed=k), "b": draw(3, seed=k + 5)} for k in range(2))
    result = weighted_mean([(one, {"a": 1.0, "b": 0.0}), (two, {"a": 3.0, "b": 2.0})])
    close(result["a"], (one["a"] + 3 * two["a"]) / 4)
    assert torch.equal(result["b"], two["b"])


def test_updates_are_never_written_to_and_results_are_never_shared() -> None:
    updates = [{"a": draw(4, seed=k).float()} for k in range(3)]
    before = [u["a"].clone() for u in updates]
    mean = WeightedMean()
    mean.add(updates[0], 1.0)
    first = mean.result()["a"]
    first.zero_()
    mean.add(updates[1], 1.0)
    kept = mean.result()["a"]
    snapshot = kept.clone()
    mean.add(updates[2], 1.0)
    assert torch.equal(kept, snapshot)
    assert all(torch.equal(u["a"], b) for u, b in zip(updates, before, strict=True))
    close(mean.result()["a"].double(), torch.stack(before).double().mean(0), tolerance=1e-6)


def test_half_precision_updates_are_averaged_in_float32_and_wider_ones_in_float64() -> None:
    updates = [draw(40, seed=k).to(torch.bfloat16) for k in range(300)]
    mean = weighted_mean(({"a": u}, 1.0) for u in updates)["a"]
    assert mean.dtype == torch.float32
    close(mean.double(), torch.stack(updates).double().mean(0), tolerance=1e-6)
    mixed = weighted_mean([({"a": draw(3).float()}, 1.0), ({"a": draw(3, seed=1)}, 1.0)])["a"]
    assert mixed.dtype == torch.float64


@pytest.mark.parametrize(
    ("tensors", "weight", "why"),
    [
        ({"a": torch.ones(3), "b": torch.ones(4)}, 1.0, "shape"),
        ({"a": torch.ones(3), "b": torch.ones(3, dtype=torch.int64)}, 1.0, "int64"),
        ({"a": torch.ones(3), "b": torch.ones(3)}, {"a": 1.0}, "'b' has no weight"),
        ({"a": torch.ones(3)}, -1.0, ">= 0"),
        ({"a": torch.ones(3)}, math.nan, "finite"),
    ],
)
def test_a_refused_update_leaves_no_trace(tensors: dict[str, Tensor], weight: float, why: str) -> None:
    mean = WeightedMean()
    mean.add({"a": torch.zeros(3), "b": torch.zeros(3)}, 1.0)
    with pytest.raises(ValueError, match=why):
        mean.add(tensors, weight)
    assert all(torch.equal(tensor, torch.zeros(3)) for tensor in mean.result().values())


def test_shares_sum_to_one_and_refuse_what_has_none() -> None:
    assert shares([1.0, 3.0]) == [0.25, 0.75]
    for bad in ([], [0.0, 0.0], [1.0, -1.0], [math.inf]):
        with pytest.raises(ValueError, match="weight"):
            shares(bad)


def test_fedra_gives_every_block_the_mean_of_those_who_held_it() -> None:
    allocation = [[0, 2, 5], [2, 3], [2, 5]]  # which blocks each client holds; nobody holds 1 and 4
    constant = lambda k, block: torch.full((2, 2), 10.0 * k + block, dtype=torch.float64)  # noqa: E731
    updates = [({f"block/{b}": constant(k, b) for b in held}, 1.0) for k, held in enumerate(allocation)]
    result = weighted_mean(updates)
    assert sorted(result) == ["block/0", "block/2", "block/3", "block/5"]
    for block in (0, 2, 3, 5):
        holders = [k for k, held in enumerate(allocation) if block in held]
        close(result[f"block/{block}"], sum(constant(k, block) for k in holders) / len(holders))


# ---- FedIT: what averaging factors gets wrong ----------------------------------------------------


def test_aggregation_bias_is_the_gap_between_averaged_factors_and_averaged_products() -> None:
    deltas, n = [client(3, k, scale=1.0) for k in range(4)], [5.0, 1.0, 2.0, 9.0]
    As, Bs = [d.A for d in deltas], [d.B for d in deltas]
    A_mean, B_mean = (sum(w * f for w, f in zip(n, fs, strict=True)) / sum(n) for fs in (As, Bs))
    gap = torch.as_tensor(B_mean @ A_mean) - dense_mean(deltas, n)
    bias = aggregation_bias(As, Bs, n)
    assert float(gap.norm()) > 1.0
    close(bias.dense(), gap)
    assert bias.rank == 4 * 3


def test_clients_that_agree_on_one_factor_cause_no_bias() -> None:
    A, Bs = draw(3, D_IN), [draw(D_OUT, 3, seed=k) for k in range(3)]
    assert aggregation_bias([A] * 3, Bs, [1.0, 2.0, 4.0]).norm() == 0.0


# ---- FLoRA: stacking -----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(4, 4, 4), (8, 2, 1), (5,), (3, 16)])
def test_a_stack_is_the_weighted_mean_of_the_merged_models(ranks: tuple[int, ...]) -> None:
    deltas = [client(r, seed=k, scale=16.0 / r) for k, r in enumerate(ranks)]
    n = [float(3 * k + 1) for k in range(len(ranks))]
    W = draw(D_OUT, D_IN, seed=77)
    merged = sum(w / sum(n) * (W + d.scale * d.B @ d.A) for d, w in zip(deltas, n, strict=True))
    stacked = stack(deltas, n)
    close(W + stacked.dense(), torch.as_tensor(merged))
    assert stacked.rank == sum(ranks)
    assert stacked.numel == sum(ranks) * (D_OUT + D_IN)


def test_a_stack_does_not_depend_on_the_order_of_clients() -> None:
    deltas, n = [client(3, k) for k in range(4)], [1.0, 5.0, 2.0, 3.0]
    close(stack(deltas[::-1], n[::-1]).dense(), stack(deltas, n).dense())


def test_a_growing_delta_outgrows_every_client_rank_and_survives_compression() -> None:
    delta = LowRank.zeros(D_OUT, D_IN, dtype=torch.float64)
    expected = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    for t in range(4):
        deltas = [client(2, 10 * t + k) for k in range(3)]
        delta = (delta + stack(deltas, [1.0, 2.0, 3.0])).compress()
        expected += dense_mean(deltas, [1.0, 2.0, 3.0])
        assert delta.rank == min(6 * (t + 1), D_IN)
        close(delta.dense(), expected)
    assert int(torch.linalg.matrix_rank(expected)) > 2


def test_a_stack_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        stack([], [])


# ---- FlexLoRA: redistribution --------------------------------------------------------------------


@pytest.mark.parametrize("rank", [9, 12, 16])
def test_a_receiver_of_enough_rank_gets_the_exact_mean(rank: int) -> None:
    deltas, n = [client(r, seed=r, scale=16.0 / r) for r in (2, 3, 4)], [3.0, 1.0, 2.0]
    A, B = redistribute(stack(deltas, n), rank, 16.0 / rank, rng())
    close(16.0 / rank * B @ A, dense_mean(deltas, n))


@pytest.mark.parametrize("rank", range(1, 12))
def test_any_receiver_gets_the_best_cut_of_the_mean(rank: int) -> None:
    deltas, n = [client(4, seed=k) for k in range(3)], [3.0, 1.0, 2.0]
    dense = dense_mean(deltas, n)
    A, B = redistribute(stack(deltas, n), rank, 0.5, rng())
    error, sigma = (0.5 * B @ A - dense).square().sum(), torch.linalg.svdvals(dense)
    torch.testing.assert_close(error, sigma[rank:].square().sum(), rtol=1e-10, atol=1e-20)
    close(A @ A.mT, torch.eye(rank, dtype=torch.float64))
    close(0.5 * B.norm(dim=0), sigma[:rank])  # all of Sigma is in B


def test_one_client_gets_its_own_update_back_in_rotated_factors() -> None:
    own = client(4, seed=5, scale=4.0)
    A, B = redistribute(stack([own], [7.0]), 4, 4.0, rng())
    close(4.0 * B @ A, 4.0 * own.B @ own.A)
    assert not torch.allclose(A, own.A)


def test_redistribution_averages_products_and_not_factors() -> None:
    deltas, n = [client(2, seed=k, scale=1.0) for k in range(3)], [1.0, 1.0, 2.0]
    A, B = redistribute(stack(deltas, n), 6, 1.0, rng())
    bias = aggregation_bias([d.A for d in deltas], [d.B for d in deltas], n)
    factors = weighted_mean(({"A": d.A, "B": d.B}, w) for d, w in zip(deltas, n, strict=True))
    close(B @ A + bias.dense(), factors["B"] @ factors["A"])
    assert bias.norm() > 1.0


def test_equal_updates_of_different_rank_and_scale_count_the_same() -> None:
    own, other = client(2, seed=1, scale=8.0), client(4, seed=2, scale=4.0)
    again = own.rescaled(2.0)
    padded = LowRank(  # the same product at twice the rank
        torch.cat([again.B, torch.zeros_like(again.B)], dim=1),
        torch.cat([again.A, draw(2, D_IN, seed=9)]),
        again.scale,
    )
    close(stack([own, other], [3.0, 1.0]).dense(), stack([padded, other], [3.0, 1.0]).dense())


@pytest.mark.parametrize("product_rank", [0, 1, 3])
@pytest.mark.parametrize("rank", [4, 16, 21])
def test_ranks_without_a_singular_value_are_random_directions_that_can_learn(product_rank: int, rank: int) -> None:
    own = client(product_rank, seed=3)
    twice = LowRank.cat([own, own])  # stored at twice its rank: half of its singular values are rounding errors
    A, B = redistribute(twice, rank, 2.0, rng(1))
    close(2.0 * B @ A, twice.dense())
    assert torch.equal(B[:, product_rank:], torch.zeros(D_OUT, rank - product_rank, dtype=torch.float64))
    whole = min(rank, D_IN)  # more rows than columns cannot all be orthogonal
    close(A[:whole] @ A[:whole].mT, torch.eye(whole, dtype=torch.float64))
    close(A.norm(dim=1), torch.ones(rank, dtype=torch.float64))
    # A zero column of B gets a gradient, because its row of A is not zero.
    leaf = B.clone().requires_grad_()
    (draw(3, D_OUT, seed=4) * (draw(3, D_IN) @ A.mT @ leaf.mT)).sum().backward()
    assert leaf.grad is not None
    assert bool((leaf.grad.norm(dim=0) > 0).all())


def test_a_receiver_of_more_rank_than_inputs_has_no_dead_direction_either() -> None:
    product = LowRank(draw(D_OUT, D_IN), draw(D_IN, D_IN, seed=1))
    A, B = redistribute(product, D_IN + 3, 2.0, rng())
    close(2.0 * B @ A, product.dense())
    close(A[D_IN:] @ A[D_IN:].mT, torch.eye(3, dtype=torch.float64))


def test_padding_follows_its_generator_and_touches_nothing_else() -> None:
    own = client(2, seed=3)
    (A1, B1), (A2, B2), (A3, B3) = (redistribute(own, 5, 2.0, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(A1, A2)
    assert not torch.allclose(A1[2:], A3[2:])
    assert torch.equal(A1[:2], A3[:2])
    assert torch.equal(B1, B2)
    assert torch.equal(B1, B3)


def test_receivers_can_share_one_svd() -> None:
    product = stack([client(4, seed=k) for k in range(2)], [1.0, 2.0])
    svd = product.svd(6)
    for rank in (1, 3, 6):
        A, B = redistribute(product, rank, 2.0, rng(), svd=svd)
        own_A, own_B = redistribute(product, rank, 2.0, rng())
        close(2.0 * B @ A, 2.0 * own_B @ own_A)
    with pytest.raises(ValueError, match="triplets"):
        redistribute(product, 7, 2.0, rng(), svd=svd)


@pytest.mark.parametrize(("rank", "alpha_over_r"), [(0, 1.0), (-1, 1.0), (2, 0.0)])
def test_impossible_receivers_are_refused(rank: int, alpha_over_r: float) -> None:
    with pytest.raises(ValueError, match="rank"):
        redistribute(client(2, seed=0), rank, alpha_over_r, rng())


# ---- benchmark -----------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "benchmarks" / "server_step.py"
    spec = importlib.util.spec_from_file_location("server_step", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "server_step", module)
    monkeypatch.syspath_prepend(str(path.parent))
    spec.loader.exec_module(module)
    return module


def test_the_server_step_benchmark_prints_one_row_per_comparison(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--quick", "--repeats", "2", "--dense-repeats", "1"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert len(table) == 1 + 4 + 4 + 2
    assert len({line.count("|") for line in table}) == 1


def test_the_benchmark_reports_no_times_for_different_results(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = benchmark.dense_flexlora
    monkeypatch.setattr(benchmark, "dense_flexlora", lambda *args: right(*args) * 1.01)
    assert benchmark.main(["--quick", "--repeats", "1", "--dense-repeats", "1"]) == 1
    out = capsys.readouterr().out
    assert "no times reported" in out
    assert " | " not in out


def test_a_missed_aim_is_printed_as_missed(benchmark: ModuleType) -> None:
    for dense, verdict in ((0.9, "MISSED"), (1.1, "met")):
        row = benchmark.Row("step", 1, "model", "dense", aim=10.0)
        row.add([0.1] * 3, [dense] * 3, distance=0.0)
        assert verdict in " ".join(row.cells())


# parts of tensors ---------------------------------------------------------------------------------------------------------


def by_entry(updates: list[tuple[np.ndarray, np.ndarray]], held: np.ndarray) -> np.ndarray:
    """Each entry's mean over those who hold it, one at a time; ``held`` where nobody does."""
    found = held.copy()
    for place in np.ndindex(held.shape):
        own = [(x[place], w[place]) for x, w in updates if all(i < n for i, n in zip(place, x.shape, strict=True))]
        total = sum(w for _, w in own)
        if total > 0:
            found[place] = sum(x * w for x, w in own) / total
    return found


def test_smaller_tensors_are_leading_slices_of_larger_ones() -> None:
    draws = np.random.default_rng(0)
    shapes, weights = [(2, 3), (4, 2), (1, 5), (2, 3)], [3.0, 1.0, 2.0, 5.0]
    values = [draws.normal(size=s) for s in shapes]
    held = draws.normal(size=(5, 6))
    for order in itertools.permutations(range(4)):
        mean = WeightedMean(leading=True)
        for i in order:
            mean.add({"x": torch.from_numpy(values[i])}, weights[i])
        found = mean.result({"x": torch.from_numpy(held)})["x"]
        wanted = by_entry([(values[i], np.full(shapes[i], weights[i])) for i in range(4)], held)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-14)


def test_entries_have_weights_of_their_own() -> None:
    draws = np.random.default_rng(1)
    values = [draws.normal(size=(3, 4)) for _ in range(3)]
    weights = [draws.integers(0, 3, (3, 4)).astype(float) for _ in range(3)]
    weights[0][0, 0] = weights[1][0, 0] = weights[2][0, 0] = 0
    held = draws.normal(size=(3, 4))
    mean = WeightedMean()
    for x, w in zip(values, weights, strict=True):
        mean.add({"x": torch.from_numpy(x)}, {"x": torch.from_numpy(w)})
    found = mean.result({"x": torch.from_numpy(held)})["x"].numpy()
    np.testing.assert_allclose(found, by_entry(list(zip(values, weights, strict=True)), held), rtol=0, atol=1e-14)
    assert found[0, 0] == held[0, 0]
    with pytest.raises(ValueError, match="some entries of 'x' were held by nobody"):
        mean.result()


def test_numbers_and_entries_can_be_mixed_and_equal_values_stay_as_they_are() -> None:
    x, keep = torch.randn(3, 4), torch.ones(3, 4)
    keep[1] = 0
    mean = WeightedMean()
    mean.add({"x": x}, 2.0)
    mean.add({"x": x}, {"x": keep})
    mean.add({"x": x}, 3.0)
    assert torch.equal(mean.result()["x"], x)


def test_parts_that_do_not_fit_are_refused() -> None:
    mean = WeightedMean(leading=True)
    mean.add({"x": torch.zeros(2, 3)}, 1.0)
    for tensor, weight, words in (
        (torch.zeros(2), 1.0, "has shape"),
        (torch.zeros(2, 2), {"x": torch.ones(2, 3)}, "the weights of 'x' have shape"),
        (torch.zeros(2, 2), {"x": -torch.ones(2, 2)}, "a weight must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            mean.add({"x": tensor}, weight)
    plain = WeightedMean()
    plain.add({"x": torch.zeros(2, 3)}, 1.0)
    with pytest.raises(ValueError, match="has shape"):
        plain.add({"x": torch.zeros(1, 3)}, 1.0)
