"""Scores of a federation whose test rows are in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from weft.backbones.reply_table import Replies
from weft.engines import packing, transfer
from weft.engines.evaluation import Evaluation, both_sides, per_client, records
from weft.engines.setup import Setup
from weft.federation import generating
from weft.federation.client import ClientState, Splits
from weft.federation.exchange import payload_of
from weft.federation.info import common
from weft.federation.message import beside
from weft.federation.pack import Pack
from weft.federation.rounds import adapted, enter
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.tasks.observed import Observed
from weft.tasks.task import Score
from weft.tensors.keyed import numpy_generator


class Scoring:
    """Puts test rows to the models of a federation.

    Args:
        k: clients of a pass.
    """

    def __init__(self, setup: Setup, k: int):
        self.setup, self.k = setup, k
        self.method, self.bench, self.federations = setup.method, setup.bench, setup.federations
        self._samples: list[dict[str, Any]] = []

    def evaluate(self, t: int) -> list[Evaluation]:
        """Scores of every view with the newest server state."""
        found: list[Evaluation] = []
        for view in self.method.views:
            scores = self.common(view) if common(view) else self.personal(view, t)
            found += [*scores, *both_sides(scores)]
        return found

    def taken(self) -> list[dict[str, Any]]:
        """Texts that language models wrote since the last call, with the rows that they are for; they are kept no longer."""
        found, self._samples = self._samples, []
        return found

    def common(self, view: str) -> list[Evaluation]:
        """The one model for all.

        With several servers (``local``) each row of a common test set is put to one of their models, drawn at random: the mean
        over rows and models, at the price of one model.
        """
        unseen = np.concatenate([*self.setup.tests.unseen.values()]) if self.setup.tests.unseen else np.zeros(0, np.int64)
        tests = {"global test": self.setup.tests.test, "validation": self.setup.tests.val, "new clients": unseen}
        tests |= self.setup.tests.further | self._of_periods(self.setup.tests.test)
        several = len(self.federations)
        if several > 1:
            tests = {p: numpy_generator(self.bench.seed, "evaluation", p).permutation(r) for p, r in tests.items()}
        seen: dict[str, list[Observed]] = {people: [] for people in tests}
        own: dict[str, Score] = {}
        tested = tests["global test"] if len(tests["global test"]) else np.concatenate(self._own_rows() or [unseen])
        chosen = generating.few(self.bench.seed, np.unique(tested), self.bench.task.samples)
        for number, (server, clients) in enumerate(self.federations):
            shares = {people: rows[number::several] for people, rows in tests.items()}
            mine = {c.id: c.data.test for c in clients if len(c.data.test)}
            rows = np.unique(np.concatenate([*shares.values(), *mine.values()]))
            if not len(rows):
                continue
            found = self._observe(server.pack(), view, [rows], [np.isin(rows, chosen)])[0]
            assert found is not None
            self._note(found, rows, view, clients[0].id if several > 1 else None)
            for people, share in shares.items():
                seen[people].append(found.take(np.searchsorted(rows, share)))
            for client, r in mine.items():
                own[client] = self.bench.task.headline(found.take(np.searchsorted(rows, r)))
        pooling = "pooled over clients' models" if several > 1 else "pooled"
        scores = [e for people, some in seen.items() if some for e in self._pooled(some, view, people, pooling)]
        return scores + per_client(own, self.bench.task.metrics[0], view=view, people="own test")

    def personal(self, view: str, t: int) -> list[Evaluation]:
        """Each client's own model on its own test rows, after the newest download; new clients start from nothing.

        With several servers (``local``) nobody could say which of them a new client would turn to: none are scored.
        """
        owner = {c.id: server for server, clients in self.federations for c in clients}
        chosen = [c for _, clients in self.federations for c in clients if len(c.data.test)]
        limit = self.setup.settings.eval_clients
        if limit is not None and limit < len(chosen):
            draw = numpy_generator(self.bench.seed, "evaluation", t)
            chosen = [chosen[i] for i in sorted(draw.choice(len(chosen), limit, replace=False))]
        # a client that was never trained here is in ``clients`` with its training rows; a new client brings test rows only
        strangers = [
            ClientState(name, 0, {}, data=Splits(np.zeros(0, np.int64), np.zeros(0, np.int64), rows))
            for name, rows in self.setup.tests.unseen.items()
            if len(self.federations) == 1
        ]
        owner |= {c.id: self.federations[0][0] for c in strangers}
        splits = [
            ("own test", chosen, {c.id: c.data.test for c in chosen}),
            ("validation", chosen, {c.id: c.data.val for c in chosen}),
            ("new clients", strangers, {c.id: c.data.test for c in strangers}),
        ]
        period = self.federations[0][0].round.period
        each = {c.id: transfer.by_period(self.bench.arrivals, c.data.test, period) for c in chosen}
        splits += [(p, chosen, {c: rows[p] for c, rows in each.items()}) for p in next(iter(each.values()), {})]
        further = self.setup.tests.further
        if (further or not any(map(common, self.method.views))) and view == self.method.views[0] and chosen:
            # what clients' models know of everybody's data: each row of the global test set is put to one of them
            for people, rows in ({"common test": self.setup.tests.test} | further).items():
                rows = numpy_generator(self.bench.seed, "evaluation", people).permutation(rows)
                splits.append((people, chosen, {c.id: rows[i :: len(chosen)] for i, c in enumerate(chosen)}))
        found: list[Evaluation] = []
        for people, group, rows_of in splits:
            seen: dict[str, Observed] = {}
            some = [c for c in group if len(rows_of[c.id])]
            texts = 0 if people == "validation" else -(-self.bench.task.samples // max(len(some), 1))
            write = {c.id: generating.few(self.bench.seed, rows_of[c.id], texts, c.id) for c in some}
            for part, pack in self.models(owner, some):
                theirs = [rows_of[c.id] for c in part]
                observed = self._observe(pack, view, theirs, [np.isin(rows_of[c.id], write[c.id]) for c in part])
                seen |= {c.id: one for c, one in zip(part, observed, strict=True) if one is not None}
                for c in part:
                    self._note(seen[c.id], rows_of[c.id], view, c.id)
            if not seen:
                continue
            seen = dict(sorted(seen.items()))
            pooling = "pooled over clients' models" if people == "common test" or people in further else "pooled"
            found += self._pooled(list(seen.values()), view, people, pooling)
            if people == "own test":
                own = {c: self.bench.task.headline(some) for c, some in seen.items()}
                found += per_client(own, self.bench.task.metrics[0], view=view, people=people)
        return found

    def _of_periods(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Test rows of each period so far: of ``rows``, or where none of these arrives in any, of clients' own."""
        arrivals, period = self.bench.arrivals, self.federations[0][0].round.period
        found = transfer.by_period(arrivals, rows, period)
        if found and not any(map(len, found.values())) and (own := self._own_rows()):
            return transfer.by_period(arrivals, np.unique(np.concatenate(own)), period)
        return found

    def _own_rows(self) -> list[np.ndarray]:
        return [c.data.test for _, clients in self.federations for c in clients]

    def _observe(self, pack: Pack, view: str, rows: list[np.ndarray], chosen: list[np.ndarray]) -> list[Observed | None]:
        texts = chosen if self.bench.task.samples else None
        return generating.observe(pack, lambda p, b: self.method.forward(p, b, view), rows, texts)

    def _note(self, seen: Observed, rows: np.ndarray, view: str, client: str | None) -> None:
        """Keep the texts that were written."""
        table = self.bench.table
        if "text" not in seen.columns or not isinstance(table, Replies):
            return
        for i in np.flatnonzero(seen["written"]).tolist():
            row = int(rows[i])
            about = {"view": view, "client": client, "row": int(table.row_ids[row]), "prompt": table.asked[row]}
            self._samples.append(about | {"wanted": table.wanted[row], "text": str(seen["text"][i])})

    def models(self, owner: Mapping[str, ServerState], group: list[ClientState]) -> Iterator[tuple[list[ClientState], Pack]]:
        """Clients' own models in packs, each fitted for its test and gone when the next one comes."""
        for part in packing.group(group, self.k, self.bench):
            turns = []
            for client in part:
                self.setup.store.load(client)
                turns.append(self._turn(owner[client.id], client))
            server = owner[part[0].id]
            pack = enter(self.method, self.bench.of(part[0]), turns, server.round, server.start)
            self.method.personalise(pack)
            pack.hold(None)
            yield part, pack
            for client in part:
                self.setup.store.forget(client)

    def _turn(self, server: ServerState, client: ClientState) -> Turn:
        """A client after the newest download, which is billed and changes nothing."""
        info = self.setup.info(client)
        message = self.method.send_to_test(server, info)
        payload = payload_of(message.tensors if client.id in server.synced else server.start | message.tensors)
        self.setup.exchange.ledger.add(server.round.index, "eval", "down", client.id, payload, sum(payload.values()))
        adaptation = adapted(self.method, self.bench, info)
        free = beside(adaptation, self.bench.of(client).backbone, message.tensors)
        turn = Turn(client, adaptation, server.held_by(info, adaptation, message), message.facts, free)
        return self.method.turn_to_test(server, turn)

    def _pooled(self, seen: list[Observed], view: str, people: str, pooling: str) -> list[Evaluation]:
        everyone = Observed.concatenate(seen)
        return records(self.bench.task.score(everyone), len(everyone), view=view, people=people, pooling=pooling)
