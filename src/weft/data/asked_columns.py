"""Which columns of a table hold what is asked, an input beside it and the answer to generate: those named, else a guess.

A table is in one of four forms: chats, translations (objects of texts by language, or a column for each), columns of prompts and
answers, and running text, before which nothing stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.data import translations
from weft.data.columns import ANSWERS, LABELS, NUMBERS, NoColumn, Table, Wanted, filled, there
from weft.data.natural_keys import KEYS, natural_key
from weft.data.translations import LANGUAGES, Direction
from weft.data.turns import are_chats, are_texts, are_translations, languages
from weft.errors import UserError, nearest

CHATS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
TRANSLATIONS = ("translation", "translations")
INSTRUCTIONS = ("instruction", "instructions")
DOCUMENTS = ("context", "passage", "document", "article", "text", "transcript", "dialogue", "dialog", "meeting_transcript")
# What is asked, the input beside it, the answer: in each the first that there is. Whoever has two of them has the first meant.
FORMS = (
    (("definition",), ("inputs", "input"), ("targets", "target", "output")),
    (INSTRUCTIONS, ("input", "inputs", "context"), ("output", "response", "answer", "completion", "target")),
    (("inputs",), (), ("targets",)),
    (("prompt",), ("input", "context"), ("completion", "response", "answer", "output", "chosen")),
    (("question", "query", "problem"), DOCUMENTS, ("solution", "answer", "answers", "response", "summary", "output")),
    (("document", "article", "dialogue", "dialog", "transcript", "text"), (), ("summary", "highlights")),
    (("source", "src"), (), ("target", "tgt")),
)
UNMISTAKABLE = ((INSTRUCTIONS, ("input", "context"), ("output", "response")), (("prompt",), (), ("completion",)))
PROMPTS = tuple(dict.fromkeys(name for prompts, _, _ in FORMS for name in prompts))
RUNNING = ("text", "content", "document", "article", "paragraph", "page", "body")  # text that may stand alone
CLIENTS = (
    "client", "client_id", "task", "task_name", "category", "domain", "language_pair", "lang_pair", "pair",
    *(name for name in KEYS if name not in ("client", "client_id", "domain", "source")), "dataset", "topic", "subject", "type",
    "source",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """The columns in use, and for those guessed a sentence in ``notes``.

    ``answer`` is the column of the answers, of the chats or of the translations; ``text`` is None where nothing stands before an
    answer. ``directions`` are the languages that translations are read from and to, () for the first two of each row; ``aligned``
    are columns that hold one language each. ``languages`` are the columns that tell in which languages a row is, and ``only`` the
    pairs of them that are asked for, () = all. ``rejected`` is the column of answers to which those of ``answer`` were preferred,
    of :mod:`weft.data.preferred`.
    """

    answer: str
    text: str | None = None
    pair: str | None = None
    key: str | None = None
    chats: bool = False
    translations: bool = False
    directions: tuple[Direction, ...] = ()
    aligned: tuple[str, ...] = ()
    languages: Direction | None = None
    only: tuple[Direction, ...] = ()
    rejected: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """Columns that every split needs, beside that of the answers."""
        aligned = tuple(dict.fromkeys(name for pair in self.directions for name in pair)) if self.aligned else ()
        return (*aligned, *(name for name in (self.text, self.pair, *(self.languages or ())) if name is not None))


def recognised(where: str, table: Table, asked: Mapping[str, str], wanted: Wanted) -> Asked | None:
    """The columns of a table that is for generation; None where it is not, and no answers are wanted.

    Where ``classes`` are wanted, chats, instructions with their output and prompts with their completion are for nothing else, if
    no column is called like a label and none was named; where ``any`` will do, so is whatever has a prompt and an answer.

    Args:
        where: what sentences call the set. asked: columns that were named, by option.

    Raises:
        UserError: a column that was named is absent, or answers are wanted and no columns can be told.
    """
    if wanted in ("numbers", "preferences"):
        return None
    if wanted != "answers" and for_labels(table, asked):
        return None
    if "image" in asked:
        raise UserError(f"{where} is read to generate text, and such rows have no image: leave --image out.")
    found = _in_languages(where, table, asked) if "pairs" in asked else _form(where, table, asked, wanted)
    return None if found is None else with_key(_with_languages(found, table), where, table, asked.get("key"))


def for_labels(table: Table, asked: Mapping[str, str]) -> bool:
    """Whether one of its columns is called like a label, or the columns that were named are not those of prompts."""
    labels = {name for name in (*LABELS, *NUMBERS) if name not in CLIENTS} & {name.lower() for name in table}
    return bool(labels or asked.keys() & {"label", "image"}) or any(column not in table for column in asked.values())


def _form(where: str, table: Table, asked: Mapping[str, str], wanted: Wanted) -> Asked | None:
    """The columns but for the key."""
    if found := _objects(where, table, asked):
        return found
    named = {option: there(table, where, option, column) for option, column in asked.items() if option != "key"}
    forms = UNMISTAKABLE if wanted == "classes" else FORMS
    if found := next(_in_forms(table, named, forms), None):
        return _noted(found, where, named)
    if wanted != "answers":
        return None
    text, answer = _named_or_translated(table, named)
    if answer is not None:
        noted = _noted(Asked(answer, text, named.get("pair")), where, named)
        both = text is not None and {text.lower(), answer.lower()} <= set(LANGUAGES)
        return replace(noted, directions=((text, answer),), aligned=(text, answer)) if both else noted  # type: ignore[arg-type]
    if not named and (why := _unusable(table)):
        raise NoColumn(where, f"{why} (of running text, name it with --label alone)")
    column = None if "pair" in named else _running(table, text)
    if column is None:
        raise NoColumn(
            f"{where} has no columns that look like what is asked and its answer; its columns are {', '.join(table)}",
            "name them with --text and --label (of running text, --label alone)",
        )
    note = f'{where}: guessed that "{column}" is running text to go on with, without anything asked (--text, --label).'
    return Asked(column, notes=(note,))


def _unusable(table: Table) -> str | None:
    """Which column is called like one of prompts and answers, or of chats, and holds something else."""
    lower = {name.lower(): name for name in reversed(table)}
    for name in (*CHATS, *TRANSLATIONS):
        if name in lower and _held(table[lower[name]]).startswith(("a list", "an object")):
            what = "translations, objects of texts by language" if name in TRANSLATIONS else "chats, lists of turns"
            return f'column "{lower[name]}" holds no {what}, but {_held(table[lower[name]])}'
    for prompts, _, answers in FORMS:
        asked, wanted = (next((lower[n] for n in names if n in lower), None) for names in (prompts, answers))
        if asked is None or wanted is None:
            continue
        for column, what in ((asked, "what is asked"), (wanted, "the answer")):
            if not _texts(table, column, what == "the answer"):
                return f'column "{column}" holds {_held(table[column])}, where {what} should be a text'
    return None


def _held(column: Sequence[Any]) -> str:
    """What a column holds, by the first value that is something."""
    row, value = next(((i, v) for i, v in enumerate(column) if v is not None), (0, None))
    if value is None:
        return "nothing"
    kind = {bool: "yes or no", int: "a number", float: "a number", str: "a text", bytes: "bytes"}.get(type(value))
    kind = kind or (
        "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, Sequence) else type(value).__name__
    )
    return f"{kind} in row {row + 1}"


def _named_or_translated(table: Table, named: Mapping[str, str]) -> tuple[str | None, str | None]:
    """What is asked and the answer, of which one was named and the other has a usual name; or sentences in two languages."""
    text, answer = named.get("text"), named.get("label")
    left = {name.lower(): name for name in reversed(table) if name not in named.values()}
    if answer is None and text is not None:
        answer = filled(table, [left[n] for n in (*ANSWERS, *LANGUAGES) if n in left and _texts(table, left[n], True)])
    elif text is None and answer is not None:
        text = filled(table, [left[n] for n in (*PROMPTS, *LANGUAGES) if n in left and _texts(table, left[n])])
    elif text is None:
        translated = [name for name in table if name.lower() in LANGUAGES and _texts(table, name)]
        if len(translated) > 1:
            text, answer = translated[:2]
    return text, answer


def _running(table: Table, named: str | None) -> str | None:
    """The column of running text: that named, if it may be, or one called so, or the only one with sentences."""
    sentences = [name for name in table if any(isinstance(value, str) and " " in value for value in table[name][:100])]
    if named is not None:
        return named if named.lower() in RUNNING or sentences == [named] else None
    lower = {name.lower(): name for name in reversed(table)}
    called = next((lower[n] for n in RUNNING if n in lower and _texts(table, lower[n])), None)
    return called or (sentences[0] if len(sentences) == 1 else None)


def _texts(table: Table, column: str, answers: bool = False) -> bool:
    return are_texts(table[column], answers=answers)


def _objects(where: str, table: Table, asked: Mapping[str, str]) -> Asked | None:
    """The column of chats or of translations, if it is named, or called so and no other is named."""
    named = [asked[option] for option in ("label", "text") if option in asked]
    columns = [name for name in named if name in table]
    lower = {name.lower(): name for name in reversed(table)}
    for column in columns or [] if named else [lower[name] for name in CHATS if name in lower]:
        if are_chats(table[column]):
            note = f'{where}: guessed that "{column}" are chats, of which the last answer is learnt (--label).'
            return Asked(column, chats=True, notes=() if named else (note,))
    for column in columns or [lower[name] for name in TRANSLATIONS if name in lower]:
        if are_translations(table[column]):
            text, label = (name if (name := asked.get(option)) != column else None for option in ("text", "label"))
            return Asked(column, translations=True, directions=_directions(where, table[column], text, label))
    return None


def _directions(where: str, column: Sequence[Any], text: str | None, label: str | None) -> tuple[Direction, ...]:
    """The languages to translate from and to, where one of them was named."""
    every = list(dict.fromkeys(name for value in column for name in languages(value)))
    for option, name in (("text", text), ("label", label)):
        if name is not None and name not in every:
            raise UserError(
                f'the translations of {where} are in {", ".join(every)}, and not in "{name}", asked for by --{option}.'
                f"{nearest(name, every)}"
            )
    if text is None and label is None:
        return ()
    return ((text or next(n for n in every if n != label), label or next(n for n in every if n != text)),)


def _in_languages(where: str, table: Table, asked: Mapping[str, str]) -> Asked:
    """The columns of sentences whose directions were asked for.

    Raises:
        UserError: they are not aligned and do not say their languages, or lack a language.
    """
    if odd := next((option for option in ("text", "label", "pair") if option in asked), None):
        raise UserError(f"--pairs says what is read and what is written, and so does --{odd}: leave one of the two out.")
    pairs = asked["pairs"]
    if (found := _objects(where, table, {})) and found.translations:
        every = list(dict.fromkeys(name for value in table[found.answer] for name in languages(value)))
        return replace(found, directions=translations.directions(where, pairs, every))
    if (told := translations.columns_of(list(table))) and (found := next(_in_forms(table, {}, FORMS), None)):
        spoken = [translations.told(table, told, i, f"row {i} of {where}") for i in range(len(table[told[0]]))]
        return replace(_noted(found, where, {}), only=translations.of_rows(where, pairs, spoken))
    aligned = tuple(name for name in table if name.lower() in LANGUAGES and _texts(table, name))
    if len(aligned) < 2:
        raise UserError(
            f"{where} holds no translations that --pairs could choose among: it needs a column for each language, or columns "
            "source, target, source_language and target_language."
        )
    chosen = translations.directions(where, pairs, aligned)
    return Asked(chosen[0][1], chosen[0][0], directions=chosen, aligned=aligned)


def _with_languages(found: Asked, table: Table) -> Asked:
    """With the columns that tell the languages of prompts and answers, if there are."""
    if found.chats or found.translations or found.aligned or found.text is None:
        return found
    return replace(found, languages=translations.columns_of([name for name in table if name not in (found.text, found.answer)]))


def _in_forms(table: Table, named: Mapping[str, str], forms: Sequence[Any]) -> Iterator[Asked]:
    """The columns in each of the forms that the table and what was named have."""
    lower = {name.lower(): name for name in reversed(table)}
    for prompts, inputs, answers in forms:
        own = [lower[name] for name in prompts if name in lower and _texts(table, lower[name])]
        theirs = [lower[name] for name in answers if name in lower and _texts(table, lower[name], True)]
        text, answer = named.get("text") or filled(table, own), named.get("label") or filled(table, theirs)
        if text not in own or answer not in (*theirs, named.get("label")) or answer is None or text == answer:
            continue
        beside = [lower[name] for name in inputs if name in lower and lower[name] not in (text, answer)]
        yield Asked(answer, text, named.get("pair") or next((name for name in beside if _texts(table, name)), None))


def _noted(found: Asked, where: str, named: Mapping[str, str]) -> Asked:
    """With a sentence of what was guessed.

    Raises:
        UserError: two options name one column.
    """
    used = [name for name in (found.text, found.pair, found.answer) if name is not None]
    if twice := [name for name in used if used.count(name) > 1]:
        raise UserError(
            f'two of --text, --pair and --label name column "{twice[0]}" of {where}: the model would read the answer.'
        )
    parts = (("text", found.text, "is asked"), ("pair", found.pair, "its input"), ("label", found.answer, "the answer"))
    guessed = [f'"{column}" {what} (--{option})' for option, column, what in parts if column is not None and option not in named]
    if not guessed:
        return found
    return Asked(found.answer, found.text, found.pair, notes=(f"{where}: guessed that {', '.join(guessed)}.",))


def with_key(found: Asked, where: str, table: Table, asked: str | None) -> Asked:
    """The columns with that of the natural client: the one that was named, or a guess.

    Raises:
        UserError: the one that was named is absent.
    """
    if asked is not None:
        return replace(found, key=there(table, where, "key", asked))
    used = (found.answer, found.rejected, found.text, found.pair)
    if told := natural_key({name: column for name, column in table.items() if name not in used}, CLIENTS):
        key, different = told
        note = f'{where}: guessed that "{key}" is the natural client ({different} of them; --key).'
        return replace(found, key=key, notes=(*found.notes, note))
    return found
