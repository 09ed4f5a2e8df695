"""The attacks by name, and all of them on one run, whose folder keeps what they find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weft.audits import (
    canary,
    inversion,
    label_leakage,
    likelihood_ratio,
    majority_class,
    membership,
    one_run_bound,
    token_recovery,
    update_tokens,
)
from weft.audits.audited import NOTHING, Asked, Audited, opened
from weft.audits.outcome import Outcome
from weft.distribution import version
from weft.errors import UserError, nearest
from weft.runs import audit_file
from weft.runs.audit_file import Impossible, Result


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        missing: what a run lacks for it, in a clause; None if nothing. play: what it finds.
        updates: it looks at updates of single clients, of which some are kept when ``missing`` is asked.
        settings: what two outcomes have to agree in to be of one question: names of what an outcome tells about itself, or of
            what is asked. request: the one of these without which it is not played.
    """

    missing: Callable[[Audited], str | None]
    play: Callable[[Audited], list[Outcome]]
    updates: bool = False
    settings: Sequence[str] = ()
    request: str | None = None


ATTACKS: dict[str, Attack] = {
    token_recovery.NAME: Attack(token_recovery.missing, token_recovery.attack, settings=("noise", "rows")),
    label_leakage.NAME: Attack(label_leakage.missing, label_leakage.attack, updates=True),
    update_tokens.NAME: Attack(update_tokens.missing, update_tokens.attack, updates=True),
    inversion.NAME: Attack(inversion.missing, inversion.attack, updates=True, settings=("steps",)),
    majority_class.NAME: Attack(majority_class.missing, majority_class.attack, updates=True),
    membership.NAME: Attack(membership.missing, membership.attack),
    likelihood_ratio.NAME: Attack(likelihood_ratio.missing, likelihood_ratio.attack, settings=("shadows",), request="shadows"),
    one_run_bound.NAME: Attack(membership.missing, one_run_bound.attack, settings=("delta",)),
    canary.NAME: Attack(canary.missing, canary.attack, settings=("row",), request="canary"),
}

SUMMED = "it needs updates of single clients, of which this run's server has seen the sum alone"
NOT_KEPT = "it needs updates of single clients, which this run has not kept: play it anew with weft run --keep-updates"


@dataclass
class Audit:
    """What was found, and which attacks a run does not allow: why, by name.

    Attributes:
        trouble: why the run's folder does not keep it; None if it does.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    trouble: str | None = None


def audit(folder: str | Path, names: Sequence[str] = (), asked: Asked = NOTHING, at: int | None = None) -> Audit:
    """Attack a finished run, and keep what each attack finds in ``audit.json`` of its folder.

    Args:
        names: of the attacks; none: all that the run allows. asked: of them. at: see :func:`weft.audits.audited.opened`.

    Raises:
        UserError: no finished run, no such attack, one that was named and that the run does not allow, or an ``audit.json`` that
            is damaged.
    """
    if odd := [name for name in names if name not in ATTACKS]:
        raise UserError(f'unknown attack "{odd[0]}": use {", ".join(ATTACKS)}.{nearest(odd[0], ATTACKS)}')
    found, place = Audit(), Path(folder).expanduser()
    with opened(place, at, asked) as run:
        audit_file.read(place)  # what is damaged is said before anything takes its time
        for name in dict.fromkeys(names) or ATTACKS:
            if (why := lacks(run, ATTACKS[name])) is None:
                outcomes = ATTACKS[name].play(run)
                found.outcomes.extend(outcomes)
                _try(found, audit_file.keep, place, name, [_result(run, one) for one in outcomes])
            elif names:
                raise UserError(f"attack {name} is not possible: {why}.")
            else:
                found.skipped[name] = why
                if _asked_for(run, ATTACKS[name]):
                    _try(found, audit_file.keep_impossible, place, name, Impossible(why, why in (SUMMED, NOT_KEPT)))
    return found


def lacks(run: Audited, attack: Attack) -> str | None:
    """Why an attack is not possible, in a clause; None if it is."""
    if attack.updates and not any(len(run.rows(u)) for u in run.updates):
        return SUMMED if run.summed else NOT_KEPT
    return attack.missing(run)


def _asked_for(run: Audited, attack: Attack) -> bool:
    """Whether somebody wanted it: what nobody has asked for says nothing of the run."""
    return attack.request is None or getattr(run.asked, attack.request) != getattr(NOTHING, attack.request)


def _result(run: Audited, one: Outcome) -> Result:
    attack = ATTACKS[one.attack]
    about = one.record()["about"]
    settings = {name: about[name] if name in about else getattr(run.asked, name) for name in attack.settings}
    at = run.updates[0].round + 1 if attack.updates else None
    return Result(**one.record(), settings=settings, round=at, weft=version())


def _try(found: Audit, keep: Callable[..., None], *what: object) -> None:
    """Keep what can be kept: in a folder that nobody may write to, an audit still finds what it finds."""
    try:
        keep(*what)
    except UserError as e:
        found.trouble = str(e)
