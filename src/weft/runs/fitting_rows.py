"""Whether rows are of the kind that a method is for: where they are not, another backbone would not help."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from weft.data.rows import BOTH
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.experiment import Resolved

PICTURES = ("images", BOTH)
READS = {
    "two towers": PICTURES,
    "images": PICTURES,
    "connector": (BOTH,),
    "items": ("items",),
    "texts": ("texts",),
    "label words": ("texts",),
    "hidden words": ("texts",),
}
"""What rows hold (:attr:`weft.data.rows.Rows.read_as`) that methods with a need of their identity card can learn from."""
WORDS = {
    PICTURES: "is for pictures: choose other --data, such as glyphs",
    (BOTH,): "is for questions about pictures with answers to write: choose other --data, such as glyph_questions",
    ("items",): "is for sequences of items: choose other --data, such as shops",
    ("texts",): "is for texts: choose other --data, such as pydocs",
}


def anything(_have: str) -> None:
    """Refuses no rows."""


def of(resolved: Resolved) -> Callable[[str], None]:
    """Refuses rows that the method of an experiment can learn nothing from, told what they hold; see :func:`check`."""
    info = resolved.method.info
    stands_in = resolved.experiment.baseline in ("probe", "zero-shot")  # for the method, on whatever rows
    return functools.partial(check, info.slug, () if stands_in else info.needs)


def check(slug: str, needs: Collection[str], have: str) -> None:
    """
    Args:
        slug: of the method. needs: of its identity card. have: what the rows hold.

    Raises:
        UserError: it can learn nothing from such rows.
    """
    for need, wanted in READS.items():
        if need in needs and have not in wanted:
            raise UserError(f"the data are {have}, and {slug} {WORDS[wanted]}, or another --method.")
