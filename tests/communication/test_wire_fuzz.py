"""Whatever bytes arrive, wrong in whatever layer: a sentence or a valid message, soon, in little memory, and nothing is run."""

from __future__ import annotations

import functools
import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from every_method import built
from measured import measured, plain_header
from raw_messages import apart, junk, numbers, whole
from weft.communication.codecs import codec as codec_of
from weft.communication.strict import Refused
from weft.communication.wire import payload_in
from weft.federation.exchange import Limits, read_download
from weft.federation.layout import named
from weft.federation.message import Value
from weft.federation.scope import Scope
from weft.federation.turn import Turn
from weft.tensors.integers import Integers, sides
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked

LIMITS = Limits(max_bytes=1 << 20, max_weight=1000)
SLUGS = ("fedit", "flora", "mpft")  # values; a value that grows by factors, on the way down; tensors of free shape
many = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


# what is attacked -----------------------------------------------------------------------------------------------------------


@dataclass
class Door:
    """One place where bytes come in: a valid message, messages meant for other places, and what reads them."""

    data: bytes
    others: list[bytes]
    read: Callable[[bytes], tuple[dict[str, Value], dict[str, Any], float]]
    shapes: dict[str, tuple[int | None, ...]]
    facts: frozenset[str]


@functools.cache
def doors(slug: str, codec: str) -> tuple[Door, Door]:
    """The server's door for an update and a client's for a download, in a late round of a real federation."""
    run = tiny.federation(built(slug), rounds=3, codec_name=codec, precision="float32")
    simulation, server = run.simulation, run.server
    exchange = simulation.setup.exchange
    frames: list[dict[str, bytes]] = [{}, {}]
    jobs: dict[str, Any] = {}
    downloads: list[list[bytes]] = [[], []]
    pack_update, download = exchange.pack_update, exchange.download

    def kept_update(server: Any, update: Any, turn: Any, phase: Any = "train") -> Any:
        frame = pack_update(server, update, turn, phase)
        frames[server.round.index][update.client.id], jobs[update.client.id] = frame.data, (update.client, turn.held)
        return frame

    def kept_download(*args: Any) -> Any:
        frame, received = download(*args)
        downloads[server.round.index].append(frame.data)
        return frame, received

    exchange.pack_update, exchange.download = kept_update, kept_download  # type: ignore[method-assign]
    simulation.round(0)
    simulation.round(1)  # mpft has but one round
    exchange.limits = LIMITS
    now = max(t for t, sent in enumerate(frames) if sent)
    server.round = run.method.plan(server, now) or server.round
    name = sorted(frames[now])[0]
    client, held = jobs[name]
    info = client.info(run.method.info.asks)
    bench = run.bench.of(info)
    adaptation = run.method.adapt(bench.backbone, bench.task, info)
    up = {n: tuple(i.shape) for n, i, s in named(adaptation, bench.backbone) if Scope.UP in s}
    up |= dict(run.method.uploads(server, info))
    down = {n: tuple(i.shape) for n, i, s in named(adaptation, bench.backbone) if Scope.DOWN in s}
    down |= {n + "+": s for n, s in down.items()}

    def read_update(data: bytes) -> tuple[dict[str, Value], dict[str, Any], float]:
        update = exchange.read_update(server, Turn(client, adaptation, held), data)
        return update.tensors, update.facts, update.weight

    def read_down(data: bytes) -> tuple[dict[str, Value], dict[str, Any], float]:
        received = read_download(run.method, bench, info, adaptation, server.round, data, LIMITS)
        return received.tensors, received.facts, received.header.weight

    strangers = [d for t, sent in enumerate(frames) for c, d in sent.items() if (t, c) != (now, name)] + downloads[0][:1]
    facts = run.method.info
    return (
        Door(frames[now][name], strangers, read_update, up, frozenset(facts.reveals)),
        Door(
            downloads[now][-1], [frames[now][name], *downloads[0][:1], *downloads[1][:1]], read_down, down, frozenset(facts.tells)
        ),
    )


CHAIN = "topk:share=0.3+qsgd:levels=3,bucket=16+entropy"
EVERY_DOOR = [(slug, codec, side) for slug in SLUGS for codec in ("identity", "quant8") for side in (0, 1)]
EVERY_DOOR += [("fedit", CHAIN, 0), ("mpft", CHAIN, 0)]
HEADER_KEYS = ("method", "round", "kind", "direction", "client", "weight", "codec", "meta", "marks", "base", "scales", "facts")

watched: list[str] = []
watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event.split(".")[0] in (
        "pickle",
        "exec",
        "compile",
        "open",
        "os",
        "subprocess",
        "socket",
        "ctypes",
        "shutil",
    ):
        watched.append(event)


sys.addaudithook(_hook)  # Python's own: unpickling, running code, files, processes and sockets all pass by it


@contextmanager
def nothing_runs() -> Iterator[None]:
    global watching
    watched.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    assert not watched


def check(door: Door, data: bytes) -> bool:
    """Either a refusal in one line, or a message that is all it should be. Returns whether it was accepted."""
    try:
        with nothing_runs():
            tensors, facts, weight = door.read(data)
    except Refused as refusal:
        text = str(refusal)
        assert text.isprintable()
        assert text.isascii()
        assert len(text) < 500
        return False
    assert 0 <= weight <= LIMITS.max_weight
    assert set(facts) <= door.facts
    json.dumps(facts, allow_nan=False)
    for name, value in tensors.items():
        wanted = sides(door.shapes[name])
        assert len(value.shape) == len(wanted)
        assert all(w in (None, d) for d, w in zip(value.shape, wanted, strict=True))
        if isinstance(value, Integers):
            assert value.below == door.shapes[name].below
            continue
        if isinstance(value, Masked):
            assert len(value.entries) == int(value.mask.sum())
        for tensor in (value.A, value.B) if isinstance(value, LowRank) else (getattr(value, "entries", value),):
            assert tensor.is_floating_point()
            assert bool(tensor.isfinite().all())
    return True


# layers ---------------------------------------------------------------------------------------------------------------------


DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "C64",
    "U64",
    "f32",
    "",
    None,
    3,
)
SPECIAL = [struct.pack("<f", v) for v in (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, -0.0)] + [
    b"\xff" * 4,
    b"\0" * 4,
]


def bent_bytes(data: st.DataObject, raw: bytearray, donors: list[bytes]) -> None:
    """Flip, cut, repeat, insert, or splice in a piece of another message."""
    if not raw:  # an earlier one has left nothing
        return
    at = data.draw(st.integers(0, len(raw) - 1), "at")
    kind = data.draw(st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "splice", "tail"]), "kind")
    until = data.draw(st.integers(at, min(len(raw), at + 64)), "until")
    if kind == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
    elif kind == "cut":
        del raw[at:]
        raw += b"" if at else b"W"
    elif kind == "drop" and until - at < len(raw):
        del raw[at:until]
    elif kind == "repeat":
        raw[at:at] = raw[at:until]
    elif kind == "insert":
        raw[at:at] = data.draw(st.binary(max_size=32), "foreign")
    else:
        donor = data.draw(st.sampled_from(donors), "donor")
        start = data.draw(st.integers(0, len(donor)), "start")
        raw[at : None if kind == "tail" else until] = donor[start:] if kind == "tail" else donor[start : start + until - at]


@pytest.mark.parametrize(("slug", "codec", "side"), EVERY_DOOR)
@many
@given(data=st.data())
def test_bent_messages_and_splices_of_two_are_refused_or_valid(slug: str, codec: str, side: int, data: st.DataObject) -> None:
    door = doors(slug, codec)[side]
    raw = bytearray(door.data)
    for _ in range(data.draw(st.integers(1, 4), "times")):
        bent_bytes(data, raw, door.others)
    check(door, bytes(raw))
    try:
        with nothing_runs():
            payload_in(bytes(raw), LIMITS.max_bytes)  # counts bytes before anybody knows what to expect
    except Refused:
        pass


@pytest.mark.parametrize(("slug", "codec", "side"), EVERY_DOOR)
@many
@given(data=st.data())
def test_wrong_in_any_layer_that_is_well_formed_otherwise_is_refused_or_valid(
    slug: str, codec: str, side: int, data: st.DataObject
) -> None:
    """Header fields, the table's dtypes, shapes and offsets, names, and numbers, several at once."""
    door = doors(slug, codec)[side]
    header, table, raw = apart(door.data)
    body = bytearray(raw)
    donors = [apart(d) for d in door.others]
    for _ in range(data.draw(st.integers(1, 3), "times")):
        layer = data.draw(
            st.sampled_from(["header", "other's header", "entry", "new entry", "rename", "numbers", "cut", "table"]), "layer"
        )
        if layer == "header":
            key = data.draw(st.sampled_from(HEADER_KEYS), "key")
            header[key] = data.draw(
                junk | st.sampled_from(["identity", "quant8", codec_of("randk+nf4").text, "F" * 9, "f" * len(table)]), "value"
            )
        elif layer == "other's header":
            other = data.draw(st.sampled_from(donors), "donor")[0]
            key = data.draw(st.sampled_from(HEADER_KEYS), "key")
            header[key] = other[key]
        elif layer in ("entry", "new entry"):
            names = (
                [*table]
                if layer == "entry" and table
                else [*sorted(door.shapes)[:4], "x/y/z", "facts/x", "a::B", "__metadata__", "\x00"]
            )
            name = data.draw(st.sampled_from(names), "name")
            entry = dict(table.get(name) or {}) if isinstance(table.get(name) or {}, dict) else {}
            if data.draw(st.booleans(), "dtype?"):
                entry["dtype"] = data.draw(st.sampled_from(DTYPES), "dtype")
            if data.draw(st.booleans(), "shape?"):
                entry["shape"] = data.draw(st.lists(numbers, max_size=4), "shape")
            if data.draw(st.booleans(), "offsets?"):
                entry["data_offsets"] = data.draw(st.lists(numbers, max_size=3) | st.just([0, len(body)]), "offsets")
            table[name] = entry
        elif layer == "rename" and table:
            old = data.draw(st.sampled_from([*table]), "old")
            table[data.draw(st.sampled_from([*door.shapes, old + "::scale", old + "::B", old.upper()]), "new")] = table.pop(old)
        elif layer == "numbers" and len(body) >= 4:
            at = 4 * data.draw(st.integers(0, len(body) // 4 - 1), "at")
            body[at : at + 4] = data.draw(st.sampled_from(SPECIAL), "special")
        elif layer == "cut":
            del body[data.draw(st.integers(0, len(body)), "at") :]
        elif layer == "table":
            table = data.draw(st.sampled_from(donors), "donor")[1]
    check(door, whole(header, table, bytes(body)))


@pytest.mark.parametrize(("slug", "codec", "side"), EVERY_DOOR)
def test_the_doors_are_open_to_what_belongs_there_and_shut_to_everything_else(slug: str, codec: str, side: int) -> None:
    """The fuzzing above would prove nothing if its doors let nothing in."""
    door = doors(slug, codec)[side]
    assert check(door, door.data)
    assert check(door, whole(*apart(door.data)))
    assert not any(check(door, other) for other in door.others if other != door.data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("slug", SLUGS)
def test_one_element_that_is_no_number_anywhere_is_refused_by_the_servers_door(slug: str, bad: float) -> None:
    door = doors(slug, "identity")[0]
    header, table, raw = apart(door.data)
    for name, entry in table.items():
        start, end = entry["data_offsets"]
        for at in {start, end - 4, start + (end - start) // 8 * 4} if end > start else ():
            body = raw[:at] + struct.pack("<f", bad) + raw[at + 4 :]
            with pytest.raises(Refused, match="not finite") as refusal:
                door.read(whole(header, table, body))
            assert name.split("::")[0][:20] in str(refusal.value)


@settings(max_examples=60)
@given(
    st.integers(1, 400_000),
    st.sampled_from([b"[", b'{"a":', b"[[],", b'{"a":[', b'"\\u00', b"-", b"1e", b"\xff", b"\\", b'{"a":1,']),
    st.data(),
)
def test_deep_long_or_broken_json_in_either_place_is_refused(times: int, what: bytes, data: st.DataObject) -> None:
    door = doors("fedit", "identity")[0]
    header, table, raw = apart(door.data)
    text = (what * times)[: LIMITS.max_bytes // 2]
    if data.draw(st.booleans()):
        text = b'{"a":' + text + b"}"
    assert not check(door, whole(text, table, raw))
    assert not check(door, whole(header, text, raw))


# memory and time ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_message_of_any_claim_costs_no_more_memory_than_a_fixed_multiple_of_the_largest_that_is_allowed() -> None:
    limit = 4 << 20
    free = {"a/x": None, "lora/x": [1 << 20, 1 << 20]}
    whole_body = bytes(limit - 4096)
    one = lambda dtype, shape, end, name="a/x": {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}  # noqa: E731
    n = len(whole_body)
    table_of = lambda count: {f"t{i}": {"dtype": "I8", "shape": [], "data_offsets": [i, i + 1]} for i in range(count)}  # noqa: E731
    factored = lambda b, a: {  # noqa: E731
        "lora/x::A": {"dtype": "F32", "shape": a, "data_offsets": [0, 0]},
        "lora/x::B": {"dtype": "F32", "shape": b, "data_offsets": [0, 0]},
    }
    levels = one("I8", [n - 4], n - 4) | {"a/x::scale": {"dtype": "F32", "shape": [], "data_offsets": [n - 4, n]}}
    warm_up = [
        whole(plain_header(), one("F32", [n // 4], n), whole_body),
        whole(plain_header(codec="quant8"), levels, whole_body),
        whole(plain_header("d"), one("F16", [n // 2], n), whole_body),
    ]
    honest = measured(warm_up, limit, free)
    assert [said for _, _, said in honest] == ["", "", ""]
    shapes = [
        [2**40],
        [2**20, 2**20],
        [2**62, 4],
        [2**63],
        [2**64],
        [10**30],
        [-1],
        [2**31, 2**31, 2**31],
        [0, 2**62],
        [1] * 10_000,
    ]
    hostile = [
        whole(plain_header(), one(dtype, shape, end), b"") for shape in shapes for dtype in ("F32", "I8") for end in (0, 2**40)
    ]
    hostile += [
        whole(plain_header("ff", scales={"lora/x": 1.0}), factored([2**20, r], [r, 2**20]), b"") for r in (1, 2**20, 2**43)
    ]
    hostile += [
        whole(plain_header(), {}, b"", claims) for claims in ((2**32 - 1, None), (None, 2**64 - 1), (None, 2**40), (0, 0))
    ]
    hostile += [
        whole(plain_header("f" * 30_000), table_of(30_000), bytes(30_000)),
        whole(b'{"a":[' + b"1," * (limit // 2 - 100) + b"1]}", {}, b""),
        whole(b'{"a":[' + b"1.5," * (limit // 4 - 100) + b"1]}", {}, b""),
        whole(b"{" + b",".join(b'"%x":1' % i for i in range(350_000)) + b"}", {}, b""),
        whole(plain_header(facts={"x": [[]] * 90_000}), {}, b""),
        whole(b'{"a":"' + b"\\ud800" * (limit // 6 - 20) + b'"}', {}, b""),
        whole(b'{"a":' + b"9" * (limit - 100) + b"}", {}, b""),
        whole(plain_header(), b"[" * (limit // 2), b""),
        bytes(limit + 1),
        b"WEFT" * (limit // 4),
    ]
    found = measured([*warm_up, *hostile], limit, free)
    assert all(said for _, _, said in found[3:])
    assert not [said for _, _, said in found if "alloc" in said.lower() or "memoryerror" in said.lower()]
    costs = [size / limit for size, _, _ in found]
    assert max(costs) < 25, costs  # of what is allowed, 8-bit levels cost most: about 19
    assert max(seconds for _, seconds, _ in found) < 20


@pytest.mark.slow
def test_the_memory_test_would_see_memory() -> None:
    n = 1 << 25
    table = {"a/x": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}
    ((grown, _, said),) = measured([whole(plain_header(), table, bytes(n))], 1 << 26, {"a/x": None})
    assert said == ""
    assert grown > n // 2


def test_the_audit_would_see_an_unpickling() -> None:
    import pickle

    with pytest.raises(AssertionError), nothing_runs():
        pickle.loads(b"cos\ngetcwd\n.")


def test_other_ways_of_writing_tensors_down_are_refused_unread() -> None:
    """torch.save, NumPy and pickles in the place of tensors, of the header, and of the whole message."""
    import io
    import pickle

    import numpy as np

    door = doors("fedit", "identity")[0]
    header, _, _ = apart(door.data)
    forms: list[bytes] = [pickle.dumps({"a": [1.0]}, protocol=p) for p in range(6)]
    for write in (lambda f: torch.save({"a": torch.ones(3)}, f), lambda f: np.savez(f, a=np.ones(3, dtype=object))):
        file = io.BytesIO()
        write(file)
        forms.append(file.getvalue())
    text = json.dumps(header).encode()
    for form in forms:
        assert not check(door, form)
        assert not check(door, struct.pack("<4sHI", b"WEFT", 1, len(text)) + text + form)
        assert not check(door, struct.pack("<4sHI", b"WEFT", 1, len(form)) + form + safetensors.torch.save({"a": torch.ones(1)}))


def test_what_a_client_may_send_is_told_by_its_own_parts_and_not_by_its_message() -> None:
    """A name, a shape or a fact that another client or method may send is none of this client's."""
    door = doors("fedit", "identity")[0]
    header, table, raw = apart(door.data)
    extra: dict[str, Tensor] = {"prototype/1": torch.ones(2)}
    body = safetensors.torch.save(extra)
    (length,) = struct.unpack_from("<Q", body)
    assert not check(door, whole(header | {"marks": "f"}, json.loads(body[8 : 8 + length]), body[8 + length :]))
    assert not check(door, whole(header | {"facts": {"blocks": [1]}}, table, raw))
    assert not check(door, whole(header | {"client": "client-9"}, table, raw))
