"""What goes wrong, in one sentence on stderr.

Exit code 2 for what a person can put right, 75 for what may be over soon, 130 for Ctrl-C, 143 for SIGTERM, 1 for a bug.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

from weft.errors import Elsewhere, Interrupted, UserError, nearest, printable
from weft.report import console

AGAIN = 75  # "temporary failure" in the sysexits.h of old
BUG = (
    "This is a bug in Weft, or in something it builds on. Please report it with the lines above, the command "
    "you typed and the output of `weft env`."
)


class Command(TyperCommand):
    """A command that refuses an option given twice: the last one winning without a word has fooled people."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter, times in Counter(order).items():
            if times > 1 and isinstance(parameter, click.Option) and not parameter.multiple:
                raise click.UsageError(f"{'/'.join(parameter.opts)} is given {times} times: leave all but one out", ctx)
        return super().parse_args(ctx, args)


class Unread(Exception):
    """Nobody reads the output any more. click and rich would leave with the code of a bug before anybody else is asked."""


class Stopped(Exception):
    """Ctrl-C. typer would leave with its code and without a word before anybody else is asked."""


@contextmanager
def _ours() -> Iterator[None]:
    """What ends a command is told by us, and not by click, rich and typer."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise Stopped from e
    except (BrokenPipeError, SystemExit) as e:
        if isinstance(e, BrokenPipeError) or isinstance(e.__context__, BrokenPipeError):
            raise Unread from e
        raise


class Commands(TyperGroup):
    """The group of all commands."""

    def make_context(self, *what: Any, **named: Any) -> click.Context:
        with _ours():
            return super().make_context(*what, **named)

    def invoke(self, ctx: click.Context) -> Any:
        with _ours():
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise UserError(f'there is no command "{name}": weft --help lists them.{nearest(name, self.commands)}')
        return super().resolve_command(ctx, args)


def guarded(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """Run the command line ``arguments`` (of this process, if None) and return its exit code."""
    try:
        code = _run(app, arguments)
        if sys.stdout is not None:  # closed before we began
            sys.stdout.flush()
    except (BrokenPipeError, Unread):
        # What is left in the buffer goes nowhere, or Python would complain about it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="weft", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, Stopped, click.Abort) as e:
        return stopped(e)
    except click.exceptions.NoArgsIsHelpError as e:
        typer.echo(e.format_message())  # nothing was asked for, so nothing is wrong
        return 0
    except click.UsageError as e:
        return complain(usage(e))
    except Elsewhere as e:
        complain(str(e))
        return AGAIN
    except UserError as e:
        return complain(str(e))
    except (BrokenPipeError, Unread):
        raise
    except Exception as e:
        if any(isinstance(x, KeyboardInterrupt) for x in _behind(e)):
            return stopped(e)  # in the middle of an import, a library makes an error of its own of it
        sentence = about_file(e) if isinstance(e, OSError) else about_memory(e)
        if sentence is not None:
            return complain(sentence)
        traceback.print_exc()
        typer.echo(BUG, err=True)
        return 1


def stopped(error: BaseException) -> int:
    """Ctrl-C or SIGTERM: how to go on, if there is something to go on with; returns the exit code that shells have for it."""
    said = next((e for e in _behind(error) if isinstance(e, Interrupted)), Interrupted("Stopped."))
    typer.echo(f"\n{said}", err=True)
    return 128 + said.signal


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def complain(sentence: str) -> int:
    """Print an error; returns exit code 2. It is shown as one printable line."""
    from rich.text import Text

    sentence = printable(sentence)

    screen = console.out(stderr=True)
    screen.print(Text.assemble(("Error: ", "bold red"), sentence), soft_wrap=not screen.is_terminal)
    return 2


def usage(error: click.UsageError) -> str:
    """What was typed wrong, as one sentence that names the command whose help says more."""
    path = error.ctx.command_path if error.ctx else "weft"
    if isinstance(error, click.NoSuchOption):
        options = [o for p in error.ctx.command.params for o in p.opts] if error.ctx else []
        return f'{path} has no option "{error.option_name}".{nearest(error.option_name, options)}'
    message = error.format_message().rstrip(".")
    return f"{message}; see {path} --help."


def about_memory(error: Exception) -> str | None:
    """The sentence for a library that could not get the memory it asked for; torch has no class of its own for that on a CPU."""
    if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
        return None
    return "the memory is too small for this: lower --pack, --set method.batch or --max-length, or the sizes of the method."


def about_file(error: OSError) -> str | None:
    """The sentence for an error of the disk that a person can put right, None for any other."""
    from weft.storage import remedy

    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        way = remedy.go_on(Path(error.filename)) if isinstance(error.filename, str) else "type the same command again"
        return f"the disk is full{where}; what was saved before is intact: free some space, and {way}."
    reasons = {
        errno.ENOENT: "there is no such file or folder",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EACCES: "permission is denied",
        errno.EPERM: "permission is denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a file stands where a folder should be",
        errno.EEXIST: "a file stands where a folder should be",
        errno.EISDIR: "a folder stands where a file should be",
    }
    if error.errno not in reasons or not error.filename:
        return None
    return (
        f"can't write or read {error.filename}: {reasons[error.errno]}; choose another place, for instance with --runs or --out."
    )
