"""Who takes part in a real federation: greets every site that appears, agrees with it, and carries questions to it by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from weft.communication.codecs import codec
from weft.communication.envelope import unwrap, wrap
from weft.communication.message import Header
from weft.communication.strict import Refused, check_facts, is_number, plain
from weft.communication.wire import encode
from weft.engines.flower.keys import NAME
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.federation.client import ClientState
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.server import ServerState
from weft.sites.resident import ADMIT, ASK, HELLO, START
from weft.sites.terms import Terms

SOON = 0.5  # seconds between two looks for sites


class Wire(Protocol):
    """Carries bytes to addresses."""

    def present(self) -> Mapping[str, str | None]:
        """Addresses that can be asked now, each with the name that it has proven, None where it has proven none."""
        ...

    def ask(self, questions: Mapping[str, bytes], deadline: float) -> Mapping[str, bytes]:
        """Answers by address; whoever has none after ``deadline`` seconds is missing."""
        ...


@dataclass
class Roll:
    """The sites of a run.

    Attributes:
        deadline: seconds that a site may take for a turn. members: what each site has told, by name.
        places: addresses by name. turned_away: reasons by address.
    """

    wire: Wire
    terms: Terms
    method: Method
    models: list[str]
    deadline: float
    observer: Observer
    members: dict[str, ClientInfo] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    turned_away: dict[str, str] = field(default_factory=dict)

    def wait_for(self, number: int, check: Callable[[], None] = lambda: None) -> None:
        """Until so many sites are there and agree; whoever waits is told who has come.

        Args:
            check: is called at every look, and may raise.
        """
        self.observer.begin("sites", number)
        while True:
            for name in self.look():
                self.observer.advance("sites")
                self.observer.say(f"{name} is here, {len(self.places)} of {number}.")
            if len(self.places) >= number:
                self.observer.end("sites")
                return
            check()
            time.sleep(SOON)

    def look(self) -> list[str]:
        """Greet who is there and not known yet; returns the names of those who agreed."""
        present = self.wire.present()
        for name, address in list(self.places.items()):
            if address not in present:
                del self.places[name]
        known = set(self.places.values())
        return self.greet({a: n for a, n in present.items() if a not in known and a not in self.turned_away})

    def greet(self, strangers: Mapping[str, str | None]) -> list[str]:
        """Say the terms to addresses; returns the names of those who agreed."""
        hello = wrap({"what": HELLO} | self.terms.as_json())
        agreed: list[str] = []
        for address, raw in sorted(self.wire.ask(dict.fromkeys(strangers, hello), self.deadline).items()):
            try:
                about, _ = unwrap(raw)
                who = strangers[address] or plain(about.get("name") or address, 40)
                if "refused" in about:
                    raise Refused(f"it refuses: {plain(about['refused'], 600)}")
                info = self._read(about, strangers[address])
                if (there := self.places.get(info.id)) is not None and there != address:
                    raise Refused("another site with this name is here already: give each a --name of its own.")
            except Refused as e:
                who = strangers[address] or f"a site at {address}"
                self.turned_away[address] = str(e)
                self.observer.say(f"{who} does not take part: {e}")
                continue
            self.members[info.id] = info
            self.places[info.id] = address
            agreed.append(info.id)
        return agreed

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
        if not isinstance(facts, dict) or not set(facts) <= set(self.method.info.asks):
            raise Refused("it tells facts that the method does not ask for.")
        try:
            check_facts(facts)
        except ValueError as e:
            raise Refused(f"its facts are none: {e}.") from None
        if model != "" and model not in self.models[1:]:
            raise Refused("it has a backbone that is not one of the federation's.")
        assert isinstance(n, int) and isinstance(model, str)
        return ClientInfo(name, n, facts, model)


class Stage:
    """A :class:`weft.engines.remote.Transport`: questions of one stage to sites by name.

    Args:
        name: ``setup`` or ``rounds``. server: whose start values the sites get.
    """

    def __init__(self, roll: Roll, name: str, method: Method, server: ServerState):
        self.roll, self.name, self.method, self.server = roll, name, method, server
        self.admitted: dict[str, str] = {}
        self.facts: dict[str, dict[str, Any]] = {}

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        """Look who is there; returns the clients that were not before.

        Raises:
            UserError: nobody has been there for the time of a turn.
        """
        self.facts |= {c.id: dict(c.facts) for c in clients}
        end = time.monotonic() + self.roll.deadline
        self.roll.look()
        while not self.roll.places:
            if time.monotonic() > end:
                raise UserError(
                    f"no site has been there for {self.roll.deadline:g} s: the run is saved, and weft serve goes on with it."
                )
            time.sleep(SOON)
            self.roll.look()
        known = {c.id for c in clients}
        new = [self.roll.members[n] for n in sorted(self.roll.places.keys() - known)]
        found = []
        for position, info in enumerate(new, len(clients)):
            facts = self.method.profile(position) | info.facts
            self.facts[info.id] = facts
            found.append(ClientState(info.id, info.n, dict(facts), info.model))
        return found

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Answers by name; a site that was started anew is greeted and let in again, once, and asked again."""
        found, strangers = self._asked(questions)
        if strangers:
            for name in strangers:
                address = self.roll.places.pop(name)
                self.admitted.pop(name, None)
                self.roll.greet({address: self.roll.wire.present().get(address)})
            found |= self._asked({n: questions[n] for n in strangers})[0]
        return found

    def _asked(self, questions: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[str]]:
        """Answers by name, and who does not know this run."""
        here = [n for n in questions if n in self.roll.places]
        strangers = self._admit([n for n in here if self.admitted.get(n) != self.roll.places[n]])
        about = {"what": ASK, "run": self.roll.terms.run, "stage": self.name}
        names = {self.roll.places[n]: n for n in here if self.admitted.get(n) == self.roll.places[n]}
        said = self.roll.wire.ask({a: wrap(about, questions[n]) for a, n in names.items()}, self.roll.deadline)
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
        start = b""
        if self.server.start:
            header = Header(self.method.info.slug, 0, START, "down", "*")
            start = encode(header, dict(self.server.start), {}, codec("identity")).data
        letters = {}
        for name in names:
            about = {"what": ADMIT, "run": self.roll.terms.run, "stage": self.name, "facts": self.facts.get(name, {})}
            letters[self.roll.places[name]] = wrap(about, start)
        said = self.roll.wire.ask(letters, self.roll.deadline)
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
