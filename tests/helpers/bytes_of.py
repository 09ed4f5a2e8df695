"""What a method's card says of its bytes, as a formula that `tests/methods/test_bytes.py` holds the ledger to.

A method's own test file ends with ``BYTES = Case(...)``, and with ``BYTES_VARIANTS = {"in words": Case(...)}`` where settings
change, or must not change, what it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

D, F, LAYERS, CLASSES = 32, 64, 3, 3  # of the tiny BERT; D of the tiny ViT too
TEXT, JOINT = 24, 16  # of the tiny CLIP: width of its text tower, and of the embedding common to both
HEAD = [CLASSES * D, CLASSES]
BLOCK = ((D, D), (D, F))  # (d_in, d_out) of the sites "q,ffn.in"
SITES = {"sites": "q,ffn.in"}
Sizes = dict[str, list[int]]
"""Part -> elements of each of its tensors, or :class:`Bits` of integers."""


class Bits(int):
    """Of one value of integers below a bound, which no codec touches: their number times the bits of each."""

    @property
    def bytes(self) -> int:
        return -(-self // 8)


class Turn(NamedTuple):
    """One client in one round: its position, what it told the server once and was told now, what all others told, and how many
    training rows of each class it has.
    """

    k: int
    t: int
    facts: Mapping[str, Any]
    told: Mapping[str, Any]
    everybody: list[dict[str, Any]]
    counts: list[int]


class Case(NamedTuple):
    """The formula of one method, or of one variant of it."""

    settings: dict[str, Any]
    down: Callable[[Turn], Sizes]  # from the second round on; what a first download holds is given by `first`
    up: Callable[[Turn], Sizes]
    facts: tuple[dict[str, Any], ...] = ({},) * 6
    first: Callable[[Turn], Sizes] = lambda turn: {}  # start values are drawn on both sides
    head: bool = True  # whether clients have a trainable head
    head_stays: bool = False  # whether that head never leaves its client
    heads: tuple[bool, bool, bool] = (True, True, True)  # the rounds in which clients send it, if it does
    answers: tuple[bool, bool, bool] = (True, True, True)  # the rounds in which clients send something
    rounds: int = 3  # that there are, if three are asked for
    revealed: int = 0  # bytes of the facts in an upload


def lora(rank: int, roles: str = "AB", ffn: int | None = None, blocks: int = LAYERS) -> list[int]:
    """Tensors of LoRA at "q,ffn.in": A has r·d_in elements, B r·d_out."""
    sides = []
    for (d_in, d_out), r in zip(BLOCK, (rank, ffn or rank), strict=True):
        sides += [r * {"A": d_in, "B": d_out}[role] for role in roles]
    return sides * blocks


def one_factor(role: Callable[[Turn], str]) -> Callable[[Turn], Sizes]:
    """One factor of every site, of rank 2."""
    return lambda turn: {"lora": lora(2, role(turn))}


def factors_and_head(turn: Turn) -> Sizes:
    """Both factors of every site, at the client's own rank, and the head."""
    return {"lora": lora(turn.facts.get("rank", 2), ffn=turn.facts.get("ffn_rank")), "head": HEAD}
