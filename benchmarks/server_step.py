"""Server steps of FlexLoRA and FLoRA at the shapes of Llama-2-7B, low-rank against dense, as one table.

    python benchmarks/server_step.py            # tens of minutes, nearly all of it in the dense SVDs
    python benchmarks/server_step.py --methods  # instead: the whole step of FedEx-LoRA, FRLoRA, LoRA-FAIR, FlexLoRA and FLoRA
    python benchmarks/server_step.py --quick    # toy shapes, to see that it runs; its times mean nothing

Modules are aggregated one after another, so that one module's factors are held and never the model's. One
module per shape is timed, on both sides, and multiplied by how often the shape occurs in the model. Both
sides must have computed the same matrices before any time is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

import _methods_step
from weft.aggregation import redistribute, stack
from weft.tensors.keyed import generator
from weft.tensors.lowrank import LowRank

P = ParamSpec("P")
T = TypeVar("T")
SAME = 1e-3  # largest relative distance at which two float32 results count as the same matrix
ALPHA_OVER_R = 2.0


@dataclass(frozen=True)
class Setting:
    """A model's adapted modules as (label, (d_out, d_in), number per layer), and the federations on it."""

    name: str
    shapes: tuple[tuple[str, tuple[int, int], int], ...]
    layers: int
    rank: int
    few: int
    many: int
    crowd: int  # enough clients for their stacked rank to pass min(d_out, d_in) of the first shape

    @property
    def extent(self) -> str:
        return f"model, {self.layers * sum(times for *_, times in self.shapes)} modules"


LLAMA2_7B = Setting(
    name="Llama-2-7B",
    shapes=(("q, k, v, o", (4096, 4096), 4), ("gate, up", (11008, 4096), 2), ("down", (4096, 11008), 1)),
    layers=32,
    rank=16,
    few=10,
    many=100,
    crowd=300,
)
TOY = Setting(
    name="toy shapes",
    shapes=(("square", (48, 48), 4), ("tall", (96, 48), 2), ("wide", (48, 96), 1)),
    layers=2,
    rank=4,
    few=3,
    many=8,
    crowd=16,
)


@dataclass
class Row:
    """One line of the table: seconds of both sides for the whole extent, one number per repeat."""

    step: str
    clients: int
    extent: str
    against: str
    aim: float | None = None
    distance_is: str = "same matrix"
    ours: list[float] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)

    def add(self, ours: list[float], dense: list[float], distance: float, times: int = 1) -> None:
        """Add one module's seconds, ``times`` over."""
        self.ours = [total + times * s for total, s in zip(self.ours or [0.0] * len(ours), ours, strict=True)]
        self.dense = [total + times * s for total, s in zip(self.dense or [0.0] * len(dense), dense, strict=True)]
        self.distances.append(distance)

    @property
    def matched(self) -> bool:
        return self.distance_is != "same matrix" or max(self.distances) <= SAME

    def cells(self) -> list[str]:
        ratio = statistics.median(self.dense) / statistics.median(self.ours)
        low, high = min(self.dense) / max(self.ours), max(self.dense) / min(self.ours)
        if self.aim is None:
            verdict = "(slower)" if ratio < 1 else ""
        else:
            verdict = f">= {self.aim:g}x {'met' if ratio >= self.aim else 'MISSED'}"
        return [
            self.step,
            str(self.clients),
            self.extent,
            spread(self.ours),
            self.against,
            spread(self.dense),
            f"{ratio:.3g}x [{low:.3g}, {high:.3g}]",
            verdict,
            f"{self.distance_is}: {max(self.distances):.0e}",
        ]


HEADER = ["step", "clients", "extent", "low-rank s", "against", "dense s", "ratio [range]", "aim", "check"]


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3g} [{min(seconds):.3g}, {max(seconds):.3g}] n={len(seconds)}"


def updates(shape: tuple[int, int], rank: int, clients: int) -> tuple[list[LowRank], list[float]]:
    """Random factors of all clients, and unequal example counts as their weights."""
    d_out, d_in = shape
    rng = generator(0, "benchmark", d_out, d_in, clients)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=rng) / d_in**0.5

    deltas = [LowRank(draw(d_out, rank), draw(rank, d_in), ALPHA_OVER_R) for _ in range(clients)]
    return deltas, [float(50 + k % 7) for k in range(clients)]


def flexlora(deltas: list[LowRank], weights: list[float], rank: int) -> LowRank:
    """FlexLoRA's step: average the products, cut to the receivers' rank, hand out A and B."""
    return handed_out(stack(deltas, weights), rank)


def flexlora_randomised(deltas: list[LowRank], weights: list[float], rank: int, rng: torch.Generator) -> LowRank:
    return handed_out(stack(deltas, weights).randomised(rank, oversample=rank, generator=rng), rank)


def handed_out(product: LowRank, rank: int) -> LowRank:
    A, B = redistribute(product, rank, ALPHA_OVER_R, generator(0, "padding"))
    return LowRank(B, A, ALPHA_OVER_R)


def recompressed(deltas: list[LowRank], weights: list[float]) -> LowRank:
    return stack(deltas, weights).compress()


def dense_mean(deltas: list[LowRank], weights: list[float]) -> Tensor:
    """The averaged update as a full matrix: FLoRA's merge, and the first half of a dense FlexLoRA."""
    mean = torch.zeros(deltas[0].shape)
    for delta, weight in zip(deltas, weights, strict=True):
        mean.addmm_(delta.B, delta.A, alpha=delta.scale * weight / sum(weights))
    return mean


def dense_flexlora(deltas: list[LowRank], weights: list[float], rank: int) -> LowRank:
    U, S, Vh = torch.linalg.svd(dense_mean(deltas, weights), full_matrices=False)
    return LowRank(U[:, :rank] * S[:rank], Vh[:rank])


def distance(value: LowRank, reference: LowRank) -> float:
    return (value + reference * -1.0).norm() / reference.norm()


def dense_distance(value: LowRank, reference: Tensor) -> float:
    return float((value.dense() - reference).double().norm() / reference.double().norm())


def timed(seconds: list[float], step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    start = time.perf_counter()
    result = step(*args, **kwargs)
    seconds.append(time.perf_counter() - start)
    return result


def whole_model(setting: Setting, clients: int, aim: float, repeats: int, dense_repeats: int) -> list[Row]:
    """The four rows of one federation, summed over the model's modules."""
    r, extent = setting.rank, setting.extent
    cut_row = Row("flexlora", clients, extent, "dense SVD", aim)
    near_row = Row("flexlora, randomised", clients, extent, "dense SVD", distance_is="residual above best")
    stack_row = Row("flora", clients, extent, "dense SVD", aim)
    merge_row = Row("flora", clients, extent, "dense merge")
    for label, shape, per_layer in setting.shapes:
        say(f"{clients} clients, {label} {shape[0]}x{shape[1]}")
        deltas, weights = updates(shape, r, clients)
        ours: list[float] = []
        randomised: list[float] = []
        stacked: list[float] = []
        merged: list[float] = []
        dense: list[float] = []
        product = stack(deltas, weights)
        best = flexlora(deltas, weights, r)  # also the warm-up
        merge = dense_mean(deltas, weights)
        for i in range(repeats):
            # All sides in turn, so that a change of the machine's load meets each of them.
            timed(ours, flexlora, deltas, weights, r)
            timed(stacked, stack, deltas, weights)
            timed(merged, dense_mean, deltas, weights)
            rng = generator(0, "range", i)
            near = timed(randomised, flexlora_randomised, deltas, weights, r, rng)
            if i < dense_repeats:
                reference = timed(dense, dense_flexlora, deltas, weights, r)
        times = per_layer * setting.layers
        residual = (product + best * -1.0).norm()
        cut_row.add(ours, dense, distance(best, reference), times)
        near_row.add(randomised, dense, (product + near * -1.0).norm() / residual - 1.0, times)
        stack_row.add(stacked, dense, dense_distance(product, merge), times)
        merge_row.add(stacked, merged, dense_distance(product, merge), times)
    return [cut_row, near_row, stack_row, merge_row]


def beyond_full_rank(setting: Setting, repeats: int) -> list[Row]:
    """Where factors stop paying: one module whose stacked rank has passed min(d_out, d_in)."""
    _, shape, _ = setting.shapes[0]
    extent = f"one {shape[0]}x{shape[1]}, R {setting.crowd * setting.rank}"
    say(f"{setting.crowd} clients, {extent}")
    deltas, weights = updates(shape, setting.rank, setting.crowd)
    cut_row = Row("flexlora", setting.crowd, extent, "dense SVD")
    compress_row = Row("flora, re-compression", setting.crowd, extent, "dense merge")
    cuts: list[float] = []
    dense: list[float] = []
    compressed: list[float] = []
    merged: list[float] = []
    for _ in range(repeats):
        best = timed(cuts, flexlora, deltas, weights, setting.rank)
        reference = timed(dense, dense_flexlora, deltas, weights, setting.rank)
        small = timed(compressed, recompressed, deltas, weights)
        merge = timed(merged, dense_mean, deltas, weights)
    cut_row.add(cuts, dense, distance(best, reference))
    compress_row.add(compressed, merged, dense_distance(small, merge))
    return [cut_row, compress_row]


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(lines)


def say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy shapes: shows that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each low-rank step")
    parser.add_argument(
        "--dense-repeats",
        type=int,
        default=3,
        help="timings of each dense SVD, fewer because each is so slow",
    )
    parser.add_argument(
        "--methods",
        nargs="?",
        const=",".join(_methods_step.METHODS),
        help="what these methods' servers do at the end of a round, instead of the rules by themselves",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.dense_repeats <= options.repeats:
        parser.error("--dense-repeats must lie between 1 and --repeats")
    setting = TOY if options.quick else LLAMA2_7B
    if options.methods:
        found = _methods_step.lines(
            options.methods.split(","), setting.rank, setting.few, options.quick, options.dense_repeats, say
        )
        print(table([_methods_step.HEADER, *(line.cells() for line in found)]))
        print(
            f"Rank {setting.rank}, {setting.few} clients, queries and values, float32, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads; processor's seconds, medians of {options.dense_repeats}, one of a dense SVD.\n"
            "Extrapolated, both sides alike: two sites are timed (one on the dense side), and 64 stand in the table.\n"
            "Downloads are messages to all clients, error is the aggregation error of the record, both of 64 sites."
        )
        return 0
    rows = [
        *whole_model(setting, setting.few, 100.0, options.repeats, options.dense_repeats),
        *whole_model(setting, setting.many, 10.0, options.repeats, options.dense_repeats),
        *beyond_full_rank(setting, options.dense_repeats),
    ]
    if different := [row for row in rows if not row.matched]:
        for row in different:
            print(f"{row.step}, {row.clients} clients: {row.cells()[-1]} > {SAME:g}; no times reported")
        return 1
    factors = sum(per_layer * sum(shape) for _, shape, per_layer in setting.shapes) * setting.layers
    largest = max(sum(shape) for _, shape, _ in setting.shapes)
    held, model = (4e-6 * setting.many * setting.rank * size for size in (largest, factors))
    print(table([HEADER, *(row.cells() for row in rows)]))
    print(
        f"{setting.name}, rank {setting.rank}, float32, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; seconds are median [min, max].\n"
        "Extrapolated, both sides alike: one module per shape is timed and multiplied by its number.\n"
        f"Dense SVD is timed {options.dense_repeats} times, the low-rank side {options.repeats} times "
        f"({options.dense_repeats} in the rows of one module).\n"
        f"Factors held at a time with {setting.many} clients: {held:.3g} MB of the model's {model:.3g} MB."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
