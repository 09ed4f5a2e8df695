"""What only Weft's own tests need beside :mod:`weft.testing`: benches, several backbones, hub ids that are folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import Table, tabulate
from weft.federation.bench import Bench
from weft.federation.method import Method
from weft.tasks.classification import Classification
from weft.testing.data import SIZES, rows, states
from weft.testing.federation import Federation, federation
from weft.testing.models import (
    DECODERS,
    ENCODERS,
    GROUPED,
    IMAGES,
    SHAPES,
    backbone,
    folder,
    home,
    home_folder,
    hooks,
    label_words,
    names,
    root,
    scramble,
    task_of,
    tokenizer,
)

__all__ = [
    "DECODERS",
    "ENCODERS",
    "GROUPED",
    "IMAGES",
    "SHAPES",
    "SIZES",
    "Federation",
    "backbone",
    "bench",
    "federation",
    "folder",
    "fresh",
    "home",
    "home_folder",
    "hooks",
    "hub",
    "label_words",
    "mixed_federation",
    "names",
    "root",
    "rows",
    "scramble",
    "states",
    "table",
    "task_of",
    "tokenizer",
]

torch.set_num_threads(1)


def fresh(model_type: str = "bert", *, classes: int = 3, precision: str = "float64", **overrides: Any) -> Backbone:
    """A tiny backbone that the test may break."""
    return load(folder(model_type, **overrides), classes=names(classes), device="cpu", precision=precision)


def table(of: Backbone, n: int = 24, classes: int = 3, seed: int = 0, pairs: bool = False) -> Table:
    return tabulate(of, rows(n, classes, seed, pairs=pairs, reads=of.reads), 32)


def bench(
    of: Backbone | str = "bert", n: int = 24, classes: int = 3, seed: int = 0, prefix: bool = False, pairs: bool = False
) -> Bench:
    """A bench over n rows."""
    model = backbone(of, classes=classes) if isinstance(of, str) else of
    cache = PrefixCache(model) if prefix else None
    return Bench(model, Classification(names(classes)), table(model, n, classes, seed, pairs), seed, cache)


def mixed_federation(method: Method, backbones: Sequence[Backbone], **settings: Any) -> Federation:
    """Clients with different backbones in one federation: client i has the i-th, counted round and round."""
    first, *others = backbones
    return federation(method, first, others=others, **settings)


def hub(monkeypatch: Any, cache: Path, models: Mapping[str, str]) -> None:
    """Make hub ids stand for local folders, as after a download: id -> folder."""
    for name, source in models.items():
        repository = cache / ("models--" + name.replace("/", "--"))
        shutil.copytree(source, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        for attribute in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
            monkeypatch.setattr(f"{module}.{attribute}", str(cache), raising=False)
