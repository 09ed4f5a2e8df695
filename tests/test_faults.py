"""What goes wrong between a coordinator and its sites, each time with what people are told and what becomes of the numbers.

The measure is a run in which the one who fails is silent in that round: the coordinator holds the same to the last bit.
"""

from __future__ import annotations

import copy
import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from every_method import small
from toy_runs import Killed, Told
from weft.engines.remote import Question, Remote
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a flush guards against is not what is injected here


# rounds -----------------------------------------------------------------------------------------------------------------


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


@functools.cache
def played(slug: str, rounds: int, **script: str) -> Played:
    return Played(slug, {int(t[1:]): do for t, do in script.items()}, rounds)


@pytest.mark.parametrize("slug", PATHS)
def test_a_site_killed_in_its_turn_leaves_the_round_to_the_others_and_is_back_with_what_it_remembers(slug: str) -> None:
    shaken = Played(slug, {1: "killed", 2: "killed"}, 4)
    shaken.assert_same(played(slug, 4, t1="silent", t2="silent"))
    assert shaken.sentences == [[], [SILENT.format(2)], [SILENT.format(3)], []]
    shaken.assert_caught_up()


@pytest.mark.parametrize("slug", PATHS)
def test_late_repeated_and_borrowed_answers_count_for_nothing_and_their_senders_go_on(slug: str) -> None:
    shaken = Played(slug, {1: "late", 3: "other", 4: "replay"}, 6)
    shaken.assert_same(played(slug, 6, t1="lost", t2="lost", t3="lost", t4="lost"))
    refused = f"update of {BAD} refused: "
    assert shaken.sentences == [
        [],
        [SILENT.format(2)],
        [refused + 'The message is for round "1"; expected is "2".'],
        [refused + f'The message is for client "{OTHER}"; expected is "{BAD}".'],
        [refused + 'The message is for round "0"; expected is "4".'],
        [],
    ]
    shaken.assert_caught_up()


@pytest.mark.parametrize("slug", ["flora", "fedsa-lora"])
def test_a_site_that_joins_late_begins_with_all_that_the_others_have_learnt(slug: str) -> None:
    late = Played(slug, {}, 4, joins=2)
    for mine, theirs in zip(late.states, played(slug, 4, t0="silent", t1="silent").states, strict=True):
        assert_equal(mine, theirs)
    assert late.sentences == [[], [], [f"{BAD} joins in round 3."], []]
    late.assert_caught_up()


# disks --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", PATHS)
def test_a_site_whose_disk_is_full_has_not_had_its_turn_and_goes_on_once_there_is_space(slug: str) -> None:
    shaken = Played(slug, {1: "full"}, 3)
    shaken.assert_same(played(slug, 3, t1="silent"))
    assert shaken.sentences == [[], [SILENT.format(2)], []]
    (error,) = shaken.transport.errors
    assert str(shaken.loop.root / BAD) in error
    assert "the disk is full; what was saved before is intact" in error
    assert "\n" not in error
    shaken.assert_caught_up()


def asked(slug: str) -> tuple[Loopback, list[bytes], list[bytes]]:
    """Sites before their first round, and the questions that one of them is asked, with its honest answers."""
    run, loop = remote(small(slug), rounds=3, sizes=SIZES)
    questions, answers = [], []
    ask = loop.ask

    def note(some: Mapping[str, bytes]) -> Mapping[str, bytes]:
        found = ask(some)
        questions.append(some[BAD])
        answers.append(found[BAD])
        return found

    loop.ask = note  # type: ignore[method-assign]
    run.run(3)
    loop.ask = ask  # type: ignore[method-assign]
    shutil.rmtree(loop.root / BAD)
    loop.start()
    return loop, questions, answers


def test_a_disk_that_fills_up_anywhere_in_a_turn_leaves_the_turn_before_or_after_it() -> None:
    """And never half of it: asked once more, the site says what it would have said, and trains nothing twice."""
    loop, questions, answers = asked("fedsa-lora")
    folder = loop.root / BAD
    assert loop.ask({BAD: questions[0]}) == {BAD: answers[0]}
    before = loop.root / "before"
    shutil.copytree(folder, before)
    number, again = 0, True
    while again:
        number += 1
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        loop.start()
        with pytest.MonkeyPatch.context() as patch:
            passed = full_at(patch, number)
            said = ""
            try:
                assert loop.ask({BAD: questions[1]}) == {BAD: answers[1]}
            except UserError as e:
                said = str(e)
        again = "the disk is full" in said
        assert bool(said) == again
        if number % 2:
            loop.start()  # whether the process has ended or not
        assert loop.ask({BAD: questions[1]}) == {BAD: answers[1]}, passed[-1]
        assert loop.ask({BAD: questions[2]}) == {BAD: answers[2]}, passed[-1]
        site = loop.sites[BAD]
        site.store.load(site.client)
        assert site.client.rounds_seen == 3
    assert {p.split()[0] for p in passed} == {"write", "fsync", "rename", "remove"}
    assert number == len(passed) + 1 > 10


def full_at(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """The disk is full at the ``number``-th point, and only there. Returns the points passed, as they come."""
    passed: list[str] = []

    def point(operation: str, path: Path) -> None:
        passed.append(f"{operation} {path.name}")
        if len(passed) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    patch.setattr(files, "point", point)
    return passed


# folders that somebody has written to -------------------------------------------------------------------------------------


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def places(path: Path, count: int) -> Iterator[int]:
    """Some of its bytes from the first to the last."""
    size = path.stat().st_size
    yield from sorted({*range(0, size, max(size // count, 1)), size - 1})


@pytest.mark.parametrize("slug", ["flora", "fedsa-lora", "rolora"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_site_whose_copy_was_changed_gets_everything_anew(slug: str, harm: str) -> None:
    steady = played(slug, 3)
    run, loop = remote(small(slug), rounds=3, sizes=SIZES)
    told = Told()
    run.simulation.setup.observer = told
    for t in range(3):
        run.simulation.round(t)
        assert_equal(held(run.server), steady.states[t])
        assert told.sentences == ([ANEW] if t == 2 else [])
        if t == 1:
            (path,) = (loop.root / BAD).glob("copy-*")
            if harm == "remove":
                path.unlink()
            elif harm == "cut":
                path.write_bytes(path.read_bytes()[:-9])
            else:
                flipped(path, path.stat().st_size - 9)
            loop.start()
    assert_equal((kept(loop), {}), (kept(steady.loop), {}))


def test_a_changed_byte_in_what_a_site_has_saved_is_one_sentence_and_never_another_number() -> None:
    loop, questions, answers = asked("fedsa-lora")
    folder = loop.root / BAD
    assert loop.ask({BAD: questions[0]}) == {BAD: answers[0]}
    (reply,), (memory,), state = folder.glob("reply-*"), (folder / "clients").iterdir(), folder / "site.json"
    # (file, where a byte is changed, what then asks for it)
    checks: list[tuple[Path, int, Callable[[], object]]] = [
        (reply, 20, lambda: loop.ask({BAD: questions[0]})),
        (memory, 20, lambda: loop.ask({BAD: questions[1]})),
        (state, 60, loop.start),
    ]
    for path, count, use in checks:
        whole = path.read_bytes()
        for at in places(path, count):
            flipped(path, at)
            with pytest.raises(UserError) as refusal:
                use()
            says = str(refusal.value)
            assert says.startswith(f"{path} ")
            assert "damaged" in says or "has format" in says
            assert says.isprintable()
            path.write_bytes(whole)
        path.unlink()
        if path != state:  # without it there is no memory at all, which the coordinator is told
            with pytest.raises(UserError, match="missing or damaged: put a copy of that folder back, or remove the folder"):
                use()
        path.write_bytes(whole)
    assert loop.ask({BAD: questions[0]}) == {BAD: answers[0]}  # nothing of all this was kept
    assert loop.ask({BAD: questions[1]}) == {BAD: answers[1]}


def test_a_site_whose_memory_was_changed_is_left_out_and_joins_anew_without_its_folder() -> None:
    shaken = Played("fedsa-lora", {}, 4, until=2)
    (memory,) = (shaken.loop.root / BAD / "clients").iterdir()
    flipped(memory, memory.stat().st_size - 3)
    shaken.round(2)
    assert_equal(shaken.states[2], played("fedsa-lora", 4, t2="silent").states[2])
    assert shaken.sentences[2] == [SILENT.format(3)]
    assert str(memory) in shaken.transport.errors[0]
    shutil.rmtree(shaken.loop.root / BAD)
    shaken.loop.start()
    shaken.round(3)
    assert shaken.sentences[3] == []
    shaken.assert_caught_up()
