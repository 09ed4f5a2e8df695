"""Codes of items: their titles, embedded by a frozen text encoder and product-quantised, once for all items of a federation.

Y. Hou, Z. He, J. McAuley, W. X. Zhao, "Learning vector-quantized item representation for transferable sequential recommenders",
WWW 2023, arXiv 2210.12316. The codes are fitted to all titles together, so whoever makes them has seen those of every domain;
they are no secret of any client, and no message of any method. They are kept, in a file that says which titles, encoder and
settings it is of: in the folder of the backbone, where that has one, else in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.backbones.gguf_file import cache
from weft.errors import UserError
from weft.storage import files
from weft.tensors import product_codes

if TYPE_CHECKING:
    from weft.backbones.vq_rec import VQRecConfig

FORMAT = 1
"""To be raised with whatever changes the codes."""
FILE = "item-codes.safetensors"
BATCH = 256  # titles of a pass
LONGEST = 64  # tokens of a title


def of(
    titles: Sequence[str], config: VQRecConfig, folder: Path, say: Callable[[str], None] | None = None
) -> tuple[np.ndarray, Path]:
    """Codes int64 [n, slots] of n titles, and the file that holds them.

    Args:
        folder: of the backbone. say: is told what takes long.

    Raises:
        UserError: the folder has codes of other titles or settings, or the encoder can't be had.
    """
    about = _about(titles, config)
    given = folder / FILE
    if given.exists():
        if (found := _read(given, about)) is None:
            raise UserError(f"{given} holds codes of other items, or of other settings: remove it, and they are made anew.")
        return found, given
    kept = cache() / "item-codes" / f"{files.sha256(json.dumps(about).encode())[:24]}.safetensors"
    if (found := _read(kept, about)) is not None:
        return found, kept
    if say is not None:
        say(f"codes of {len(titles):,} items are made of their titles, once.")
    vectors = embedded(titles, config.encoder, config.pooling)
    codes = product_codes.fit(vectors, config.slots, config.centroids, config.opq_iterations)
    files.make_folder(kept.parent)
    keep(kept, titles, config, codes)
    return codes, kept


def keep(path: Path, titles: Sequence[str], config: VQRecConfig, codes: np.ndarray) -> None:
    """Write codes int64 [n, slots] of titles into a file."""
    files.write(path, files.tensor_bytes({"codes": torch.from_numpy(codes)}, _about(titles, config)))


def _about(titles: Sequence[str], config: VQRecConfig) -> dict[str, Any]:
    """What codes are of."""
    settings = [config.encoder, config.pooling, config.slots, config.centroids, config.opq_iterations]
    return {"format": FORMAT, "titles": files.sha256("\n".join(titles).encode()), "settings": settings}


def _read(path: Path, about: dict[str, Any]) -> np.ndarray | None:
    """The codes in a file, if they are of this."""
    try:
        tensors, facts = files.tensors_in(path.read_bytes(), path)
    except (OSError, UserError):  # it is not there, or damaged
        return None
    return tensors["codes"].numpy() if facts == about and "codes" in tensors else None


@torch.no_grad()
def embedded(titles: Sequence[str], encoder: str, pooling: str) -> np.ndarray:
    """Float64 [n, d]: what a frozen encoder makes of each title, in four decimals, so that machines agree.

    Args:
        pooling: the state of the ``first`` token, or the ``mean`` of all.
    """
    from weft.backbones.load import load  # it loads this module's backbone too

    backbone = load(encoder, device="cpu", precision="float32", task="classification")
    found: dict[str, np.ndarray] = {}
    distinct = sorted(set(titles), key=lambda title: (len(title), title))
    for start in range(0, len(distinct), BATCH):
        some = distinct[start : start + BATCH]
        inputs = backbone.tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        states = backbone.model.base_model(**inputs).last_hidden_state.double()
        own = inputs["attention_mask"].unsqueeze(-1).double()
        pooled = states[:, 0] if pooling == "first" else (states * own).sum(1) / own.sum(1).clamp(min=1)
        found |= dict(zip(some, np.round(pooled.numpy(), 4), strict=True))
    return np.stack([found[title] for title in titles])
