"""Write what is declared of settings: the tables of options in docs/cli.md.

python scripts/settings_pages.py           write them
python scripts/settings_pages.py --check   write nothing; exit 1 if they are out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from weft.experiment import GROUPS, SETTINGS, Setting

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
MARKS = "<!-- settings: written by scripts/settings_pages.py from src/weft/experiment/ -->", "<!-- end of settings -->"


def typed(setting: Setting) -> str:
    """How a setting is typed: its options, or ``--set``."""
    if setting.name == "parameters":
        return "`--set method.NAME`"
    if not setting.option:
        return f"`--set {setting.name}`"
    flag = setting.name.replace("_", "-")
    no = [f"--no-{flag}"] if setting.default is True else []
    return ", ".join(f"`{word}`" for word in (f"--{flag}", *no, *setting.flags))


def row(setting: Setting) -> str:
    words = " ".join(filter(None, (setting.help, setting.more)))
    cells = (typed(setting), setting.usual, words)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")


def tables() -> str:
    """A table for each group, under its title and the name of its table in a file."""
    found = []
    for name, group in GROUPS.items():
        rows = [row(s) for s in SETTINGS.values() if s.group == name]
        found += [
            f"#### {group.title}",
            "",
            f"In a file: `[{name}]`.",
            "",
            "| option | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(found)


def wanted() -> str:
    """docs/cli.md as it should be.

    Raises:
        ValueError: its marks are missing, or there more than once.
    """
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{tables()}\n{MARKS[1]}{after}"


def main() -> int:
    text = wanted()
    if text == PAGE.read_text(encoding="utf-8"):
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run python scripts/settings_pages.py")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
