"""A coordinator that stops in the middle of a round, and goes on from its checkpoint: no number differs, and nothing is trained
twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tiny
import toy_runs
import weft
from every_method import small
from test_faults import PATHS
from toy_runs import Killed, Told
from weft.communication.codecs import codec
from weft.engines.remote import Question, Remote, answer
from weft.engines.setup import Setup
from weft.engines.site import SiteClient
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.client import ClientState
from weft.federation.round import Round
from weft.runs.checkpoint import digest, without_times
from weft.runs.prepare import prepare
from weft.runs.stage import Player, Stage
from weft.storage import files


class Coordinator:
    """Plays a run in a folder as ``weft serve`` does, with sites that outlive it. ``die``: at which question, once."""

    def __init__(self, slug: str, root: Path, patch: pytest.MonkeyPatch):
        self.method, self.root = small(slug), root
        home = tiny.home(self.method)
        data = toy_runs.source(24, reads="images" if home in tiny.IMAGES else "texts")
        wanted = {"method": slug, "model": tiny.folder(home), "clients": 3, "rounds": 3, "max_length": 16, "device": "cpu"}
        self.x = resolve(wanted | {"precision": "float64", "partition": "iid"}).experiment
        self.material = prepare(self.x, data, weft.Observer(), self.method.info.needs)
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
                self.sites[c.id] = SiteClient(self.method, setup.bench.of(own), own, folder, codec("identity"), server.start)
        return self

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


def disk_is_full(operation: str, path: Path) -> None:
    if operation == "fsync" and path.name == "server-000002.safetensors.tmp":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


STOPS = [(slug, "train") for slug in PATHS] + [("fedsa-lora", "test"), ("fedsa-lora", "disk")]


@pytest.mark.parametrize(("slug", "fault"), STOPS)
def test_a_coordinator_that_stops_in_a_round_repeats_it_and_no_site_trains_twice(
    slug: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    toy_runs.light(monkeypatch)
    with monkeypatch.context() as patch:
        whole = Coordinator(slug, tmp_path / "whole", patch)
        lines = whole.play()
    with monkeypatch.context() as patch:
        cut = Coordinator(slug, tmp_path / "cut", patch)
        if fault == "disk":
            with patch.context() as disk, pytest.raises(UserError, match="the disk is full; what was saved before is intact"):
                disk.setattr(files, "point", disk_is_full)
                cut.play()
        else:
            cut.die = (fault, 1)
            with pytest.raises(Killed):
                cut.play()
        assert len(toy_runs.finished_rounds(cut.root / "run")) == 1
        again = cut.play()
    assert cut.told.sentences == whole.told.sentences == []
    assert [without_times(line) for line in again] == [without_times(line) for line in lines]
    assert digest(cut.root / "run") == digest(whole.root / "run")
    assert cut.left() == whole.left()
    assert sorted(cut.trained) == sorted(whole.trained) == [(c.id, t) for c in cut.material.clients for t in range(3)]
