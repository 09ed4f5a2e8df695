"""A checkpoint against the model that it was loaded into: what is missing, of another size, not finite, or never read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from weft.errors import UserError
from weft.words import count

if TYPE_CHECKING:
    from torch import Tensor

GET_ANEW = "it is damaged, or of another architecture than its config.json says; get it anew"
LARGEST = 1e18  # a flipped bit of an exponent makes more of a weight; no training does
Shape = tuple[int, ...]


def whole(name: str, missing: Collection[str], resized: Mapping[str, tuple[Shape, Shape]]) -> None:
    """Every tensor of a frozen model comes from its checkpoint.

    Args:
        missing: tensors that had to be drawn at random, those of a new head left out.
        resized: the same, since the checkpoint has them in another size: (its size, the model's).

    Raises:
        UserError: there are such tensors.
    """
    if missing:
        raise UserError(f'the checkpoint of "{name}" lacks {_tensors(len(missing))}, such as {min(missing)}: {GET_ANEW}.')
    if resized:
        one = min(resized)
        have, want = ("×".join(map(str, shape)) or "1" for shape in resized[one])
        raise UserError(
            f'the checkpoint of "{name}" has {_tensors(len(resized))} of another size than its config.json says, such as {one}, '
            f"{have} instead of {want}: put the configuration right, or get both anew."
        )


def finite(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """No weight is NaN, infinite, or so large that a product of two would be.

    Raises:
        UserError: some are.
    """
    # compared so that NaN fails too
    bad = [n for n, t in tensors if t.is_floating_point() and t.numel() and not all(abs(x) < LARGEST for x in t.aminmax())]
    if bad:
        raise UserError(
            f'the checkpoint of "{name}" holds NaN, infinite or huge values in {_tensors(len(bad))}, such as {bad[0]}: get it '
            "anew, or save it in float32 or bfloat16."
        )


def numbers(name: str, types: Mapping[str, str], quantised: bool) -> None:
    """Weights are stored as numbers with a fraction.

    Args:
        types: of the tensors in the files, as safetensors calls them (``F32``, ``I8`` …). quantised: the configuration says how
            whole numbers become weights.

    Raises:
        UserError: whole numbers that nothing explains.
    """
    odd = sorted(n for n, t in types.items() if n.endswith(("weight", "bias")) and t[0] in "IU")
    if odd and not quantised:
        raise UserError(
            f'the checkpoint of "{name}" stores {_tensors(len(odd))} as whole numbers ({types[odd[0]]}), such as {odd[0]}, and '
            "its config.json does not say how they were quantised: get it in float32 or bfloat16."
        )


def unread(stack: str, blocks: int, left: Iterable[str]) -> list[str]:
    """Tensors of blocks that a checkpoint holds and the model has no use for.

    Args:
        stack: path of the list of blocks. blocks: how many the model has. left: names as the checkpoint has them, which may lack
            the first words of the path.
    """
    words = stack.split(".")
    ends = [re.escape(".".join(words[i:])) for i in range(len(words))]
    inside = re.compile(rf"^(?:{'|'.join(ends)})\.(\d+)\.")
    more, odd = set(), []
    for name in sorted(left):
        found = inside.match(name)
        if found and int(found[1]) >= blocks:
            more.add(int(found[1]))
        elif found:
            odd.append(name)
    notes = []
    if more:
        notes.append(f"the checkpoint holds {blocks + len(more)} blocks and config.json says {blocks}: the others are left out.")
    if odd:
        notes.append(f"the checkpoint holds {_tensors(len(odd))} that its architecture has no place for, such as {odd[0]}.")
    return notes


def _tensors(n: int) -> str:
    return count(n, "tensor")
