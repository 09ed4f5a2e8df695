"""What the documentation says about all methods, from their code and docs/figures/: no file of git names every one of them.

python scripts/methods_pages.py           write the tables of families and of the optimizer into README.md and docs/methods.md
python scripts/methods_pages.py --check   write nothing; exit 1 if they are out of date, or if a method has no complete figure

The pages of methods, and the tables that name them, are made when the site is built, by `docs_hook.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import figure_files
from figure_files import Figure
from method_page import cell, kind, page, rows
from weft.cli.cards import EVIDENCE, FAMILIES
from weft.federation.info import MethodInfo
from weft.federation.method import Method
from weft.methods import registry
from weft.methods.discovery import sources

ROOT = Path(__file__).parents[1]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "methods.md"
WRITTEN = "written by scripts/methods_pages.py"
FAMILY_TABLE = f"<!-- families: {WRITTEN} -->", "<!-- end of families -->"
OPTIMIZER_TABLE = f"<!-- optimizer: {WRITTEN} -->", "<!-- end of optimizer -->"


def ours() -> dict[str, MethodInfo]:
    """Cards of the methods in this package; what other packages add on this machine is not for the pages."""
    return {slug: source.info for slug, source in sources().items() if source.package == "weft"}


# for readers of the repository --------------------------------------------------------------------------------------------


def family_table(sources_at: str) -> str:
    """One row per family, with the folder of its methods: no number and no name that a new method would change."""
    table = [
        (f"[{family}]({sources_at}/{family})", what, f"`weft methods --family {family}`") for family, what in FAMILIES.items()
    ]
    return "\n".join(rows(("family", "what is trained", "its methods"), *table))


def optimizer_table() -> str:
    """The settings of the local optimizer."""
    optimizer = [p for p in registry.parameters(Method) if p.name.startswith("optim.")]
    table = [(f"`{p.name}`", kind(p), f"`{p.default!r}`", cell(p.doc)) for p in optimizer]
    return "\n".join(rows(("setting", "type", "default", ""), *table))


def between(text: str, marks: tuple[str, str], new: str) -> str:
    """``text`` with what stands between two marks replaced."""
    before, rest = text.split(marks[0])
    _, after = rest.split(marks[1])
    return f"{before}{marks[0]}\n{new}\n{marks[1]}{after}"


def wanted() -> dict[Path, str]:
    """The files of git that hold a table, as they should be."""
    readme, index = README.read_text(encoding="utf-8"), INDEX.read_text(encoding="utf-8")
    index = between(index, OPTIMIZER_TABLE, optimizer_table())
    return {
        README: between(readme, FAMILY_TABLE, family_table("src/weft/methods")),
        INDEX: between(index, FAMILY_TABLE, family_table("../src/weft/methods")),
    }


# for the site -------------------------------------------------------------------------------------------------------------


def members() -> dict[str, list[str]]:
    """Family -> slugs, of the families that have methods."""
    found: dict[str, list[str]] = {}
    for slug, info in ours().items():
        found.setdefault(info.family, []).append(slug)
    return found


def method_tables(measured: Mapping[str, Figure]) -> str:
    """One table per family with a row for each method, instead of the table of families."""
    pieces = []
    for family, slugs in members().items():
        table = [
            (
                f"[`{slug}`](methods/{slug}.md)",
                cell(ours()[slug].title),
                cell(ours()[slug].sends),
                EVIDENCE[ours()[slug].evidence],
                cell(measured[slug].figure),
            )
            for slug in slugs
        ]
        head = ("method", "what it does", "leaves the client", "rests on", "figure")
        pieces += [f"## {family.capitalize()}: {FAMILIES[family]}\n", *rows(head, *table), ""]
    return "\n".join(pieces)


def index(markdown: str) -> str:
    """docs/methods.md as the site has it."""
    return between(markdown, FAMILY_TABLE, method_tables(figure_files.figures(ours())))


def pages() -> dict[str, str]:
    """Path in the site -> Markdown, of every method's page."""
    measured = figure_files.figures(ours())
    return {f"methods/{slug}.md": page(slug, measured[slug]) for slug in ours()}


def nav() -> list[dict[str, list[dict[str, str]]]]:
    """What stands below "Methods" in the navigation: a section for each family."""
    return [{family.capitalize(): [{slug: f"methods/{slug}.md"} for slug in slugs]} for family, slugs in members().items()]


# the command --------------------------------------------------------------------------------------------------------------


def main() -> int:
    stale = {path: text for path, text in wanted().items() if path.read_text(encoding="utf-8") != text}
    if "--check" not in sys.argv[1:]:
        for path, text in stale.items():
            path.write_text(text, encoding="utf-8")
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date: run python scripts/methods_pages.py")
    try:
        figure_files.figures(ours())
    except ValueError as e:
        print(e)
        return 1
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
