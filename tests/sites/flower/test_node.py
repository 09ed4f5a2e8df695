"""A site that waits for its coordinator: what it says, and that it starts no process in vain. Needs the extra ``flower``."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft.errors import UserError
from weft.sites import keys
from weft.sites.flower import node, proof
from weft.sites.flower.gate import KNOWN
from weft.sites.flower.node import Node


class Over(Exception):
    """The end of a site that would go on for ever."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it slept."""
    found = list[float]()
    monkeypatch.setattr(node.time, "sleep", found.append)
    return found


def following(
    monkeypatch: pytest.MonkeyPatch, refusals: list[str], lives: Callable[[], tuple[str, bool]] = lambda: ("", False)
) -> tuple[list[str], int]:
    """What a site says to a coordinator that answers so, and how many SuperNodes it starts."""
    said, left, started = list[str](), iter(refusals), list[int]()

    def refused(_: Node) -> str:
        if (reason := next(left, None)) is None:
            raise Over
        return reason

    def live(*_: object) -> tuple[str, bool]:
        started.append(1)
        return lives()

    monkeypatch.setattr(Node, "refused", refused)
    monkeypatch.setattr(Node, "_live", live)
    with pytest.raises(Over):
        Node(Path("nowhere"), "fl.example.org:9393", None, None).serve(lambda raw: raw, said.append)
    return said, len(started)


def test_a_site_whose_coordinator_is_away_starts_no_process_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    said, started = following(monkeypatch, ["nobody listens"] * 20 + ["the line is dead"])
    assert said == [
        f"no connection to fl.example.org:9393: {why}; trying again." for why in ("nobody listens", "the line is dead")
    ]
    assert started == 0
    assert pauses[0] <= 1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 15


def test_a_coordinator_that_is_about_to_begin_is_waited_for_without_a_word(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    assert following(monkeypatch, [node.STARTING] * 3 + [""]) == ([], 1)


def test_a_supernode_that_fails_again_and_again_is_started_more_and_more_rarely(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    said, started = following(monkeypatch, [""] * 40, lambda: ("it is broken", False))
    assert said == ["no connection to fl.example.org:9393: it is broken; trying again."]
    assert (started, pauses[-1]) == (20, 15)


def test_one_that_brought_messages_is_started_again_at_once_and_what_is_amiss_is_said_anew(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    said, started = following(monkeypatch, ["", "gone"] * 3, lambda: ("it has ended", True))
    assert said == ["no connection to fl.example.org:9393: gone; trying again."] * 3
    assert (started, set(pauses)) == (3, {1.0})


@pytest.fixture
def coordinator() -> Iterator[tuple[str, list[tuple[int, str]], list[dict[str, str]]]]:
    """Address of a server that answers what it is told, and the headers that it got."""
    answers, got = list[tuple[int, str]](), list[dict[str, str]]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == KNOWN
            got.append({n.lower(): v for n, v in self.headers.items()})
            status, text = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", answers, got
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (200, "", ""),
        (404, "", ""),  # a SuperLink of Flower's own, without a gate
        (503, "", node.STARTING),
        (401, "unknown", "the coordinator does not know this site's key, or not yet"),
        (401, "clock", "the clock of this machine and that of the coordinator differ by minutes: set them right"),
        (500, "", "it answers 500"),
    ],
)
def test_a_coordinators_answer_is_told_in_a_sentence(
    status: int,
    text: str,
    reason: str,
    coordinator: tuple[str, list[tuple[int, str]], list[dict[str, str]]],
    tmp_path: Path,
) -> None:
    address, answers, got = coordinator
    answers.append((status, text))
    pair = keys.site(tmp_path / "keys", "north")
    assert Node(tmp_path, address, None, pair.private).refused() == reason
    given = {name.encode(): [value.encode()] for name, value in got[0].items()}
    assert proof.judge(given, proof.read([proof.of_file(pair.public)])) is proof.Verdict.KNOWN


def test_a_key_or_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    made = keys.coordinator(tmp_path / "keys", ["localhost"])
    other = tmp_path / "north.key"
    other.write_text("nothing")
    for path in (other, made.key):
        with pytest.raises(UserError, match=rf"{path.name} holds no private key of a site"):
            Node(tmp_path, "127.0.0.1:1", made.ca, path).refused()
    with pytest.raises(UserError, match=r"ca\.pem holds no certificate"):
        Node(tmp_path, "127.0.0.1:1", other, None).refused()
