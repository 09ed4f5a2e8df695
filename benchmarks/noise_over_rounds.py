"""How much noise is left in sums over the rounds of a pass of ``dp-ftrl``, by factorization, at equal ε; exact, without training.

    python benchmarks/noise_over_rounds.py [--rounds 8,16,64,256] [--bands 8,16,32,64,128,256]

Unit vectors are put through the code that makes a run's noise, in the place of normal numbers: what comes of them are the rows of
the matrix by which it makes them. Printed is a variance, for noise of standard deviation 1 on a part of a client of norm 1: the
mean over the sums after each of the rounds, and that of the sum after the last, which later passes begin with.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from weft.privacy.factorization import Banded, Factorization, Tree


def variances(of: Factorization, rounds: int) -> np.ndarray:
    """Of the sums after each round, [rounds], with the noise that hides a client as well as any other factorization's."""
    kept: dict[str, Any] = {}
    rows = [of.noise(kept, {"z": z})["z"].numpy() for z in torch.eye(rounds, dtype=torch.float64)]
    found: np.ndarray = np.square(np.cumsum(rows, 0)).sum(1) * of.sensitivity**2
    return found


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=numbers, default=[8, 16, 64, 256])
    parser.add_argument("--bands", type=numbers, default=[8, 16, 32, 64, 128, 256])
    args = parser.parse_args()
    print(f"| noise left, mean (last) | {' | '.join(f'{n} rounds' for n in args.rounds)} |")
    print(f"|---|{'---:|' * len(args.rounds)}")
    for bands in [0, *args.bands]:
        cells = []
        for n in args.rounds:
            each = None if bands > n else variances(Banded(n, bands) if bands else Tree(n), n)
            cells.append("" if each is None else f"{each.mean():.2f} ({each[-1]:.2f})")
        print(f"| {f'{bands} bands' if bands else 'tree'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
