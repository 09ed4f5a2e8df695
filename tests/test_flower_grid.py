"""Answers over Flower's grid, each as soon as it is whole. Needs the extra ``flower``; nothing here is another process."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from weft.engines.flower import environment, tasks  # first: it silences Flower
from weft.engines.flower.grid import Grid

environment.ready()

from flwr.app import Message  # noqa: E402
from flwr.common.serde import message_to_proto  # noqa: E402
from flwr.proto.message_pb2 import PullObjectResponse  # noqa: E402
from flwr.proto.runtime_pb2 import PullAppMessagesResponse  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from flwr.superlink.grid import HttpGrid  # noqa: E402


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
    end = time.monotonic() + 20
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
    assert time.monotonic() - began < 10  # Flower itself would wait until its session has expired, after 180 s
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
    late = grid.post({"1": b"?"}, deadline=0.0)
    (ticket,) = late
    link.announce(ticket, b"late", upload=False)
    assert grid.fetch([ticket]) == {}
    assert ticket in grid.arriving
    grid.post({"2": b"?"}, deadline=60.0)
    assert ticket not in grid.arriving
    link.upload(ticket)
