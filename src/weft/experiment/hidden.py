"""The chain of an experiment's privacy, and what makes no sense beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import UserError
from weft.words import count

if TYPE_CHECKING:  # the mechanisms need torch, which help and listings do without
    from weft.experiment.whole import Experiment
    from weft.federation.method import Method
    from weft.privacy.hiding import Privacy
    from weft.privacy.mechanism import Noisy, Summed

INSECURE = (
    "insecure_noise makes noise and lots of the run's seed: whoever knows that seed can take them off again, so that nothing is "
    "hidden. It is for runs that have to be repeated on data that are no secret."
)


def chain_of(x: Experiment) -> Privacy:
    """The chain with what it needs to know of the run."""
    from weft.privacy.hiding import Privacy, mechanisms

    links = mechanisms(x.privacy)
    return Privacy(links, x.epsilon, x.delta, x.rounds, x.participation, x.seed, x.insecure_noise)


def of_site(x: Experiment, key: Path | None) -> Privacy:
    """The chain at a site.

    Args:
        key: file with the key of all sites, for encrypted sums.

    Raises:
        UserError: there is none, and the run needs it; or the file holds none.
    """
    from dataclasses import replace

    from weft.privacy.mechanism import CKKS
    from weft.privacy.sums.needs import needs_packages

    privacy = chain_of(x)
    if privacy.summed is None:
        return privacy
    needs_packages(privacy.summed)
    if not isinstance(privacy.summed, CKKS):
        return privacy
    from weft.privacy.ckks.cipher import read_key

    if key is None:
        raise UserError(
            "this run adds up encrypted updates, and the site has not the key of all sites: get the file sums.ckks from whoever "
            "made it with weft keys sums, never by the coordinator, and put it into the folder of your keys."
        )
    return replace(privacy, key=read_key(key))


def noise_is_for_rounds(x: Experiment) -> bool:
    """Whether noise is found for the planned rounds, so that with others it would be other noise."""
    from weft.privacy.mechanism import Noisy

    return x.epsilon is not None and any(isinstance(m, Noisy) and m.noise is None for m in chain_of(x).links)


def check(x: Experiment, method: Method) -> list[str]:
    """Refuse what makes no sense, before anything is loaded.

    Returns:
        sentences for the person who typed it.

    Raises:
        UserError: the chain does not keep what it promises over this method, or beside other settings.
    """
    from weft.federation.soundness import unsound
    from weft.privacy.mechanism import Noisy

    privacy = chain_of(x)
    if not privacy:
        given = [n for n, value in (("epsilon", x.epsilon), ("insecure_noise", x.insecure_noise or None)) if value is not None]
        if given:
            raise UserError(f"{given[0]} is given, and privacy is none: give --privacy too, such as dp-sgd.")
        return _without_noise(x, method)
    if x.baseline is not None:
        raise UserError(f"baseline {x.baseline} is no federation that privacy could hide anybody in: leave one of the two out.")
    for link in privacy.links:
        if why := unsound(method, link):
            raise UserError(
                f"{method.info.slug} {why}, so {link.name} would not hide what it promises to: choose another method or "
                "mechanism (weft methods --privacy)."
            )
        if isinstance(link, Noisy):
            _check_noise(x, link)
    if x.epsilon is not None and not any(isinstance(link, Noisy) for link in privacy.links):
        raise UserError(
            f"epsilon is a budget of noise, and privacy = {x.privacy} adds none: leave it out, or add dp-sgd or dp-fedavg."
        )
    _check_others(x, privacy)
    found = [] if privacy.tells else _without_noise(x, method)
    found += [
        f"{link.name} has noise 0: it clips, and hides nothing."
        for link in privacy.links
        if isinstance(link, Noisy) and link.noise == 0
    ]
    return [*found, INSECURE] if x.insecure_noise else found


def _without_noise(x: Experiment, method: Method) -> list[str]:
    """What is to be said of a method that is made for clients with noise of their own, where they have none."""
    without = method.info.noise
    told = without and x.baseline is None
    return [f"{method.info.slug} gets no noise at its clients (--privacy dp-sgd --epsilon 8): {without}."] if told else []


def _check_noise(x: Experiment, link: Noisy) -> None:
    if link.noise is None and x.epsilon is None:
        raise UserError(f"{link.name} has neither noise nor a budget: give --epsilon 8, or --privacy {link.name}:noise=1.")
    if link.noise == 0 and x.epsilon is not None:
        raise UserError(f"{link.name} has noise 0, which keeps no epsilon at all: leave noise out, or --epsilon.")


def _check_others(x: Experiment, privacy: Privacy) -> None:
    """
    Raises:
        UserError: another setting tells of rows or clients what the chain hides.
    """
    rows, central = privacy.rows, privacy.central
    name = f"privacy = {x.privacy}"
    if x.start_head == "probe":
        raise UserError(f"the head is trained beforehand without {name}: give --start-head random.")
    if rows is not None and x.batch_norms != "frozen":
        raise UserError(
            f"batch_norms = {x.batch_norms} sends means of what layers make of rows, which dp-sgd puts no noise on: leave it out."
        )
    if privacy.hides_clients and x.rule != "none":
        raise UserError(
            f'rule = "{x.rule}" adds up what single clients change, of which {name} hides more than it is made for: leave one of '
            "the two out."
        )
    if privacy.summed is not None:
        _check_sums(x, privacy.summed, name)
    elif central is None:
        return
    if x.robust != "none":
        raise UserError(f'robust = "{x.robust}" looks at single updates, which {name} sums up first: leave one of the two out.')
    if x.max_factor not in ("auto", "off"):
        raise UserError(f"max_factor compares single updates, which {name} clips or hides: leave it out.")
    if x.aggregation != "synchronous":
        raise UserError(
            f'aggregation = "{x.aggregation}" takes updates as they come, and {name} hides clients among those of a round: leave '
            "one of the two out."
        )
    if central is not None and x.devices is not None:
        raise UserError(f"{name} draws clients by secret lots, whenever their devices may be there: leave --devices out.")


def _check_sums(x: Experiment, link: Summed, name: str) -> None:
    """
    Raises:
        UserError: another setting needs updates by themselves, or as they can't be summed.
    """
    from weft.privacy.sums.needs import needs_packages

    needs_packages(link)
    if x.codec != "identity":
        raise UserError(f'codec = "{x.codec}" makes bytes that can\'t be added up unseen: give --codec identity beside {name}.')
    if x.keep_updates:
        raise UserError(f"keep_updates keeps the updates of single clients, which {name} hides: leave one of the two out.")
    if x.rule != "none":
        raise UserError(
            f'rule = "{x.rule}" sends more than an update changes, of which {name} tells sums alone: leave one of the two out.'
        )


def check_cohort(privacy: Privacy, clients: int) -> None:
    """
    Raises:
        UserError: so many clients make rounds that are too small for a sum.
    """
    link, cohort = privacy.summed, round(privacy.participation * clients)
    if link is not None and cohort < link.least:
        raise UserError(
            f"a round has {count(cohort, 'client')}, and a sum of {link.name} is of {link.least} or more: let more take part"
            f"{f', or give {link.name}:least=2' if cohort == 2 else ''}."
        )


def check_loaded(privacy: Privacy, method: Method, rows: Sequence[int]) -> None:
    """Refuse a δ or a sum that says nothing of so few, or too much, once the data are there.

    Args:
        rows: of each client.

    Raises:
        UserError: a round has too few clients for a sum; or see :func:`check_rows`.
    """
    check_cohort(privacy, len(rows))
    check_rows(privacy, method, rows)


def check_rows(privacy: Privacy, method: Method, rows: Sequence[int]) -> None:
    """
    Args:
        rows: of each client, or of one alone.

    Raises:
        UserError: δ is as large as the chance to be the one that is given away; or a client would count less than its rows.
    """
    most = max(rows, default=0)
    for link in privacy.links:
        among = most if link.unit == "row" else len(rows) if link.unit == "client" else 0
        if among and privacy.delta >= 1 / among:
            who = "the largest client's rows" if link.unit == "row" else "clients"
            raise UserError(
                f"delta is {privacy.delta:g}, and with {among:,} {who} it must be less than {1 / among:.2g}: else {link.name} "
                "could give one of them away whole. Give a smaller --delta."
            )
    summed = privacy.summed
    if summed is not None and not privacy.hides_clients and method.weighting == "examples" and most > summed.heaviest:
        raise UserError(
            f"a client has {most:,} rows, and {summed.name}:heaviest={summed.heaviest} counts {summed.heaviest:,} of them: give "
            f"{summed.name}:heaviest={most} or more."
        )
