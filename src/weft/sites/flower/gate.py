"""What stands before Flower's servers: of a stranger's call nothing reaches them but what a site needs, with a key that is known.

Flower serves the interfaces for sites, for people (start, stop and list runs, register and unregister sites) and for executors on
one port, and asks for a key at the first alone. Here every server that Flower starts in a process is taken into a gate, whatever
starts it. A call passes if it carries the secret that only our own processes have; or if it is one of :data:`SITE`, whose headers
are signed with a known key. All else is answered before a byte of its body is read, and never seen by Flower.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from weft.sites.flower import environment

environment.ready()

import uvicorn  # noqa: E402
from flwr.proto.fleet_pb2 import PushMessagesRequest  # noqa: E402
from google.protobuf.message import DecodeError  # noqa: E402
from uvicorn.protocols.http.auto import AutoHTTPProtocol  # noqa: E402

from weft.sites.flower import proof  # noqa: E402

SECRET = "weft-secret"
ADMIT, KNOWN = "/weft/admit", "/weft/known"  # the gate's own: whose calls pass; and for a site, whether its calls do
FLEET = "/v1/fleet/"
PUSH = f"{FLEET}push-object"  # what alone brings much
REPLY = f"{FLEET}push-messages"
SITE = frozenset(
    f"{FLEET}{name}"
    for name in (
        *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab"),
        *("push-object", "pull-object", "confirm-message-received"),
    )
)
KEYLESS = frozenset({f"{FLEET}register-node", f"{FLEET}unregister-node"})  # how a site without a key gets in
SMALL = 1 << 20  # bytes of any other call of a site
HEAD_SECONDS, HEAD_BYTES = 20.0, 1 << 16  # that a connection may take until its first call has been read as far as its body
WAITING = 64  # connections of one address that have not come so far

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def word(secret: bytes) -> str:
    """What our own calls carry: made from the secret that Flower knows as well, so that it is not the same."""
    return hmac.new(secret, b"weft gate", hashlib.sha256).hexdigest()


class Gate:
    """An ASGI app around one of Flower's.

    Args:
        app: Flower's. secret: as for :func:`word`. calls: paths that may be called without it. keys: whether only known keys may;
            then nobody may until the first have been told. largest: bytes of what a site sends at once.
    """

    def __init__(self, app: Any, secret: bytes, calls: frozenset[str], keys: bool, largest: int):
        self.app, self.word, self.calls, self.largest = app, word(secret).encode(), calls, largest
        self.keys, self.known = keys, None if keys else proof.read([])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # there is no other, since uvicorn is told to speak no WebSocket
            return None
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value)
        path = scope["path"] if scope["method"] == "POST" else ""
        if hmac.compare_digest(b"\0".join(given.get(SECRET.encode(), [])), self.word):
            if path == ADMIT:
                return await self._admit(receive, send)
            return await self.app(_plain(scope), receive, send)
        status, why = self._judge(path, given)
        if status == 200 and path != KNOWN:
            body = await _whole(receive, given, self.largest if path == PUSH else SMALL)
            status = 413 if body is None else 400
            if body is not None and (path != REPLY or _is_reply(body)):
                return await self.app(_plain(scope), _again(body, receive), send)
        return await _answer(send, status, why)

    def _judge(self, path: str, given: dict[bytes, list[bytes]]) -> tuple[int, str]:
        """Status for a call without the secret, 200 if it may pass; and a word for whoever has shown a key."""
        if path not in self.calls:
            return 404, ""
        if not self.keys:
            return 200, ""
        if self.known is None:
            return 503, ""
        verdict = proof.judge(given, self.known)
        return (200, "") if verdict is proof.Verdict.KNOWN else (401, verdict.value)

    async def _admit(self, receive: Receive, send: Send) -> None:
        keys = json.loads(await _whole(receive, {}, 1 << 30) or b"")
        self.known = proof.read(k.encode() for k in keys)
        await _answer(send, 200, "")


def _plain(scope: Scope) -> Scope:
    """A call as Flower gets it: from what it is told by path, method and headers of its own, nothing else can lead it astray."""
    ours = {b"host", SECRET.encode()}
    headers = [(b"host", b"localhost"), *((n, v) for n, v in scope["headers"] if n.lower() not in ours)]
    return {**scope, "headers": headers, "query_string": b""}


async def _whole(receive: Receive, given: dict[bytes, list[bytes]], most: int) -> bytes | None:
    """The body of a call, None if it is longer than ``most`` bytes or breaks off."""
    for length in given.get(b"content-length", []):
        if not length.isdigit() or int(length) > most:
            return None
    parts, size = [], 0
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return None
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not event.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """For a body that has been read: gives it once more, and then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Any:
        return waiting.pop() if waiting else await receive()

    return give


def _is_reply(body: bytes) -> bool:
    """Whether messages are answers of who sends them: Flower would also pass on what claims to be the coordinator's question."""
    request = PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return False
    sender, about = request.node.node_id, [m.metadata for m in request.messages_list]
    return bool(about) and all(a.reply_to_message_id and a.src_node_id == sender for a in about)


async def _answer(send: Send, status: int, why: str) -> None:
    body = why.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Patient(AutoHTTPProtocol):  # type: ignore[valid-type,misc]  # one of uvicorn's two
    """A connection that is cut if nothing sensible comes in time: uvicorn would wait for it for ever."""

    waiting: ClassVar = Counter[str]()

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.unread, self.host = 0, self.client[0] if self.client else ""
        self.waiting[self.host] += 1
        self.timer = self.loop.call_later(HEAD_SECONDS, transport.abort)
        if self.waiting[self.host] > WAITING:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None:
            self._settled()
        else:
            self.unread += len(data)
            if self.unread > HEAD_BYTES:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settled()
        super().connection_lost(exc)

    def _settled(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.waiting[self.host] -= 1
            if not self.waiting[self.host]:
                del self.waiting[self.host]


def guard(secret: bytes, calls: frozenset[str] = frozenset(), keys: bool = False, largest: int = SMALL) -> None:
    """From now on every server of this process has a :class:`Gate` before it."""
    real = uvicorn.Server.__init__

    def made(self: uvicorn.Server, config: uvicorn.Config) -> None:
        config.app = Gate(config.app, secret, calls, keys, largest)
        config.http, config.ws, config.proxy_headers = Patient, "none", False
        config.server_header = config.date_header = False
        logging.getLogger("uvicorn.access").disabled = True  # or strangers could fill the disk with what they call
        logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid HTTP request" not in record.getMessage())
        real(self, config)

    uvicorn.Server.__init__ = made  # type: ignore[method-assign]  # one class, by whatever name Flower imports it
