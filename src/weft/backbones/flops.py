"""What a frozen backbone computes: floating-point operations of each block, by the number of tokens in a row.

They are counted once, of a few short rows, by PyTorch's own counter: products of matrices, convolutions and attention; norms,
activations and sums are left out, as there. A block's operations are a polynomial in the tokens of a row, which the counts of
some widths determine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.backbones.pixels import picture_shape
from weft.data.rows import BOTH

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.clip import ClassNames
    from weft.backbones.model_site import Site

POWERS = ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1))
"""Of the tokens that a row has for an encoder or a decoder alone (s), and for the decoder behind an encoder (t): s^i t^j."""
TWO = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""Products of attention, whose gradient is one by each of two inputs."""
SMALL = (2, 4, 8)
"""Widths of the rows that are counted."""

STAGES = {"entry": -1, "norm": -1, "q": 0, "k": 0, "v": 0, "attention": 0, "o": 2, "ffn.in": 3, "ffn.gate": 3, "ffn.out": 4}
ATTENTION, LAST = 1, 5
"""The order of what happens in a block; of two things at one stage, neither reads what the other gives."""


@dataclass(frozen=True)
class Flops:
    """Of a pass over one row, and of the gradient of what goes in: of both inputs of attention, and of no weight.

    Attributes:
        forward, backward: int64 [L + 2, 6], coefficients of ``POWERS``: of what lies before the blocks, of each of the L blocks,
            and of what lies behind them, but for a head and an output layer over a vocabulary.
        names: int64 [2, 3], forward and backward, of a row of the text tower, of the powers of its tokens; 0 where there is none.
        calls: how often a block is called in a pass.
    """

    forward: np.ndarray
    backward: np.ndarray
    names: np.ndarray
    calls: int = 1


def flops(backbone: Backbone) -> Flops:
    """Count, which takes as long as a pass over a few tokens."""
    texts = np.zeros((2, 3), dtype=np.int64) if backbone.names is None else _names(backbone, backbone.names)
    nothing, blocks = np.zeros((2, 6), dtype=np.int64), range(len(backbone.blocks))
    sizes = np.stack([nothing, *(_of_sites(backbone, i) for i in blocks), nothing], 1)
    if backbone.quantised:  # whose products are no operations of PyTorch's
        return Flops(sizes[0], sizes[1], texts)
    if backbone.reads == "images":
        image = _places(backbone, _pixels(backbone))
        if not backbone.more_tokens:
            sizes = image[..., None] * np.eye(6, dtype=np.int64)[0]
            return Flops(sizes[0], sizes[1], texts)
        sizes[..., 0] = image - sizes @ powers(np.array(backbone.picture_tokens), np.array(0))
        return Flops(sizes[0], sizes[1], texts)
    widths = [(s, t) for s in SMALL for t in (SMALL if backbone.encoder_decoder else (0,)) if max(s, t) <= backbone.max_length]
    rows = np.array([powers(np.array(s), np.array(t)) for s, t in widths])
    beside = backbone.reads == BOTH and backbone.vocabulary is None  # a language model's picture is among its tokens
    picture = _pixels(backbone) if beside else {}
    counts = np.array([_places(backbone, picture | _texts(backbone, *w)) for w in widths])
    forward, backward = (_beside(_solved(rows, counts[:, way]), backbone.picture_tokens if beside else 0) for way in (0, 1))
    calls = round(forward[1, 1] / sizes[0, 1, 1]) if backbone.shared_blocks and sizes[0, 1, 1] else 1
    return Flops(forward, backward, texts, calls)


def powers(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """int64 [..., 6] of rows."""
    return np.stack([s**i * t**j for i, j in POWERS], -1).astype(np.int64)


def above(backbone: Backbone, block: int, stage: int) -> np.ndarray:
    """int64 [6], what the gradient of what goes in costs of the layers of a block behind a stage."""
    found = np.zeros(6, dtype=np.int64)
    for site in backbone.linears:
        if site.block == block and stage_of(site) > stage:
            found += _linear(site)
        if site.block == block and "o" in site.roles and stage < ATTENTION:
            found += 2 * _attention(site)
    return found


def stage_of(site: Site) -> int:
    """When in its block a site is reached, of several roles at the first; what is of no stage ends the block."""
    return min((STAGES.get(role, LAST) for role in site.roles), default=LAST)


def _names(backbone: Backbone, names: ClassNames) -> np.ndarray:
    """int64 [2, 3], of the text tower."""

    def tower(width: int) -> np.ndarray:
        return _counted(backbone, lambda: backbone.model.embed_texts(_ids(backbone, width)))["Global"]

    if names.padded:  # all of one width
        return tower(names.limit)[:, None] * np.eye(3, dtype=np.int64)[0]
    widths = [width for width in SMALL if width <= names.limit]
    return _solved(np.array([[w**i for i in range(3)] for w in widths]), np.array([tower(w) for w in widths]))


def _of_sites(backbone: Backbone, block: int) -> np.ndarray:
    """int64 [2, 6], a block's coefficients by the sizes of its layers."""
    own = [site for site in backbone.linears if site.block == block]
    return np.stack(
        [
            sum((_linear(s) + (times * _attention(s) if "o" in s.roles else 0) for s in own), np.zeros(6, dtype=np.int64))
            for times in (1, 2)
        ]
    )


def _linear(site: Site) -> np.ndarray:
    by = (0, 1) if site.stack == "decoder" or (site.stack == "cross" and not {"k", "v"} & set(site.roles)) else (1, 0)
    return np.array([2 * site.d_in * site.d_out * (by == power) for power in POWERS], dtype=np.int64)


def _attention(site: Site) -> np.ndarray:
    """Queries times keys, and weights times values; the width of both is what the projection of the output reads."""
    by = {"decoder": (0, 2), "cross": (1, 1)}.get(site.stack, (2, 0))
    return np.array([4 * site.d_in * (by == power) for power in POWERS], dtype=np.int64)


def _places(backbone: Backbone, inputs: dict[str, Any]) -> np.ndarray:
    """int64 [2, L + 2], counts of one row."""
    inputs = inputs | backbone.class_inputs()
    by_name, none = _counted(backbone, lambda: backbone.model(**inputs)), np.zeros(2, dtype=np.int64)
    before = [none if backbone.reader is None else by_name.get(backbone.reader.name, none)]
    own = before + [by_name.get(name, none) for name in backbone.blocks]
    apart = {site.name for site in backbone.heads} | ({backbone.vocabulary.name} if backbone.vocabulary else set())
    behind = by_name["Global"] - sum(own) - sum(by_name.get(name, none) for name in apart)
    return np.stack([*own, behind], 1)


@torch.no_grad()
def _counted(backbone: Backbone, run: Any) -> dict[str, np.ndarray]:
    """Operations [2] by module, forward and backward; all of them as ``Global``."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not know a CPU's fused attention
        run()
    root = type(backbone.model).__name__
    found = {"Global": np.zeros(2, dtype=np.int64)}
    for name, some in counter.get_flop_counts().items():
        total, of_two = sum(some.values()), sum(n for op, n in some.items() if op in TWO)
        found[name.removeprefix(f"{root}.")] = np.array([total, total + of_two], dtype=np.int64)
    return found


def _solved(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Coefficients [P, n] that give counts [m, P] of rows [m, n]; of powers that no row has, 0."""
    found = np.linalg.lstsq(rows.astype(float), counts.astype(float), rcond=None)[0]
    return np.rint(found.T).astype(np.int64)


def _beside(coefficients: np.ndarray, p: int) -> np.ndarray:
    """Coefficients [n, 6] of the tokens of a text, as those of all tokens, of which p more are of a picture."""
    found = coefficients.copy()
    square, line = POWERS.index((2, 0)), POWERS.index((1, 0))
    found[:, POWERS.index((0, 0))] += p * (p * coefficients[:, square] - coefficients[:, line])
    found[:, line] -= 2 * p * coefficients[:, square]
    return found


def _ids(backbone: Backbone, width: int) -> torch.Tensor:
    return torch.full((1, width), 2, device=backbone.device)


def _texts(backbone: Backbone, s: int, t: int) -> dict[str, Any]:
    found = {"input_ids": _ids(backbone, s), "attention_mask": torch.ones_like(_ids(backbone, s))}
    return found | ({"decoder_input_ids": _ids(backbone, t)} if t else {})


def _pixels(backbone: Backbone) -> dict[str, Any]:
    shape = picture_shape(backbone.model.config, backbone.processor)
    return backbone.to_model({"pixel_values": torch.zeros(1, *shape)})
