"""Whether rows are of the kind that a method is for: where they are not, another backbone would not help."""

from __future__ import annotations

from collections.abc import Collection

from weft.data.rows import BOTH
from weft.errors import UserError

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
