"""An experiment as a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.experiment.names import flatten
from weft.experiment.whole import Experiment

FORMAT = 1


def read(path: Path) -> dict[str, Any]:
    """The settings in an experiment file.

    Raises:
        UserError: there is no such file, or it is no TOML, or of another format.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        flatten(settings)
    except OSError as e:
        raise UserError(f"can't read the experiment file {path}: {(e.strerror or str(e)).lower()}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"the experiment file {path} is not valid TOML: {e}.") from e
    except RecursionError:
        raise UserError(f"the experiment file {path} is nested too deeply.") from None
    if settings.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has format {settings['format']}, and this version of Weft reads format {FORMAT}.")
    return settings


def to_toml(experiment: Experiment, pinned: Mapping[str, Any]) -> str:
    """A complete, replayable file.

    Args:
        pinned: what ``auto`` turned out to be; a file that chose anew might give other numbers.
    """
    import tomli_w

    settings = experiment.flat() | dict(pinned) | {"recipes": False}
    for name in ("name", "runs"):  # a replay is a run of its own
        settings.pop(name)
    table: dict[str, Any] = {"format": FORMAT}
    method: dict[str, Any] = {"name": settings.pop("method")}
    for name, value in settings.items():
        plain = "none" if value is None else list(value) if isinstance(value, tuple) else value
        if name.startswith("method."):
            *above, last = name.split(".")[1:]
            inner = method
            for step in above:
                inner = inner.setdefault(step, {})
            inner[last] = plain
        else:
            table[name] = plain
    text = tomli_w.dumps(table | {"method": method})
    return f"# Every setting of this run, with nothing left to defaults and recipes: `weft run` this file to repeat it.\n\n{text}"
