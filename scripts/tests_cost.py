"""What a further method costs in `make test`: registers copies of the methods under other slugs and measures their tests.

    python scripts/tests_cost.py --copies 50

Prints CPU seconds per method, and per method and test function. The rest of the tests is left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARK = "copy-"


def plant(folder: Path, copies: int) -> None:
    """A package with that many methods, and the entry points that register them."""
    from weft.methods.discovery import sources

    ours = [s for s in sources().values() if s.package == "weft"]
    lines = ["from __future__ import annotations", "from typing import ClassVar", "from weft.federation.info import MethodInfo"]
    points = ["[weft.methods]"]
    for i in range(copies):
        source = ours[i % len(ours)]
        info = replace(source.info, slug=f"{MARK}{i:02d}-{source.info.slug}")
        lines += [f"import {source.module}", f"class Copy{i}({source.module}.{source.name}):"]
        lines += [f'    """A copy of {source.name}."""', f"    info: ClassVar[MethodInfo] = {info!r}"]
        points.append(f"{info.slug} = copies:Copy{i}")
    (folder / "copies.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    about = folder / "copies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: copies\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join(points) + "\n")


class Meter:
    """Adds up the CPU seconds of each test function, children included."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        before = sum(os.times()[:4])
        found = yield
        law = getattr(item, "callspec", None) and item.callspec.params.get("law")
        self.spent[item.nodeid.split("[")[0] + (f" {law}" if law else "")] += sum(os.times()[:4]) - before
        return found  # type: ignore[return-value]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--copies", type=int, default=50)
    asked = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        sys.path[:0] = [folder, str(ROOT / "src")]
        plant(Path(folder), asked.copies)
        meter = Meter()
        chosen = ["-m", "not slow and not processes", "-k", MARK, "-n", "0"]
        code = pytest.main(["-q", "-p", "no:cacheprovider", *chosen], plugins=[meter])
    total = meter.spent.total()
    print(f"\n{total / asked.copies:.2f} CPU seconds per method, over {asked.copies} copies:")
    for name, spent in meter.spent.most_common(25):
        print(f"  {spent / asked.copies:6.3f}  {name}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
