"""Weft: federated parameter-efficient fine-tuning of foundation models.

The public API. Each name is imported when it is first used, so that ``import weft`` costs next to nothing.

- :func:`run`, :func:`resume`, :func:`load_run`: train a federation, go on with one, read one; all give a :class:`Run`.
- :func:`compare`: many methods on the same rows, in one table.
- :mod:`weft.methods`: the published methods, ``weft.methods.FLoRA(rank=8)``.
- :mod:`weft.data`: data sets and how they are dealt out to clients. :mod:`weft.export`: models that leave a run.
- :func:`merge`: several LoRA adapters as one, exactly.
- :class:`Experiment`: every setting. :class:`Observer`: to watch a run. :class:`Callback`: goes along with one, and may stop it;
  :mod:`weft.callbacks` has trackers, early stopping and a profiler.
- :class:`UserError`, :class:`Interrupted`: what a run raises when a person can put it right, or stopped it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft import callbacks, data, export, methods
    from weft.api import compare, resume, run
    from weft.callbacks.callback import Callback
    from weft.engines.observer import Observer
    from weft.errors import Interrupted, UserError, WeftError
    from weft.experiment import Experiment
    from weft.export.combined import merge
    from weft.playing.run import Run, load_run

_HOME = {
    "Callback": "callbacks.callback",
    "Experiment": "experiment",
    "Interrupted": "errors",
    "Observer": "engines.observer",
    "Run": "playing.run",
    "UserError": "errors",
    "WeftError": "errors",
    "compare": "api",
    "load_run": "playing.run",
    "merge": "export.combined",
    "resume": "api",
    "run": "api",
}

__all__ = [
    "Callback",
    "Experiment",
    "Interrupted",
    "Observer",
    "Run",
    "UserError",
    "WeftError",
    "callbacks",
    "compare",
    "data",
    "export",
    "load_run",
    "merge",
    "methods",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in ("callbacks", "data", "export", "methods"):
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        from weft.distribution import version

        return version() or "0+unknown"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
