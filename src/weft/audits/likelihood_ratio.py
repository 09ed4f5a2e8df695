"""Whether a row was trained on, out of the finished model's loss on it and that of models that were trained without it.

N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First Principles", S&P 2022,
arXiv 2112.03570, the offline variant: some rows are easy and some hard, whoever trains on them. Shadow runs, each on half of
every client's rows, say what confidence log p / (1 - p) a row has that is left out; the score is how far above that it lies. All
rows share one variance, since a few shadows tell none of a single row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.audits import membership, roc
from weft.audits.outcome import Outcome
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.engines.engine import Engine
from weft.engines.setup import Settings, Setup, Tests
from weft.engines.stepwise import simulated
from weft.export.trained import pack_of
from weft.federation.client import ClientState
from weft.federation.exchange import Exchange
from weft.federation.info import common
from weft.federation.rounds import begin
from weft.storage.notes import Notes
from weft.storage.store import ClientStore, Spool
from weft.tensors.keyed import numpy_generator

if TYPE_CHECKING:
    from weft.audits.audited import Audited
    from weft.federation.server import ServerState

NAME = "lira"
LEAST = 1e-6
"""That a probability, and what it lacks of 1, is taken for at least."""


def attack(run: Audited) -> list[Outcome]:
    """Tell rows that clients have trained on from rows that nobody has, by models that were trained without them."""
    members = membership.few(run.server.seed, np.unique(np.concatenate([c.data.train for c in run.clients])))
    rows = np.concatenate([members, membership.few(run.server.seed, run.strangers)])
    scores = above(confidence(run, run.server, rows), *left_out(run, rows))
    told, others = scores[: len(members)], scores[len(members) :]
    told, others = told[np.isfinite(told)], others[np.isfinite(others)]
    area, found = roc.auc(told, others), roc.found_at(told, others, membership.RATE)
    low, n = roc.lowest_auc(area, len(told), len(others)), len(told) + len(others)
    whether = "are told" if low > 0.5 else "are not told"
    sentence = (
        f"Rows that were trained on {whether} from others by their loss beside that of {run.asked.shadows} models without them "
        f"(AUC {area:.3f}); at {membership.RATE:.0%} of false alarms {found:.1%} of them are found."
    )
    about = {"found_at_1_percent": found, "members": len(told), "others": len(others), "shadows": run.asked.shadows}
    return [Outcome(NAME, f"the finished model, view {run.method.views[0]}", "AUC", area, 0.5, n, low, sentence, about)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    if not common(run.method.views[0]):
        return "there is no one model for all"
    if run.asked.shadows < 2:
        return "it trains the run anew on half of the rows, several times, and nobody has asked for that with --shadows 4"
    return membership.missing(run)


def confidence(run: Audited, server: ServerState, rows: np.ndarray) -> np.ndarray:
    """[n] log p / (1 - p) of rows, p being the chance of what is right by a server's model (of an answer the geometric mean)."""
    view = run.method.views[0]
    (seen,) = pack_of(run.method, server, view).observe(lambda p, b: run.method.forward(p, b, view), [rows])
    assert seen is not None
    loss = membership.losses(seen)
    assert loss is not None
    p = np.clip(np.exp(-np.nan_to_num(loss, nan=np.inf)), LEAST, 1 - LEAST)
    return np.log(p) - np.log1p(-p)


def left_out(run: Audited, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[s, n] the confidence of rows by each shadow run, and bool [s, n] whether it was trained without the row."""
    found = [(confidence(run, server, rows), ~np.isin(rows, own)) for server, own in shadow_runs(run)]
    return np.stack([one for one, _ in found]), np.stack([without for _, without in found])


def above(score: np.ndarray, shadows: np.ndarray, without: np.ndarray) -> np.ndarray:
    """[n] how many standard deviations a row's confidence [n] lies above the shadows' [s, n] without it; NaN without any."""
    counts = without.sum(0)
    mean = np.where(without, shadows, 0.0).sum(0) / np.where(counts, counts, np.nan)
    apart = np.where(without, shadows - mean, 0.0)
    spread = np.nansum(apart**2) / max(int((counts - 1).clip(min=0).sum()), 1)
    return (score - mean) / max(spread, 1e-12) ** 0.5


def shadow_runs(run: Audited) -> Iterator[tuple[ServerState, np.ndarray]]:
    """The run anew, each time on half of every client's rows, drawn, and which these are."""
    method, bench = run.method, run.server.bench
    nothing = np.zeros(0, dtype=np.int64)
    for i in range(run.asked.shadows):
        draw = numpy_generator(run.server.seed, "audit", "shadow", i)
        people = []
        for client in run.clients:
            own = np.sort(draw.permutation(client.data.train)[: -(-len(client.data.train) // 2)])
            people.append(ClientState(client.id, len(own), dict(client.facts), client.model, replace(client.data, train=own)))
        with tempfile.TemporaryDirectory(prefix="weft-shadow-") as folder:
            where = Path(folder)
            infos = [c.info(method.info.asks) for c in people]
            server = begin(method, bench, infos, run.server.rounds, dict(run.server.start), notes=Notes(where / "notes"))
            method.start(server)
            setup = Setup(
                method,
                bench,
                [(server, people)],
                Settings(rounds=run.server.rounds, participation=run.participation, diagnostics=False),
                Exchange(method, codec("identity"), Ledger()),
                ClientStore(where / "clients"),
                Spool(where / "spool"),
                Tests(nothing, nothing),
            )
            engine = Engine(setup, simulated(setup))
            for t in range(run.server.rounds):
                if engine.round(t) is None:
                    break
            yield server, np.concatenate([c.data.train for c in people])
