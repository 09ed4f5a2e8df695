"""How an instruction, its input and its answer become one text: templates by name, or a file of the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weft.errors import UserError

Turn = tuple[str, str]
"""A turn of a conversation: role (``system``, ``user`` or ``assistant``) and text."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text. ``answer``: it is to be learnt, an answer with whatever ends it."""

    text: str
    answer: bool = False


class Template(Protocol):
    """Makes texts of rows.

    Attributes:
        framed: the text holds the model's own tokens for begin and end already.
    """

    framed: bool

    def prompt(self, instruction: str, given: str, history: Sequence[Turn]) -> list[Piece]:
        """What stands before an answer; earlier answers in it are to be learnt too.

        Args:
            given: an input beside the instruction, "" = none. history: earlier turns.

        Raises:
            UserError: the template has no place for earlier turns.
        """
        ...

    def ending(self, end: str) -> str:
        """What ends an answer.

        Args:
            end: the tokenizer's end token.
        """
        ...


@dataclass(frozen=True)
class Written:
    """A text with places ``{instruction}``, ``{input}`` and ``{output}``. Where a row has no input, the paragraphs that name it
    are left out. Of translations it may name the languages, ``{source}`` and ``{target}``.

    Attributes:
        text: up to its ``{output}``. bare: the same for rows without an input. after: what follows the output.
    """

    text: str
    bare: str
    after: str = ""
    framed = False

    def prompt(self, instruction: str, given: str, history: Sequence[Turn]) -> list[Piece]:
        if history:
            raise UserError("these data are conversations of several turns, which only --template chat has a place for.")
        text = self.text if given else self.bare
        return [Piece(_PLACE.sub(lambda m: {"instruction": instruction, "input": given}[m[1]], text))]

    def ending(self, end: str) -> str:
        return self.after or end

    @property
    def names_languages(self) -> bool:
        """Whether it has a place for a language."""
        return any(place in _LANGUAGES for place in _ANY_PLACE.findall(self.text))

    def between(self, source: str, target: str) -> Written:
        """With the languages in their places."""
        called = {"source": source, "target": target}
        text, bare = (_ANY_PLACE.sub(lambda m: called.get(m[1], m[0]), some) for some in (self.text, self.bare))
        return Written(text, bare, self.after)


_SOME = "weft"  # an answer that is part of no template
_PLACE = re.compile(r"\{(instruction|input)\}")
_ANY_PLACE = re.compile(r"\{([a-z_]+)\}")
_LANGUAGES = ("source", "target")
_SAYS = "Below is an instruction that describes a task"
_ASKS = "Write a response that appropriately completes the request."
ALPACA = Written(
    f"{_SAYS}, paired with an input that provides further context. {_ASKS}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    f"{_SAYS}. {_ASKS}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
)
"""Of Stanford Alpaca (Taori et al., 2023), which most papers on federated instruction tuning use."""
PLAIN = Written("{instruction}\n\n{input}\n\n", "{instruction}\n\n")
"""The instruction and its input, nothing else: what an encoder-decoder reads."""


@dataclass(frozen=True)
class Chat:
    """The chat template that the tokenizer brings along."""

    tokenizer: Any
    framed = True

    def _said(self, turns: Sequence[Turn], open_: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_)
        except Exception as e:  # a template is a program of somebody else's, and refuses in any way it likes
            reason = " ".join(str(e).split())[:200] or type(e).__name__
            raise UserError(f"the tokenizer's chat template does not take these turns ({reason}): use --template alpaca.") from e
        return text

    def prompt(self, instruction: str, given: str, history: Sequence[Turn]) -> list[Piece]:
        asked = f"{instruction}\n\n{given}" if given and instruction else instruction or given
        turns = [*history, ("user", asked)]
        pieces: list[Piece] = []
        done = ""
        for i, (role, _) in enumerate(turns):
            if role != "assistant":
                continue
            before, after = self._said(turns[:i], True), self._said(turns[: i + 1], False)
            if before.startswith(done) and after.startswith(before):  # else it shows earlier turns in another form
                after = after.rstrip()  # what separates turns is not the model's to write
                pieces += [Piece(before[len(done) :]), Piece(after[len(before) :], True)]
                done = after
        whole = self._said(turns, True)
        if not whole.startswith(done):
            return [Piece(whole)]
        return [*pieces, Piece(whole[len(done) :])]

    def ending(self, end: str) -> str:
        """The template's own, up to the end token if that is in it: some end a turn with another token, Gemma's for one."""
        turns = [("user", "a")]
        before, after = self._said(turns, True), self._said([*turns, ("assistant", _SOME)], False)
        if not after.startswith(before):
            return end
        _, _, rest = after[len(before) :].partition(_SOME)
        return rest[: rest.index(end) + len(end)] if end and end in rest else rest.rstrip() or end


NAMES = ("chat", "alpaca", "plain")


def template(name: str, tokenizer: Any, reads_apart: bool) -> Template:
    """A template by its name, or by its text.

    Args:
        name: ``chat``, ``alpaca``, ``plain``, a text with ``{output}``, a file, or "" = what suits the backbone.
        reads_apart: an encoder reads the prompt.

    Raises:
        UserError: there is none of that name, or it has no place for the answer.
    """
    name = spelt_out(name)
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if not name:
        name = "plain" if reads_apart else "chat" if has_chat else "alpaca"
    if name == "chat":
        if not has_chat:
            raise UserError("the tokenizer of this backbone has no chat template: use --template alpaca, or a file of your own.")
        return Chat(tokenizer)
    if name in NAMES:
        return ALPACA if name == "alpaca" else PLAIN
    if not is_text(name):
        raise UserError(f'there is no template "{name}": use {", ".join(NAMES)}, or a file with {{instruction}} and {{output}}.')
    return written(name, "that is given")


def is_text(name: str) -> bool:
    """Whether it is a template's text, and no name of one."""
    return "{output}" in name


def spelt_out(name: str) -> str:
    """What a template is called, but the text of a file in the place of its path.

    A run keeps the text: its file may be gone, or another one, when the run is gone on with or its model is used.

    Raises:
        UserError: the file is no template.
    """
    if name in ("", *NAMES) or "{" in name or "\n" in name:
        return name
    path = Path(name).expanduser()
    try:
        if not path.is_file():
            return name
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = f"byte {e.start + 1} is none" if isinstance(e, UnicodeDecodeError) else (e.strerror or type(e).__name__).lower()
        raise UserError(f"the template {path} can't be read as UTF-8 ({why}): save it as plain text.") from e
    written(text, str(path))
    return text.rstrip("\n")


def written(text: str, where: str) -> Written:
    """A template from a file's text.

    Raises:
        UserError: it lacks a place for the instruction or for the answer, or has two for the answer.
    """
    if text.count("{output}") != 1:
        many = "no place" if "{output}" not in text else "more than one place"
        raise UserError(f"the template {where} has {many} for the answer: write {{output}} once, where it belongs.")
    if strange := [place for place in _ANY_PLACE.findall(text) if place not in ("instruction", "input", "output", *_LANGUAGES)]:
        raise UserError(
            f"the template {where} has a place {{{strange[0]}}} that nothing fills: its places are {{instruction}}, {{input}} "
            "and {output}, and of translations {source} and {target}."
        )
    before, _, after = text.partition("{output}")
    if "{instruction}" not in before:
        raise UserError(
            f"the template {where} has no place for the instruction before that for the answer: write {{instruction}}."
        )
    paragraphs = re.split(r"(\n\s*\n)", before)
    kept: list[str] = []
    for i in range(0, len(paragraphs), 2):
        if "{input}" not in paragraphs[i]:
            kept += paragraphs[i : i + 2]
    bare = "".join(kept)
    if "{instruction}" not in bare:  # both in one paragraph
        bare = before.replace("{input}", "")
    return Written(before, bare, after.rstrip("\n"))
