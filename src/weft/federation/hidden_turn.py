"""A client's turn under what the run's privacy does before anything leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.errors import UserError
from weft.federation.hidden_rows import MEMO, HiddenRows, remembered, told
from weft.federation.message import Update
from weft.federation.one_mean import begun_from, changed, clipped
from weft.privacy.hiding import Privacy
from weft.tensors.forms import Value

if TYPE_CHECKING:
    from weft.federation.method import Method
    from weft.federation.pack import Pack
    from weft.federation.turn import Turn


def trained(method: Method, pack: Pack) -> Iterable[Update]:
    """The updates of a turn, as they may leave their clients; they tell what that has cost (:data:`MEMO` among their facts).

    Raises:
        UserError: the method sees rows in a way that nothing hides, or a client's budget is spent.
    """
    privacy = pack.bench.privacy
    if privacy.rows is not None:
        return _of_rows(method, pack, privacy)
    if privacy.local is not None:
        return _alone(method.train(pack), pack, privacy)
    return method.train(pack)


def _of_rows(method: Method, pack: Pack, privacy: Privacy) -> Iterator[Update]:
    known = [remembered(c.memo) for c in pack.clients]
    noise = [before.get("noise") for before in known]
    if any(z is None for z in noise):
        count = HiddenRows(pack, privacy)
        for _ in method.train(count.over(pack.twin())):
            pass
        found = zip(count.shares, count.steps, strict=True)
        noise = [privacy.row_noise(q, t) if z is None else z for z, (q, t) in zip(noise, found, strict=True)]
    hidden = HiddenRows(pack, privacy, [float(z or 0.0) for z in noise])
    place = {c.id: k for k, c in enumerate(pack.clients)}
    for update in method.train(hidden.over(pack)):
        k = place[update.client.id]
        said = hidden.spent(k, pack.clients[k].memo)
        _check(privacy, update.client.id, said.get("epsilon", math.inf))
        yield replace(update, client=pack.clients[k], facts=update.facts | {MEMO: said})
    for k, client in enumerate(pack.clients):  # what is kept of a turn is told in a later one
        if hidden.steps[k] > hidden.noted[k]:
            hidden.spent(k, client.memo)


def _alone(updates: Iterable[Update], pack: Pack, privacy: Privacy) -> Iterator[Update]:
    place = {c.id: k for k, c in enumerate(pack.clients)}
    for update in updates:
        k = place[update.client.id]
        memo = pack.clients[k].memo
        turns = int(remembered(memo).get("turns", 0)) + 1
        said = told(privacy.spent_on_updates(turns), privacy.spent_on_updates(turns + 1))
        _check(privacy, update.client.id, said.get("epsilon", math.inf))
        memo[MEMO] = {"turns": turns}
        yield replace(update, tensors=hidden_update(update, pack.turns[k], privacy, pack), facts=update.facts | {MEMO: said})


def hidden_update(update: Update, turn: Turn, privacy: Privacy, pack: Pack) -> dict[str, Value]:
    """An update's tensors, clipped together to the norm C of ``ldp`` around what the client held, with its noise."""
    link = privacy.local
    assert link is not None
    change, _ = clipped(changed(update.tensors, turn.held, link.name), link.clip)
    secret, scale = privacy.secret("update", pack.round.index, update.client.id), privacy.local_noise * link.clip
    found: dict[str, Value] = {}
    for name, moved in sorted(change.items()):
        value = moved + scale * secret.normal(moved.shape)
        base, dtype = turn.held.get(name), update.tensors[name].dtype  # type: ignore[union-attr]  # changed takes tensors alone
        found[name] = (value + base.double() if begun_from(base, value) else value).to(dtype)
    return found


def _check(privacy: Privacy, client: str, epsilon: float) -> None:
    if not privacy.within(epsilon):
        raise UserError(
            f"a turn of {client} takes it to epsilon {epsilon:.3g}, beyond its budget of {privacy.epsilon:g}, and is not sent: "
            "ask for more noise, or give a larger --epsilon."
        )
