"""What a person should be told of a run that ended well but learnt nothing: that it diverged, or that its model only guesses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.experiment import Experiment

RATE = "method.optim.lr"
LARGE = 10
"""A mean loss above so many times that of guessing (ln C, or the variance of numbers) is that of a run that has diverged."""

FEW = 50
"""Test rows below which a score is mostly luck."""
NO_NUMBERS = ("finite", "beyond")
"""Words of the reasons for which the values of an update are refused."""


@dataclass(frozen=True)
class Finding:
    """Something that went wrong without an error.

    Attributes:
        sentence: what. advice: what else may help, as a sentence. changes: settings to try, by flat name.
    """

    sentence: str
    advice: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


def findings(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What is wrong with a finished run's numbers; nothing where they are as they should be."""
    settings = {n: s["value"] for n, s in summary["settings"].items()}
    if not rounds:
        return []
    if found := _refused(rounds[-1], settings) or _diverged(summary, rounds, settings) or _guessing(summary, settings):
        return [found]
    return []


def _refused(line: Mapping[str, Any], settings: Mapping[str, Any]) -> Finding | None:
    took = [c for c in line.get("cohort", []) if c not in line.get("lost", [])]
    refused: Mapping[str, str] = line.get("refused", {})
    if not took or set(refused) < set(took):
        return None
    why = next(iter(refused.values())).rstrip(".")
    if any(word in why for word in NO_NUMBERS):
        return Finding(
            f"The run diverged: no update of the last round counted ({why}).", "a lower learning rate", _rate(settings, 0.1)
        )
    return Finding(f"No update of the last round counted; the first was refused because: {why}.")


def _diverged(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Finding | None:
    losses = [line.get("loss") for line in rounds]
    told = [loss for loss in losses if loss is not None]  # a method without training tells none in any round
    trained = set(rounds[-1].get("cohort", [])) - set(rounds[-1].get("lost", []))
    tested = [
        e["value"] for e in summary["evaluations"] if e["metric"] in ("loss", summary["evaluations"][0]["metric"]) and e["n"]
    ]
    guessing = summary["data"].get("guessing_loss") or math.log(max(len(summary["data"].get("classes", [])), 2))
    if told and trained and losses[-1] is None:
        how = "its loss is not finite"
    elif None in tested:
        how = "its loss on the test rows is not finite"
    elif told and told[-1] > LARGE * guessing:
        how = f"its mean loss while training is {told[-1]:.3g}, and guessing has {guessing:.2f}"
    else:
        return None
    return Finding(f"The run diverged: {how}.", "a lower learning rate", _rate(settings, 0.1))


def _guessing(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Finding | None:
    top = summary.get("headline")
    chance = summary["data"].get("most_frequent", {}).get(top["people"]) if top else None
    if (
        top is None
        or top["metric"] != "accuracy"
        or chance is None
        or top.get("low", 1.0) > chance
        or settings.get("baseline") == "zero-shot"
    ):
        return None
    hidden = settings.get("privacy", "none") != "none"  # a probe would be trained before anything is hidden
    started = hidden or settings.get("start_head") == "probe" or bool((summary.get("start") or {}).get("head"))
    head = summary.get("backbone", {}).get("head", True) and not started and not _probed(settings)
    faster = _rate(settings, 10.0)
    ways = ["a higher learning rate"] * bool(faster) + ["more rounds"] + ["a head that starts from a probe"] * bool(head)
    if top.get("n", FEW) < FEW:
        ways.insert(0, f"more test rows ({top['n']} tell little)")
    return Finding(
        f"The model is not told apart from one that always names the most frequent class: accuracy {top['value']:.3f} "
        f"({top['low']:.2f}-{top['high']:.2f}), and that would have {chance:.3f}.",
        f"{', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}; and look at the labels with weft data",
        faster | ({"start_head": "probe"} if head else {}),
    )


def _rate(settings: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Another learning rate; a lower one is no higher than the method's own, however far off the present one is."""
    name = "probe_lr" if _probed(settings) else RATE
    rate = settings.get(name)
    if not isinstance(rate, float) or rate <= 0:
        return {}
    wanted = rate * factor
    own = Experiment().probe_lr if _probed(settings) else _own_rate(str(settings.get("method")))
    if factor < 1 and own is not None and own < rate:
        wanted = min(wanted, own)
    return {name: float(f"{wanted:.6g}")}


def _probed(settings: Mapping[str, Any]) -> bool:
    """Whether a probe was run instead of the method, whose own rate does nothing then."""
    return settings.get("baseline") == "probe"


def _own_rate(slug: str) -> float | None:
    from weft.methods import registry

    if slug not in registry.infos():  # an object's
        return None
    found = (p.default for p in registry.parameters(registry.load(slug)) if f"method.{p.name}" == RATE)
    return next((rate for rate in found if isinstance(rate, float)), None)
