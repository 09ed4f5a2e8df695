"""Answers over Flower's grid, each as soon as it is whole. Needs the extra ``flower``; nothing here is another process."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from patience import patience
from weft.sites.flower import environment, tasks  # first: it silences Flower
from weft.sites.flower import grid as module
from weft.sites.flower.grid import Grid

environment.ready()

from flwr.app import Message  # noqa: E402
from flwr.common.serde import message_to_proto  # noqa: E402
from flwr.proto.message_pb2 import PullObjectResponse  # noqa: E402
from flwr.proto.runtime_pb2 import PullAppMessagesResponse  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from flwr.superlink.grid import HttpGrid  # noqa: E402

pytestmark = pytest.mark.processes


class SuperLink:
    """What Flower's grid asks of a SuperLink, in this process: a site's answer is announced first, and uploaded later."""

    def __init__(self) -> None:
        self.announced: dict[str, Message] = {}
        self.uploaded: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.confirmed: list[str] = []

    def announce(self, ticket: str, data: bytes, upload: bool = True) -> Message:
        question = Message(tasks.record(b"?"), 1, "query")
        question.metadata.__dict__["_message_id"] = ticket
        answer = Message(tasks.record(data), reply_to=question)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        self.announced[ticket] = answer
        if upload:
            self.upload(ticket)
        return answer

    def upload(self, ticket: str) -> None:
        for name, part in get_all_nested_objects(self.announced[ticket]).items():
            self.uploaded[name] = part.deflate()

    # Flower's own words

    def PullMessages(self, request: Any) -> Any:
        there = [self.announced[t] for t in request.message_ids if t in self.announced]
        messages = []
        for answer in there:
            bare = message_to_proto(answer)
            bare.ClearField("content")
            messages.append(bare)
        return PullAppMessagesResponse(messages_list=messages, message_object_trees=[get_object_tree(a) for a in there])

    def PullObject(self, request: Any) -> Any:
        if request.object_id in self.broken:
            raise ConnectionError("the line is dead")
        content = self.uploaded.get(request.object_id)
        return PullObjectResponse(object_found=True, object_available=content is not None, object_content=content or b"")

    def ConfirmMessageReceived(self, request: Any) -> Any:
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(link: SuperLink, monkeypatch: pytest.MonkeyPatch) -> Grid:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    found = HttpGrid("nowhere:1", insecure=True, token="t")
    found._client = link  # type: ignore[assignment]
    found._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]
    return Grid(found)


def until(grid: Grid, tickets: list[str], number: int) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    end = time.monotonic() + patience(20)
    while len(found) < number:
        assert time.monotonic() < end
        found |= grid.fetch([t for t in tickets if t not in found])
    return found


def test_nothing_has_come(grid: Grid) -> None:
    assert grid.fetch([]) == {}
    assert grid.fetch(["a", "b"]) == {}


def test_an_answer_that_is_there_comes_at_once(grid: Grid, link: SuperLink) -> None:
    answer = link.announce("a", b"yes")
    assert until(grid, ["a", "b"], 1) == {"a": b"yes"}
    assert link.confirmed == [answer.object_id]
    assert grid.arriving == {}


def test_a_site_that_is_slow_to_upload_holds_nobody_up(grid: Grid, link: SuperLink) -> None:
    link.announce("slow", b"at last", upload=False)
    link.announce("quick", b"here")
    began = time.monotonic()
    assert until(grid, ["slow", "quick"], 1) == {"quick": b"here"}
    assert grid.fetch(["slow"]) == {}
    assert time.monotonic() - began < min(
        patience(10), 170
    )  # Flower itself would wait until its session has expired, after 180 s
    link.upload("slow")
    assert until(grid, ["slow"], 1) == {"slow": b"at last"}


def test_an_answer_is_taken_in_once_however_often_one_looks(grid: Grid, link: SuperLink) -> None:
    link.announce("slow", b"at last", upload=False)
    threads = threading.active_count()
    for _ in range(5):
        grid.fetch(["slow"])
    assert len(grid.arriving) == 1
    grown = threading.active_count() - threads
    grid.fetch(["slow"])
    assert threading.active_count() - threads <= grown
    link.upload("slow")
    until(grid, ["slow"], 1)
    assert len(link.confirmed) == 1


def test_a_line_that_breaks_is_a_site_that_failed(grid: Grid, link: SuperLink) -> None:
    answer = link.announce("a", b"never")
    link.broken.add(answer.object_id)
    assert until(grid, ["a"], 1) == {"a": None}


def test_what_is_no_answer_of_ours_is_a_site_that_failed(grid: Grid, link: SuperLink) -> None:
    answer = link.announce("a", b"good")
    link.uploaded[answer.object_id] = b"no object of Flower's"
    assert until(grid, ["a"], 1) == {"a": None}


def test_late_answers_are_dropped_when_the_next_questions_go_out(
    grid: Grid, link: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid.grid, "push_messages", lambda messages: [f"ticket {m.metadata.dst_node_id}" for m in messages])
    late = grid.post({"1": b"?"}, deadline=1.0)
    (ticket,) = late
    link.announce(ticket, b"late", upload=False)
    assert grid.fetch([ticket]) == {}
    assert ticket in grid.arriving
    time.sleep(1.0)
    grid.post({"2": b"?"}, deadline=60.0)
    assert ticket not in grid.arriving
    link.upload(ticket)


class Two:
    """A SuperLink that is lost, and the one that is begun in its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links, self.reasons = [SuperLink(), SuperLink()], list[str]()
        self.amiss, self.lost, self.sent = "", False, list[tuple[int, int, bytes | None]]()
        for name in ("_run_id", "_task_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 1)

    def flower(self, which: int) -> Any:
        """The grid of the first or the second: sites get other numbers in each."""
        found = HttpGrid("nowhere:1", insecure=True, token="t")
        found._client = self.links[which]  # type: ignore[assignment]
        found._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]

        def nodes() -> list[Any]:
            if self.lost and which == 0:
                raise httpx.ConnectError("nobody listens")
            known = [SimpleNamespace(node_id=10 * which + i, public_key=f"key {i}".encode(), name="liar") for i in range(3)]
            return [] if self.empty and which == 1 else known

        def push(messages: list[Message]) -> list[str]:
            if which == 0 and self.breaks is not None:
                raise self.breaks
            self.sent += [(which, m.metadata.dst_node_id, tasks.data_of(m)) for m in messages]
            return [f"{which}: message to {m.metadata.dst_node_id}" for m in messages]

        found.get_nodes, found.push_messages = nodes, push  # type: ignore[method-assign]
        return found

    empty = False
    breaks: Exception | None = None  # while a question goes out

    def grid(self, keys: bool = True) -> Grid:
        def anew(why: str) -> Any:
            self.reasons.append(why)
            self.amiss = ""
            return self.flower(1)

        def who(number: int, key: bytes) -> str | None:
            return {b"key 0": "north", b"key 1": "south"}.get(key)

        return Grid(self.flower(0), who if keys else None, lambda: self.amiss, anew)


def test_only_who_is_known_by_its_key_is_there_whatever_name_flower_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(Two(monkeypatch).grid().present().values(), key=str) == ["north", "south"]
    assert Two(monkeypatch).grid(keys=False).present() == {"0": None, "1": None, "2": None}


@pytest.mark.parametrize("how", ["lost", "tampered with"])
def test_what_a_lost_superlink_owes_is_asked_again_of_the_same_sites_in_another(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETURN", 0.0)
    two = Two(monkeypatch)
    grid = two.grid()
    (north,) = (a for a, name in grid.present().items() if name == "north")
    (ticket,) = grid.post({north: b"?"}, 60.0)
    assert two.sent == [(0, 0, b"?")]
    two.lost, two.amiss, two.empty = how == "lost", "" if how == "lost" else "its run was stopped", True
    assert grid.present() == {}
    assert two.reasons == ["nobody listens" if how == "lost" else "its run was stopped"]
    assert grid.fetch([ticket]) == {}  # the site has not come yet
    two.empty = False
    assert grid.fetch([ticket]) == {}
    assert two.sent[1:] == [(1, 10, b"?")]
    assert north in grid.present()  # under the same address
    two.links[1].announce("1: message to 10", b"yes")
    assert until(grid, [ticket], 1) == {ticket: b"yes"}
    assert len(two.sent) == 2
    assert len(two.reasons) == 1


@pytest.mark.parametrize(
    "breaks", [tasks.ObjectPushError("object", 1, "session"), tasks.RunNotRunningException(), httpx.ReadError("the line is dead")]
)
def test_a_question_that_breaks_off_on_its_way_goes_out_in_another_superlink(
    breaks: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Two(monkeypatch)
    grid = two.grid()
    (north,) = (a for a, name in grid.present().items() if name == "north")
    two.breaks = breaks
    (ticket,) = grid.post({north: b"?"}, 60.0)
    assert len(two.reasons) == 1
    assert two.sent == []
    assert grid.fetch([ticket]) == {}
    assert two.sent == [(1, 10, b"?")]


def test_sites_that_were_there_when_a_superlink_was_lost_count_as_there_while_they_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    two = Two(monkeypatch)
    grid = two.grid()
    before = grid.present()
    two.lost = two.empty = True
    assert grid.present() == before
    (ticket,) = grid.post(dict.fromkeys([*before][:1], b"?"), 1000.0)
    assert two.sent == []  # it waits for the site
    clock[0] += module.RETURN + 1
    assert grid.present() == {}
    two.empty = False
    assert grid.present() == before
    grid.fetch([ticket])
    assert two.sent == [(1, 10, b"?")]


def test_an_answer_that_had_come_before_the_superlink_was_lost_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(monkeypatch)
    grid = two.grid()
    address = next(iter(grid.present()))
    (ticket,) = grid.post({address: b"?"}, 60.0)
    two.links[0].announce("0: message to 0", b"yes")
    for arriving in grid._announced([ticket]):
        assert arriving.done.wait(patience(20))
    two.amiss = "its run was stopped"
    assert until(grid, [ticket], 1) == {ticket: b"yes"}
    assert len(two.sent) == 1


def test_a_site_without_a_key_has_failed_when_the_superlink_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(monkeypatch)
    grid = two.grid(keys=False)
    (ticket,) = grid.post({"1": b"?"}, 60.0)
    two.amiss = "its run was stopped"
    assert grid.fetch([ticket]) == {ticket: None}
    assert len(two.sent) == 1


def test_without_another_superlink_an_error_of_flower_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(monkeypatch)
    two.lost = True
    with pytest.raises(httpx.ConnectError):
        Grid(two.flower(0)).present()
