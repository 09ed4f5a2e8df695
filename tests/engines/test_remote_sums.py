"""Sums under masks between sites: the simulation's numbers, whoever stops answering when, and nothing of a single update."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy_runs
from coordinators import Coordinator
from every_method import small
from sums_of_sites import SIZES, Sites, here, sites
from toy_runs import Killed
from weft.communication.envelope import unwrap
from weft.communication.strict import Refused
from weft.engines.question import Question, answer
from weft.engines.remote_sums import RemoteSums
from weft.federation.message import Update
from weft.federation.round import Round
from weft.privacy.secagg.sum_client import SumClient
from weft.privacy.secagg.sum_server import SumServer
from weft.privacy.sums import packets
from weft.privacy.sums.packets import SECAGG, Packet
from weft.storage import files
from weft.testing.compare import equal, server_state

CHAINS = ("secagg", "dp-fedavg:noise=1+secagg", "dp-sgd:noise=1+secagg", "ldp:noise=1,clip=0.1+secagg:clip=3")


@pytest.mark.parametrize(
    ("slug", "text"),
    [("fedit", text) for text in CHAINS]
    + [(s, "secagg") for s in ("fedsa-lora", "rolora", "pfcr")]
    + [("heterofl", "secagg:least=2")],
)
def test_sites_and_the_simulation_have_the_same_numbers(slug: str, text: str) -> None:
    sizes = (3,) * 10 if slug == "heterofl" else SIZES  # two of each size
    one, apart = here(small(slug), text, sizes=sizes), sites(slug, text, sizes=sizes)
    for t in range(2):
        mine, theirs = one.simulation.round(t), apart.round(t)
        assert mine is not None
        assert mine.get("privacy") == theirs.get("privacy")
        assert apart.told.sentences == []
    assert equal(server_state(one), server_state(apart.run), 0)
    for direction in ("down", "up"):
        bills = [run.simulation.setup.exchange.ledger.totals(phase="train", direction=direction) for run in (one, apart.run)]  # type: ignore[arg-type]
        assert bills[0].parts == bills[1].parts
        assert bills[0].parts["secagg"] > 0


def test_a_masked_update_has_four_bytes_a_number() -> None:
    """In double precision as in any other; and the protocol's bytes are those of its formula."""
    ledger = here(small("fedit"), "secagg").run(1).simulation.setup.exchange.ledger
    plain = here(small("fedit"), "none").run(1).simulation.setup.exchange.ledger
    up, before = (one.totals(phase="train", direction="up").parts for one in (ledger, plain))
    assert {n: 2 * size for n, size in up.items() if n != "secagg"} == {n: size for n, size in before.items() if n != "facts"}
    names = sum(len(one.shared) for one in [here(small("fedit"), "secagg").server])
    k, slots = 3, names + 1  # neighbours of each of four clients; a weight of each tensor, and one of all
    assert up["secagg"] == 4 * (64 + (32 + 92 * k) + 4 * slots + 32 * (k + 1))
    assert ledger.totals(phase="train", direction="down").parts["secagg"] == 4 * (64 * k + 92 * k)


# who stops answering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", *SECAGG])
def test_who_stops_is_left_out_or_has_counted(kind: str) -> None:
    """With one client less the sum is that of a simulation without it, unless it had sent its masked vector."""
    silent = "client-1"
    apart = sites(silent={kind: [silent]})
    record = apart.round(0)
    counted = kind == "unmask"
    want = here(small("fedit"), "secagg")
    if not counted:
        want.simulation.setup.federations[0][1].pop(1)
    want.simulation.round(0)
    assert equal(server_state(want), server_state(apart.run), 0)
    assert record["lost"] == ([] if counted else [silent])
    words = "which goes on without it" if kind == "train" else "whose sum goes on without it"
    assert apart.told.sentences == [f"{silent} did not answer in round 1, {words}."]
    apart.told.sentences.clear()
    apart.round(1)
    assert not [s for s in apart.told.sentences if "refused" in s or "nothing" in s]


@pytest.mark.parametrize("kind", SECAGG)
def test_below_the_threshold_the_round_counts_for_nothing(kind: str) -> None:
    apart = sites(silent={kind: ["client-1", "client-2"]})
    before = {n: v.clone() for n, v in server_state(apart.run).items()}
    record = apart.round(0)
    assert equal(before, server_state(apart.run), 0)
    assert apart.told.sentences[-1].startswith("round 1 counts for nothing: Only 2 ")
    assert len(record["lost"]) == 4
    apart.round(1)
    assert not equal(before, server_state(apart.run), 0), "the next one has a sum again"


def test_a_sum_of_which_few_have_some_entries_is_not_unmasked() -> None:
    """The two who have all of a tensor are there at first, and one of them sends no vector."""
    rates = [{"rate": r} for r in (1.0, 1.0, 0.5, 0.5, 0.5, 0.5)]
    apart = sites("heterofl", "secagg:least=2", silent={"masked": ["client-1"]}, sizes=(3,) * 6, facts=rates)
    before = {n: v.clone() for n, v in server_state(apart.run).items()}
    apart.round(0)
    assert equal(before, server_state(apart.run), 0)
    assert apart.told.sentences[-1].startswith("round 1 counts for nothing: Only 1 of those who are left may send some of ")
    assert "unmask" not in {what for what, _, _ in apart.wire.asked}
    apart.round(1)
    assert not equal(before, server_state(apart.run), 0)


def test_each_stops_in_another_question() -> None:
    """Three of eight: one before its keys, one with its shares told, one whose vector is in the sum."""
    silent: dict[str, Collection[str]] = {"keys": ["client-0"], "masked": ["client-3"], "unmask": ["client-5"]}
    apart = sites(silent=silent, sizes=(3,) * 8)
    want = here(small("fedit"), "secagg", sizes=(3,) * 8)
    people = want.simulation.setup.federations[0][1]
    people[:] = [c for c in people if c.id not in ("client-0", "client-3")]
    want.simulation.round(0)
    assert apart.round(0)["lost"] == ["client-0", "client-3"]
    assert equal(server_state(want), server_state(apart.run), 0)


# what the coordinator hears -------------------------------------------------------------------------------------------------


def vectors(apart: Sites) -> dict[str, np.ndarray]:
    """What each site has added to the sum, as it lies at the site."""
    return {c: packets.unpacked(files.read(s._reply(0)), 4) for c, s in apart.loop.sites.items()}


def masked(apart: Sites) -> dict[str, np.ndarray]:
    """What each site has sent of it."""
    return {c: packets.unpacked(Packet.read(unwrap(raw)[1]).body, 4) for what, c, raw in apart.wire.heard if what == "masked"}


def test_all_that_reaches_the_coordinator_tells_no_single_update() -> None:
    apart = sites()
    apart.round(0)
    own, sent = vectors(apart), masked(apart)
    assert own.keys() == sent.keys()
    assert len(own) == 4
    heard = b"".join(raw for _, _, raw in apart.wire.heard)
    for client, vector in own.items():
        assert vector.tobytes()[:64] not in heard
        assert 0.45 < np.unpackbits((vector ^ sent[client]).view(np.uint8)).mean() < 0.55, "a mask is half ones"
    for a, b in itertools.combinations(sent, 2):
        for sign in (1, -1):  # no two masks are each other's alone: each client has one of its own, too
            left = (sent[a] - own[a]) + np.uint32(sign % 2**32) * (sent[b] - own[b])
            assert 0.45 < np.unpackbits(left.view(np.uint8)).mean() < 0.55
    assert (sum(sent.values()) != sum(own.values())).mean() > 0.99  # type: ignore[attr-defined]
    trained = [unwrap(raw) for what, _, raw in apart.wire.heard if what == "train"]
    assert all(data == b"" and about["loss"] is None for about, data in trained)


def test_equal_updates_are_sent_as_vectors_that_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = sites()
    for site in apart.loop.sites.values():
        sums = site.sums
        assert sums is not None
        monkeypatch.setattr(sums, "vector", lambda update, round, held, s=sums: bytes(4 * s._code().length))
    apart.round(0)
    assert all(not v.any() for v in vectors(apart).values())
    for a, b in itertools.combinations(masked(apart).values(), 2):
        assert (a == b).mean() < 0.01
        assert 0.45 < np.unpackbits((a ^ b).view(np.uint8)).mean() < 0.55


def test_the_coordinator_reads_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of single clients it has nothing to make one of, and takes none that is sent."""

    def none(*_: Any, **__: Any) -> Update:
        raise AssertionError("an update is read")

    apart = sites()
    monkeypatch.setattr(apart.run.simulation.setup.exchange, "read_update", none)
    apart.round(0)
    assert list(apart.run.simulation.setup.spool.folder.iterdir()) == []
    state = SumServer.loaded(files.read(apart.run.simulation.setup.sums))  # type: ignore[arg-type]
    sizes = Counter(len(blob) for blob in state._told["masked"].values())
    assert sizes == {32: 4}, "of masked vectors it keeps digests and the sum"


# what a site answers --------------------------------------------------------------------------------------------------------


def asked(apart: Sites, kind: str, client: str) -> bytes:
    return next(raw for what, c, raw in apart.wire.asked if (what, c) == (kind, client))


@pytest.mark.parametrize("kind", SECAGG)
def test_a_question_that_comes_again_has_the_same_answer_even_after_a_restart(kind: str) -> None:
    apart = sites()
    apart.round(0)
    apart.loop.start()
    told = {c: raw for what, c, raw in apart.wire.heard if what == kind}
    for client, site in apart.loop.sites.items():
        assert answer(site, asked(apart, kind, client)) == told[client]


def again(apart: Sites) -> SumServer:
    """Another sum of the round that is over."""
    state = SumServer.loaded(files.read(apart.run.simulation.setup.sums))  # type: ignore[arg-type]
    return SumServer.begun(state.terms, apart.loop.sites)


def keys_of(apart: Sites, state: SumServer, client: str) -> bytes:
    question = Question.decode(asked(apart, "keys", client))
    return Question("keys", question.round, state.question(client), 0, 0, -1, {}).encode()


def test_who_has_told_its_shares_takes_part_in_no_other_sum_of_the_round() -> None:
    """A second sum over fewer clients would give away the difference."""
    apart = sites()
    apart.round(0)
    with pytest.raises(Refused, match="Round 0 is over: this client takes part in no other sum of it"):
        answer(apart.loop.sites["client-0"], keys_of(apart, again(apart), "client-0"))


def test_another_layout_is_another_turn_and_no_way_to_another_sum() -> None:
    apart = sites()
    apart.round(0)
    site, question = apart.loop.sites["client-0"], Question.decode(asked(apart, "train", "client-0"))
    other = dict(question.layout) | {"shapes": dict(question.layout["shapes"]) | {"z/z": "3 3"}}
    moved = Question("train", question.round, question.data, 0, question.now, question.counted, question.said, other)
    answer(site, moved.encode())
    with pytest.raises(Refused, match="Round 0 is over: this client takes part in no other sum of it"):
        answer(site, keys_of(apart, again(apart), "client-0"))


def test_clients_that_are_told_of_different_layouts_share_no_keys() -> None:
    """A server could else give one client places in the vector where all others have zeros."""
    apart = sites(silent={kind: [f"client-{i}" for i in range(4)] for kind in ("keys",)})
    apart.round(0)
    for client, site in apart.loop.sites.items():
        question = Question.decode(asked(apart, "train", client))
        more = {"z/z": "3 3"} if client == "client-0" else {}
        layout = dict(question.layout) | {"shapes": dict(question.layout["shapes"]) | more}
        answer(
            site,
            Question("train", question.round, question.data, 0, question.now, question.counted, question.said, layout).encode(),
        )
    runs = {}
    for client, site in apart.loop.sites.items():
        assert site.sums is not None
        assert site.sums.layout is not None
        runs[client] = site.sums.layout.digest
    assert len(set(runs.values())) == 2
    state = again(apart)
    with pytest.raises(Refused, match="belongs to another sum"):
        answer(apart.loop.sites["client-0"], keys_of(apart, state, "client-0"))
    answer(apart.loop.sites["client-1"], keys_of(apart, state, "client-1"))


def test_a_sum_over_what_was_not_trained_is_refused() -> None:
    apart = sites()
    apart.round(0)
    question = Question.decode(asked(apart, "keys", "client-0"))
    with pytest.raises(Refused, match="a sum over what this site has not trained"):
        answer(apart.loop.sites["client-0"], Question("keys", Round(1), question.data, 0, 0, -1, {}).encode())
    plain = sites(text="none")
    plain.round(0)
    with pytest.raises(Refused, match="a sum over what this site has not trained"):
        answer(plain.loop.sites["client-0"], asked(apart, "keys", "client-0"))
    with pytest.raises(Refused, match="asks for a sum, which this run has none of"):
        answer(plain.loop.sites["client-0"], asked(apart, "train", "client-0"))
    with pytest.raises(Refused, match="The coordinator tells nothing of the sum that the update goes into"):
        answer(apart.loop.sites["client-0"], asked(plain, "train", "client-0"))


# a coordinator or a site that is killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", *SECAGG, "test"])
@pytest.mark.parametrize("text", ["secagg:least=2", "dp-fedavg:noise=1,clip=1+secagg:least=2"])
def test_a_coordinator_that_stops_in_a_question_goes_on_with_the_same_sum(
    kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    about: dict[str, Any] = {"privacy": text, "insecure_noise": True, "delta": 1e-2}
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
    assert sorted(cut.trained) == sorted(whole.trained) == [(c.id, t) for c in cut.material.clients for t in range(3)]


@pytest.mark.parametrize("kind", SECAGG)
def test_a_site_that_dies_before_its_answer_is_saved_answers_after_its_restart(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = sites()
    died: list[str] = []

    def point(operation: str, path: Path) -> None:
        if operation == "rename" and path.name == "sum.bin" and "client-1" in str(path) and len(passed) == SECAGG.index(kind):
            died.append(kind)
            raise Killed
        if operation == "rename" and path.name == "sum.bin" and "client-1" in str(path):
            passed.append(kind)

    passed: list[str] = []
    ask = apart.wire.ask

    def twice(questions: Any) -> Any:
        try:
            return ask(questions)
        except Killed:
            monkeypatch.setattr(files, "point", lambda *_: None)
            apart.loop.start()
            return ask(questions)

    monkeypatch.setattr(files, "point", point)
    monkeypatch.setattr(apart.wire, "ask", twice)
    apart.round(0)
    assert died == [kind]
    want = here(small("fedit"), "secagg")
    want.simulation.round(0)
    assert equal(server_state(want), server_state(apart.run), 0)


def test_a_state_of_another_round_is_no_sum_of_this_one() -> None:
    apart = sites()
    apart.round(0)
    apart.round(1)
    turns = apart.run.simulation.turns
    assert isinstance(turns.sums, RemoteSums)  # type: ignore[attr-defined]
    state = SumServer.loaded(files.read(apart.run.simulation.setup.sums))  # type: ignore[arg-type]
    assert state.terms.round == 1
    assert {SumClient.loaded(files.read(s.folder / "sum.bin")).terms.round for s in apart.loop.sites.values()} == {1}
