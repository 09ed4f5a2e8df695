"""docs/figures/: one measured figure for each method, in a file of its own that `scripts/figure.py` writes.

setting        backbone, data, clients, rounds, seed
command        what was typed
figure         what came out
compared_with  other figures of the same setting
note           what to bear in mind; the one field that is written by hand
commit, seconds, versions, hardware
               of the checkout that ran, how long, with what, on what; left out only in a file that says `carried_over = true`,
               whose figure was noted before they were
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import tomli_w

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
VERSIONS = ("weft", "torch", "transformers")
HARDWARE = ("cores", "cpu", "device", "precision")


@dataclass(frozen=True)
class Figure:
    """A measured figure of one method."""

    setting: str
    command: str
    figure: str
    compared_with: str = ""
    note: str = ""
    commit: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str | int] = field(default_factory=dict)
    carried_over: bool = False

    def __post_init__(self) -> None:
        for name in ("setting", "command", "figure"):
            if not getattr(self, name).strip():
                raise ValueError(f"the {name} of a figure is empty")
        if self.carried_over:
            return
        lacking = [name for name in ("commit", "seconds") if not getattr(self, name)]
        lacking += [f"versions.{name}" for name in VERSIONS if not self.versions.get(name)]
        lacking += [f"hardware.{name}" for name in HARDWARE if not self.hardware.get(name)]
        if lacking:
            raise ValueError(f"a figure must say its {', '.join(lacking)}")


def read(path: Path) -> Figure:
    """The figure of one file.

    Raises:
        ValueError: it can't be read, says too little, or has a field that no figure has.
    """
    try:
        entry = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(entry.keys() - {f.name for f in fields(Figure)}):
            raise ValueError(f"a figure has no field {', '.join(unknown)}")
        return Figure(**entry)
    except (ValueError, TypeError) as e:
        raise ValueError(f"docs/figures/{path.name}: {e}") from None


def write(path: Path, figure: Figure) -> None:
    """Lay a figure down; fields that say nothing are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps({n: v for n, v in asdict(figure).items() if v}), encoding="utf-8")


def figures(slugs: Iterable[str]) -> dict[str, Figure]:
    """Slug -> figure, one for each method.

    Raises:
        ValueError: a method without a file, a file without a method, or a file that says too little.
    """
    wanted, there = set(slugs), {path.stem for path in FOLDER.glob("*.toml")}
    if odd := sorted(wanted - there):
        raise ValueError(f"there is no docs/figures/{odd[0]}.toml: measure it with python scripts/figure.py {odd[0]}")
    if odd := sorted(there - wanted):
        raise ValueError(f"docs/figures/{odd[0]}.toml is of no method")
    return {slug: read(FOLDER / f"{slug}.toml") for slug in sorted(wanted)}
