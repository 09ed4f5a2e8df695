"""Boxes in texts: where on a picture something is, as models of language and pictures write it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from weft.errors import UserError, printable
from weft.words import count

APART = r"[\s,;()\[\]{}<>/|]*(?:<loc)?"  # what stands between two numbers of a box
NUMBER = r"(-?(?:\d+(?:\.\d+)?|\.\d+))"
BOX = re.compile(r"(?<![\w.])(?:<loc)?" + NUMBER + 3 * (r"(?=[\s,;()\[\]<>|])" + APART + NUMBER))
ENOUGH = 0.5
"""Intersection over union from which on something counts as found (L. Yu et al., ECCV 2016, of RefCOCO)."""

Box = tuple[float, float, float, float]
"""Two opposite corners, x and y of the one and of the other: the same order in all that are compared."""


def box_of(text: str) -> Box | None:
    """The first four numbers of a text with nothing but signs between them; None if there are none.

    So ``[0.1, 0.2, 0.5, 0.6]`` of LLaVA and Shikra is read, ``(12,20),(50,61)`` of Qwen-VL, and ``<loc0102><loc0205>…`` of
    PaliGemma.
    """
    found = BOX.search(text)
    return None if found is None else tuple(map(float, found.groups()))  # type: ignore[return-value]


def overlap(given: str, wanted: str) -> float:
    """Intersection over union of the boxes in two texts, 0 to 1; 0 where one has none, or none with an inside."""
    one, other = box_of(given), box_of(wanted)
    if one is None or other is None:
        return 0.0
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    common = max(sides[0], 0.0) * max(sides[1], 0.0)
    return common / (_area(one) + _area(other) - common) if common else 0.0


def check_wanted(metric: str, wanted: Sequence[str]) -> None:
    """Every answer has a box that something can overlap with: else its score would be 0, whatever is written.

    Raises:
        UserError: one has none.
    """
    lacking = [text for text in wanted if (box := box_of(text)) is None or not _area(box)]
    if lacking:
        raise UserError(
            f"the metric {metric} is of boxes, and {len(lacking)} of {count(len(wanted), 'answer')} hold none with an inside, "
            f"such as {printable(lacking[0])[:40]!r}: write two opposite corners, as [0.1, 0.2, 0.5, 0.6], or leave "
            "the metric out."
        )


def found(given: str, wanted: str) -> bool:
    return overlap(given, wanted) >= ENOUGH


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
