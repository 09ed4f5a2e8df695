"""A coordinator that can be stopped at a question, and its sites, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from every_method import small
from toy_runs import Killed, Told
from weft.communication.codecs import codec
from weft.engines.question import Question, answer
from weft.engines.remote import Remote
from weft.engines.setup import Setup
from weft.engines.site import SiteClient
from weft.experiment import resolve
from weft.experiment.hidden import chain_of
from weft.federation.client import ClientState
from weft.federation.round import Round
from weft.runs.prepare import prepare
from weft.runs.stage import Player, Stage


class Coordinator:
    """Plays a run in a folder as ``weft serve`` does, with sites that outlive it. ``die``: at which question, once."""

    def __init__(self, slug: str, root: Path, patch: pytest.MonkeyPatch, **more: Any):
        self.method, self.root = small(slug), root
        data = toy_runs.source_for(self.method, 24)
        wanted = {"method": slug, **toy_runs.model_for(self.method), "clients": 3, "rounds": 3, "max_length": 16, "device": "cpu"}
        self.x = resolve(wanted | {"precision": "float64", "partition": "iid"} | more).experiment
        self.material = prepare(self.x, data, weft.Observer(), self.method.info.needs).under(chain_of(self.x))
        self.die: tuple[str, int] | None = None
        self.trained: list[tuple[str, int]] = []
        self.sites: dict[str, SiteClient] = {}
        self.told = Told()
        train = SiteClient._train

        def counted(site: SiteClient, round: Round, *more: Any) -> Any:
            self.trained.append((site.client.id, round.index))
            return train(site, round, *more)

        patch.setattr(SiteClient, "_train", counted)

    def play(self) -> list[dict[str, Any]]:
        """From wherever the checkpoint is to the end."""
        clients = [ClientState(c.id, c.n, dict(c.facts), c.model) for c in self.material.clients]
        stage = Stage("rounds", "train", "auto", self.method, [clients], [{}], self.x.rounds, 1)
        player = Player(stage, self.root / "run", self.x, self.material, self.told, lambda s: Remote(s, self.link(s)))
        return player.play().lines

    def link(self, setup: Setup) -> Coordinator:
        ((server, _),) = setup.federations
        for c in self.material.clients:
            if c.id not in self.sites:
                own = ClientState(c.id, c.n, dict(c.facts), c.model, data=c.data)
                folder = self.root / "sites" / c.id
                self.sites[c.id] = SiteClient(
                    self.method, setup.bench.of(own), own, folder, codec("identity"), server.start, label=self.label
                )
        return self

    label = "coordinator"

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        return []

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        found = {c: answer(self.sites[c], raw) for c, raw in questions.items()}
        asked = Question.decode(next(iter(questions.values())))
        if self.die == (asked.what, asked.round.index):
            self.die = None
            raise Killed
        return found

    def left(self) -> dict[str, bytes]:
        """What the sites have saved."""
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in (self.root / "sites").rglob("*") if p.is_file()}
