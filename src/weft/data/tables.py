"""Showing a deal: the client × label table and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weft.data.rows import FederatedData

MOST_NAMED = 60  # clients: with more, names under the bars can't be read
MOST_COLOURS = 20  # classes: with more, they get a scale of colours instead of a legend


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

    Returns the path. Raises OSError where the file can't be written.
    """
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
    for label, height in enumerate(counts.T):
        style: dict[str, Any] = {"color": colours[label], "label": fed.classes[label]}
        if named:
            axes.bar(x, height, 0.8, bottom, **style)
        else:  # one outline a class: a hundred thousand bars take minutes
            axes.fill_between(x, bottom, bottom + height, step="mid", linewidth=0, **style)
        bottom += height
    axes.set_xlim(-0.6, clients - 0.4)
    axes.set_ylim(0)
    axes.set_ylabel("rows (training, validation and test)")
    axes.set_title(f"{fed.name}: {int(counts.sum())} rows, {clients} clients, {classes} classes")
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        names = [f"{client.id} {client.facts.get('domain', '')}".strip() for client in fed.clients]
        axes.set_xticks(x, names, rotation=0 if max(map(len, names)) <= 3 else 90, fontsize=8)
        axes.set_xlabel("client")
    else:
        axes.set_xlabel(f"client ({fed.clients[0].id} to {fed.clients[-1].id})")
    if classes <= MOST_COLOURS:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8, frameon=False)
    else:
        scale = ScalarMappable(Normalize(0, classes - 1), colormaps["turbo"])
        figure.colorbar(scale, ax=axes, label="class (in the order of the set)")
    figure.savefig(path, format="png")
    return Path(path)
