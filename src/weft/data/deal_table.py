"""Showing a deal: the client × label table and its picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weft.data.rows import FederatedData

MOST_NAMED = 60  # clients: with more, names under the bars can't be read
MOST_COLOURS = 20  # classes: with more, they get a scale of colours instead of a legend
LONGEST = 40  # characters of a name: longer ones would leave no room for the bars


def table(fed: FederatedData) -> np.ndarray:
    """Rows of each client and class, training, validation and test together: int64 [clients, classes].

    Test rows that a client was given out of the set's own test split count too.
    """
    counts = np.zeros((len(fed.clients), len(fed.classes)), dtype=np.int64)
    for i, client in enumerate(fed.clients):
        for rows in (client.train, client.val, client.test):
            counts[i] += np.bincount(rows.labels, minlength=len(fed.classes))
    return counts


def picture(fed: FederatedData, path: str | Path) -> Path:
    """Write a picture (PNG) of the deal to ``path``: a bar of rows for each client, stacked by class.

    Names are drawn as they are written (``$`` is no formula); one that no font here can draw is replaced by its number.

    Returns the path. Raises OSError where the file can't be written.
    """
    from matplotlib import rc_context

    names = [_short(name) for name in (fed.name, *fed.classes, *(str(c.facts.get("domain", "")) for c in fed.clients))]
    fonts, lacking = _fonts(names)
    with warnings.catch_warnings(), rc_context({"text.parse_math": False, "font.family": fonts}):
        warnings.simplefilter("ignore")  # of missing glyphs and tight layouts: both are seen in the picture
        _draw(fed, path, lacking)
    return Path(path)


def _draw(fed: FederatedData, path: str | Path, lacking: set[str]) -> None:
    """Draw with names that may hold none of the characters ``lacking``."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    counts = table(fed)
    clients, classes = counts.shape
    if classes <= MOST_COLOURS:
        colours = [colormaps["tab10" if classes <= 10 else "tab20"](label) for label in range(classes)]
    else:
        colours = [colormaps["turbo"](label / (classes - 1)) for label in range(classes)]

    named = clients <= MOST_NAMED
    figure = Figure(figsize=(min(3.5 + 0.3 * clients, 12) + 2.5, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no window and no global state, whatever backend a notebook has chosen
    axes = figure.add_subplot()
    x, bottom = np.arange(clients), np.zeros(clients)
    handles: list[Any] = []
    for label, height in enumerate(counts.T):
        if named:
            handles.append(axes.bar(x, height, 0.8, bottom, color=colours[label]))
        else:  # one outline a class: a hundred thousand bars take minutes
            handles.append(axes.fill_between(x, bottom, bottom + height, step="mid", linewidth=0, color=colours[label]))
        bottom += height
    axes.set_xlim(-0.6, clients - 0.4)
    axes.set_ylim(0)
    axes.set_ylabel("rows (training, validation and test)")
    axes.set_title(f"{_shown(fed.name, lacking, 'data')}: {int(counts.sum())} rows, {clients} clients, {classes} classes")
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        names = [f"{client.id} {_shown(str(client.facts.get('domain', '')), lacking, '')}".strip() for client in fed.clients]
        axes.set_xticks(x, names, rotation=0 if max(map(len, names)) <= 3 else 90, fontsize=8)
        axes.set_xlabel("client")
    else:
        axes.set_xlabel(f"client ({fed.clients[0].id} to {fed.clients[-1].id})")
    if classes <= MOST_COLOURS:
        called = [_shown(name, lacking, f"class {label}") for label, name in enumerate(fed.classes)]
        legend = figure.legend(handles[::-1], [" "] * classes, loc="outside right upper", fontsize=8, frameon=False)
        for text, name in zip(legend.get_texts(), called[::-1], strict=True):
            text.set_text(name)  # set here, for a legend leaves out names that begin with an underscore
    else:
        scale = ScalarMappable(Normalize(0, classes - 1), colormaps["turbo"])
        figure.colorbar(scale, ax=axes, label="class (in the order of the set)")
    figure.savefig(path, format="png")


def _short(name: str) -> str:
    """A name on one line, without characters that have no shape."""
    line = "".join(c if c.isprintable() else " " for c in name)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _shown(name: str, lacking: set[str], instead: str) -> str:
    return instead if lacking.intersection(_short(name)) else _short(name)


def _fonts(names: Sequence[str]) -> tuple[list[str], set[str]]:
    """Fonts that together can draw the names, and the characters that none of those installed here can."""
    from matplotlib import font_manager, rcParams

    usual = list(rcParams["font.family"])
    lacking = {c for name in names for c in name if not c.isascii()}
    found: list[str] = []
    files: list[str] = [font_manager.findfont(font_manager.FontProperties(family=usual))]
    files += [str(font.fname) for font in font_manager.fontManager.ttflist]
    for i, file in enumerate(dict.fromkeys(files)):
        if not lacking:
            break
        try:
            font = font_manager.get_font(file)
            drawn = {c for c in lacking if font.get_char_index(ord(c))}
        except (OSError, RuntimeError):  # a font that is gone or broken
            continue
        if drawn:
            lacking -= drawn
            found += [font.family_name] if i else []
    return [*usual, *found], lacking
