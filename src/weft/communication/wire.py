"""One message as bytes, and its validation on arrival.

A message is (integers little endian)::

    offset   bytes  content
    0        4      magic, b"WEFT"
    4        2      format version
    6        4      length h of the header
    10       h      header: strict JSON with sorted keys
    10 + h   rest   safetensors

The header holds the fields of :class:`Header`, the ``facts``, and how to read the tensors:

- ``codec`` and ``meta``: the codec's text, with all its settings, and what it needs to know beside it;
- ``marks``: one letter per tensor, in the order of sorted names: f float32, h float16, b bfloat16, d float64;
  lower case = a value, upper case = a difference to what the receiver holds;
- ``base``: checksum of what the differences were taken from, "" without differences;
- ``scales``: of the factored values, by name; the factors of ``x`` travel as ``x::B`` and ``x::A``. Of integers
  there is ``{"below": their bound, "shape": […]}`` instead; their bits travel as ``x::bits``, past the codec, and
  have no mark. Of tensors that are there in part there is ``{"places": …, "shape": […]}``, see
  :mod:`weft.communication.in_part`.

Nothing is ever unpickled. The checksum is for two sides that hold different copies without knowing; that
bytes arrive unchanged, and from whom they say, is the transport's part.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from weft.communication import Direction
from weft.communication.claims import check_claims, check_tensors
from weft.communication.codecs import Codec
from weft.communication.codecs import codec as codec_of
from weft.communication.exact import MARK, bits_of, read_integers
from weft.communication.frame import FACTS, Expected, Frame, Header, Received
from weft.communication.in_part import (
    Announced,
    announced,
    check_announced,
    entries_of,
    held_places,
    read_masks,
    whole,
    with_entries,
    write_places,
)
from weft.communication.strict import (
    Refused,
    check_facts,
    is_modest,
    is_text,
    plain,
    quoted,
    read_json,
    read_tensors,
    write_json,
)
from weft.errors import UserError
from weft.tensors import forms
from weft.tensors.forms import Value
from weft.tensors.integers import Integers

__all__ = ["Direction", "Expected", "Frame", "Header", "Received", "Refused", "Value", "decode", "encode"]

MAGIC = b"WEFT"
VERSION = 1

LONGEST_CODEC = 256
"""Most characters of a codec's text."""

_PREAMBLE = struct.Struct("<4sHI")
_DTYPES = {"f": torch.float32, "h": torch.float16, "b": torch.bfloat16, "d": torch.float64}
_LETTERS = {dtype: letter for letter, dtype in _DTYPES.items()}
_HEADER = [field.name for field in fields(Header)]
_READING: dict[str, type] = {
    "codec": str,
    "meta": dict,
    "marks": str,
    "base": str,
    "scales": dict,
    "facts": dict,
}

R = TypeVar("R")


class Apart(Refused):
    """Differences were taken from other values than those held here."""


def encode(
    header: Header,
    tensors: Mapping[str, Value],
    facts: Mapping[str, Any],
    codec: Codec,
    *,
    reference: Mapping[str, Value] | None = None,
    generator: torch.Generator | None = None,
    common: torch.Generator | None = None,
) -> Frame:
    """The message as bytes; equal arguments give equal bytes, in whatever order the mappings are.

    With a codec that wants differences, a tensor goes as the difference to its namesake in ``reference``
    where that has its shape and dtype, else as a value. Factored values always go as values: two pairs of
    factors have no common frame to differ in. Entries of a tensor go as the differences to those in the same
    places. Infinite and NaN elements are sent, for the receiver to refuse with a reason.

    Args:
        header: what the message says about itself.
        tensors: by name ``part/site/role``, float32, float16, bfloat16 or float64, on any device; or integers; or some
            entries of such tensors.
        facts: exact things: bool, int, float, str, and lists or dicts of those. Keys come back sorted.
        codec: how tensors are written down.
        reference: what the receiver holds, bit for bit.
        generator: stream for codecs that round at random, keyed to this message.
        common: stream for codecs that do something alike in all messages of a round, keyed to the round.

    Raises:
        ValueError: for names, dtypes or facts that can't be sent.
    """
    facts = dict(facts)
    check_facts(facts)
    flat, scales = _flatten(tensors)
    exact = {name: flat.pop(name) for name in bits_of(scales).values()}
    places, masks = write_places(flat, scales, tensors, reference or {})
    held = with_entries(reference, masks)
    bases: dict[str, Tensor] = {}
    marks = ""
    for name in sorted(flat):
        tensor = flat[name]
        mark = _LETTERS[tensor.dtype]
        base = _base(held, name, tuple(tensor.shape), tensor.dtype) if codec.differences else None
        if base is not None:
            mark = mark.upper()
            bases[name] = base
            # Half precision could not hold the difference of two of its own numbers
            wide = torch.promote_types(tensor.dtype, torch.float32)
            flat[name] = tensor.to(wide) - base.to(wide)
        marks += mark

    wire, meta = codec.encode(flat, generator, common=common, whole=flat.keys() - bases.keys())
    wire = {**wire, **exact, **places}
    payload = dict.fromkeys((name.split("/")[0] for name in tensors), 0)
    for name, tensor in wire.items():
        payload[name.split("::")[0].split("/")[0]] += tensor.numel() * tensor.element_size()
    payload[FACTS] = len(write_json(facts)) if facts else 0

    table = {name: getattr(header, name) for name in _HEADER}
    check = _checksum(bases | held_places({n: scales[n]["places"] for n in masks}, masks))
    reading = {"codec": codec.text, "meta": meta, "marks": marks, "base": check, "scales": scales}
    text = write_json(table | reading | {"facts": facts})
    body = safetensors.torch.save(wire)
    if not is_modest(text) or not is_modest(body[8 : 8 + int.from_bytes(body[:8], "little")]):
        raise ValueError("there are more facts or more tensors than a receiver reads in one message")
    return Frame(_PREAMBLE.pack(MAGIC, VERSION, len(text)) + text + body, payload)


def decode(data: bytes, expected: Expected, *, reference: Mapping[str, Value] | None = None) -> Received:
    """The message in ``data``, if it is what is expected; nothing in it is used before it is checked.

    Args:
        data: bytes from anyone.
        expected: what to accept.
        reference: what the sender took differences from, bit for bit. It is neither changed nor shared.

    Raises:
        Refused: with the reason, for anything else.
    """
    table, body = _split(data, expected.max_bytes)
    header = _check_header(table, expected)
    codec = _read_codec(table["codec"])
    wire = read_tensors(body)
    integers = read_integers(wire, table["scales"], expected, len(body))
    parts = announced(wire, table["scales"])
    shapes = _run(codec.shapes, wire, table["meta"])
    check_tensors(check_announced(parts, shapes, expected, len(body)), table["scales"], expected)
    masks = read_masks(parts, shapes, reference or {})
    if missing := sorted(expected.required - integers.keys() - {name.split(MARK)[0] for name in shapes}):
        raise Refused(f"Tensor {quoted(missing[0])} is missing.")
    bases = _read_marks(table, shapes, with_entries(reference, masks), _left_out(parts, masks))
    check_claims({n: s for n, s in shapes.items() if n not in set(map(entries_of, masks))}, bases, expected, len(body))
    flat = _run(codec.decode, wire, table["meta"])
    if {name: tuple(tensor.shape) for name, tensor in flat.items()} != shapes:
        raise Refused("The tensors are not of the shapes they were announced with.")
    values = _values(table, flat, bases, masks)
    for name, value in values.items():
        if not forms.finite([value]):
            raise Refused(f"Tensor {quoted(name)} has elements that are not finite.")
    return Received(header, values | integers, table["facts"])


def arriving(data: bytes, reference: Mapping[str, Value]) -> dict[str, Value]:
    """The tensors that whoever holds ``reference`` will read of a message of one's own."""
    table, body = _split(data, len(data))
    codec, wire = _read_codec(table["codec"]), read_tensors(body)
    exact = {bits: wire.pop(bits) for bits in bits_of(table["scales"]).values()}
    parts, shapes = announced(wire, table["scales"]), codec.shapes(wire, table["meta"])
    masks = read_masks(parts, shapes, reference)
    bases = _read_marks(table, shapes, with_entries(reference, masks), _left_out(parts, masks))
    integers = forms.restore(exact, {name: table["scales"].pop(name) for name in bits_of(table["scales"])}, MARK)
    return _values(table, codec.decode(wire, table["meta"]), bases, masks) | integers


def _left_out(parts: Mapping[str, Announced], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return held_places({name: part.kind for name, part in parts.items()}, masks)


# ---- both sides --------------------------------------------------------------------------------------------


def _base(reference: Mapping[str, Value] | None, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The tensor to take the difference from or to add it to, if there is one."""
    base = None if reference is None else reference.get(name)
    if not isinstance(base, Tensor) or tuple(base.shape) != shape or base.dtype != dtype:
        return None
    return base.detach().to("cpu").contiguous()


def _checksum(bases: Mapping[str, Tensor]) -> str:
    """CRC-32 of names and bytes: honest sides with different copies must notice; a liar is not stopped."""
    crc = 0
    for name in sorted(bases):
        raw = bases[name].reshape(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(raw.data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}" if bases else ""


# ---- sending -----------------------------------------------------------------------------------------------


def _flatten(tensors: Mapping[str, Value]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Plain CPU tensors that share no memory with anything, and what is left of values that are no tensors."""
    for name, value in tensors.items():
        if not is_text(name) or MARK in name or name.split("/")[0] in ("", FACTS):
            raise ValueError(f'a tensor is named {quoted(name)}; names are "part/site/role" without "{MARK}"')
        pieces = [] if isinstance(value, Integers) else [p for role, p in forms.pieces(value).items() if role != forms.PLACES]
        if odd := [tensor.dtype for tensor in pieces if tensor.dtype not in _LETTERS]:
            raise ValueError(f"tensor {quoted(name)} is {odd[0]}; exact things are Integers, or belong in facts")
    flat, scales = forms.flatten(tensors, MARK)
    return {n: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for n, t in flat.items()}, scales


# ---- receiving ---------------------------------------------------------------------------------------------


def payload_in(data: bytes, max_bytes: int) -> dict[str, int]:
    """Payload bytes of a received message by part, as :func:`encode` counts them.

    Raises:
        Refused: it is no message, or longer than ``max_bytes``.
    """
    table, body = _split(data, max_bytes)
    payload: dict[str, int] = {}
    for name, tensor in read_tensors(body).items():
        part = name.split("::")[0].split("/")[0]
        payload[part] = payload.get(part, 0) + tensor.numel() * tensor.element_size()
    payload[FACTS] = len(write_json(table["facts"])) if table["facts"] else 0
    return payload


def _split(data: bytes, max_bytes: int) -> tuple[dict[str, Any], bytes]:
    """The header, with all its keys and their types right, and the bytes of the tensors."""
    if len(data) > max_bytes:
        raise Refused(f"The message has {len(data)} bytes; at most {max_bytes} are allowed.")
    if len(data) < _PREAMBLE.size:
        raise Refused("The message ends before its header.")
    magic, version, length = _PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise Refused("These bytes are not a Weft message.")
    if version != VERSION:
        raise Refused(f"The message has format version {version}; only version {VERSION} is understood.")
    start = _PREAMBLE.size + length
    if start > len(data):
        raise Refused(f"The header claims {length} bytes where {len(data) - _PREAMBLE.size} are left.")
    table = read_json(data[_PREAMBLE.size : start], "header")
    if odd := sorted(set(table) ^ {*_HEADER, *_READING}):
        raise Refused(f"The header has an entry too many or too few: {quoted(odd[0])}.")
    for key, kind in _READING.items():
        if not isinstance(table[key], kind):
            raise Refused(f"In the header, {key} is not of type {kind.__name__}.")
    return table, data[start:]


def _check_header(table: dict[str, Any], expected: Expected) -> Header:
    try:
        header = Header(**{name: table[name] for name in _HEADER})
        check_facts(table["facts"])
    except ValueError as error:
        raise Refused(f"In the header, {plain(error)}.") from None
    for name in ("method", "round", "kind", "direction", "client"):
        found, wanted = getattr(header, name), getattr(expected, name)
        if wanted is not None and found != wanted:
            raise Refused(f"The message is for {name} {quoted(found)}; expected is {quoted(wanted)}.")
    if header.weight > expected.max_weight:
        raise Refused(f"The message claims weight {header.weight}; at most {expected.max_weight} is allowed.")
    if unknown := sorted(set(table["facts"]) - expected.facts):
        raise Refused(f"Fact {quoted(unknown[0])} is not expected.")
    return header


def _read_codec(text: str) -> Codec:
    """The codec that writes this very text."""
    if len(text) <= LONGEST_CODEC:
        try:
            if (found := codec_of(text)).text == text:
                return found
        except UserError:
            pass
    raise Refused(f"There is no codec {quoted(text)} here.")


def _run(
    step: Callable[[Mapping[str, Tensor], Mapping[str, Any]], R],
    wire: Mapping[str, Tensor],
    meta: dict[str, Any],
) -> R:
    """One of the codec's two steps of reading."""
    try:
        return step(wire, meta)
    except Exception as error:  # the codec may come from a third party, and what it reads from a stranger
        raise Refused(f"The tensors cannot be decoded: {plain(error)}.") from None


def _read_marks(
    table: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], reference: Mapping[str, Value], left_out: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the differences in the message have to be added to, by name.

    Args:
        left_out: what else the checksum is over.
    """
    marks = table["marks"]
    if len(marks) != len(shapes) or any(letter.lower() not in _DTYPES for letter in marks):
        raise Refused("The marks of values and differences do not fit the tensors.")
    bases = {}
    for letter, name in zip(marks, sorted(shapes), strict=True):
        if letter.isupper():
            base = _base(reference, name, shapes[name], _DTYPES[letter.lower()])
            if base is None:
                raise Refused(f"Tensor {quoted(name)} is a difference to something that is not held here.")
            bases[name] = base
    if _checksum({**bases, **left_out}) != table["base"]:
        raise Apart("The differences were taken from other values than those held here.")
    return bases


def _values(
    table: Mapping[str, Any], flat: dict[str, Tensor], bases: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Value]:
    """The decoded tensors with what they are differences to, in the dtypes they came from."""
    for letter, name in zip(table["marks"], sorted(flat), strict=True):
        if name in bases:
            flat[name] = _add(bases[name], flat[name])
        flat[name] = flat[name].to(_DTYPES[letter.lower()])
    return whole(flat, masks) | _unflatten(flat, table["scales"])


def _add(base: Tensor, difference: Tensor) -> Tensor:
    wide = torch.promote_types(base.dtype, difference.dtype)
    # Adding zero would turn -0.0 into 0.0, and what did not move must come back bit for bit
    return torch.where(difference == 0, base.to(wide), base.to(wide) + difference.to(wide))


def _unflatten(flat: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Value]:
    for name in scales:
        if len({flat[f"{name}{MARK}{role}"].dtype for role in forms.ROLES}) > 1:
            raise Refused(f"Tensor {quoted(name)} has factors of two dtypes.")
    return forms.restore(flat, scales, MARK)
