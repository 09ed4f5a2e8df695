"""Runs with sites, to one of which something happens by a script: what the coordinator holds after each round, and says."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from every_method import small
from toy_runs import Killed, Told
from weft.engines.question import Question
from weft.engines.remote import Remote
from weft.errors import UserError
from weft.federation.client import ClientState
from weft.federation.server import ServerState
from weft.storage import files
from weft.testing.sites import Loopback, kept, remote

BAD, OTHER = "client-0", "client-1"
SIZES = (5, 3, 4)
PATHS = ("fedit", "fedsa-lora", "flora", "pfedpg", "fedhpl")  # two means, one with personal values; stacks; a generator; tables
SILENT = BAD + " did not answer in round {}, which goes on without it."
ANEW = BAD + " has lost what it was sent, and gets everything anew."
Fault = str | Callable[[bytes], bytes]
State = tuple[dict[str, Tensor], dict[str, Any]]


def held(server: ServerState) -> State:
    """All that a coordinator holds, but for what it believes its clients to have: who was silent gets everything anew."""
    tensors, rest = server.tensors_and_json()
    return {n: t.clone() for n, t in tensors.items()}, copy.deepcopy({n: v for n, v in rest.items() if n != "synced"})


def assert_equal(a: State, b: State) -> None:
    """Names, dtypes and every element."""
    assert a[0].keys() == b[0].keys()
    for name, tensor in a[0].items():
        torch.testing.assert_close(tensor, b[0][name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert a[1] == b[1]


class Faulty:
    """Carries questions to sites and back, and lets happen to one of them what its script says for a round:

    ``silent``: it is not reached. ``killed``: it dies when all is computed and nothing is saved, and starts again. ``lost``: its
    answer is. ``late``: its answer comes in the next round, and that of the next round never. ``other``: another site's answer
    comes as its own. ``replay``: its first answer comes once more. ``full``: it can't save. Or what is made of its answer.
    """

    def __init__(self, loop: Loopback, script: Mapping[int, Fault]):
        self.loop, self.script = loop, script
        self.coming: list[ClientState] = []
        self.heard: dict[tuple[int, str], bytes] = {}
        self.errors: list[str] = []

    label = "loopback"

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        return self.coming

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        asked = Question.decode(next(iter(questions.values())))
        t, training = asked.round.index, asked.what == "train"
        do = self.script.get(t) if training else None
        mine = {c: raw for c, raw in questions.items() if c == BAD}
        found = dict(self.loop.ask({c: raw for c, raw in questions.items() if c != BAD}))
        if do != "silent":
            found |= self._asked(mine, do)
        self.heard |= {(t, c): raw for c, raw in found.items() if training}
        answer = found.pop(BAD, None)
        if do is None and self.script.get(t - 1) == "late":
            answer = self.heard[t - 1, BAD]
        elif do in ("lost", "late"):
            answer = None
        elif do == "other":
            answer = found[OTHER]
        elif do == "replay":
            answer = self.heard[0, BAD]
        elif callable(do) and answer is not None:
            answer = do(answer)
        return found if answer is None else found | {BAD: answer}

    def _asked(self, mine: Mapping[str, bytes], do: object) -> Mapping[str, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            if do == "killed":
                patch.setattr(files, "point", dies)
            elif do == "full":
                patch.setattr(files, "point", is_full)
            try:
                return self.loop.ask(mine)
            except Killed:
                patch.undo()
                self.loop.start()
            except UserError as e:  # a site says so where it is; nobody else hears of it
                self.errors.append(str(e))
        return {}


def dies(operation: str, path: Path) -> None:
    if operation == "rename" and path.name == "site.json":
        raise Killed


def is_full(operation: str, path: Path) -> None:
    if operation == "fsync" and path.name == "site.json.tmp":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class Played:
    """A run by a script: what the coordinator held after each round, and what was said in it."""

    def __init__(self, slug: str, script: Mapping[int, Fault], rounds: int, until: int | None = None, joins: int = 0):
        self.run, self.loop = remote(small(slug), rounds=rounds, sizes=SIZES)
        self.told = Told()
        self.run.simulation.setup.observer = self.told
        self.transport = Faulty(self.loop, script)
        assert isinstance(self.run.simulation.turns, Remote)
        self.run.simulation.turns.transport = self.transport
        self.states: list[State] = []
        self.sentences: list[list[str]] = []
        ((_, clients),) = self.run.simulation.setup.federations
        stranger = clients.pop(0) if joins else None
        for t in range(rounds if until is None else until):
            self.transport.coming = [stranger] if stranger and t == joins else []
            self.round(t)

    def round(self, t: int) -> None:
        self.told.sentences = []
        assert self.run.simulation.round(t) is not None
        self.states.append(held(self.run.server))
        self.sentences.append(self.told.sentences)

    def assert_same(self, other: Played) -> None:
        for mine, theirs in zip(self.states, other.states, strict=True):
            assert_equal(mine, theirs)
        assert_equal((kept(self.loop), {}), (kept(other.loop), {}))

    def assert_caught_up(self) -> None:
        """What the client has is what the coordinator believes it to have."""
        server, site = self.run.server, self.loop.sites[BAD]
        assert site.clock == server.synced[BAD] > 0
