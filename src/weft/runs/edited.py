"""An experiment file that was edited after its run began: what may differ when the run goes on, and how that is remembered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weft.errors import UserError
from weft.experiment import OUTPUT, Experiment, hidden
from weft.runs import baselines
from weft.runs.checkpoint import Checkpoint
from weft.runs.directory import RunDirectory

FREE = (
    *("rounds", "eval_every", "eval_clients", "baselines", "max_bytes", "max_weight", "prefix_cache", "debug", "device"),
    *("diagnostics", "stop_after", "stop_delta", "energy_budget", "carbon_budget", *OUTPUT),
    *("trust_remote_code", "data", "public", "model"),  # moved; that they are the same is known by hash
)
"""Settings under which what was learnt so far stays what it is."""
APART = ("name", "runs", "recipes", "pack")
"""Not compared: of the folder, or spelt out by the run itself, which for packs goes by its checkpoint."""


def check(directory: RunDirectory, about: dict[str, Any], x: Experiment) -> str:
    """Compare the settings of a run's file with those that it was begun with; note in ``about`` what differs and may.

    Args:
        about: contents of ``summary.json``. x: of the file.

    Returns:
        a sentence, empty if nothing differs.

    Raises:
        UserError: something differs that may not, or the run has come to its end.
    """
    odd = differences(about, x)
    if not odd:
        return ""
    file = directory.experiment
    shown = "; ".join(f"{n} is {_shown(new)} and was {_shown(old)}" for n, (old, new) in list(odd.items())[:5])
    instead = f"put that back, or begin a new run with weft run {file}"
    saved = Checkpoint(directory.root / "checkpoint").load()
    if about["finished"] or (saved is not None and saved.finished and "rounds" in odd):
        raise UserError(f"{directory.root} has played all its rounds, and its {file.name} was edited since ({shown}): {instead}.")
    if bad := sorted(set(odd) - set(FREE)):
        named = "; ".join(f"{n} is {_shown(odd[n][1])} and was {_shown(odd[n][0])}" for n in bad[:5])
        raise UserError(f"{file} was edited since its run began ({named}), which can't go on with that: {instead}.")
    if "rounds" in odd and hidden.noise_is_for_rounds(x):
        raise UserError(
            f"{file} was edited since its run began (rounds is {x.rounds} and was {odd['rounds'][0]}), and its noise was found "
            f"for as many rounds as it was begun with: {instead}."
        )
    at = 1 if saved is None else saved.next + 1
    for name, (_, new) in odd.items():
        about["settings"][name] = {"value": new, "origin": "user"}
    about["planned"] = baselines.planned(x)
    about["pinned"] = {n: v for n, v in about.get("pinned", {}).items() if n not in odd}
    change = {"round": at, "settings": {n: {"before": old, "after": new} for n, (old, new) in odd.items()}}
    about["edited"] = [*about.get("edited", []), change]
    return f"{file} was edited since its run began ({shown}): it goes on with that from round {at} on, as summary.json says."


def differences(about: Mapping[str, Any], x: Experiment) -> dict[str, tuple[Any, Any]]:
    """Setting -> (as the run was begun, as the file has it)."""
    begun = {n: s["value"] for n, s in about["settings"].items()}
    usual = Experiment().flat()
    now: dict[str, Any] = json.loads(json.dumps(x.flat()))
    spelt = about.get("pinned")
    if spelt is None:  # begun by a version that did not note what it spelt out
        spelt = {n: now[n] for n in ("device", "precision", "data", "model")}
    old = {n: begun.get(n, usual.get(n)) for n in now} | spelt
    return {n: (old[n], new) for n, new in now.items() if n not in APART and new not in (old[n], begun.get(n, old[n]))}


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
