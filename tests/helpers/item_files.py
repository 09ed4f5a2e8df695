"""Files of who took which item when, one for each domain, of the items that a tiny backbone has codes of."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

import tiny
from weft.backbones.options import VQ_REC
from weft.data import item_names
from weft.testing.models import items

ITEMS = 12


def model() -> str:
    """Folder of a backbone with codes of these items."""
    return tiny.backbone(VQ_REC, classes=ITEMS).path


def domains(folder: Path, users: int = 7, seed: int = 0) -> tuple[str, ...]:
    """Write ``a.csv`` and ``b.csv``, which hold every item several times; the names of all items."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, names = np.random.default_rng(seed), items(ITEMS)
    for domain in ("a", "b"):
        own = [name for name in names if item_names.domain_of(name) == domain]
        with open(folder / f"{domain}.csv", "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["user", "item", "timestamp", "description"])
            for user in range(users if domain == "a" else users + 4):
                for time, name in enumerate(draw.permutation(own)):
                    writer.writerow([f"u{user}", name.split("/")[1].split(":")[0], time, item_names.title_of(name)])
    return names
