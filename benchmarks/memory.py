"""Peak memory of a whole run with 10, 100, 1,000 and 10,000 clients: same backbone, same cohort, synthetic rows.

    python benchmarks/memory.py [--method fedit] [--cohort 8] [--rounds 2]

Each size runs in a process of its own; its peak is the operating system's count (resident set). The aim is a peak at 10,000
clients of at most 1.1 times that at 10. The number of rows grows with the clients, as it would.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
SIZES = (10, 100, 1000, 10_000)


def one(clients: int, method: str, cohort: int, rounds: int, rows_each: int) -> None:
    """Run one federation and print its peak in MB."""
    import numpy as np

    import weft
    from weft.data.rows import ClientData, FederatedData, Rows

    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(200)]

    def rows(start: int, n: int) -> Rows:
        picks = rng.integers(len(words), size=(n, 6))
        return Rows(
            [" ".join(words[i] for i in p) for p in picks], None, rng.integers(3, size=n), np.arange(start, start + n), None
        )

    people = [ClientData(f"c{i:05d}", rows(i * rows_each, rows_each), rows(0, 0), rows(0, 0)) for i in range(clients)]
    data = FederatedData("synthetic", ("a", "b", "c"), people, rows(10**9, 64), rows(2 * 10**9, 8), [], "synthetic", ())
    with tempfile.TemporaryDirectory() as folder:
        weft.run(
            method=method, model="minilm", data=data, rounds=rounds, participation=cohort / clients, precision="float32",
            runs=folder, baselines=[], eval_clients=cohort, pack=cohort, start_head="random",
        )  # fmt: skip
    print(json.dumps({"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def peak(clients: int, args: argparse.Namespace, rows_each: int) -> float:
    command = [
        sys.executable, __file__, "--one", str(clients), "--method", args.method, "--cohort", str(args.cohort),
        "--rounds", str(args.rounds), "--rows", str(rows_each),
    ]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.strip().splitlines()[-1])["mb"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="fedit")
    parser.add_argument("--cohort", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4, help="training rows of each client")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="10 and 100 clients only")
    args = parser.parse_args()
    if args.one:
        one(args.one, args.method, args.cohort, args.rounds, args.rows)
        return
    sizes = SIZES[:2] if args.quick else SIZES
    print(f"{args.method} on minilm in float32, cohort {args.cohort}, {args.rounds} rounds, {args.rows} rows a client\n")
    print("| clients | peak MB | against 10 clients |")
    print("|---|---|---|")
    first = None
    for n in sizes:
        mb = peak(n, args, args.rows)
        first = first or mb
        print(f"| {n} | {mb:.0f} | {mb / first:.3f}x |", flush=True)
    print(f"\n{'met   ' if mb / first <= 1.1 else 'MISSED'} at most 1.1x at {sizes[-1]} clients ({mb / first:.3f}x)")


if __name__ == "__main__":
    main()
