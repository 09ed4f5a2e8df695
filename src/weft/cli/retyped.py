"""The command that runs an experiment again with something changed, from what a run's summary says of its settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from weft import experiment
from weft.errors import UserError

if TYPE_CHECKING:
    import click

OWN = ("name",)
"""What belongs to one run alone."""


def command(
    summary: Mapping[str, Any], changes: Mapping[str, Any], accepted: Callable[[experiment.Resolved], bool] = lambda _: True
) -> str | None:
    """``weft run …`` with the settings of a run, but for ``changes``, as short as it can be; None where no command can say it.

    Args:
        changes: settings by flat name. Another ``method`` keeps those settings of the former that both have.
        accepted: whether a run would start with these settings; None is given where it would not.
    """
    if summary["method"]["object"] or summary["data"]["object"] or "served" in summary:
        return None
    settings = summary["settings"]
    always = ("model", "data", "task")  # which may have come with the method
    kept = {n: s["value"] for n, s in settings.items() if n not in OWN and (s["origin"] == "user" or n in always)}
    kept = {"method": settings["method"]["value"]} | kept | dict(changes)
    if changes.get("method", settings["method"]["value"]) != settings["method"]["value"]:
        from weft.methods import registry

        has = {f"method.{p.name}" for p in registry.parameters(registry.load(kept["method"]))}
        kept = {n: v for n, v in kept.items() if not n.startswith("method.") or n in has}
        kept.pop("baseline", None)  # compared is the method itself
        if not registry.load(kept["method"]).info.public:
            kept = {n: v for n, v in kept.items() if n not in ("public", "public_rows")}
    try:
        resolved = experiment.resolve(kept)
    except UserError:
        return None
    if not accepted(resolved):
        return None
    wanted = resolved.experiment
    for name in [n for n in kept if n != "method"]:  # said is only what would be different otherwise
        fewer = {n: v for n, v in kept.items() if n != name}
        if _same(fewer, wanted):
            kept = fewer
    return shlex.join(["weft", "run", *(word for name, value in kept.items() for word in _words(name, value))])


def _same(typed: Mapping[str, Any], wanted: experiment.Experiment) -> bool:
    try:
        return experiment.resolve(typed).experiment == wanted
    except UserError:
        return False


def _words(name: str, value: Any) -> list[str]:
    """One setting as it is typed: by an option of its own where there is one, else by ``--set``."""
    option = _options().get(name)
    if option is not None and option.is_flag and isinstance(value, bool):
        flags = option.opts if value else option.secondary_opts
        if flags:
            return [flags[0]]
    elif option is not None and option.multiple and isinstance(value, list):
        return [word for item in value for word in (option.opts[0], str(item))]
    elif option is not None and isinstance(value, list):
        return [option.opts[0], ",".join(value) or "none"]
    elif option is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
        return [option.opts[0], str(value)]
    written = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return ["--set", f"{name}={value if isinstance(value, str) and _bare(value) else written}"]


def _bare(text: str) -> bool:
    """Whether a text is read back as itself without quotation marks."""
    return text == text.strip() and experiment.assignment(f"x={text}")[1] == text


@cache
def _options() -> dict[str, click.Option]:
    """The options of ``weft run`` by the name of the setting."""
    import click
    import typer

    from weft.cli.commands import app

    found = typer.main.get_command(app)
    assert isinstance(found, click.Group)
    return {p.name: p for p in found.commands["run"].params if p.name and isinstance(p, click.Option)}
