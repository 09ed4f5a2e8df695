"""Settings with which rows can arrive in periods, and those with which some of them would pass by without a word."""

from __future__ import annotations

from weft.errors import UserError
from weft.experiment import Experiment
from weft.federation.method import Method
from weft.federation.server import ServerState
from weft.runs import baselines
from weft.words import count


def check(x: Experiment) -> None:
    """Before anything is loaded.

    Raises:
        UserError: a period would have no round, or classes would come and be kept back at once.
    """
    if x.periods == 1:
        if x.incremental == "task" or x.periods_by != "classes":
            raise UserError("--incremental and --periods-by are of rows in periods: ask for --periods, or leave them out.")
        return
    if x.novel or x.test_on:
        raise UserError("classes arrive in periods or are kept back: leave --periods or --novel and --test-on out.")
    if x.stop_after is not None:
        raise UserError("--stop-after would end a run before all of its periods have come: leave one of the two out.")
    if x.baseline is None and x.rounds < x.periods:
        raise UserError(f"{count(x.rounds, 'round')} for {x.periods} periods are too few: each needs one at least.")
    for name in filter(None, (x.baseline, *x.baselines)):
        rounds = baselines.planned(x.model_copy(update={"baseline": name}))
        if name != "zero-shot" and rounds < x.periods:
            raise UserError(
                f"{name} has {count(rounds, 'turn')} for {x.periods} periods, and each needs one at least: give more --rounds, "
                "or leave that baseline out."
            )


def check_plan(method: Method, server: ServerState) -> None:
    """
    Raises:
        UserError: the method's own plan ends before the last period begins.
    """
    if server.periods > 1 and method.plan(server, server.rounds - 1) is None:
        raise UserError(
            f"{method.info.slug} ends after exchanges of its own number, before all of {server.periods} periods have come: leave "
            "--periods out, or choose another method."
        )
