"""Messages across the wire: encode, bill, validate, decode. Every engine goes through here, the simulation too.

A message in the simulation takes the same bytes as one between sites, so that an engine over a network is transport only.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.communication.codecs import Codec, codec
from weft.communication.frame import FACTS, Expected, Frame, Header, Received
from weft.communication.ledger import Ledger, Phase
from weft.communication.strict import Refused, quoted, write_json
from weft.communication.wire import Apart, arriving, decode, encode
from weft.errors import UserError
from weft.federation import shifts
from weft.federation.bench import Bench
from weft.federation.hidden_rows import MEMO
from weft.federation.layout import Adaptation, named
from weft.federation.memory import NONE
from weft.federation.message import APPENDED, ClientInfo, Message, Update
from weft.federation.method import Method
from weft.federation.round import Round
from weft.federation.scope import Scope, matches
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.tensors import forms
from weft.tensors.forms import Value, finite, tensors_in
from weft.tensors.init import leading
from weft.tensors.integers import Integers, Shape
from weft.tensors.keyed import generator
from weft.tensors.masked import Masked

LARGEST = 1e15
"""That a value of an update may be: products and squares of larger ones leave the range of float32."""

START = "start"
"""The kind of message in which start values go out."""


DIVERGED = "its training has diverged, and a smaller lr may keep it from that"


class Unsendable(UserError):
    """The server's state gives a message that is not finite."""


@dataclass(frozen=True)
class Limits:
    """What a receiver puts up with: bytes of one message, and the largest example count."""

    max_bytes: int = 1 << 31
    max_weight: float = 1e9


class Exchange:
    """The wire of one run.

    Args:
        method: whose messages go out and come in.
        uplink: codec of updates. downlink: of downloads, see :meth:`publish`.
        ledger: counts every encoded byte.
    """

    def __init__(
        self, method: Method, uplink: Codec, ledger: Ledger, limits: Limits | None = None, downlink: Codec | None = None
    ):
        self.method = method
        self.uplink, self.ledger, self.limits = uplink, ledger, limits or Limits()
        self._identity = codec("identity")
        self.downlink = downlink or self._identity
        self._exact = self.downlink.name == self._identity.name
        self._broadcasts: dict[Any, tuple[Frame, Received, dict[str, Value]]] = {}
        self._starts: dict[tuple[int, tuple[str, ...]], Frame] = {}

    def publish(self, server: ServerState) -> None:
        """After a round: the server holds what will arrive of the values that the round has given, so that all hold the same.

        A lossy download would else need each client's own copy at the server. Values go whole and not as differences, since
        clients that were away hold older ones.
        """
        if self._exact:
            return
        new = {n: v for n, v in server.shared.items() if server.stamps[n] == server.clock}
        header = Header(self.method.info.slug, server.round.index, server.round.kind, "down", "*")
        for name, value in arriving(self._lossy(header, server, new, {}).data, {}).items():
            server.write(name, value)

    def _lossy(self, header: Header, server: ServerState, tensors: Mapping[str, Value], facts: Mapping[str, Any]) -> Frame:
        stream, common = (generator(server.seed, "download", *what, server.round.index) for what in ((), ("common",)))
        return encode(header, tensors, facts, self.downlink, generator=stream, common=common)

    def _download(
        self, header: Header, server: ServerState, message: Message, facts: Mapping[str, Any], known: Mapping[str, Value]
    ) -> Frame:
        """A message by the codec of downloads, unless that would change a value that the server holds: that goes as it is.

        Args:
            known: values whose masks the client has.
        """
        if message.tensors and not self._exact:
            frame = self._lossy(header, server, message.tensors, facts)
            came = arriving(frame.data, {})
            if all(same(came[n], v) for n, v in message.tensors.items() if _held(server, n, v)):
                return frame
        return encode(header, message.tensors, facts, self._identity, reference=known)

    def close_round(self) -> None:
        """Forget the round's broadcasts."""
        self._broadcasts.clear()

    def download(
        self, server: ServerState, client: ClientInfo, adaptation: Adaptation, message: Message, phase: Phase = "train"
    ) -> tuple[Frame, Received]:
        """Server -> client. Messages with the same values are encoded and decoded once, and billed to each receiver.

        So are the facts that the server has renewed, which go beside the message with every question.

        Args:
            adaptation: the client's, which says what it accepts.
        """
        frame, received = self.broadcast(server, client, adaptation, message)
        said = write_json(server.said[client.id]) if client.id in server.said else b""
        payload = frame.payload if not said else frame.payload | {FACTS: frame.payload.get(FACTS, 0) + len(said)}
        name = f"{zlib.crc32(frame.data + said):08x}"
        self.ledger.add(server.round.index, phase, "down", client.id, payload, frame.size + len(said), broadcast=name)
        return frame, received

    def broadcast(
        self, server: ServerState, client: ClientInfo, adaptation: Adaptation, message: Message
    ) -> tuple[Frame, Received]:
        """A download as bytes and as it is read, not billed."""
        facts = message.facts | server.round.extra
        known = server.known_masks(client, message)
        round, values = server.round, ((n, id(v), n in known) for n, v in message.tensors.items())
        key = (id(server), round.index, round.kind, client.model, json.dumps(facts, sort_keys=True), *values)
        if key not in self._broadcasts:
            header = Header(self.method.info.slug, server.round.index, server.round.kind, "down", "*")
            frame = self._download(header, server, message, facts, known)
            if frame.size > self.limits.max_bytes:
                raise UserError(
                    f"a download has {frame.size:,} bytes, more than the {self.limits.max_bytes:,} that a message may have: "
                    "give a larger --max-bytes."
                )
            try:
                bench = server.bench.of(client)
                received = read_download(self.method, bench, client, adaptation, round, frame.data, self.limits, known)
            except Refused as e:
                if finite(message.tensors.values()):
                    raise  # it is the method's own fault, and not what training has made of the values
                raise Unsendable(f"{self.method.info.slug} would send what no client takes ({e}): {DIVERGED}.") from e
            # the values are kept beside their frame: a key of ids is only good while they live
            self._broadcasts[key] = (frame, received, dict(message.tensors))
        frame, received, _ = self._broadcasts[key]
        return frame, received

    def hand_over(self, server: ServerState, client: str, replaced: Collection[str] = ()) -> bytes:
        """Set-up's start values for a client, billed; empty if there are none.

        Args:
            client: its id. replaced: names of those that it need not get.
        """
        names = tuple(n for n in server.start if n not in replaced)
        if not names:
            return b""
        key = (id(server), names)
        if key not in self._starts:
            header = Header(self.method.info.slug, 0, START, "down", "*")
            self._starts[key] = encode(header, {n: server.start[n] for n in names}, {}, self._identity)
        frame = self._starts[key]
        name = f"start {zlib.crc32(frame.data):08x}"
        self.ledger.add(server.round.index, "setup", "down", client, frame.payload, frame.size, broadcast=name)
        return frame.data

    def pack_update(self, server: ServerState, update: Update, turn: Turn, phase: Phase = "train") -> Frame:
        """The client's side of an upload: bytes, billed where it leaves by itself."""
        frame = write_update(self.method, server.round, server.seed, update, self.uplink, turn)
        if server.bench.privacy.summed is not None:
            return frame
        self.ledger.add(server.round.index, phase, "up", update.client.id, frame.payload, frame.size)
        return frame

    def read_update(self, server: ServerState, turn: Turn, data: bytes, round: Round | None = None) -> Update:
        """The server's side of an upload.

        Args:
            turn: what the client was taken to hold when it was asked. round: in which that was; None = the server's.

        Raises:
            Refused: the bytes are not an update that this round and method can use.
        """
        method, client, bench = self.method, turn.client.info(self.method.info.asks), server.bench.of(turn.client)
        round = server.round if round is None else round
        shapes = uploaded(method, server, client, turn.adaptation)
        expected = Expected(
            method=method.info.slug,
            round=round.index,
            kind=round.kind,
            direction="up",
            max_bytes=self.limits.max_bytes,
            max_weight=self.limits.max_weight,
            tensors=shapes,
            required=frozenset(n for n in shapes if matches(n, method.demands)),
            facts=frozenset(method.info.reveals) | ({MEMO} if bench.privacy.tells else frozenset()),
            lowrank=frozenset(),
            masked=frozenset(n for n in shapes if matches(n, method.in_part)),
            client=client.id,
        )
        known = shifts.of_notes(server.notes.get(client.id)) if shifts.moves(self.uplink) else {}
        shift = known
        try:
            received = decode(data, expected, reference=shifts.shifted(turn.held, shift))
        except Apart:
            if not known:
                raise
            received = decode(data, expected, reference=turn.held)  # the client has lost its shifts
            shift = {n: v for n, v in known.items() if n not in received.tensors}
        for name, value in received.tensors.items():
            if isinstance(value, Integers):
                continue
            value = value.entries if isinstance(value, Masked) else value
            assert isinstance(value, Tensor)  # uploads are never factored
            if value.dtype != bench.dtype:  # a mean with one of them would be of the wider dtype from then on, for everybody
                raise Refused(f"Tensor {quoted(name)} is of {value.dtype}; expected is {bench.dtype}.")
            if value.numel() and float(value.abs().max()) > LARGEST:
                raise Refused(f"Tensor {quoted(name)} has values beyond {LARGEST:g}, which no training gives.")
        return Update(
            tensors=received.tensors,
            facts=received.facts,
            client=client,
            weight=received.header.weight,
            adaptation=turn.adaptation,
            shift=shift,
            forgotten={n: v for n, v in known.items() if n not in shift},
        )

    def begin_anew(self, server: ServerState, client: str) -> None:
        """Nothing that the server knows fits what a client's differences were taken from: both forget, and it is told so."""
        if known := shifts.of_notes(server.notes.get(client)):
            server.notes.put(client, {f"{shifts.SHIFT}/{n}": torch.zeros_like(v) for n, v in known.items()})
            server.counted[client] = NONE

    def count(self, server: ServerState, turn: Turn, update: Update) -> None:
        """An update that was read counts: what the client's next differences are taken from moves."""
        if shifts.moves(self.uplink):
            reference = shifts.shifted(turn.held, update.shift)
            by = shifts.steps(self.uplink, update.tensors, reference)
            server.notes.put(update.client.id, shifts.noted(update.shift, by))


def _held(server: ServerState, name: str, value: Value) -> bool:
    """Whether it is the server's own value of that name, or what a client has of it: a slice, or some entries."""
    own = server.shared.get(name)
    if isinstance(own, Tensor) and isinstance(value, Masked):
        return own.shape == value.shape and torch.equal(own[value.mask], value.entries)
    if isinstance(own, Tensor) and isinstance(value, Tensor) and own.dim() == value.dim():
        return all(a >= b for a, b in zip(own.shape, value.shape, strict=True)) and same(leading(own, tuple(value.shape)), value)
    return own is value


def same(a: Value, b: Value) -> bool:
    """Bit for bit."""
    mine, theirs = (forms.pieces(v) for v in (a, b))
    return mine.keys() == theirs.keys() and all(torch.equal(v.cpu(), theirs[n].cpu()) for n, v in mine.items())


def uploaded(method: Method, server: ServerState, client: ClientInfo, adaptation: Adaptation) -> dict[str, Shape]:
    """Names and shapes of the tensors that a client with this adaptation may send."""
    bench = server.bench.of(client)
    shapes: dict[str, Shape] = {n: i.shape for n, i, s in named(adaptation, bench.backbone) if Scope.UP in s}
    return shapes | dict(method.uploads(server, client))


def read_download(
    method: Method,
    bench: Bench,
    client: ClientInfo,
    adaptation: Adaptation,
    round: Round,
    data: bytes,
    limits: Limits | None = None,
    held: Mapping[str, Value] | None = None,
) -> Received:
    """The client's side of a download.

    Args:
        bench, adaptation: the client's. held: what it holds of earlier downloads.

    Raises:
        Refused: the bytes are not a message that this method and round allow.
    """
    limits = limits or Limits()
    factored = frozenset(n for n, i, _ in named(adaptation, bench.backbone) if i.kind == "lowrank")
    tensors = {**download_shapes(adaptation, bench), **method.downloads(bench, client)}
    expected = Expected(
        method=method.info.slug,
        round=round.index,
        kind=round.kind,
        direction="down",
        max_bytes=limits.max_bytes,
        max_weight=limits.max_weight,
        tensors=tensors,
        facts=frozenset(method.info.tells) | frozenset(round.extra),
        lowrank=factored | {n + APPENDED for n in factored},
        masked=frozenset(n for n in tensors if matches(n, method.in_part)),
    )
    return decode(data, expected, reference=held)


def write_update(method: Method, round: Round, seed: int, update: Update, uplink: Codec, turn: Turn) -> Frame:
    """The client's side of an upload.

    Args:
        turn: the client's, whose memory moves on with a codec that has shifts.
    """
    header = Header(method.info.slug, round.index, round.kind, "up", update.client.id, update.weight)
    stream, common = generator(seed, "codec", round.index, update.client.id), generator(seed, "codec", round.index)
    memory = shifts.of_client(turn) if shifts.moves(uplink) else None
    held = turn.held if memory is None else shifts.shifted(turn.held, memory.all())
    frame = encode(header, update.tensors, update.facts, uplink, reference=held, generator=stream, common=common)
    if memory is not None:
        memory.add(shifts.steps(uplink, arriving(frame.data, held), held), round.index)
    return frame


def download_shapes(adaptation: Adaptation, bench: Bench) -> dict[str, Shape]:
    """Names and shapes that a client accepts of its parts."""
    shapes: dict[str, Shape] = {}
    for name, init, scope in named(adaptation, bench.backbone):
        if Scope.DOWN in scope:
            shapes[name] = init.shape
            if init.kind == "lowrank":
                shapes[name + APPENDED] = init.shape
    return shapes


def payload_of(values: Mapping[str, Value]) -> dict[str, int]:
    """Bytes per part of a message as it would go down, without encoding it."""
    sizes: dict[str, int] = {}
    for name, value in values.items():
        part = name.split("/", 1)[0]
        sizes[part] = sizes.get(part, 0) + sum(t.numel() * t.element_size() for t in tensors_in([value]))
    return sizes
