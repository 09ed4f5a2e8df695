"""The attacks by name, and all of them on one run."""

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
from weft.errors import UserError, nearest


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        missing: what a run lacks for it, in a clause; None if nothing. play: what it finds.
        updates: it looks at updates of single clients, of which some are kept when ``missing`` is asked.
    """

    missing: Callable[[Audited], str | None]
    play: Callable[[Audited], list[Outcome]]
    updates: bool = False


ATTACKS: dict[str, Attack] = {
    token_recovery.NAME: Attack(token_recovery.missing, token_recovery.attack),
    label_leakage.NAME: Attack(label_leakage.missing, label_leakage.attack, updates=True),
    update_tokens.NAME: Attack(update_tokens.missing, update_tokens.attack, updates=True),
    inversion.NAME: Attack(inversion.missing, inversion.attack, updates=True),
    majority_class.NAME: Attack(majority_class.missing, majority_class.attack, updates=True),
    membership.NAME: Attack(membership.missing, membership.attack),
    likelihood_ratio.NAME: Attack(likelihood_ratio.missing, likelihood_ratio.attack),
    one_run_bound.NAME: Attack(membership.missing, one_run_bound.attack),
    canary.NAME: Attack(canary.missing, canary.attack),
}

NOT_KEPT = "it needs updates of single clients, which this run has not kept: play it anew with weft run --keep-updates"


@dataclass(frozen=True)
class Audit:
    """What was found, and which attacks a run does not allow: why, by name."""

    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def audit(folder: str | Path, names: Sequence[str] = (), asked: Asked = NOTHING, at: int | None = None) -> Audit:
    """Attack a finished run.

    Args:
        names: of the attacks; none: all that the run allows. asked: of them. at: see :func:`weft.audits.audited.opened`.

    Raises:
        UserError: no finished run, no such attack, or one that was named and that the run does not allow.
    """
    if odd := [name for name in names if name not in ATTACKS]:
        raise UserError(f'unknown attack "{odd[0]}": use {", ".join(ATTACKS)}.{nearest(odd[0], ATTACKS)}')
    found = Audit()
    with opened(Path(folder).expanduser(), at, asked) as run:
        for name in dict.fromkeys(names) or ATTACKS:
            if (why := lacks(run, ATTACKS[name])) is None:
                found.outcomes.extend(ATTACKS[name].play(run))
            elif names:
                raise UserError(f"attack {name} is not possible: {why}.")
            else:
                found.skipped[name] = why
    return found


def lacks(run: Audited, attack: Attack) -> str | None:
    """Why an attack is not possible, in a clause; None if it is."""
    if attack.updates and not any(len(run.rows(u)) for u in run.updates):
        return NOT_KEPT
    return attack.missing(run)
