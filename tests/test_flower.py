"""Bytes go over a Flower grid and a site's socket unchanged, and whoever is late or says nonsense is left out."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from weft.communication.strict import Refused
from weft.engines.flower import FlowerTransport, data_of, record
from weft.engines.worker import Worker, forward


class Grid:
    """Flower's, in this process: a node is a function, and None as its reply is silence."""

    def __init__(self, nodes: dict[int, Callable[[bytes], RecordDict | None]]):
        self.nodes, self.replies = nodes, {}  # type: ignore[var-annotated]

    def push_messages(self, messages: list[Message]) -> list[str]:
        ids = []
        for m in messages:
            ids.append(f"m{len(self.replies)}")
            m.metadata.__dict__["_message_id"] = ids[-1]
            content = self.nodes[m.metadata.dst_node_id](data_of(m) or b"")
            self.replies[ids[-1]] = None if content is None else Message(content, reply_to=m)
        return ids

    def pull_messages(self, ids: list[str]) -> list[Message]:
        return [self.replies[i] for i in reversed(ids) if self.replies[i] is not None]


def test_answers_come_back_by_client_and_who_is_silent_or_talks_nonsense_is_missing() -> None:
    def nonsense(_: bytes) -> RecordDict:
        return RecordDict({"weft": ConfigRecord({"data": "text"})})

    grid: Any = Grid({1: lambda d: record(d + b"1"), 2: lambda d: None, 3: nonsense, 4: lambda d: record(d + b"4")})
    transport = FlowerTransport(grid, {"a": 1, "b": 2, "c": 3, "d": 4}, deadline=0.05, poll=0.01)
    assert transport.ask({"a": b"A", "b": b"B", "c": b"C", "d": b"D", "stranger": b"E"}) == {"a": b"A1", "d": b"D4"}
    assert transport.ask({}) == {}


@contextmanager
def serving(answer: Callable[[bytes], bytes], times: int) -> Iterator[Worker]:
    with TemporaryDirectory() as root:
        worker = Worker(Path(root) / "w", answer, limit=1000)
        thread = threading.Thread(target=lambda: [worker.serve_one() for _ in range(times)], daemon=True)
        thread.start()
        yield worker
        thread.join(5)
        assert not thread.is_alive()
        worker.close()
        assert not worker.path.exists()


def test_a_worker_answers_its_owner_alone() -> None:
    with serving(lambda q: q[::-1], 1) as worker:
        assert forward(worker.path, b"abc", 1000, 5) == b"cba"
        assert stat.S_IMODE(worker.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(worker.path.parent.stat().st_mode) == 0o700


def test_a_worker_outlives_a_refusal_and_those_who_break_off_or_say_too_much() -> None:
    def answer(question: bytes) -> bytes:
        if question == b"no":
            raise Refused("Not this.")
        return question

    with serving(answer, 4) as worker:
        with pytest.raises(Refused, match="Not this"):
            forward(worker.path, b"no", 1000, 5)
        for bad in (b"\x00" + (1001).to_bytes(8, "little"), b"\x00\x05"):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(worker.path))
                peer.sendall(bad)
        assert forward(worker.path, b"yes", 1000, 5) == b"yes"
