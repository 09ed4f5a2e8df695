"""Encrypted sums between sites: the numbers of masks and of the simulation, whoever stops answering, and nothing in the clear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_runs
from coordinators import Coordinator
from every_method import small
from sums_of_sites import SIZES, Sites, here, key, sites
from toy_runs import Killed
from weft.communication.strict import Refused
from weft.engines.question import Question, answer
from weft.privacy.ckks.cipher import SIZE, Cipher, new_key
from weft.privacy.ckks.cipher_server import CipherServer
from weft.privacy.sums.packets import CKKS, Packet
from weft.privacy.sums.protocol import protocol_of
from weft.storage import files
from weft.testing.compare import equal, server_state

CHAINS = ("ckks", "dp-fedavg:noise=1+ckks", "dp-sgd:noise=1+ckks")


@pytest.mark.parametrize(
    ("slug", "text"), [*(("fedit", text) for text in CHAINS), ("rolora", "ckks"), ("heterofl", "ckks:least=2")]
)
def test_sites_have_the_numbers_of_the_simulation_and_of_masks(slug: str, text: str) -> None:
    sizes = (3,) * 10 if slug == "heterofl" else SIZES  # two of each size
    one, apart = here(small(slug), text, sizes=sizes), sites(slug, text, sizes=sizes)
    masked = here(small(slug), text.replace("ckks", "secagg"), sizes=sizes)
    for t in range(2):
        mine, theirs = one.simulation.round(t), apart.round(t)
        masked.simulation.round(t)
        assert mine is not None
        assert mine.get("privacy") == theirs.get("privacy")
        assert apart.told.sentences == []
    assert equal(server_state(one), server_state(apart.run), 0)
    assert equal(server_state(one), server_state(masked), 0)
    for direction in ("down", "up"):
        bills = [run.simulation.setup.exchange.ledger.totals(phase="train", direction=direction) for run in (one, apart.run)]  # type: ignore[arg-type]
        assert bills[0].parts == bills[1].parts
        assert bills[0].parts["ckks"] > 0


def test_bytes_are_those_of_ciphertexts() -> None:
    """Each number takes 32 bytes; what fills up the last ciphertext, and the opened sum, is the protocol's."""
    run = here(small("fedit"), "ckks").run(1)
    ledger, server = run.simulation.setup.exchange.ledger, run.server
    numbers = sum(v.numel() for v in server.shared.values())  # type: ignore[union-attr]
    up, down = (ledger.totals(phase="train", direction=d).parts for d in ("up", "down"))  # type: ignore[arg-type]
    assert sum(size for n, size in up.items() if n != "ckks") == 4 * 32 * numbers
    length = numbers + 1 + len(server.shared)
    texts = -(-(length + 1) // 4096)
    assert up["ckks"] == 4 * (16 + SIZE * texts - 32 * numbers) + 4 * length
    assert down["ckks"] == SIZE * texts


@pytest.mark.parametrize("kind", ["train", *CKKS])
def test_who_stops_is_left_out_or_has_counted(kind: str) -> None:
    apart = sites(text="ckks", silent={kind: ["client-0"]})
    record = apart.round(0)
    want = here(small("fedit"), "ckks")
    if kind != "opened":
        want.simulation.setup.federations[0][1].pop(0)
    want.simulation.round(0)
    assert equal(server_state(want), server_state(apart.run), 0)
    assert record["lost"] == ([] if kind == "opened" else ["client-0"])
    assert len(apart.told.sentences) == 1
    assert apart.told.sentences[0].startswith("client-0 did not answer in round 1")
    apart.round(1)
    assert not [s for s in apart.told.sentences if "refused" in s or "nothing" in s]


@pytest.mark.parametrize(
    ("kind", "who", "words"),
    [
        ("sealed", ["client-1", "client-2"], "Only 2 clients"),
        ("opened", [f"client-{i}" for i in range(4)], "None of the clients"),
    ],
)
def test_without_a_sum_the_round_counts_for_nothing(kind: str, who: list[str], words: str) -> None:
    apart = sites(text="ckks", silent={kind: who})
    before = {n: v.clone() for n, v in server_state(apart.run).items()}
    record = apart.round(0)
    assert equal(before, server_state(apart.run), 0)
    assert apart.told.sentences[-1].startswith(f"round 1 counts for nothing: {words}")
    assert len(record["lost"]) == 4
    apart.round(1)
    assert not equal(before, server_state(apart.run), 0), "the next one has a sum again"


def test_a_site_with_another_key_is_named_and_left_out() -> None:
    apart = sites(text="ckks")
    site = apart.loop.sites["client-2"]
    assert site.sums is not None
    object.__setattr__(site.sums.protocol, "key", new_key())
    record = apart.round(0)
    assert record["lost"] == ["client-2"]
    assert apart.told.sentences == ["client-2 is left out of the sum of round 1: its key is another than that of most clients."]


def test_nothing_that_reaches_the_coordinator_opens_without_the_key() -> None:
    apart = sites(text="ckks")
    apart.round(0)
    sealed = [Packet.read(raw[raw.index(b'{"client"') - 4 :]).body[16:] for what, _, raw in apart.wire.heard if what == "sealed"]
    assert len(sealed) == 4
    for body in sealed:
        with pytest.raises(Refused, match="does not open"):
            Cipher(new_key()).open(body, len(body) // SIZE * 4096)
        assert len(Cipher(key()).open(body, len(body) // SIZE * 4096)) == len(body) // SIZE * 4096
    secret = key()[200:264]
    state = files.read(apart.run.simulation.setup.sums)  # type: ignore[arg-type]
    for raw in (*(r for _, _, r in apart.wire.heard), *(r for _, _, r in apart.wire.asked), state):
        assert secret not in raw


def test_nobody_is_in_two_sums_of_a_round() -> None:
    apart = sites(text="ckks")
    apart.round(0)
    state = CipherServer.loaded(files.read(apart.run.simulation.setup.sums))  # type: ignore[arg-type]
    again = CipherServer.begun(state.terms, apart.loop.sites)
    asked = Question.decode(next(raw for what, _, raw in apart.wire.asked if what == "sealed"))
    raw = Question("sealed", asked.round, again.question("client-0"), 0, 0, -1, {}).encode()
    with pytest.raises(Refused, match="Round 0 is over: this client takes part in no other sum of it"):
        answer(apart.loop.sites["client-0"], raw)


@pytest.mark.parametrize("kind", CKKS)
def test_a_site_that_is_started_again_gives_the_same_answers(kind: str) -> None:
    apart = sites(text="ckks")
    apart.round(0)
    apart.loop.start()
    told = {c: raw for what, c, raw in apart.wire.heard if what == kind}
    asked = {c: raw for what, c, raw in apart.wire.asked if what == kind}
    for client, raw in asked.items():
        assert answer(apart.loop.sites[client], raw) == told[client]


@pytest.mark.parametrize("kind", ["train", *CKKS, "test"])
def test_a_coordinator_that_stops_in_a_question_goes_on_with_the_same_sum(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    with_key(monkeypatch)
    about: dict[str, Any] = {"privacy": "ckks:least=2", "delta": 1e-2}
    with monkeypatch.context() as patch:
        whole = Coordinator("fedit", tmp_path / "whole", patch, **about)
        lines = whole.play()
    with monkeypatch.context() as patch:
        cut = Coordinator("fedit", tmp_path / "cut", patch, **about)
        cut.die = (kind, 1)
        with pytest.raises(Killed):
            cut.play()
        assert len(toy_runs.finished_rounds(cut.root / "run")) == 1
        gone_on = cut.play()
    assert cut.told.sentences == whole.told.sentences == []
    drop = ("seconds", "bytes", "memory", "privacy")
    assert [{n: v for n, v in line.items() if n not in drop} for line in gone_on] == [
        {n: v for n, v in line.items() if n not in drop} for line in lines
    ]


def with_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites in this process that have been given the key."""
    monkeypatch.setattr("weft.engines.site_sums.protocol_of", lambda privacy: protocol_of(replace(privacy, key=key())))


def test_a_site_without_the_key_says_what_it_needs() -> None:
    apart = Sites(small("fedit"), "ckks")
    site = apart.loop.sites["client-0"]
    assert site.sums is not None
    object.__setattr__(site.sums.protocol, "key", b"")
    with pytest.raises(Exception, match="needs their key: make one with weft keys sums"):
        apart.round(0)
