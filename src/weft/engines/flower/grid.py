"""The sites of a run as Flower's grid knows them: who is there, questions to them, and their answers as they come."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

SOON = 0.1  # seconds that a look waits for what has just begun to arrive: most of it is small


@dataclass
class _Arriving:
    """An answer on its way from the SuperLink.

    Attributes:
        done: it is whole, or never will be. data: None for a site that failed.
    """

    done: threading.Event = field(default_factory=threading.Event)
    data: bytes | None = None


class Grid:
    """Carries bytes to sites and back (a :class:`weft.sites.roll.Wire`).

    Flower announces an answer before all of it has been uploaded, and waits for the rest of one before it looks at the next. Here
    each answer arrives in a thread of its own, so that a site that is slow to upload, or dies over it, holds nobody up.
    """

    def __init__(self, grid: Any):
        self.grid = grid
        self.arriving: dict[str, _Arriving] = {}
        self.until: dict[str, float] = {}

    def present(self) -> dict[str, str | None]:
        """Addresses of nodes that are there now, each with the name that its key was registered under (None: it has none)."""
        return {str(node.node_id): node.name or None for node in self.grid.get_nodes()}

    def post(self, questions: Mapping[str, bytes], deadline: float) -> dict[str, str]:
        """Send questions to addresses; returns a ticket for each that was sent, and its address.

        Args:
            deadline: seconds after which nobody is interested in the answers any more.
        """
        from flwr.app import Message

        from weft.engines.flower.tasks import record

        if not questions:
            return {}
        asked = list(questions)
        sent = self.grid.push_messages([Message(record(questions[a]), int(a), "query", ttl=deadline) for a in asked])
        tickets = {ticket: address for ticket, address in zip(sent, asked, strict=True) if ticket}
        now = time.monotonic()
        self._forget([ticket for ticket, end in self.until.items() if end < now])
        self.until |= dict.fromkeys(tickets, now + deadline)
        return tickets

    def fetch(self, tickets: Collection[str]) -> dict[str, bytes | None]:
        """The answers that have come whole, by ticket; None for a site that failed, or said something else."""
        new = self._announced([t for t in tickets if t not in self.arriving])
        end = time.monotonic() + SOON
        for arriving in new:
            arriving.done.wait(max(end - time.monotonic(), 0.0))
        found = {t: self.arriving[t].data for t in tickets if t in self.arriving and self.arriving[t].done.is_set()}
        self._forget(found)
        return found

    def _announced(self, tickets: list[str]) -> list[_Arriving]:
        """Begin to take in what has been announced for tickets since the last look."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse

        if not tickets:
            return []
        announced = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=tickets))
        new = []
        for message, tree in zip(announced.messages_list, announced.message_object_trees, strict=True):
            one = PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])
            arriving = self.arriving[message.metadata.reply_to_message_id] = _Arriving()
            new.append(arriving)
            threading.Thread(target=self._take, args=(arriving, one), daemon=True).start()
        return new

    def _take(self, arriving: _Arriving, announced: Any) -> None:
        """Let Flower pull one answer."""
        from weft.engines.flower.tasks import data_of

        grid = copy.copy(self.grid)
        grid._client = _Announced(self.grid._runtime_client, announced)
        with suppress(Exception):  # whatever it is made of is a stranger's: no answer
            for message in grid.pull_messages([]):
                arriving.data = data_of(message)
        arriving.done.set()

    def _forget(self, tickets: Collection[str]) -> None:
        for ticket in list(tickets):
            self.arriving.pop(ticket, None)
            self.until.pop(ticket, None)


class _Announced:
    """A client of Flower's for which nothing but one answer has been announced."""

    def __init__(self, client: Any, announced: Any):
        self._client, self._one = client, announced

    def PullMessages(self, _: Any) -> Any:
        return self._one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
