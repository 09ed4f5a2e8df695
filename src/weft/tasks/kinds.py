"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from weft.errors import UserError
from weft.tasks.classification import Classification
from weft.tasks.generation import Generation
from weft.tasks.masked_language import MaskedLanguage
from weft.tasks.next_item import NextItem
from weft.tasks.preference import Preference
from weft.tasks.regression import Regression
from weft.tasks.several_tasks import Several
from weft.tasks.tagging import Tagging
from weft.tasks.task import Task
from weft.tasks.visual_questions import VisualQuestions

if TYPE_CHECKING:
    from weft.data.rows import Rows

KINDS: dict[str, Any] = {
    kind.kind: kind
    for kind in (
        Classification,
        Tagging,
        Regression,
        Generation,
        MaskedLanguage,
        Preference,
        NextItem,
        Several,
        VisualQuestions,
    )
}
CLASSES = Classification.kind
TOKENS = Tagging.kind
NUMBERS = Regression.kind
GENERATION = Generation.kind
PREFERENCE = Preference.kind
MASKED = MaskedLanguage.kind
NEXT_ITEM = NextItem.kind
SEVERAL = Several.kind
QUESTIONS = VisualQuestions.kind
LANGUAGE = (GENERATION, MASKED, PREFERENCE)
"""Of language models, which have no head of their own."""
NEEDS_TAGS = (
    "--task tokens needs words with tags: a column with a list of words in each row, and one with a list of as many tags, such "
    "as B-Disease and O"
)


def make(classes: Sequence[str], kind: str = CLASSES, metrics: Sequence[str] = (), **more: Any) -> Task:
    """A task.

    Args:
        classes: names of the labels, in index order. metrics: what is scored, the headline first; none = what is usual.
        more: what else this kind of task can be told.

    Raises:
        UserError: a metric that it does not have.
    """
    if metrics:
        more["metrics"] = tuple(metrics)
    return KINDS[kind](tuple(classes), **more)


def suits(kind: str, rows: Rows) -> None:
    """Refuse rows that hold something else than a kind of task predicts.

    Raises:
        UserError: they do.
    """
    if kind == GENERATION and rows.answers is None:
        raise UserError("--task generation needs an answer in each row, as a set of prompts has: choose other --data.")
    if kind == MASKED and rows.answers is None:
        raise UserError("--task masked needs a text in each row and no labels, as wikitext has: choose other --data.")
    if kind == PREFERENCE and rows.rejected is None:
        raise UserError(
            "--task preference needs two answers in each row, a chosen and a rejected one, as docstring_preferences has: choose "
            "other --data."
        )
    if kind not in LANGUAGE and rows.rejected is not None:
        raise UserError("the rows of these data are prompts with two answers each: --task preference learns from that.")
    if kind not in LANGUAGE and rows.answers is not None:
        raise UserError(
            "the rows of these data are prompts with answers and have no classes: --task generation learns from that."
        )
    pictured = rows.answers is None and rows.texts is not None and rows.images is not None
    if kind == QUESTIONS and not pictured:
        raise UserError("--task vqa needs a picture, a question and its answer in each row: choose other --data.")
    if kind != QUESTIONS and pictured:
        raise UserError("the rows of these data are questions about pictures: --task vqa learns from that.")
    if kind == NEXT_ITEM and rows.items is None:
        raise UserError("--task next-item needs a sequence of items in each row, as shops has: choose other --data.")
    if kind != NEXT_ITEM and rows.items is not None:
        raise UserError("the rows of these data are sequences of items: --task next-item learns from that.")
    if kind == SEVERAL and rows.tasks is None:
        raise UserError("--task several needs data of several tasks: give --data a .toml file that names them.")
    if kind != SEVERAL and rows.tasks is not None:
        raise UserError("these data are of several tasks: --task several learns them.")
    if kind == TOKENS and rows.tags is None:
        raise UserError(f"{NEEDS_TAGS}.")
    if kind not in (TOKENS, SEVERAL) and rows.tags is not None:
        raise UserError("the words of these data are tagged: --task tokens learns from that.")
    if kind == NUMBERS and rows.numbers is None:
        raise UserError("--task regression needs a number in each row, and these rows have classes: leave the task out.")
    if kind != NUMBERS and rows.numbers is not None:
        raise UserError("the rows of these data have numbers and no classes: --task regression learns from that.")
