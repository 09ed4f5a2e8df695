"""``weft.run``, ``weft.compare`` and ``weft.resume``: what the command line does, from Python. Objects may stand for names, and
progress is printed as there unless it is asked for otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import experiment as settings
from weft import start
from weft.data.given import name_of
from weft.data.rows import FederatedData
from weft.errors import UserError
from weft.playing.run import Run

if TYPE_CHECKING:
    from rich.console import Console

    from weft.callbacks.callback import Callback
    from weft.comparison.compared import Comparison
    from weft.engines.observer import Observer
    from weft.federation.method import Method

Place = str | os.PathLike[str]
USUAL: Any = "the usual"
"""Stands for a setting that was left out, where None is a mistake: a loader that found nothing must not mean other data."""


def run(
    method: str | Method | type[Method] | None = None,
    model: Place | None = None,
    data: Any = USUAL,
    clients: int | None = None,
    rounds: int | None = None,
    *,
    file: Place | None = None,
    quiet: bool = False,
    observer: Observer | None = None,
    repeat: int = 1,
    callbacks: Sequence[Callback] = (),
    **more: Any,
) -> Run:
    """Train a federation, and save it in a folder of its own: the same experiment as ``weft run`` with the same settings.

    Args:
        method: slug, or an object such as ``weft.methods.FLoRA(rank=8)``. What was not written where the object was made comes
            from ``file``, from a recipe or from the method, as with a slug; ``recipes=False`` leaves recipes out.
        model: short name, hub id or local folder of a backbone.
        data: catalogue name, hub id, file or folder; a pandas or polars frame, a pyarrow table, a set of the datasets library,
            or one for each split by name; or rows in memory, dealt out already (:class:`weft.data.FederatedData`) or not
            (:class:`weft.data.Source`).
        clients, rounds: how many. file: an experiment file, over which the other settings lie.
        quiet: print nothing. observer: is told of progress, and nothing is printed besides.
        repeat: run so often and compare the numbers bit for bit.
        callbacks: go along with the run, and may stop it: see :class:`weft.Callback`.
        more: any other setting of :class:`weft.Experiment`; those of a method as ``parameters={"rank": 8}``.

    Raises:
        UserError: anything that a person can put right.
        Interrupted: Ctrl-C; what was finished is saved.
    """
    if data is None:
        raise UserError("data is None: give rows or a name, or leave data out for the usual set.")
    if data is USUAL:
        name, given = None, None
    else:
        name, given = (os.fspath(data), None) if isinstance(data, str | os.PathLike) else (None, data)
    typed = {"model": model, "clients": clients, "rounds": rounds, "data": name} | more
    chosen = {n: os.fspath(v) if isinstance(v, os.PathLike) else v for n, v in typed.items() if v is not None}
    if given is not None:
        chosen |= {"data": name_of(given)} | ({"clients": len(given.clients)} if isinstance(given, FederatedData) else {})
    if isinstance(method, str):
        chosen["method"] = method
    resolved = settings.resolve(chosen, settings.read(Path(file)) if file else None, _made(method))

    def heading(screen: Console) -> None:
        from weft.cli import plan

        plan.header(screen, resolved)

    return _watched(lambda told: start.start(resolved, given, told, repeat, callbacks=callbacks), heading, observer, quiet)


def compare(
    methods: Sequence[str] = (),
    data: Any = USUAL,
    seeds: int | Sequence[int] | None = None,
    *,
    file: Place | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    settings_of: Mapping[str, Mapping[str, Any]] | None = None,
    to: Place | None = None,
    jobs: int = 1,
    quiet: bool = False,
    observer: Observer | None = None,
    **more: Any,
) -> Comparison:
    """Play a grid of runs on the same rows, seeds, work and byte counter, as ``weft compare`` does.

    Args:
        methods: slugs, and baselines (``local``, ``central``, ``probe``); differences are to the first.
        data: a name, a path, or rows in memory. seeds: how many, from 0, or which.
        file: of a grid. tune: one setting of methods and its values, of which validation rows choose: ``{"lr": [1e-4, 1e-3]}``.
        settings_of: method -> settings of its cells alone: ``{"flora": {"rank": 8}}``. With a ``method`` among the settings, the
            name is one of yours, for a variant of that method. to: folder of the comparison.
        jobs: processes beside each other. quiet: print nothing. observer: is told of progress, and nothing is printed besides.
        more: any other setting of :class:`weft.Experiment`; a list is a dimension of the grid, where the setting takes none.

    Raises:
        UserError: anything that a person can put right before the first cell.
        Interrupted: Ctrl-C; finished cells are kept.
    """
    from weft.comparison import play
    from weft.comparison.cell_grid import read_grid

    if data is None:
        raise UserError("data is None: give rows or a name, or leave data out for the usual set.")
    given = None if data is USUAL or isinstance(data, str | os.PathLike) else data
    named = {} if data is USUAL else {"data": name_of(data)}
    typed = settings.flatten(named | more)
    runs, report = Path(str(typed.pop("runs", "runs"))).expanduser(), bool(typed.pop("report", True))
    grid = read_grid(None if file is None else Path(file), typed, methods, seeds, None, tune, settings_of)
    folder = play.usual_folder(grid, runs) if to is None else Path(to).expanduser()
    if observer is not None or quiet:
        return play.compare(grid, folder, given, jobs, observer, report)
    from weft.report.console import out
    from weft.report.progress import watching

    with watching(out(), quiet=False) as told:
        return play.compare(grid, folder, given, jobs, told, report)


def resume(
    folder: Place,
    *,
    method: Method | None = None,
    data: Any = None,
    quiet: bool = False,
    observer: Observer | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Go on with a run that was stopped; the numbers are those of a run that never was.

    Args:
        folder: of the run. method, data: the objects it was begun with, if it was begun with any.
        quiet: print nothing. observer: is told of progress, and nothing is printed besides.
        callbacks: go along with what is left of the run.

    Raises:
        UserError: no run there, a damaged checkpoint, or data, weights or objects other than before.
        Interrupted: Ctrl-C; what was finished is saved.
    """

    def go_on(told: Observer | None) -> Run:
        return start.resume(Path(folder), method=method, data=data, observer=told, callbacks=callbacks)

    return _watched(go_on, None, observer, quiet)


def _made(method: object) -> Method | None:
    """The method, if it is an object; a class stands for its defaults."""
    from weft.federation.method import Method

    if method is None or isinstance(method, str):
        return None
    made = method() if isinstance(method, type) and issubclass(method, Method) else method
    if not isinstance(made, Method):
        raise UserError(f'method is {method!r}, but must be a slug such as "fedit", or an object such as weft.methods.FedIT().')
    return made


def _watched(
    play: Callable[[Observer | None], Run],
    heading: Callable[[Console], None] | None,
    observer: Observer | None,
    quiet: bool,
) -> Run:
    """Play with progress printed: bars at a terminal, plain lines in a notebook and elsewhere, and a closing table."""
    if observer is not None or quiet:
        return play(observer)
    from weft.cli import plan
    from weft.report.console import out
    from weft.report.progress import watching

    screen = out()
    if heading is not None:
        heading(screen)
    with watching(screen, quiet=False) as told:
        done = play(told)
    plan.outcome(screen, done)
    return done
