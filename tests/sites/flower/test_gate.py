"""The gate before Flower's servers, in this process: what passes, what does not, and how long it waits. Needs ``flower``."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node

from patience import patience, until
from weft.sites import keys
from weft.sites.flower import gate, proof
from weft.sites.flower.gate import ADMIT, FLEET, KNOWN, PUSH, REPLY, SECRET, SITE, Gate, Patient, word

pytestmark = pytest.mark.processes

SECRET_OF_OURS = b"a secret of ours"
OURS = {SECRET: word(SECRET_OF_OURS)}
LARGEST = 200_000
OTHERS = ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/health", "/", f"{FLEET}register-node")


class Flower:
    """An app that writes down what reaches it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                event = await receive()
                await send({"type": f"{event['type']}.complete"})
                if event["type"] == "lifespan.shutdown":
                    return
        size = 0
        while (event := await receive())["type"] == "http.request":
            size += len(event["body"])
            if not event.get("more_body"):
                break
        self.seen.append((scope["method"], scope["path"]))
        self.headers.append(dict(scope["headers"]) | {b"query": scope["query_string"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})


class Server:
    """Flower's app behind a gate and uvicorn."""

    def __init__(self, calls: frozenset[str], keys_: bool):
        self.flower = Flower()
        self.gate = Gate(self.flower, SECRET_OF_OURS, calls, keys_, LARGEST)
        config = uvicorn.Config(
            self.gate, host="127.0.0.1", port=0, http=Patient, ws="none", proxy_headers=False, log_level="critical"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=patience(60), **more)

    def raw(self, data: bytes, seconds: float | None = None) -> bytes:
        """What comes back for bytes, until the other end hangs up or has said nothing for a while."""
        found = b""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=seconds or patience(60)) as line,
            contextlib.suppress(OSError),
        ):
            line.sendall(data)
            while part := line.recv(1 << 16):
                found += part
        return found


@contextlib.contextmanager
def serving(calls: frozenset[str] = SITE | {KNOWN}, keys_: bool = True) -> Iterator[Server]:
    made = Server(calls, keys_)
    made.thread.start()
    until(lambda: made.server.started, pause=0.01)
    try:
        yield made
    finally:
        made.server.should_exit = made.server.force_exit = True
        made.thread.join(patience(60))


def key(where: Path, name: str) -> EllipticCurvePrivateKey:
    return proof.private(keys.site(where / name, name).private)


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> EllipticCurvePrivateKey:
    return key(tmp_path_factory.mktemp("keys"), "north")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> EllipticCurvePrivateKey:
    return key(tmp_path_factory.mktemp("keys"), "stranger")


def public(one: EllipticCurvePrivateKey) -> str:
    return proof.public_key_to_bytes(one.public_key()).decode()


@pytest.fixture
def server(north: EllipticCurvePrivateKey) -> Iterator[Server]:
    """With north's key let in."""
    with serving() as found:
        with found.client(headers=OURS) as ours:
            assert ours.post(ADMIT, json=[public(north)]).status_code == 200
        yield found


def test_whoever_has_the_secret_reaches_everything_and_the_app_never_sees_it(server: Server) -> None:
    with server.client(headers=OURS) as ours:
        for path in (*OTHERS, *SITE):
            assert ours.post(path).status_code == 200
        assert ours.get("/docs").status_code == 200
    assert {path for _, path in server.flower.seen} == {*OTHERS, *SITE}
    assert not any(SECRET.encode() in headers for headers in server.flower.headers)


@pytest.mark.parametrize("secret", ["", "wrong", word(b"another"), SECRET_OF_OURS.decode(), word(SECRET_OF_OURS)[:-1]])
def test_another_secret_is_none(secret: str, server: Server) -> None:
    with server.client(headers={SECRET: secret}) as somebody:
        assert {somebody.post(path).status_code for path in (*OTHERS, ADMIT)} == {404}
        assert somebody.post(PUSH).status_code == 401
    with server.client(headers=[(SECRET, word(SECRET_OF_OURS)), (SECRET, secret)]) as twice:
        assert twice.post(ADMIT).status_code == 404
    assert server.flower.seen == []


def test_a_site_with_a_known_key_makes_a_sites_calls_and_no_others(server: Server, north: EllipticCurvePrivateKey) -> None:
    with server.client() as site:
        for path in sorted(SITE):
            body = reply() if path == REPLY else b"12345"
            assert site.post(path, content=body, headers=proof.headers(north)).text == str(len(body))
        for path in (*OTHERS, ADMIT):
            assert site.post(path, headers=proof.headers(north)).status_code == 404
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
            assert site.request(method, PUSH, headers=proof.headers(north)).status_code == 404
        assert site.post(KNOWN, headers=proof.headers(north)).status_code == 200
    assert sorted(server.flower.seen) == [("POST", path) for path in sorted(SITE)]


def reply(**changes: Any) -> bytes:
    """An answer of site 7, or something like it."""
    about = {"reply_to_message_id": "question", "src_node_id": 7, "dst_node_id": 1} | changes
    return bytes(
        PushMessagesRequest(node=Node(node_id=7), messages_list=[Message(metadata=Metadata(**about))]).SerializeToString()
    )


def test_a_site_can_answer_but_neither_ask_another_in_the_coordinators_name_nor_answer_for_it(
    server: Server, north: EllipticCurvePrivateKey
) -> None:
    bad = {
        "a question of the coordinator's": reply(src_node_id=1, dst_node_id=8, reply_to_message_id=""),
        "a question of its own": reply(dst_node_id=8, reply_to_message_id=""),
        "another's answer": reply(src_node_id=8),
        "one of each": reply() + reply(src_node_id=8),  # as Flower reads it, the messages of both
        "nothing": b"",
        "no message": b"\xff\xff",
    }
    with server.client() as site:
        for kind, body in bad.items():
            assert site.post(REPLY, content=body, headers=proof.headers(north)).status_code == 400, kind
    assert server.flower.seen == []


def test_nobody_may_come_in_before_the_first_keys_are_told_nor_once_they_are_told_no_more(north: EllipticCurvePrivateKey) -> None:
    with serving() as server, server.client() as site, server.client(headers=OURS) as ours:

        def status() -> int:
            return site.post(KNOWN, headers=proof.headers(north)).status_code

        assert status() == 503
        ours.post(ADMIT, json=[public(north)])
        assert status() == 200
        ours.post(ADMIT, json=[])
        assert status() == 401


def forged(north: EllipticCurvePrivateKey, stranger: EllipticCurvePrivateKey) -> dict[str, Any]:
    """Headers that prove nothing, or not enough."""
    good = proof.headers(north)
    name, time_, signature = (n.decode() for n in (proof.KEY, proof.TIME, proof.SIGNATURE))

    def signed(when: datetime) -> dict[str, str]:
        text = when.isoformat()
        return good | {time_: text, signature: b64encode(proof.sign_message(north, text.encode())).decode()}

    return {
        "unknown": {
            "nothing": {},
            "no signature": {n: v for n, v in good.items() if n != signature},
            "a stranger": proof.headers(stranger),
            "a stranger's signature": good | {signature: proof.headers(stranger)[signature]},
            "another time": good | {time_: datetime.now(UTC).isoformat()},
            "no base64": good | {name: "é-".encode("latin-1")},
            "an empty key": good | {name: ""},
            "twice": [*good.items(), (name, good[name])],
            "two keys": [*good.items(), (name, proof.headers(stranger)[name])],
        },
        "clock": {
            "an old one": signed(datetime.now(UTC) - timedelta(minutes=6)),
            "one of tomorrow": signed(datetime.now(UTC) + timedelta(days=1)),
        },
    }


def test_a_call_that_proves_no_known_key_is_refused_before_its_body_is_read(
    server: Server, north: EllipticCurvePrivateKey, stranger: EllipticCurvePrivateKey
) -> None:
    with server.client() as site:
        for verdict, kinds in forged(north, stranger).items():
            for kind, headers in kinds.items():
                said = site.post(PUSH, headers=headers, content=b"x")
                assert (said.status_code, said.text) == (401, verdict), kind
    endless = b"POST " + PUSH.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000000\r\n\r\nx"
    assert server.raw(endless).startswith(b"HTTP/1.1 401")  # and the other end hangs up
    assert server.flower.seen == []


def test_a_body_that_is_too_long_is_refused(server: Server, north: EllipticCurvePrivateKey) -> None:
    with server.client() as site:

        def status(path: str, size: int, chunked: bool = False) -> int:
            content: Any = iter([b"x" * size]) if chunked else b"x" * size
            return site.post(path, headers=proof.headers(north), content=content).status_code

        for chunked in (False, True):
            assert status(PUSH, LARGEST, chunked) == 200
            assert status(PUSH, LARGEST + 1, chunked) == 413
            assert status(f"{FLEET}pull-messages", gate.SMALL, chunked) == 200
            assert status(f"{FLEET}pull-messages", gate.SMALL + 1, chunked) == 413
    assert len(server.flower.seen) == 4


def test_without_keys_anybody_makes_a_sites_calls_but_no_others() -> None:
    with serving(SITE | gate.KEYLESS | {KNOWN}, keys_=False) as server, server.client() as site:
        assert {site.post(path, content=reply()).status_code for path in (*SITE, *gate.KEYLESS, KNOWN)} == {200}
        assert {site.post(path).status_code for path in OTHERS if path not in gate.KEYLESS} == {404}


TRICKS = [
    *("//v1/control/list-runs", "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "/V1/control/list-runs"),
    *("/v1/fleet/pull-messages/../../control/stop-run", "/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages/", "/docs/"),
    *(
        "/v1/fleet/pull-messages;/v1/control/stop-run",
        "http://x/v1/control/list-runs",
        "/v1%2fcontrol%2flist-runs",
        "*",
        "/?/docs",
    ),
]


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_that_only_looks_like_a_sites_leads_nowhere(path: str, server: Server, north: EllipticCurvePrivateKey) -> None:
    head = "".join(f"{n}: {v}\r\n" for n, v in proof.headers(north).items())
    for more in ("", "x-http-method-override: POST\r\n", "x-forwarded-prefix: /v1\r\nx-original-url: /docs\r\n"):
        said = server.raw(f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}{more}content-length: 0\r\n\r\n".encode())
        assert said[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400"), said
    assert server.flower.seen == []


def test_host_and_query_can_lead_the_app_nowhere_else(server: Server, north: EllipticCurvePrivateKey) -> None:
    """Some frameworks make the path that they check from the first and the path that they follow from the request."""
    head = "".join(f"{n}: {v}\r\n" for n, v in proof.headers(north).items())
    for host in ("x/v1/runtime/pull-object?", "x/v1/control/list-runs#", "a@b", ""):
        request = f"POST {PUSH}?secret=1 HTTP/1.1\r\nhost: {host}\r\n{head}connection: close\r\ncontent-length: 0\r\n\r\n"
        assert server.raw(request.encode()).startswith(b"HTTP/1.1 200")
    assert {h[b"host"] for h in server.flower.headers} == {b"localhost"}
    assert {h[b"query"] for h in server.flower.headers} == {b""}


def test_other_protocols_get_no_further(server: Server) -> None:
    upgrade = "connection: upgrade\r\nupgrade: {}\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n"
    for kind in ("websocket", "h2c"):
        said = server.raw(f"GET /docs HTTP/1.1\r\nhost: x\r\n{upgrade.format(kind)}\r\n".encode())
        assert said.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), said
    assert server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 5)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404")
    assert server.flower.seen == []


def test_a_second_call_hidden_in_the_body_of_a_first_is_not_made(server: Server) -> None:
    hidden = f"POST {ADMIT} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]"
    for framing in (f"content-length: {len(hidden)}", "content-length: 0\r\ntransfer-encoding: chunked", "content-length: 0"):
        server.raw(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n{hidden}".encode(), 5)
    assert server.gate.known  # north is let in still
    assert server.flower.seen == []


def test_who_does_not_say_a_whole_head_in_time_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HEAD_SECONDS", 1.0)
    with serving() as server:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=patience(60)) as slow:
            with contextlib.suppress(OSError):
                slow.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\n")
                for _ in range(int(patience(600))):  # a byte now and then
                    time.sleep(0.1)
                    slow.sendall(b"x")
            assert time.monotonic() - began < patience(50)
        with server.client(headers=OURS) as ours:  # nobody else waits
            assert ours.post("/docs").status_code == 200


def test_a_head_without_end_is_cut_off(server: Server) -> None:
    flood = b"POST / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(20_000))
    assert server.raw(flood)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert server.flower.seen == []


def test_one_address_holds_only_so_many_silent_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WAITING", 5)
    with serving() as server, contextlib.ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=patience(60))) for _ in range(8)
        ]
        cut = 0
        for line in lines[5:]:
            with contextlib.suppress(ConnectionError):
                assert line.recv(1) == b""
            cut += 1
        assert cut == 3
        for line in lines[:5]:
            line.close()
        until(lambda: not Patient.waiting["127.0.0.1"])
        with server.client(headers=OURS) as ours:
            assert ours.post("/docs").status_code == 200


def test_bytes_at_random_never_reach_the_app(server: Server, north: EllipticCurvePrivateKey) -> None:
    draw = random.Random(0)
    good = "".join(f"{n}: {v}\r\n" for n, v in proof.headers(north).items())
    seed = f"POST {KNOWN} HTTP/1.1\r\nhost: x\r\n{good}connection: close\r\ncontent-length: 3\r\n\r\nabc".encode()
    for _ in range(400):
        data = bytearray(seed)
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(data))
            how = draw.randrange(3)
            if how == 0:
                data[at] = draw.randrange(256)
            elif how == 1:
                del data[at : at + draw.randint(1, 20)]
            else:
                data[at:at] = draw.choice([b"\r\n", b"\0", b" ", b"/v1/control/list-runs", b"%2e%2e/", b"weft-secret: \r\n"])
        with socket.create_connection(("127.0.0.1", server.port), timeout=patience(60)) as line, contextlib.suppress(OSError):
            line.sendall(bytes(data))
            line.shutdown(socket.SHUT_WR)
            while line.recv(1 << 16):
                pass
    assert server.flower.seen == []
    with server.client(headers=OURS) as ours:
        assert ours.post("/docs").status_code == 200


def test_every_server_of_a_process_gets_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "__init__", uvicorn.Server.__init__)
    gate.guard(SECRET_OF_OURS)
    config = uvicorn.Config(Flower(), port=0)
    uvicorn.Server(config)
    config.load()
    assert isinstance(config.app, Gate)
    assert config.loaded_app is config.app
    assert config.http_protocol_class is Patient
    assert config.ws_protocol_class is None
