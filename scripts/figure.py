"""Measure the figure of a method's page, and write it into docs/figures/SLUG.toml with what it was measured with.

python scripts/figure.py SLUG [arguments of weft run…]

Runs `weft run --method SLUG` with those arguments, in this process. What is typed stands on the page as it is, but for --runs.
A note that the file has already is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figure_files
from figure_files import Figure

ROOT = Path(__file__).parents[1]
PEOPLE = {"global test": "on the common test rows", "own test": "of the clients on their own test rows"}


def ran(words: Sequence[str]) -> dict[str, Any]:
    """The summary of a finished `weft run` with these arguments; progress goes to stderr.

    Raises:
        SystemExit: with the exit code of a run that did not end well, which has told its reason.
    """
    from weft.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            main(["run", *words, "--json"])
        except SystemExit as left:
            if left.code:
                raise
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


def typed(words: Sequence[str]) -> str:
    """The command for the page: without the folder of this machine's runs."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--runs":
            next(rest, None)
        elif not word.startswith("--runs="):
            kept.append(word)
    return shlex.join(["weft", "run", *kept])


def setting(summary: Mapping[str, Any]) -> str:
    """Backbone, data, deal, rounds and seed."""
    chosen = {n: s["value"] for n, s in summary["settings"].items()}
    clients = summary["data"]["clients"]
    deal = f"Dirichlet {chosen['alpha']:g}" if chosen["partition"] == "dirichlet" else f"partition {chosen['partition']}"
    rounds = summary["rounds"]
    recipe = any(s["origin"] == "recipe" for s in summary["settings"].values())
    return ", ".join(
        [
            f"{chosen['model']} on {chosen['data']}",
            f"{clients} client{'s' if clients != 1 else ''}",
            deal,
            f"{rounds} round{'s' if rounds != 1 else ''}",
            f"seed {chosen['seed']}",
            *(["with the recipe"] if recipe else []),
        ]
    )


def worth(headline: Mapping[str, Any]) -> str:
    """A value with its interval."""
    interval = f" (interval {headline['low']:.2f} to {headline['high']:.2f})" if "low" in headline else ""
    return f"{headline['value']:.3f} {headline['metric']}{interval}"


def result(summary: Mapping[str, Any]) -> str:
    """The headline, and on whose rows it was measured."""
    top = summary.get("headline")
    if top is None:
        raise SystemExit("The run has no headline, for there were no rows to test on: no figure was written.")
    people = PEOPLE.get(top["people"], f"on {top['people']}")
    return f"{worth(top)} {people}" + (f" (view `{top['view']}`)" if top["view"] != "global" else "")


def compared(summary: Mapping[str, Any]) -> str:
    """The baselines that were asked for."""
    found = {name: b.get("headline") for name, b in summary.get("baselines", {}).items()}
    return "; ".join(f"{name}: {worth(top)}" for name, top in found.items() if top)


def commit() -> str:
    """The commit of this checkout, marked ``-dirty`` where its sources are not those of the commit."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", "src") else "")


def processor() -> str:
    """The name that the processor gives itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(slug: str, words: Sequence[str]) -> Figure:
    """Run, and write the file."""
    at, path = commit(), figure_files.FOLDER / f"{slug}.toml"
    line = ["--method", slug, *words]
    summary = ran(line)
    made, backbone = summary["environment"], summary["backbone"]
    figure = Figure(
        setting=setting(summary),
        command=typed(line),
        figure=result(summary),
        compared_with=compared(summary),
        note=figure_files.read(path).note if path.exists() else "",
        commit=at,
        seconds=round(summary["seconds"]["all"], 1),
        versions={name: made["versions"][name] for name in figure_files.VERSIONS},
        hardware={
            "cores": made["processors"],
            "cpu": processor(),
            "device": made["device"],
            "precision": backbone["precision"],
        },
    )
    figure_files.write(path, figure)
    return figure


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    slug, *words = sys.argv[1:]
    print(measure(slug, words).figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
