"""What goes wrong between a coordinator and its sites, each time with what people are told and what becomes of the numbers.

The measure is a run in which the one who fails is silent in that round: the coordinator holds the same to the last bit.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from every_method import small
from site_faults import ANEW, BAD, OTHER, PATHS, SILENT, SIZES, Played, assert_equal, held
from toy_runs import Told
from weft.errors import UserError
from weft.storage import files
from weft.testing.sites import Loopback, kept, remote


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a flush guards against is not what is injected here


# rounds -----------------------------------------------------------------------------------------------------------------


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
