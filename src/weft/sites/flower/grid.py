"""The sites of a run as Flower's grid knows them: who is there, questions to them, and their answers as they come."""

from __future__ import annotations

import copy
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

SOON = 0.1  # seconds that a look waits for what has just begun to arrive: most of it is small
RETURN = 60.0  # seconds that sites may take to come back to another SuperLink, for which they count as there
T = TypeVar("T")


@dataclass
class _Arriving:
    """An answer on its way from the SuperLink.

    Attributes:
        done: it is whole, or never will be. data: None for a site that failed.
    """

    done: threading.Event = field(default_factory=threading.Event)
    data: bytes | None = None


@dataclass
class _Letter:
    """A question that has no answer yet.

    Attributes:
        end: when nobody is interested in the answer any more. message: its name in the SuperLink, "" = it has to be sent (again).
    """

    address: str
    data: bytes
    end: float
    message: str


class Grid:
    """Carries bytes to sites and back (a :class:`weft.sites.roll.Wire`).

    Flower announces an answer before all of it has been uploaded, and waits for the rest of one before it looks at the next. Here
    each answer arrives in a thread of its own, so that a site that is slow to upload, or dies over it, holds nobody up.

    The address of a site that has a key is the key's, so that it outlives the SuperLink: one that ends, or is tampered with, is
    begun anew, and what was not answered is asked again.

    Args:
        grid: Flower's. who: the name of the site with a number and a key, None for nobody of ours; without it everybody is there,
            under no name. amiss: why the SuperLink can't be gone on with, "" as long as it can. anew: begins another one, for
            a reason, and gives its grid; without it an error of Flower's is the caller's.
    """

    def __init__(
        self,
        grid: Any,
        who: Callable[[int, bytes], str | None] | None = None,
        amiss: Callable[[], str] = lambda: "",
        anew: Callable[[str], Any] | None = None,
    ):
        self.grid, self.who, self.amiss, self.anew = grid, who, amiss, anew
        self.numbers: dict[str, int] = {}  # of the sites that are there, by address
        self.letters: dict[str, _Letter] = {}
        self.here: dict[str, str | None] = {}  # who was there when last looked for
        self.awaited, self.awaited_until = self.here, 0.0  # who was there before a SuperLink was lost, and is on the way back
        self.arriving: dict[str, _Arriving] = {}

    def present(self) -> dict[str, str | None]:
        """Addresses of sites that are there now, each with the name that its key proves (None: it has none)."""
        numbers, names = dict[str, int](), dict[str, str | None]()
        for node in self._do(lambda: list(self.grid.get_nodes())):
            name = None if self.who is None else self.who(node.node_id, node.public_key)
            if self.who is None or name is not None:
                address = str(node.node_id) if self.who is None else hashlib.sha256(node.public_key).hexdigest()[:16]
                numbers[address], names[address] = node.node_id, name
        self.numbers = numbers
        if time.monotonic() < self.awaited_until:
            return self.awaited | names
        self.here = names
        return names

    def post(self, questions: Mapping[str, bytes], deadline: float) -> dict[str, str]:
        """Send questions to addresses; returns a ticket for each that was or will be sent, and its address.

        Args:
            deadline: seconds after which nobody is interested in the answers any more.
        """
        now = time.monotonic()
        self._forget([ticket for ticket, letter in self.letters.items() if letter.end < now])
        letters = [_Letter(address, data, now + deadline, "") for address, data in questions.items()]
        self._send(letters)
        if self.who is None:  # it won't come back under the same address
            letters = [letter for letter in letters if letter.message]
        made = {letter.message or uuid.uuid4().hex: letter for letter in letters}
        self.letters |= made
        return {ticket: letter.address for ticket, letter in made.items()}

    def fetch(self, tickets: Collection[str]) -> dict[str, bytes | None]:
        """The answers that have come whole, by ticket; None for a site that failed, or said something else."""
        if any(t in self.letters and not self.letters[t].message for t in tickets):
            self.present()
            self._send([self.letters[t] for t in tickets if t in self.letters])
        new = self._do(lambda: self._announced([t for t in tickets if t not in self.arriving]))
        end = time.monotonic() + SOON
        for arriving in new:
            arriving.done.wait(max(end - time.monotonic(), 0.0))
        found = {t: self.arriving[t].data for t in tickets if t in self.arriving and self.arriving[t].done.is_set()}
        self._forget(found)
        return found

    def _send(self, letters: Collection[_Letter]) -> None:
        """Send what is not under way, to those who are there."""
        from flwr.app import Message

        from weft.sites.flower.tasks import record

        now = time.monotonic()
        where = self.numbers if self.who else {x.address: int(x.address) for x in letters}
        ready = [x for x in letters if not x.message and x.address in where and x.end > now]
        if not ready:
            return

        def push() -> list[str]:
            made = [Message(record(x.data), where[x.address], "query", ttl=x.end - now) for x in ready]
            return list(self.grid.push_messages(made))

        begun = self.grid
        sent = self._do(push, again=False)
        if sent is not None and self.grid is begun:
            for letter, message in zip(ready, sent, strict=True):
                letter.message = message or ""

    def _announced(self, tickets: list[str]) -> list[_Arriving]:
        """Begin to take in what has been announced for tickets since the last look."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse

        by_message = {self.letters[t].message if t in self.letters else t: t for t in tickets}
        by_message.pop("", None)
        if not by_message:
            return []
        announced = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(by_message)))
        new = []
        for message, tree in zip(announced.messages_list, announced.message_object_trees, strict=True):
            one = PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])
            arriving = self.arriving[by_message[message.metadata.reply_to_message_id]] = _Arriving()
            new.append(arriving)
            threading.Thread(target=self._take, args=(arriving, one), daemon=True).start()
        return new

    def _take(self, arriving: _Arriving, announced: Any) -> None:
        """Let Flower pull one answer."""
        from weft.sites.flower.tasks import data_of

        grid = copy.copy(self.grid)
        grid._client = _Announced(self.grid._runtime_client, announced)
        with suppress(Exception):  # whatever it is made of is a stranger's: no answer
            for message in grid.pull_messages([]):
                arriving.data = data_of(message)
        arriving.done.set()

    def _forget(self, tickets: Collection[str]) -> None:
        for ticket in list(tickets):
            self.arriving.pop(ticket, None)
            self.letters.pop(ticket, None)

    # a SuperLink that is no more ------------------------------------------------------------------------------------------

    def _do(self, call: Callable[[], T], again: bool = True) -> Any:
        """Call Flower; where it is gone or not what it was, another one is begun, and called if ``again``, else gives None."""
        if self.anew is None:
            return call()
        from weft.sites.flower.tasks import LOST

        try:
            if not (why := self.amiss()):
                return call()
        except httpx.HTTPStatusError as e:
            why = self.amiss() or f"it answers {e.response.status_code}"
        except LOST as e:  # a run that is stopped while a question goes out is told by what Flower makes of it
            why = " ".join(str(e).split())[:200] or type(e).__name__
        self.grid = self.anew(why)
        self.numbers = {}
        if self.who is not None:
            self.awaited, self.awaited_until = self.here, time.monotonic() + RETURN
        for ticket, letter in self.letters.items():
            arriving = self.arriving.get(ticket)
            if arriving is not None and arriving.done.is_set() and arriving.data is not None:
                continue  # it had come, and is only to be fetched
            letter.message = ""
            self.arriving.pop(ticket, None)
            if self.who is None:  # whom it was for will have another address
                self.arriving[ticket] = _Arriving()
                self.arriving[ticket].done.set()
        return self._do(call) if again else None


class _Announced:
    """A client of Flower's for which nothing but one answer has been announced."""

    def __init__(self, client: Any, announced: Any):
        self._client, self._one = client, announced

    def PullMessages(self, _: Any) -> Any:
        return self._one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
