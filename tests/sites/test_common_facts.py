"""Domains of sites: a coordinator gathers what they are before the first round, and tells every site all of them."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import pytest

import tiny
import weft
from machines import Machines, coordinate
from picture_folders import draw
from toy_runs import Dies, Killed, Told
from weft.communication.ledger import Ledger
from weft.runs.checkpoint import Checkpoint, digest

WORDS = ["w1", "w2", "w3"]
SITES = {"north": "photo", "south": "sketch", "west": "photo"}
ABOUT: dict[str, Any] = {
    "method": "fedapt",
    "method.rank": None,
    "method.tokens": 2,
    "method.batch": 4,
    "model": tiny.folder("clip"),
    "task": "similarity",
    "classes": WORDS,
    "clients": 3,
}


def join(machines: Machines, name: str, domain: str | None) -> None:
    folder = machines.root / "pictures" / name
    for word, i in itertools.product(WORDS, range(6)):
        draw(folder / word / f"{i}.png", (name, word, i))
    machines.join(name, data=str(folder), facts={} if domain is None else {"domain": domain})


def tables(run: weft.Run) -> dict[str, tuple[int, ...]]:
    saved = Checkpoint(run.folder / "checkpoint").load()
    assert saved is not None
    tensors, _ = saved.servers[0]
    return {n: tuple(v.shape) for n, v in tensors.items() if "router" in n or "keys" in n}


def test_sites_of_two_domains_train_a_router_of_two_and_one_of_each_is_drawn_in_a_round(machines: Machines) -> None:
    for name, domain in SITES.items():
        join(machines, name, domain)
    done = coordinate(machines, **ABOUT)
    assert {shape[0] for shape in tables(done).values()} == {2}
    assert len(tables(done)) == 2
    assert all(sorted(SITES[c] for c in line["cohort"]) == ["photo", "sketch"] for line in done.rounds)
    assert not any(line["refused"] for line in done.rounds)
    for site in done.summary["served"]["sites"]:
        assert site["facts"] == {"domain": SITES[site["id"]], "every domain": ["photo", "sketch"]}
    assert ("global", "own test") in {(e["view"], e["people"]) for e in done.rounds[-1]["evaluations"]}
    saved = Checkpoint(done.folder / "checkpoint").load()
    assert saved is not None
    ledger = Ledger.from_records(saved.ledger)
    told = [ledger.totals(phase="setup", direction=way).parts["facts"] for way in ("up", "down")]  # type: ignore[arg-type]
    own, common = ('{"domain": "photo"}', '{"domain": "sketch"}', '{"domain": "photo"}'), '{"every domain": ["photo", "sketch"]}'
    assert told == [sum(map(len, own)), 3 * len(common)]


def test_a_domain_that_comes_too_late_is_turned_away_and_a_known_one_joins(machines: Machines) -> None:
    for name, domain in SITES.items():
        join(machines, name, domain)

    class Late(Told):
        def round_done(self, record: dict[str, Any]) -> None:
            super().round_done(record)
            if record["round"] == 0:
                join(machines, "east", "sketch")
                join(machines, "moon", "glyph")

    told = Late()
    done = coordinate(machines, told, **ABOUT)
    assert [s for s in told.sentences if "moon" in s] == [
        'moon does not take part: its domain is "glyph", and the federation began with photo, sketch: give it one of these, or '
        "begin another run."
    ]
    assert any("east joins in round" in s for s in told.sentences)
    assert {s["id"] for s in done.summary["served"]["sites"]} == {*SITES, "east"}
    assert {shape[0] for shape in tables(done).values()} == {2}


def test_a_coordinator_that_is_started_again_has_the_domains_that_it_began_with(machines: Machines) -> None:
    for name, domain in SITES.items():
        join(machines, name, domain)
    steady = digest(coordinate(machines, **ABOUT).folder)
    shutil.rmtree(machines.root / "runs")
    for site in (machines.root / "sites").iterdir():
        shutil.rmtree(site)
    for name, domain in SITES.items():
        join(machines, name, domain)
    with pytest.raises(Killed):
        coordinate(machines, Dies(after=1), **ABOUT)
    for name, domain in SITES.items():
        join(machines, name, domain)
    join(machines, "moon", "glyph")  # is there before the coordinator is back
    told = Told()
    assert digest(coordinate(machines, told, **ABOUT).folder) == steady
    assert any(s.startswith('moon does not take part: its domain is "glyph"') for s in told.sentences)


def test_a_site_can_not_say_what_domains_there_are(machines: Machines) -> None:
    for name, domain in SITES.items():
        join(machines, name, domain)
    machines.join("moon", data=str(machines.root / "pictures" / "north"), facts={"domain": "photo", "every domain": ["photo"]})
    told = Told()
    done = coordinate(machines, told, **ABOUT)
    assert {s["id"] for s in done.summary["served"]["sites"]} == set(SITES)
    assert any("moon does not take part: it tells facts that the method does not ask for." in s for s in told.sentences)
