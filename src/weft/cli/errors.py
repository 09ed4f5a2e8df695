"""What goes wrong, in one sentence on stderr: exit code 2 for what a person can put right, 130 for Ctrl-C, 1 for a bug."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import typer
from typer.core import TyperGroup

from weft.errors import Interrupted, UserError, nearest, printable

if TYPE_CHECKING:
    from rich.console import Console

BUG = (
    "This is a bug in Weft, or in something it builds on. Please report it with the lines above, the command "
    "you typed and the output of `weft env`."
)


def out(stderr: bool = False) -> Console:
    """Where people read: without colours where it is not a terminal, or NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


class Commands(TyperGroup):
    """The group of all commands."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise UserError(f'there is no command "{name}": weft --help lists them.{nearest(name, self.commands)}')
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            typer.echo(f"\n{e}" if isinstance(e, Interrupted) else "\nStopped.", err=True)
            raise typer.Exit(130) from None


def guarded(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """Run the command line ``arguments`` (of this process, if None) and return its exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="weft", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as e:
        typer.echo(e.format_message())  # nothing was asked for, so nothing is wrong
        return 0
    except click.UsageError as e:
        return complain(usage(e))
    except UserError as e:
        return complain(str(e))
    except OSError as e:
        sentence = about_file(e)
        if sentence is None:
            traceback.print_exc()
            typer.echo(BUG, err=True)
            return 1
        return complain(sentence)
    except Exception:
        traceback.print_exc()
        typer.echo(BUG, err=True)
        return 1


def complain(sentence: str) -> int:
    """Print an error; returns exit code 2. It is shown as one printable line."""
    from rich.text import Text

    sentence = printable(sentence)

    screen = out(stderr=True)
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


def about_file(error: OSError) -> str | None:
    """The sentence for an error of the disk that a person can put right, None for any other."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        again = "free some space, then continue with weft resume RUN, or the same weft serve"
        return f"the disk is full{where}; what was saved before is intact: {again}."
    reasons = {
        errno.EACCES: "permission is denied",
        errno.EPERM: "permission is denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a file stands where a folder should be",
        errno.EEXIST: "a file stands where a folder should be",
        errno.EISDIR: "a folder stands where a file should be",
    }
    if error.errno not in reasons or not error.filename:
        return None
    return f"can't write or read {error.filename}: {reasons[error.errno]}; choose another place, for instance with --runs."
