"""An entropy coder for numbers of known frequencies: asymmetric numeral systems (range variant), many lanes at once.

A state x of 32 bits takes a number of frequency f (of 2^14) and cumulated frequency c by x ← ⌊x / f⌋ · 2^14 + x mod f + c,
which adds log2(2^14 / f) bits to it; before it would leave its range, its lower 16 bits go out as a word. The receiver undoes the
steps in the other order. A stream is cut into lanes, number i into lane i mod lanes, each with a state of its own, and all lanes
of all streams take a step together. The words of a stream lie in one row, in the order in which the receiver takes them.

Source: Duda 2013, arXiv 1311.2540; lanes after Giesen 2014, arXiv 1402.3392.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
States = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint16]

BITS = 14
TOTAL = 1 << BITS
"""What the frequencies of a stream add up to; a number that occurs has at least 1."""

LOW = 1 << 16
"""Least state; the first of every lane. The largest is below 2^32."""


@dataclass(frozen=True)
class Stream:
    """Numbers to be coded.

    Attributes:
        numbers: [n], from 0 below ``len(frequencies)``. frequencies: they add up to ``TOTAL``. lanes: at most n.
    """

    numbers: Ints
    frequencies: Ints
    lanes: int

    @property
    def steps(self) -> int:
        return -(-len(self.numbers) // self.lanes)


@dataclass(frozen=True)
class Coded:
    """What stands for n numbers: the last states [lanes], and words, from a stranger."""

    states: States
    words: Words
    frequencies: Ints
    n: int

    @property
    def steps(self) -> int:
        return -(-self.n // len(self.states))


def encode(streams: Sequence[Stream]) -> list[tuple[States, Words]]:
    """States and words of each."""
    return _grouped(streams, _encode)


def decode(all: Sequence[Coded]) -> list[Ints]:
    """The numbers [n] of each.

    Raises:
        ValueError: states and words are not what :func:`encode` makes of any n numbers.
    """
    return _grouped(all, _decode)


T = TypeVar("T", Stream, Coded)
R = TypeVar("R")


def _grouped(items: Sequence[T], code: Callable[[list[T]], list[R]]) -> list[R]:
    """Streams of like length together, so that none waits long for another."""
    groups: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.steps.bit_length(), []).append(i)
    found: dict[int, R] = {}
    for places in groups.values():
        found |= zip(places, code([items[i] for i in places]), strict=True)
    return [found[i] for i in range(len(items))]


def _starts(lengths: Iterable[int]) -> Ints:
    """Where each of several pieces begins when they lie one behind the other."""
    return np.cumsum([0, *lengths][:-1])


def _encode(streams: list[Stream]) -> list[tuple[States, Words]]:
    steps, lanes = max(s.steps for s in streams), [s.lanes for s in streams]
    # What is behind a stream's end has the frequency 1 of 1: such a step changes no state
    f = np.full((steps, sum(lanes)), TOTAL, np.uint32)
    c = np.zeros_like(f)
    for stream, at in zip(streams, _starts(lanes), strict=True):
        cumulated = np.cumsum(stream.frequencies) - stream.frequencies
        for table, values, rest in ((f, stream.frequencies, TOTAL), (c, cumulated, 0)):
            laid = np.full(stream.steps * stream.lanes, rest, np.uint32)
            laid[: len(stream.numbers)] = values[stream.numbers]
            table[: stream.steps, at : at + stream.lanes] = laid.reshape(stream.steps, stream.lanes)
    x = np.full(sum(lanes), LOW, np.uint32)
    words, sent = np.empty(f.shape, np.uint16), np.empty(f.shape, bool)
    for j in range(steps - 1, -1, -1):
        np.greater_equal(x >> (32 - BITS), f[j], out=sent[j])
        words[j] = x & 0xFFFF
        x = np.where(sent[j], x >> 16, x)
        q, r = np.divmod(x, f[j])
        x = (q << BITS) + r + c[j]
    cuts = [slice(at, at + k) for at, k in zip(_starts(lanes), lanes, strict=True)]
    return [(x[cut], words[:, cut][sent[:, cut]]) for cut in cuts]


def _decode(all: list[Coded]) -> list[Ints]:
    lanes = [len(coded.states) for coded in all]
    starts, steps = _starts(lanes), max(coded.steps for coded in all)
    of = np.repeat(np.arange(len(all)), lanes)  # the stream of each lane
    last = np.concatenate([(c.n - np.arange(k) + k - 1) // k for c, k in zip(all, lanes, strict=True)])  # steps of each lane
    # By stream and the lower bits of a state: the number there, its frequency, and how far the state is above its cumulated one
    numbers = np.concatenate([np.repeat(np.arange(len(c.frequencies)), c.frequencies) for c in all])
    f = np.concatenate([*(np.repeat(c.frequencies, c.frequencies) for c in all), np.full(TOTAL, TOTAL)]).astype(np.uint32)
    above = [np.arange(TOTAL) - np.repeat(np.cumsum(c.frequencies) - c.frequencies, c.frequencies) for c in all]
    b = np.concatenate([*above, np.arange(TOTAL)]).astype(np.uint32)
    table = of * TOTAL
    idle = len(all) * TOTAL  # a step by the table behind all others changes no state
    row = np.concatenate([*(c.words for c in all), np.zeros(1, np.uint16)]).astype(np.uint32)
    ends = np.cumsum([len(c.words) for c in all])
    at = ends - [len(c.words) for c in all]
    x = np.concatenate([c.states for c in all])
    taken = np.empty((steps, len(x)), np.int64)
    for j in range(steps):
        base = table if j < last.min() else np.where(j < last, table, idle)
        taken[j] = base + (x & (TOTAL - 1))
        x = f[taken[j]] * (x >> BITS) + b[taken[j]]
        short = x < LOW
        count = np.cumsum(short)
        first = count[starts] - short[starts]  # short lanes before each stream's first
        place = (at - first)[of] + count - 1
        x[short] = (x[short] << 16) | row[np.minimum(place[short], len(row) - 1)]
        at = at + np.add.reduceat(short, starts, dtype=np.int64)
    if (at != ends).any() or (x != LOW).any():
        raise ValueError("the bytes of a tensor's levels are not what an entropy coder writes")
    found = []
    for coded, start, k in zip(all, starts, lanes, strict=True):
        found.append(numbers[taken[: coded.steps, start : start + k].reshape(-1)[: coded.n]])
    return found
