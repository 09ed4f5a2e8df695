"""Who takes part in a real federation: greets every site that appears, agrees with it, and carries questions to it by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from weft.communication.envelope import unwrap, wrap
from weft.communication.strict import Refused, check_facts, is_number, plain
from weft.engines.observer import Observer
from weft.errors import Elsewhere, UserError
from weft.federation import common_facts
from weft.federation.client import ClientState
from weft.federation.exchange import Exchange
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.server import ServerState
from weft.sites.keys import NAME
from weft.sites.resident import ADMIT, ASK, AWAY, BYE, HELLO
from weft.sites.terms import Terms
from weft.storage import remedy

SOON = 0.5  # seconds between two looks for sites
POLL = 0.1  # seconds between two looks for answers
SHORT = 5.0  # seconds that the last word may take
GREETING = 3600.0  # seconds that a site may take to agree: it loads its backbone meanwhile, and nobody waits for it
AGAIN = 30.0  # seconds until a site that was turned away is greeted again: it may have been put right


class Wire(Protocol):
    """Carries bytes to addresses and back."""

    def present(self) -> Mapping[str, str | None]:
        """Addresses that can be asked now, each with the name that it has proven, None where it has proven none."""
        ...

    def post(self, questions: Mapping[str, bytes], deadline: float) -> Mapping[str, str]:
        """Send questions to addresses; a ticket for each that was sent -> its address. Answers count for ``deadline`` seconds."""
        ...

    def fetch(self, tickets: Collection[str]) -> Mapping[str, bytes | None]:
        """The answers that have come, by ticket; None for a site that failed."""
        ...


@dataclass
class Roll:
    """The sites of a run.

    Attributes:
        deadline: seconds that a site may take for a turn. folder: of the run.
        facts: that the experiment gives to the client at a position. fits: raises where the method can't have a site.
        members: what each site has told, by name.
        places: addresses by name. greeted: addresses that have not answered yet, by ticket, and when they were asked.
        turned_away: reasons by address, and when. common: facts that all clients have, once they are settled.
    """

    wire: Wire
    terms: Terms
    method: Method
    models: list[str]
    deadline: float
    observer: Observer
    folder: Path
    facts: Callable[[int], dict[str, Any]] = lambda position: {}
    fits: Callable[[ClientInfo], object] = lambda client: None
    members: dict[str, ClientInfo] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    greeted: dict[str, tuple[str, float]] = field(default_factory=dict)
    turned_away: dict[str, tuple[str, float]] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)

    def wait_for(self, number: int, check: Callable[[], None] = lambda: None, patience: float = math.inf) -> None:
        """Until so many sites are there and agree; whoever waits is told who has come.

        Args:
            check: is called at every look, and may raise. patience: seconds, after which one site is enough.
        """
        end = time.monotonic() + patience
        self.observer.begin("sites", number)
        while True:
            before = len(self.places)
            for count, name in enumerate(self.look(), before + 1):
                self.observer.advance("sites")
                self.observer.say(f"{name} is here, {count} of {number}.")
            if len(self.places) >= (1 if time.monotonic() > end else number):
                self.observer.end("sites")
                return
            check()
            time.sleep(SOON)

    def look(self) -> list[str]:
        """See who is there: greet whoever is not known yet, and hear those who answer; waits for nobody.

        Returns:
            names of those who have just agreed.
        """
        now, present = time.monotonic(), self.wire.present()
        for name in [n for n, a in self.places.items() if present.get(a, "") not in (n, None)]:  # gone, or of another name now
            del self.places[name]
            self.observer.say(f"{name} has gone.")
        agreed: list[str] = []
        for ticket, raw in self.wire.fetch(list(self.greeted)).items():
            address, _ = self.greeted.pop(ticket)
            agreed += self._heard(address, present.get(address), raw)
        for ticket, (address, when) in list(self.greeted.items()):
            if now - when > GREETING:
                del self.greeted[ticket]
                self._turn_away(address, present.get(address), "it does not answer.")
        asked = {address for address, _ in self.greeted.values()} | set(self.places.values())
        late = {a for a, (_, when) in self.turned_away.items() if now - when < AGAIN}
        new = [a for a in present if a not in asked and a not in late]
        for ticket, address in self.wire.post(dict.fromkeys(new, self._hello()), GREETING).items():
            self.greeted[ticket] = (address, now)
        return agreed

    def greet(self, address: str) -> list[str]:
        """Greet an address and wait for its answer; returns its name if it agrees."""
        proven = self.wire.present().get(address)
        return self._heard(address, proven, self.ask({address: self._hello()}).get(address))

    def ask(self, questions: Mapping[str, bytes], deadline: float | None = None) -> dict[str, bytes]:
        """Answers by address; whoever failed or has none before the deadline is missing."""
        deadline = self.deadline if deadline is None else deadline
        end = time.monotonic() + deadline
        waiting = dict(self.wire.post(questions, deadline))
        found: dict[str, bytes] = {}
        while waiting:
            for ticket, raw in self.wire.fetch(list(waiting)).items():
                address = waiting.pop(ticket)
                if raw is not None:
                    found[address] = raw
            if not waiting or time.monotonic() >= end:
                break
            time.sleep(POLL)
        return found

    def farewell(self) -> None:
        """Tell everybody that the run is over."""
        bye = wrap({"what": BYE, "run": self.terms.run})
        self.ask(dict.fromkeys(self.places.values(), bye), min(self.deadline, SHORT))

    def _hello(self) -> bytes:
        return wrap({"what": HELLO} | self.terms.as_json())

    def _heard(self, address: str, proven: str | None, raw: bytes | None) -> list[str]:
        """Take a site in, or turn it away by a sentence, which it is told as well unless it is its own."""
        refuses = raw is None
        try:
            if raw is None:
                raise Refused("it fails, and its own log may say why.")
            about, _ = unwrap(raw)
            if "refused" in about:
                refuses = True
                raise Refused(f"it refuses: {plain(about['refused'], 600)}")
            info = self._read(about, proven)
            if self.places.get(info.id, address) != address:
                raise Refused("another site with this name is here already: give each a --name of its own.")
        except Refused as e:
            self._turn_away(address, proven, str(e), tell=not refuses)
            return []
        self.turned_away.pop(address, None)
        self.members[info.id] = info
        self.places[info.id] = address
        return [info.id]

    def _tellable(self) -> set[str]:
        """The facts that a site may tell of itself."""
        return {name for name in self.method.info.asks if not name.startswith(common_facts.EVERY)}

    def _turn_away(self, address: str, proven: str | None, reason: str, tell: bool = False) -> None:
        if self.turned_away.get(address, ("", 0.0))[0] != reason:
            self.observer.say(f"{proven or f'a site at {address}'} does not take part: {reason}")
            if tell:
                self.wire.post({address: wrap({"what": AWAY, "run": self.terms.run, "why": reason})}, GREETING)
        self.turned_away[address] = (reason, time.monotonic())

    def _read(self, about: Mapping[str, Any], proven: str | None) -> ClientInfo:
        """What a site says of itself.

        Raises:
            Refused: it makes no sense, or is not what its key proves.
        """
        name, n, facts, model = (about.get(k) for k in ("name", "n", "facts", "model"))
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Refused("it has no name of letters, digits, dots, dashes and underscores.")
        if proven is not None and name != proven:
            raise Refused(f'it calls itself "{name}", but its key is that of "{proven}": give it --name {proven}.')
        if not is_number(n, int) or not 0 <= n <= self.terms.common["max_weight"]:  # type: ignore[operator]
            raise Refused("its number of training rows is none that can be.")
        if not isinstance(facts, dict) or not set(facts) <= self._tellable():
            raise Refused("it tells facts that the method does not ask for.")
        try:
            check_facts(facts)
        except ValueError as e:
            raise Refused(f"its facts are none: {e}.") from None
        if model != "" and model not in self.models[1:]:
            raise Refused("it has a backbone that is not one of the federation's.")
        assert isinstance(n, int) and isinstance(model, str)
        info = ClientInfo(name, n, facts | self.common, model)
        try:
            common_facts.check(info)
            self.fits(info)
        except UserError as e:
            raise Refused(str(e)) from None
        except (TypeError, ValueError):
            raise Refused(f"its facts are none that {self.method.info.slug} can have.") from None
        return info


class StageTransport:
    """A :class:`weft.engines.remote.Transport`: questions of one stage to sites by name.

    Args:
        name: ``setup`` or ``rounds``. server: whose start values the sites get. exchange: which bills what goes to them.
        joined: is told of new clients.
    """

    def __init__(
        self,
        roll: Roll,
        name: str,
        server: ServerState,
        exchange: Exchange,
        joined: Callable[[list[ClientState]], None] = lambda _: None,
    ):
        self.roll, self.name, self.server, self.exchange, self.joined = roll, name, server, exchange, joined
        self.admitted: dict[str, str] = {}
        self.label = f"{roll.terms.run}/{name}"

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        """Look who is there; returns the clients that were not before.

        Raises:
            Elsewhere: nobody has been there for the time of a turn.
        """
        end = time.monotonic() + self.roll.deadline
        back = set(self.roll.look())
        while not self.roll.places:
            if time.monotonic() > end:
                way = remedy.go_on(self.roll.folder)
                raise Elsewhere(f"no site has been there for {self.roll.deadline:g} s: the run is saved, and {way}.")
            time.sleep(SOON)
            back |= set(self.roll.look())
        known = {c.id for c in clients}
        for name in back & known:
            self.roll.observer.say(f"{name} is back.")
        new = [self.roll.members[n] for n in sorted(self.roll.places.keys() - known)]
        profile, given = self.exchange.method.profile, self.roll.facts
        found = [ClientState(c.id, c.n, profile(i) | given(i) | c.facts, c.model) for i, c in enumerate(new, len(clients))]
        if found:
            self.joined(found)
        return found

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Answers by name; a site that was started anew is greeted and let in again, once, and asked again."""
        found, strangers = self._asked(questions)
        if strangers:
            for name in strangers:
                self.admitted.pop(name, None)
                self.roll.greet(self.roll.places.pop(name))
            found |= self._asked({n: questions[n] for n in strangers})[0]
        return found

    def _asked(self, questions: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[str]]:
        """Answers by name, and who does not know this run."""
        here = [n for n in questions if n in self.roll.places]
        strangers = self._admit([n for n in here if self.admitted.get(n) != self.roll.places[n]])
        about = {"what": ASK, "run": self.roll.terms.run, "stage": self.name}
        names = {self.roll.places[n]: n for n in here if self.admitted.get(n) == self.roll.places[n]}
        said = self.roll.ask({a: wrap(about, questions[n]) for a, n in names.items()})
        found: dict[str, bytes] = {}
        for address, raw in said.items():
            name = names[address]
            head, data = _opened(raw)
            if head.get("stranger") is True:
                strangers.append(name)
            elif head.get("answer") is True:
                found[name] = data
            else:
                self.roll.observer.say(f"{name} refuses: {plain(head.get('refused', 'it says nothing sensible'), 300)}")
        return found, strangers

    def _admit(self, names: list[str]) -> list[str]:
        """Let sites into the stage: their facts as the coordinator sees them, and start values that were trained before.

        Returns:
            those that do not know this run.
        """
        facts = {c.id: c.facts for c in self.server.clients}
        letters = {}
        for name in names:
            about = {"what": ADMIT, "run": self.roll.terms.run, "stage": self.name, "facts": facts[name]}
            letters[self.roll.places[name]] = wrap(about, self.exchange.hand_over(self.server, name))
        said = self.roll.ask(letters)
        strangers: list[str] = []
        for name in names:
            address = self.roll.places[name]
            head, _ = _opened(said.get(address, b""))
            if head.get("admitted") is True:
                self.admitted[name] = address
            elif head.get("stranger") is True:
                strangers.append(name)
        return strangers


def _opened(raw: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        return unwrap(raw)
    except Refused:
        return {}, b""
