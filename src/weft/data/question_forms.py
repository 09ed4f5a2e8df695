"""Tables whose rows hold more than one question and its answer: brought to a question and an answer in each row.

A row may have a list of questions and one of as many answers; an answer may be one of several choices, or a box on the picture,
which may answer a list of texts. Rows that contradict themselves are left out, and counted.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.checks import question_rows as checks
from weft.data.columns import Table
from weft.data.images import Images
from weft.data.spelling import number, spelled

if TYPE_CHECKING:
    from weft.data.questions import Questions

CHOICES = ("choices", "options")
HINTS = ("hint",)
BOXES = ("bbox",)
"""Columns of choices, of what stands before a question with choices, and of boxes, by their usual names."""
LETTERS = string.ascii_uppercase
ASKS = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 is asked (H. Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024, arXiv 2310.03744)."""
SLACK = 1.0  # pixels by which a box may stand out of its picture: boxes of COCO are rounded


def listed(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def hold_choices(column: Sequence[Any]) -> bool:
    """Whether a column has lists of texts."""
    first: Any = next((value for value in column if value is not None), None)
    return listed(first) and len(first) > 0 and all(isinstance(one, str) for one in first)


def called_boxes(name: str) -> bool:
    """Whether a column is called like boxes: several people may give four numbers for an answer, too."""
    return "box" in name.lower()


def hold_boxes(column: Sequence[Any]) -> bool:
    """Whether a column has four numbers in each row, by the first that has something."""
    first = next((value for value in column if value is not None), None)
    return listed(first) and _numbers(first) is not None


def plain(name: str, splits: Mapping[str, Table], columns: Questions) -> tuple[dict[str, Table], list[str]]:
    """The columns in use of each split, with one question and its answer in a row; sentences on rows that are left out.

    Args:
        name: what sentences call the set.
    """
    found, said = {}, []
    for split, table in splits.items():
        own = {c: table[c] for c in (columns.image, columns.text, columns.label, columns.key) if c in table and c is not None}
        n = len(own[columns.text])
        own.setdefault(columns.label, [None] * n)
        if columns.choices is not None:
            own, odd = _with_choices(own, table, columns)
            said += checks.left_out(name, split, odd, n, checks.NO_CHOICE)
        if columns.boxes:
            own, odd = _with_boxes(own, columns)
            said += checks.left_out(name, split, odd, n, checks.OUTSIDE)
        found[split], odd = _unfolded(own, columns)
        said += checks.left_out(name, split, odd, n, checks.UNEQUAL)
    return found, said


def _with_choices(own: Table, table: Table, columns: Questions) -> tuple[Table, list[int]]:
    """Choices as lines behind the question, as the answer a letter; and the rows that name none of their choices, left out."""
    texts, letters = list(own[columns.text]), list(own[columns.label])
    odd: list[int] = []
    hints = table.get(columns.hint or "", [None] * len(texts))
    for i, (choices, value) in enumerate(zip(table[columns.choices or ""], letters, strict=True)):
        if (said := spelled(value)) is None or not isinstance(texts[i], str):
            continue
        known = LETTERS[: len(choices)] if listed(choices) and len(choices) <= len(LETTERS) else ""
        at = number(said)
        if at is None:
            at = known.find(said) if len(said) == 1 else -1
        if not 0 <= at < len(known):
            odd.append(i)
            continue
        lines = [f"{mark}. {spelled(choice) or ''}" for mark, choice in zip(known, choices, strict=True)]
        hint = hints[i].strip() if isinstance(hints[i], str) else ""
        texts[i], letters[i] = "\n".join([*filter(None, [hint]), texts[i].strip(), *lines, ASKS]), known[at]
    return _without(own | {columns.text: texts, columns.label: letters}, odd), odd


def _with_boxes(own: Table, columns: Questions) -> tuple[Table, list[int]]:
    """Boxes as texts; and the rows whose box is none, or not on the picture, left out."""
    written: list[str | None] = [None] * len(own[columns.label])
    odd = []
    for i, (item, value) in enumerate(zip(own[columns.image], own[columns.label], strict=True)):
        if item is None or value is None:
            continue
        four = _numbers(value)
        written[i] = None if four is None else fractions(four, Images([item]).size(0))
        if written[i] is None:
            odd.append(i)
    return _without(own | {columns.label: written}, odd), odd


def _without(own: Table, odd: Sequence[int]) -> Table:
    """The table but for some of its rows."""
    left = set(odd)
    return {name: [value for i, value in enumerate(column) if i not in left] for name, column in own.items()} if left else own


def fractions(box: Sequence[float], size: tuple[int, int]) -> str | None:
    """A box of COCO, left, top, width and height in pixels, as left, top, right and bottom in fractions of the picture's sides.

    They have three digits, as of Shikra (K. Chen et al., arXiv 2306.15195): ``[0.125, 0.300, 0.500, 0.912]``. None for a box
    that stands out of a picture of this size (width and height), or has no inside.
    """
    x, y, w, h = box
    corners = []
    for low, length, side in ((x, w, size[0]), (y, h, size[1])):
        if not (low >= -SLACK and length > 0 and low + length <= side + SLACK):
            return None
        corners.append((round(max(low, 0.0) / side, 3), round(min(low + length, side) / side, 3)))
    (left, right), (top, bottom) = corners
    return None if left >= right or top >= bottom else f"[{left:.3f}, {top:.3f}, {right:.3f}, {bottom:.3f}]"


def _numbers(value: Any) -> list[float] | None:
    """Four numbers, None where it is something else."""
    if not listed(value) or len(value) != 4 or any(isinstance(v, bool | str) or v is None for v in value):
        return None
    try:
        found = [float(v) for v in value]
    except (TypeError, ValueError):
        return None
    return found if all(map(np.isfinite, found)) else None


def _unfolded(own: Table, columns: Questions) -> tuple[Table, list[int]]:
    """A row for each question of a list, with its own answer, or the row's box; and the rows where these are not as many."""
    questions, answers = own[columns.text], own[columns.label]
    if not any(map(listed, questions)):
        return own, []
    odd: list[int] = []
    where: list[int] = []
    asked: list[Any] = []
    replies: list[Any] = []
    for i, (some, reply) in enumerate(zip(questions, answers, strict=True)):
        texts = list(some) if listed(some) else [some]
        if columns.boxes or reply is None or not listed(some):
            own_replies = [reply] * len(texts)
        else:
            own_replies = list(reply) if listed(reply) else [reply]
        if len(own_replies) != len(texts):
            odd.append(i)
            continue
        where += [i] * len(texts)
        asked += texts
        replies += own_replies
    found = {name: [column[i] for i in where] for name, column in own.items()}
    return found | {columns.text: asked, columns.label: replies}, odd
