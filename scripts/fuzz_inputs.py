"""Look for files that are read wrongly, or answered with a traceback, by damaging good ones at random.

    python scripts/fuzz_inputs.py tables [--seconds 600] [--first 0] [--count N] [--keep FOLDER]

PART is the name of a module beside this one, ``fuzz_PART.py``, with one function::

    def one(rng: random.Random, folder: Path) -> str

which makes one damaged input in the empty ``folder``, reads it, and compares. It returns what became of it in a word or two
(``refused``, ``read``), and raises for a finding. Input i is made from the seed i: ``--first i --count 1`` makes it again.
Findings are kept in FOLDER; with any, the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib import import_module
from itertools import count
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOST = 20  # findings; by then there is enough to mend


def main() -> int:
    parts = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py") if path.stem != "fuzz_inputs")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    one = import_module(f"fuzz_{args.part}").one

    outcomes: Counter[str] = Counter()
    findings = 0
    until = time.monotonic() + args.seconds
    for i in count(args.first):
        if time.monotonic() > until or i - args.first == args.count or findings == MOST:
            break
        with tempfile.TemporaryDirectory() as temporary:
            try:
                outcomes[one(random.Random(i), Path(temporary))] += 1
            except Exception:
                findings += 1
                kept = args.keep / f"{args.part}-{i}"
                shutil.copytree(temporary, kept, dirs_exist_ok=True)
                print(f"--- input {i}, kept in {kept}", flush=True)
                traceback.print_exc()
    for outcome, n in outcomes.most_common():
        print(f"{n:>8} {outcome}")
    print(f"{findings:>8} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
