"""Options of the command line that are made from the declarations of settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
import typer
from typer.core import TyperOption

from weft.cli.errors import Command

if TYPE_CHECKING:
    from weft.experiment import Setting


def taking(*names: str, without: Collection[str] = (), several: bool = False) -> type[Command]:
    """The class of a command that takes settings as options besides those of its function: ``names``, or every one that has an
    option but those ``without``. What was typed is in ``context.obj`` by name. They are made when somebody asks for them: the
    declarations take longer to import than help on all commands takes to print.

    Args:
        several: commas part values of one option, where it is of numbers or choices (:data:`weft.comparison.cell_grid.SPLIT`).
    """

    class Taking(Command):
        _own: list[click.Parameter]
        _whole: list[click.Parameter] | None

        @property
        def params(self) -> list[click.Parameter]:
            if self._whole is None:
                arguments = [p for p in self._own if isinstance(p, click.Argument)]
                options = [p for p in self._own if not isinstance(p, click.Argument)]
                made = [_option(s, names, several) for s in _taken(names, without).values()]
                self._whole = [*arguments, *made, *options, *([_help_all()] if any(o.hidden for o in made) else [])]
            return self._whole

        @params.setter
        def params(self, own: list[click.Parameter]) -> None:
            self._own = own
            self._whole = None

        def invoke(self, ctx: click.Context) -> Any:
            typed = {name: ctx.params.pop(name) for name in _taken(names, without)}
            read = _read_several if several else _read
            ctx.obj = {n: read(n, v) for n, v in typed.items() if v not in (None, ())}
            return super().invoke(ctx)

    return Taking


def _taken(names: tuple[str, ...], without: Collection[str]) -> Mapping[str, Setting]:
    from weft.experiment import SETTINGS

    return {n: s for n, s in SETTINGS.items() if (n in names if names else s.option) and n not in without}


def _option(setting: Setting, names: tuple[str, ...], texts: bool = False) -> TyperOption:
    """An option that stays None unless it is typed, so that recipes and files can have their say.

    Args:
        texts: numbers are taken as they are typed, since there may be several.
    """
    flag = f"--{setting.name.replace('_', '-')}"
    kinds = setting.kinds
    yes_or_no = kinds == [bool]
    several = get_origin(kinds[0]) is list and not _joined(setting)
    told = setting.help.replace("`", "")
    return TyperOption(
        param_decls=[setting.name, f"{flag}/--no{flag[1:]}" if yes_or_no and setting.default else flag, *setting.flags],
        type=None if yes_or_no else kinds[0] if kinds in ([int], [float]) and not texts else str,
        is_flag=True if yes_or_no else None,
        multiple=several,
        help=rf"{told} [dim]\[default: {setting.usual}][/dim]" if setting.usual else told,
        hidden=not (names or setting.everyday),
        rich_help_panel=setting.title,
    )


def _joined(setting: Setting) -> bool:
    """Whether it is a list of fixed words, which commas join. Names may have commas of their own: their option is repeated."""
    (kind, *_) = setting.kinds
    return get_origin(kind) is list and get_origin(get_args(kind)[0]) is Literal


def _read(name: str, typed: Any) -> Any:
    """What was typed as the setting takes it. What it does not take stays as it is: the experiment says so in a sentence."""
    from weft.experiment import SETTINGS, assignment

    setting = SETTINGS[name]
    kinds = setting.kinds
    if isinstance(typed, tuple):
        return list(typed)
    if _joined(setting):
        return [] if typed == "none" else typed.split(",")
    if len(kinds) > 1 and isinstance(typed, str) and not any(typed in get_args(kind) for kind in kinds):
        if int in kinds:
            return int(typed) if typed.isdecimal() else typed
        return assignment(f"{name}={typed}")[1]
    return typed


def _read_several(name: str, typed: Any) -> Any:
    """What was typed, as a list where it names several values."""
    from weft.comparison.cell_grid import SPLIT
    from weft.experiment import SETTINGS, assignment

    if name not in SPLIT or not isinstance(typed, str):
        return _read(name, typed)
    numbers = set(SETTINGS[name].kinds) & {int, float}
    found = [assignment(f"{name}={part}")[1] if numbers else _read(name, part) for part in typed.split(",")]
    return found if len(found) > 1 else found[0]


def _help_all() -> TyperOption:
    """``--help-all``: help with the options that ``--help`` leaves out."""

    def show(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            for option in context.command.params:
                if isinstance(option, click.Option):
                    option.hidden = False
            typer.echo(context.get_help(), nl=False)
            context.exit()

    words = "Show every option and exit; --set reaches them too, and any other setting."
    return TyperOption(param_decls=["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show, help=words)
