"""Questions about pictures: from columns to a source whose classes are answers, or whose answers are to be generated.

Where several people answered a question, as in VQA v2, an answer is as right as VQA's accuracy has it: with N people and k who
gave it, the mean over all who could be left out of min(k / 3, 1) among the others (S. Antol et al., "VQA: Visual Question
Answering", ICCV 2015, arXiv 1505.00468).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weft.checks import table_files as checks
from weft.data import pictures, question_forms
from weft.data.columns import SPLITS, NoColumn, Table, Wanted, filled, there, with_test
from weft.data.images import Images
from weft.data.natural_keys import KEYS, natural_key, of_keys
from weft.data.rows import BOTH, Rows, Source
from weft.data.spelling import spelled
from weft.errors import UserError, printable

QUESTIONS = ("question", "questions", "query")
ANSWERS = ("answers", "multiple_choice_answer", "answer", "label", "caption", "text", *question_forms.BOXES)
"""Columns of answers by their usual names; those of several people first."""
CLIENTS = ("question_type", "answer_type", "type", *KEYS)
MOST_ANSWERS = 3129
"""Answers that are classes, the most frequent of the training rows: as many as models of VQA v2 have (those given 9 times)."""
FEW = 4  # people; of fewer an answer is as right as the share of them who gave it


@dataclass(frozen=True)
class Questions:
    """The columns in use, and for those guessed a sentence in ``notes``.

    Attributes:
        choices: lists of texts, of which ``label`` says which one is right. hint: what stands before such a question.
        boxes: whether ``label`` has boxes, left, top, width and height in pixels.
    """

    image: str
    text: str
    label: str
    key: str | None = None
    choices: str | None = None
    hint: str | None = None
    boxes: bool = False
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """Columns that every split needs, beside that of the answers."""
        return tuple(name for name in (self.image, self.text, self.choices) if name is not None)


def recognised(where: str, table: Table, asked: Mapping[str, str], wanted: Wanted) -> Questions | None:
    """The columns of a table of questions about pictures; None where it is none and nobody asked for questions.

    A table is one if it has a column of pictures and one called like a question, or if both ``image`` and ``text`` are named.

    Args:
        where: what sentences call the set. asked: columns that were named, by option.

    Raises:
        UserError: a column that was named is absent; NoColumn: questions are wanted, and no columns can be told.
    """
    if wanted in ("numbers", "preferences", "items"):
        return None
    lower = {name.lower(): name for name in reversed(table)}
    image = asked.get("image") or next(iter(pictures.columns(table)), None)
    text = asked.get("text") or filled(table, [lower[n] for n in QUESTIONS if n in lower])
    choices = next((lower[n] for n in question_forms.CHOICES if n in lower), None)
    choices = choices if choices is not None and question_forms.hold_choices(table[choices]) else None
    alone = "pair" not in asked or choices is not None
    meant = {"image", "text"} <= asked.keys() or (image is not None and text is not None and alone)
    if asked.keys() & {"image", "text"} == {"text"} and asked["text"].lower() not in QUESTIONS:
        meant = False  # texts beside pictures that nobody asked for
    if not meant or image is None or text is None:
        if wanted == "questions":
            raise NoColumn(
                f"{where} has no columns that look like pictures and the questions about them; its columns are "
                f"{', '.join(table)}",
                "name them with --image and --text",
            )
        return None
    image, text = there(table, where, "image", image), there(table, where, "text", text)
    if image not in pictures.columns(table, image):
        raise UserError(f'column "{image}" of {where} holds no pictures: name another with --image.')
    label = there(table, where, "label", asked["label"]) if "label" in asked else None
    label = label or filled(table, [lower[n] for n in ANSWERS if n in lower and lower[n] not in (image, text)])
    if label is None:
        raise NoColumn(
            f"{where} has no column that looks like an answer; its columns are {', '.join(table)}", "name it with --label"
        )
    used = [("image", image, "the picture"), ("text", text, "the question"), ("label", label, "the answer")]
    hint = there(table, where, "pair", asked["pair"]) if choices is not None and "pair" in asked else None
    if choices is not None and (hint := hint or next((lower[n] for n in question_forms.HINTS if n in lower), None)):
        used.append(("pair", hint, "what stands before it"))
    said = [f'"{column}" is {what} (--{option})' for option, column, what in used if option not in asked]
    key = there(table, where, "key", asked["key"]) if "key" in asked else None
    if key is None:
        found = natural_key({n: column for n, column in table.items() if n not in (image, text, label)}, CLIENTS)
        if found is not None:
            key, different = found
            said.append(f'"{key}" is the natural client ({different} of them; --key)')
    notes = [f"{where}: guessed that {', '.join(said)}."] if said else []
    if choices is not None:
        notes.append(f'{where}: "{choices}" are choices, and the letter of the right one is the answer.')
    boxes = choices is None and question_forms.called_boxes(label) and question_forms.hold_boxes(table[label])
    if boxes:
        notes.append(f'{where}: "{label}" are boxes, which are written as fractions of the sides of the picture.')
    return Questions(image, text, label, key, choices, hint, boxes, tuple(notes))


def build(name: str, splits: Mapping[str, Table], columns: Questions, wanted: Wanted, *, notes: Iterable[str] = ()) -> Source:
    """The source of questions about pictures, but for its fingerprint.

    Rows without a picture, a question or an answer are dropped and counted, and so are those whose answers are all rare. Classes
    are the most frequent answers, by name. Where ``answers`` are wanted, and of boxes, answers are texts to generate without
    classes. Lists of questions, choices and boxes are read as in :mod:`weft.data.question_forms`; ids are those of single
    questions.

    Args:
        splits: keys out of SPLITS, with "train".

    Raises:
        UserError: no training rows, or a value that is no answer.
    """
    said = [*notes, *columns.notes]
    for split in (s for s in SPLITS if s in splits):
        if absent := [c for c in columns.used if c not in splits[split]]:
            raise UserError(f'the {split} rows of {name} have no column "{absent[0]}", which its train rows have.')
    before = {split: len(table[columns.text]) for split, table in splits.items()}
    splits, odd = question_forms.plain(name, splits, columns)
    said += odd
    as_written = columns.boxes or columns.choices is not None
    read: dict[str, dict[int, Counter[str]]] = {}
    for split in (s for s in SPLITS if s in splits):
        table = splits[split]
        n = len(table[columns.text])
        own = {}
        each = "row" if n == before[split] else "question"  # of lists of questions every one is a row by now
        for i in range(n):
            question, answer = table[columns.text][i], table[columns.label][i]
            place = f"{each} {i} of the {split} {each}s"
            people = Counter(filter(None, [answer])) if as_written else answers_of(answer, columns.label, name, place)
            if people and table[columns.image][i] is not None and isinstance(question, str) and question.strip():
                own[i] = people
        if not own and split != "train":
            said += checks.hidden(name, split)
            continue
        said += checks.dropped(name, split, n, len(own), "picture, question")
        read[split] = own
    if not read["train"]:
        raise UserError(f"{name} has no training rows with picture, question and answer: check --image, --text and --label.")
    generated = wanted == "answers" or columns.boxes
    classes = [columns.label] if generated else _classes(read["train"])
    number = {answer: i for i, answer in enumerate(classes)}
    several = any(people.total() > 1 for own in read.values() for people in own.values())
    parts: dict[str, Rows] = {}
    first = 0
    for split in (s for s in SPLITS if s in splits):
        table = splits[split]
        if split in read:
            kept, rare = read[split], 0
            if not generated:
                kept = {i: people for i, people in kept.items() if any(answer in number for answer in people)}
                rare = len(read[split]) - len(kept)
            if rare:
                said.append(
                    f"{name}: {rare} of {len(read[split])} {split} rows have none of the {len(classes)} answers that are "
                    "classes, and are left out."
                )
            parts[split] = _rows(table, kept, columns, None if generated else number, several, first)
        first += len(table[columns.text])
    said += with_test(name, parts, "test split with answers")
    said += of_keys(name, columns.key, parts["train"], parts.get("test"))
    return Source(
        name=name,
        classes=tuple(classes),
        train=parts["train"],
        test=parts.get("test"),
        validation=parts.get("validation"),
        key_name=columns.key,
        label_name=columns.label,
        notes=tuple(map(printable, said)),
    )


def within(source: Source, classes: Sequence[str]) -> Source:
    """A source of questions for those who have other answers: rows with none of ``classes`` are left out and counted, as those
    with rare answers are, and so are votes for other answers; what is voted for the rest stays as right as it was.

    Rows that are no questions about pictures are left as they are, and so is a source without a training row to stay.
    """
    known = {spelled(name) for name in classes}
    there = np.array([spelled(name) in known for name in source.classes], dtype=bool)
    if source.train.read_as != BOTH or not source.train.of_classes or there.all():
        return source
    few = source.each(lambda rows: _within(rows, there), source.classes)
    if not len(few.train):
        return source
    said = []
    for split in SPLITS:
        before, after = getattr(source, split), getattr(few, split)
        if before is not None and (out := len(before) - len(after)):
            said.append(
                f"{source.name}: {out} of {len(before)} {split} rows have none of the {len(classes)} answers that are classes, "
                "and are left out."
            )
    return replace(few, notes=(*source.notes, *said), fingerprint=source.fingerprint)


def _within(rows: Rows, there: np.ndarray) -> Rows:
    """The rows that have some answer which is ``there`` (bool [classes])."""
    if rows.votes is None:
        return rows.take(np.flatnonzero(there[rows.labels]))
    few = rows.take(np.array([i for i, own in enumerate(rows.votes) if there[list(own)].any()], dtype=np.int64))
    votes = [{c: v for c, v in own.items() if there[c]} for own in few.votes or ()]
    return replace(few, votes=votes, labels=np.array([max(own, key=lambda c: own[c]) for own in votes], dtype=np.int64))


def to_write(source: Source) -> Source:
    """A source of questions with classes as one whose best answers are texts to generate."""

    def written(rows: Rows) -> Rows:
        answers = [source.classes[label] for label in rows.labels]
        return replace(rows, labels=np.zeros(len(rows), np.int64), answers=answers, votes=None)

    return source.each(written, (source.label_name or "answer",))


def answers_of(value: Any, column: str, where: str, place: str = "a row") -> Counter[str]:
    """How many people gave each answer, in one spelling: small letters, no blanks around it, no full stop.

    Args:
        value: an answer; or a list of them, each a text or ``{"answer": …}`` as in VQA v2. place: where in ``where`` it stands.

    Raises:
        UserError: it is something else.
    """
    if value is None or isinstance(value, str | bool | int | float):
        value = [value]
    if isinstance(value, Mapping) and isinstance(value.get("answer"), Sequence):
        value = value["answer"]  # an object of lists, as older versions of ``datasets`` keep lists of objects
    given, odd = [], [value]
    if isinstance(value, list | tuple | np.ndarray):
        given = [one.get("answer") if isinstance(one, Mapping) else one for one in value]
        odd = [one for one in given if not (one is None or isinstance(one, str | bool | int | float))]
    if odd:
        raise UserError(
            f'column "{column}" of {where} holds {odd[0]!r:.40} in {place}, which is no answer: write a text there, or name '
            "another column with --label."
        )
    spelt = ((spelled(one) or "").lower().rstrip(".").strip() for one in given)
    return Counter(answer for answer in spelt if answer)


def votes_of(people: Counter[str]) -> dict[str, float]:
    """How right each answer is, above 0 and up to 1."""
    total = people.total()
    if total < FEW:
        return {answer: k / total for answer, k in people.items()}
    return {a: ((total - k) * min(k / 3, 1) + k * min((k - 1) / 3, 1)) / total for a, k in people.items()}


def _classes(rows: Mapping[int, Counter[str]]) -> list[str]:
    frequent = Counter(answer for people in rows.values() for answer in people)
    found = sorted(frequent, key=lambda answer: (-frequent[answer], answer))[:MOST_ANSWERS]
    return sorted(found)


def _rows(
    table: Table,
    kept: Mapping[int, Counter[str]],
    columns: Questions,
    number: Mapping[str, int] | None,
    several: bool,
    first: int,
) -> Rows:
    """The rows at these positions; ``number`` of each answer that is a class, None where answers are generated; with votes if
    ``several`` people answered a question, be it in another split.
    """
    keys = None if columns.key is None else table.get(columns.key)
    best = {i: people.most_common(1)[0][0] for i, people in kept.items()}
    labels, votes = None, None
    if number is not None:
        scored = {i: {number[a]: v for a, v in votes_of(p).items() if a in number} for i, p in kept.items()}
        labels = np.array([max(own, key=lambda c: own[c]) for own in scored.values()], dtype=np.int64)
        if several:
            votes = list(scored.values())
    return Rows(
        texts=[str(table[columns.text][i]) for i in kept],
        images=Images([table[columns.image][i] for i in kept]),
        labels=labels,  # type: ignore[arg-type]  # of answers to generate there are none
        answers=list(best.values()) if number is None else None,
        votes=votes,
        ids=np.array(list(kept), dtype=np.int64) + first,
        keys=None if keys is None else [spelled(keys[i]) or "" for i in kept],
    )
