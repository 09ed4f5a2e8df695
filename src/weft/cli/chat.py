"""``weft chat``: a conversation with a run's model at the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.after import Base, Device, Folder, NewTokens, Precision, Temperature
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.report.console import out, visible
from weft.report.progress import starting

if TYPE_CHECKING:
    from rich.console import Console

    from weft.export.conversation import Conversation

SIGN = "> "
RESET, EXIT, HELP = "/reset", "/exit", "/help"


def chat(
    folder: Folder,
    client: Annotated[
        str | None,
        typer.Option(help="Talk to the own model of this client, where the method gives it one.", show_default=False),
    ] = None,
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.", show_default=False)] = "",
    new_tokens: NewTokens = None,
    temperature: Temperature = None,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Talk to a model that writes text. Answers appear as they are written, and what was said before counts.

    /reset forgets the conversation, /exit or Ctrl-D leaves. Ctrl-C stops the
    answer at hand, a second one leaves. Where the standard input is no terminal, each of its lines is asked in turn, and
    nothing but answers is printed.

    [bold]Examples[/bold]

      weft chat runs/fedit-docstrings-smollm2-s0
      weft chat runs/fedit-docstrings-smollm2-s0 --system "Answer in one sentence." --temperature 0.7
      weft chat runs/fedsa-lora-docstrings-smollm2-s0 --client c3
      weft chat runs/fedit-docstrings-smollm2-s0 < questions.txt
    """
    notes = out(stderr=True)
    with starting(notes, quiet=False):
        from weft.export import load
        from weft.export.again import personal
        from weft.export.conversation import Conversation

        once = Once(notes)
        if client is None:
            model = load(folder, base=base, device=device, precision=precision, observer=once)
        elif base is not None or (device, precision) != ("auto", "auto"):
            raise UserError("a client's model is that of its run as it was: leave --base, --device and --precision out.")
        else:
            model = personal(folder, client, observer=once)
        talk = Conversation(model, system, new_tokens, temperature)
    if not model.converses:
        once.say("the template of this model has no place for earlier turns: each line stands alone.")
    _talk(talk, out(), typed=sys.stdin.isatty())


class Once(Observer):
    """Says nothing twice."""

    def __init__(self, screen: Console):
        self.screen = screen
        self.said: set[str] = set()

    def say(self, text: str) -> None:
        from rich.text import Text

        if text not in self.said:
            self.said.add(text)
            self.screen.print(Text(text, style="dim"), soft_wrap=not self.screen.is_terminal)


def _talk(talk: Conversation, screen: Console, typed: bool) -> None:
    """Line by line, until there is no more.

    Args:
        typed: at a terminal.
    """
    from rich.text import Text

    if typed:
        screen.print(Text(f"{RESET} forgets what was said, {EXIT} leaves.", style="dim"))
    stopped = False
    for line in _typed() if typed else _piped():
        if line == EXIT:
            return
        if line == RESET:
            talk.reset()
        elif re.fullmatch(r"/\w+", line):
            about = "" if line == HELP else f'there is no command "{line}": '
            out(stderr=True).print(f"{about}{RESET} forgets what was said, {EXIT} leaves.", style="dim", markup=False)
        elif line:
            try:
                talk.answer(line, show)
            except KeyboardInterrupt:
                if stopped and not typed:
                    raise
                stopped = True
            else:
                stopped = False
            show("\n")


def show(piece: str) -> None:
    """At once, and without what a terminal would obey."""
    sys.stdout.write(visible(piece))
    sys.stdout.flush()


def _typed() -> Iterator[str]:
    """Lines from a terminal, which knows earlier ones by the arrow keys where Python has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() uses it
    while True:
        try:
            yield input(SIGN).strip()
        except EOFError:
            show("\n")
            return


def _piped() -> Iterator[str]:
    """Lines from anything else, each as soon as it is there.

    Raises:
        UserError: one is not UTF-8.
    """
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise UserError(f"line {number} of the standard input is not UTF-8: convert it.") from None
