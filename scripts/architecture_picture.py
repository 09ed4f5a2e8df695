"""Draws docs/architecture.svg: the packages of Weft in rows, each of which imports from its own row and from those below it.

    python scripts/architecture_picture.py

The rows are written here and compared with what is imported by tests/test_layers.py.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "architecture.svg"
ROWS: tuple[tuple[str, str, str], ...] = (
    ("cli api comparison start", "the command line; weft.run in Python; grids of runs; begin a run, or go on", "#e8eaf6"),
    ("sites", "real federations: agreement, keys, Flower, the processes of site and coordinator", "#e8eaf6"),
    ("playing export audits report", "a run from first to last; its model, as files; attacks; tables and progress", "#e8eaf6"),
    ("callbacks", "what goes along with a run: trackers, early stopping, a profiler", "#e0f2f1"),
    ("runs", "one run in its folder: prepared, played, saved, recovered", "#e0f2f1"),
    ("energy", "what rounds draw: the counters of a machine, or watts that somebody declares", "#e0f2f1"),
    ("experiment recipes", "every setting, declared once", "#e0f2f1"),
    ("methods rules testing", "a file per published method; rules over any of them; the laws that each is held to", "#fff3e0"),
    ("engines contract", "rounds, cohorts, packs, scores; all that a method's author imports", "#fff3e0"),
    ("federation", "the contract, state of server and clients, packs, messages", "#e0f2f1"),
    ("tasks", "what is predicted: head, loss, scores", "#f1f8e9"),
    ("adaptation aggregation", "parts with a client axis, optimizers; what a server does with tensors", "#f1f8e9"),
    ("backbones", "frozen models, described by structure; tables of tokens and pixels", "#f1f8e9"),
    ("data", "sets, files, how rows are dealt out", "#f1f8e9"),
    ("privacy", "mechanisms that hide rows and clients, and their cost; sums that hide what is summed", "#eceff1"),
    ("communication storage checks", "wire, codecs, ledger; durable files; what was read against what was there", "#eceff1"),
    ("tensors devices", "LowRank, values as named tensors, keyed random streams; what clients compute on", "#eceff1"),
)
"""Packages joined by blanks, what they are, and the colour of the row; from the top to the bottom."""
ANYWHERE = ("errors", "words", "typed", "distribution")
"""Single modules without a row: they import nothing above ``tensors``."""
HEIGHT, STEP, WIDTH = 36, 42, 900


def drawn() -> str:
    """The picture, as SVG."""
    bottom = 16 + STEP * len(ROWS)
    label = "The layers of Weft: each imports only from those below it"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="{label}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{WIDTH}" height="{bottom + 40}" rx="8" fill="#ffffff"/>',
    ]
    for i, (packages, what, colour) in enumerate(ROWS):
        top = 16 + STEP * i
        lines += [
            f'<rect x="56" y="{top}" width="828" height="{HEIGHT}" rx="6" fill="{colour}" stroke="#90a4ae"/>',
            f'<text x="70" y="{top + 23}" font-size="15" font-weight="600" fill="#263238">{" · ".join(packages.split())}</text>',
            f'<text x="366" y="{top + 23}" font-size="12.5" fill="#455a64">{escape(what)}</text>',
        ]
    lines += [
        f'<line x1="30" y1="20" x2="30" y2="{bottom - 18}" stroke="#607d8b" stroke-width="2"/>',
        f'<path d="M24 {bottom - 22} L30 {bottom - 10} L36 {bottom - 22} Z" fill="#607d8b"/>',
        f'<text transform="translate(20 {bottom // 2}) rotate(-90)" text-anchor="middle" font-size="13" fill="#607d8b">imports'
        "</text>",
        f'<text x="56" y="{bottom + 20}" font-size="12" fill="#607d8b">Nothing below methods knows a method by name; nothing in '
        "methods knows engine, codec or disk.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
    print(f"wrote {PICTURE}")
