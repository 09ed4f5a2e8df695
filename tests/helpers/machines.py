"""Sites in this process, behind a wire, and a federation of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
import weft
from command_line import table
from toy_runs import Told
from weft import experiment as settings
from weft.sites import joining
from weft.sites.resident import Resident
from weft.sites.serve import serve

CLASSES = ["class 0", "class 1", "class 2"]


@dataclass
class Machines:
    """Sites in this process, by address, behind a wire that can lose, delay and change what is said."""

    root: Path
    sites: dict[str, Resident] = field(default_factory=dict)
    names: dict[str, str | None] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    watch: Callable[[str, bytes], bytes] = lambda address, raw: raw
    answers: dict[str, bytes | None] = field(default_factory=dict)
    count: int = 0

    def about(self, name: str, **more: Any) -> dict[str, Any]:
        rows = self.root / f"{name}.csv"
        if not rows.exists():
            table(rows)
        return {"name": name, "data": str(rows), "device": "cpu", "folder": str(self.root / "sites" / name)} | more

    def join(self, name: str, address: str = "", proven: str | None = "", **more: Any) -> None:
        address = address or f"at {name}"
        told = self.said.setdefault(address, [])
        self.sites[address] = joining.resident(self.about(name, **more), told.append)
        self.names[address] = name if proven == "" else proven

    def leave(self, name: str) -> None:
        del self.sites[f"at {name}"], self.names[f"at {name}"]

    # a weft.sites.roll.Wire

    def present(self) -> Mapping[str, str | None]:
        return dict(self.names)

    def post(self, questions: Mapping[str, bytes], deadline: float) -> Mapping[str, str]:
        tickets = {}
        for address, raw in questions.items():
            self.count += 1
            ticket = f"t{self.count}"
            tickets[ticket] = address
            if address in self.sites and address not in self.silent:
                self.answers[ticket] = self.watch(address, self.sites[address].answer(raw))
        return tickets

    def fetch(self, tickets: Collection[str]) -> Mapping[str, bytes | None]:
        return {t: self.answers.pop(t) for t in tickets if t in self.answers}


def experiment(machines: Machines, **changes: Any) -> dict[str, Any]:
    chosen = {
        "method": "fedsa-lora",
        "method.rank": 2,
        "method.batch": 4,
        "model": tiny.folder("bert"),
        "classes": CLASSES,
        "clients": 2,
        "rounds": 3,
        "max_length": 16,
        "precision": "float64",
        "device": "cpu",
        "recipes": False,
        "name": "run",
        "runs": str(machines.root / "runs"),
    }
    return {n: v for n, v in (chosen | changes).items() if v is not None}


def coordinate(machines: Machines, observer: weft.Observer | None = None, deadline: float = 0.2, **changes: Any) -> weft.Run:
    @contextmanager
    def connect(_: Any) -> Iterator[Machines]:
        yield machines

    return serve(settings.resolve(experiment(machines, **changes)), connect, observer or Told(), deadline=deadline)
