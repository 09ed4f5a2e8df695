"""Carries questions and answers over a Flower grid; needs the extra ``flower``."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

RECORD, DATA = "weft", "data"


class FlowerTransport:
    """A :class:`weft.engines.remote.Transport`.

    Args:
        nodes: Flower's node ids by client id. deadline: seconds that a turn may take. poll: seconds between two looks.
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, int], deadline: float, poll: float = 0.1):
        self.grid, self.nodes, self.deadline, self.poll = grid, dict(nodes), deadline, poll

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Answers by client id; who is late, unknown, failed or said something else is missing."""
        asked = [c for c in questions if c in self.nodes]
        if not asked:
            return {}
        end = time.monotonic() + self.deadline
        sent = self.grid.push_messages([self._message(c, questions[c]) for c in asked])
        waiting = {i: c for i, c in zip(sent, asked, strict=True) if i}
        found: dict[str, bytes] = {}
        while waiting:
            for reply in self.grid.pull_messages(list(waiting)):
                client = waiting.pop(reply.metadata.reply_to_message_id, None)
                if client is not None and (data := data_of(reply)) is not None:
                    found[client] = data
            if not waiting or time.monotonic() >= end:
                break
            time.sleep(self.poll)
        return found

    def _message(self, client: str, data: bytes) -> Message:
        return Message(record(data), self.nodes[client], "query", ttl=self.deadline)


def record(data: bytes) -> RecordDict:
    """Bytes as Flower's content."""
    return RecordDict({RECORD: ConfigRecord({DATA: data})})


def data_of(message: Message) -> bytes | None:
    """The bytes in a message, None if it holds none."""
    if not message.has_content():
        return None
    found = message.content.get(RECORD)
    data = found.get(DATA) if isinstance(found, ConfigRecord) else None
    return data if isinstance(data, bytes) else None
