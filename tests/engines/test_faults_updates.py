"""Updates that a site should not have sent: the round is, to the last bit, the one in which that site was silent.

A coordinator sees nothing but bytes, so the others' honest answers are recorded once and played to it with each bad one.
"""

from __future__ import annotations

import copy
import functools
import random
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import of_methods
import tiny
from every_method import METHODS, small, some
from raw_messages import Edit, apart, edited, read, said, values, whole
from site_faults import ANEW, BAD, OTHER, PATHS, SILENT, SIZES, Played, State, assert_equal, held
from toy_runs import Told
from weft.engines.remote import Remote
from weft.federation.client import ClientState
from weft.federation.exchange import Exchange, Limits
from weft.federation.message import Value
from weft.federation.scope import matches
from weft.federation.server import ServerState
from weft.federation.turn import Turn
from weft.tensors.integers import Integers
from weft.tensors.lowrank import LowRank
from weft.testing.sites import remote

LIMITS = Limits(max_bytes=1 << 22, max_weight=1000)
INTEGERS = {"fedpm", "gf-pt"}
"""Whose sites send nothing but integers: none of them can be a number that is not finite, or of another dtype."""
NUMBERS = some(sorted(set(METHODS) - INTEGERS))
UNMOVED = {"fedobd"}
"""Of whose sites' tensors those that are not sent count as the server's own."""
ONCE = {slug for slug, case in of_methods.said("BYTES").items() if not case.answers[1]}


@dataclass
class Scene:
    """The last round of two in which sites send something: before it, and their honest answers, also those of the first; and what
    the bad one held.
    """

    run: tiny.Federation
    told: Told
    t: int
    before: tuple[dict[str, Tensor], dict[str, Any]]
    honest: dict[str, bytes]
    first: dict[str, bytes]
    held: dict[str, Value]

    def edited(self, edit: Edit, weight: float | None = None) -> bytes:
        """The bad site's answer."""
        return edited(self.honest[BAD], edit, weight, self.held)

    def play(self, answers: Mapping[str, bytes]) -> tuple[State, list[str], dict[str, Any]]:
        """The round with these answers: what the coordinator holds then, what it said, and its record."""
        tensors, rest = self.before
        server, engine = self.run.server, self.run.simulation
        assert isinstance(engine.turns, Remote)
        server.restore({n: v.clone() for n, v in tensors.items()}, copy.deepcopy(rest))
        self.told.sentences = []
        engine.turns.transport = Recorded(answers)
        record = engine.round(self.t)
        assert record is not None
        # it believes the site to hold nothing, or what an honest one holds: either way that goes on
        assert server.synced[BAD] in (0, server.clock - 1)
        return held(server), self.told.sentences, record

    def with_bad(self, answer: bytes) -> tuple[State, list[str], dict[str, Any]]:
        return self.play(self.honest | {BAD: answer})


@dataclass
class Recorded:
    answers: Mapping[str, bytes]

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        return {c: self.answers[c] for c in questions if c in self.answers}

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        return []


@functools.cache
def scene(slug: str, precision: str = "float64") -> Scene:
    run, loop = remote(small(slug), rounds=3, sizes=SIZES, precision=precision)
    told = Told()
    run.simulation.setup.observer, run.simulation.setup.exchange.limits = told, LIMITS
    befores, answers = [], []
    copies: dict[int, dict[str, Value]] = {}
    ask = loop.ask
    read_update = Exchange.read_update

    def spy(self: Exchange, server: ServerState, turn: Turn, *more: Any) -> Any:
        if turn.client.id == BAD:
            copies[server.round.index] = dict(turn.held)
        return read_update(self, server, turn, *more)

    def note(questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        answers.append(dict(ask(questions)))
        return answers[-1]

    loop.ask = note  # type: ignore[method-assign]
    for t in range(2):
        tensors, rest = run.server.tensors_and_json()
        befores.append(({n: v.clone() for n, v in tensors.items()}, copy.deepcopy(rest)))
        with mock.patch.object(Exchange, "read_update", spy):
            run.simulation.round(t)
    t = 1 if read(answers[1][BAD])[0]["update"] else 0  # there are methods whose sites send something once
    return Scene(run, told, t, befores[t], answers[t], answers[0], copies.get(t, {}))


@functools.cache
def without(slug: str, precision: str = "float64") -> State:
    """The round in which the site was silent; which is another than the one in which it was not."""
    s = scene(slug, precision)
    state, sentences, _ = s.play({c: a for c, a in s.honest.items() if c != BAD})
    assert sentences == [SILENT.format(s.t + 1)]
    honest, sentences, record = s.play(s.honest)
    assert sentences == []
    assert record["refused"] == {}
    with pytest.raises(AssertionError):
        assert_equal(honest, state)
    return state


def assert_refused(slug: str, answer: bytes, says: str, precision: str = "float64") -> None:
    """One sentence about that site, and nothing else has become of it."""
    state, sentences, record = scene(slug, precision).with_bad(answer)
    (sentence,) = sentences
    assert re.search(says, sentence), sentence
    start, reason = sentence.split(" refused: ")
    assert start in (f"update of {BAD}", f"answer of {BAD}")
    assert sentence.isprintable()
    assert sentence.isascii()
    assert record["refused"] == ({BAD: reason} if start.startswith("update") else {})
    assert_equal(state, without(slug, precision))


# what can be written into an update -----------------------------------------------------------------------------------------


def retold(answer: bytes, **changes: Any) -> bytes:
    """The answer with other entries in its update's header; bytes stand for themselves, whether JSON or not."""
    about, data = read(answer)
    header, table, raw = apart(data)
    marked = header | {k: f"<{k}>" if isinstance(v, bytes) else v for k, v in changes.items()}
    text = whole(marked, table, raw)
    for k, v in changes.items():
        if isinstance(v, bytes):
            head, rest = text.split(f'"<{k}>"'.encode())
            (length,) = struct.unpack_from("<I", head, 6)
            text = head[:6] + struct.pack("<I", length + len(v) - len(k) - 4) + head[10:] + v + rest
    return said(about, text)


def first(tensors: Mapping[str, Value]) -> tuple[str, Tensor]:
    """Of matrices, or of vectors where there are none."""
    _, name = min((v.dim() != 2, n) for n, v in tensors.items() if isinstance(v, Tensor))
    value = tensors[name]
    assert isinstance(value, Tensor)
    return name, value


def element(bad: float, at: int) -> Edit:
    def edit(tensors: dict[str, Value]) -> dict[str, Value]:
        value = [tensors[n] for n in sorted(tensors) if isinstance(tensors[n], Tensor)][at]
        value.view(-1)[at] = bad  # type: ignore[union-attr]
        return tensors

    return edit


def of_dtype(dtype: torch.dtype) -> Edit:
    def edit(tensors: dict[str, Value]) -> dict[str, Value]:
        name, value = first(tensors)
        return tensors | {name: value.to(dtype)}

    return edit


def factored(tensors: dict[str, Value]) -> dict[str, Value]:
    name, value = first(tensors)
    matrix = value if value.dim() == 2 else value.unsqueeze(1)
    return tensors | {name: LowRank(matrix, torch.eye(matrix.shape[1], dtype=value.dtype), 1.0)}


def wider(tensors: dict[str, Value]) -> dict[str, Value]:
    """A vector may be of any length, and becomes a matrix."""
    name, value = first(tensors)
    return tensors | {name: torch.stack([value, value], 1).flatten(1) if value.dim() == 2 else value.unsqueeze(1)}


def elsewhere(tensors: dict[str, Value]) -> dict[str, Value]:
    name, value = first(tensors)
    return {n: v for n, v in tensors.items() if n != name} | {f"model.{name}": value}


TENSORS: dict[str, tuple[Edit, str]] = {
    "another rank": (lambda t: t | {first(t)[0]: first(t)[1].unsqueeze(0)}, r"has shape \(1, .*; expected is"),
    "another column": (wider, r"has shape \(.*; expected is"),
    "a single number": (lambda t: t | {first(t)[0]: first(t)[1].sum()}, r"has shape \(\); expected is"),
    "another name": (elsewhere, r'Tensor "model\..*" is not expected'),
    "one more": (lambda t: t | {"lora/nowhere/A": torch.zeros(2, 2)}, r'Tensor "lora/nowhere/A" is not expected'),
    "factors": (factored, r"is factored, unexpectedly|has shape \(\d+, 1\); expected is \((\d+|None),\)"),
    "float16": (of_dtype(torch.float16), r"is of torch\.float16; expected is torch\.float64\.$"),
    "bfloat16": (of_dtype(torch.bfloat16), r"is of torch\.bfloat16; expected is torch\.float64\.$"),
}

HEADER: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "fedavg"}, 'is for method "fedavg"; expected is'),
    "round": ({"round": 7}, 'is for round "7"; expected is'),
    "negative round": ({"round": -1}, "round must be an integer from 0"),
    "kind": ({"kind": "rehearsal"}, 'is for kind "rehearsal"; expected is'),
    "direction": ({"direction": "down"}, 'is for direction "down"; expected is "up"'),
    "client": ({"client": "client-9"}, 'is for client "client-9"; expected is "client-0"'),
    "fact": ({"facts": {"name of patient": "x"}}, 'Fact "name of patient" is not expected'),
    "deep facts": ({"facts": b'{"x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"}, "not strict JSON"),
    "no facts": ({"facts": []}, "facts is not of type dict"),
    "codec": ({"codec": "pickle"}, 'no codec "pickle"'),
    "another entry": ({"run": "this.py"}, 'an entry too many or too few: "run"'),
    "claims difference": ({"marks": "!"}, "marks of values and differences do not fit"),
    "weight -1": ({"weight": -1}, "weight must be a finite number from 0"),
    "weight NaN": ({"weight": b"NaN"}, "not strict JSON: NaN is not a number"),
    "weight -Infinity": ({"weight": b"-Infinity"}, "not strict JSON: -Infinity is not a number"),
    "weight 1e400": ({"weight": b"1e400"}, "weight must be a finite number from 0"),
    "weight of 400 digits": ({"weight": b"9" * 400}, "claims weight 9+.*; at most 1000 is allowed"),
    "weight above the limit": ({"weight": 1000.5}, r"claims weight 1000\.5; at most 1000 is allowed"),
    "weight text": ({"weight": "9"}, "weight must be a finite number from 0"),
}


@pytest.mark.parametrize("slug", NUMBERS)
def test_tensors_that_the_round_does_not_ask_for_are_refused(slug: str) -> None:
    for edit, says in TENSORS.values():
        assert_refused(slug, scene(slug).edited(edit), says)


@pytest.mark.parametrize("slug", some(sorted(INTEGERS)))
def test_of_who_sends_integers_alone_one_more_tensor_is_refused(slug: str) -> None:
    sent = values(scene(slug).honest[BAD]).tensors
    assert sent
    assert all(isinstance(v, Integers) for v in sent.values())
    edit, says = TENSORS["one more"]
    assert_refused(slug, scene(slug).edited(edit), says)


@pytest.mark.parametrize("slug", NUMBERS)
def test_an_update_of_a_wider_dtype_does_not_widen_what_everybody_holds(slug: str) -> None:
    answer = scene(slug, "float32").edited(of_dtype(torch.float64))
    assert_refused(slug, answer, r"is of torch\.float64; expected is torch\.float32\.$", "float32")


@pytest.mark.parametrize("slug", NUMBERS)
def test_one_element_that_is_no_number_is_refused(slug: str) -> None:
    for bad, at in ((float("nan"), 0), (float("inf"), -1), (-float("inf"), 0)):
        assert_refused(slug, scene(slug).edited(element(bad, at)), "has elements that are not finite")


@pytest.mark.parametrize("slug", NUMBERS)
def test_values_beyond_all_training_are_refused(slug: str) -> None:
    for bad in (2e15, -1e30):
        assert_refused(slug, scene(slug).edited(element(bad, 0)), r"has values beyond 1e\+15")


@pytest.mark.parametrize("slug", some(METHODS))
def test_a_round_whose_result_is_not_finite_is_undone_and_said(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene(slug)
    method = type(s.run.method)
    aggregate = method.aggregate

    def overflows(self: Any, server: Any, updates: Any) -> None:
        aggregate(self, server, updates)
        server.memo["more"] = torch.ones(2)
        for name, value in list(server.shared.items()):
            if isinstance(value, Tensor):
                server.write(name, value * float("inf"))
        server.memo["most"] = torch.full((2,), float("nan"))

    monkeypatch.setattr(method, "aggregate", overflows)
    (tensors, _), sentences, _ = s.play(s.honest)
    assert sentences == [f"round {s.t + 1}: the updates together gave values that are not finite, and count for nothing."]
    assert_equal((tensors, {}), (s.before[0], {}))


@pytest.mark.parametrize("slug", PATHS)
def test_headers_that_say_anything_else_are_refused(slug: str) -> None:
    for changes, says in HEADER.values():
        assert_refused(slug, retold(scene(slug).honest[BAD], **changes), says)


@pytest.mark.parametrize("slug", some(METHODS))
def test_the_update_of_another_site_is_refused(slug: str) -> None:
    assert_refused(slug, scene(slug).honest[OTHER], f'is for client "{OTHER}"; expected is "{BAD}"')


@pytest.mark.parametrize("slug", some(sorted(set(METHODS) - ONCE)))
def test_the_update_of_an_earlier_round_is_refused(slug: str) -> None:
    assert_refused(slug, scene(slug).first[BAD], 'is for round "0"; expected is "1"')


@pytest.mark.parametrize("slug", some(sorted(set(METHODS) - UNMOVED)))
def test_an_update_without_its_tensors_has_no_say(slug: str) -> None:
    s = scene(slug)
    (tensors, rest), sentences, _ = s.with_bad(s.edited(lambda _: {}))
    wanted = without(slug)
    assert_equal((tensors, rest | {"counted": wanted[1]["counted"]}), wanted)  # where it counts, it does so as nothing
    missing = rf'update of {BAD} refused: Tensor ".*" is missing\.'  # where the rule can't do with less; others do
    demanded = any(matches(n, s.run.method.demands) for n in values(s.honest[BAD], s.held).tensors)
    assert [bool(re.fullmatch(missing, x)) for x in sentences] == ([True] if demanded else [])


@pytest.mark.parametrize("slug", some(METHODS))
def test_an_update_that_counts_no_examples_has_no_say_even_alone(slug: str) -> None:
    s = scene(slug)
    bad = s.edited(dict, weight=0.0)
    left_out = f"update of {BAD} counts no examples, and is left out."
    state, sentences, _ = s.with_bad(bad)
    assert sentences == [left_out]
    assert_equal(state, without(slug))
    alone, sentences, _ = s.play({BAD: bad})
    assert left_out in sentences
    assert_equal((alone[0], {}), (s.before[0], {}))


# what need not even be an update ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", PATHS)
def test_an_answer_cut_short_anywhere_is_refused(slug: str) -> None:
    answer = scene(slug).honest[BAD]
    for length in sorted({*range(0, 60, 3), *range(60, len(answer), len(answer) // 20), len(answer) - 1}):
        assert_refused(slug, answer[:length], r"shorter than it says|ends before|where \d+ are left|cannot be read|strict JSON")


@pytest.mark.parametrize("slug", PATHS)
def test_bytes_that_are_no_answer_are_refused(slug: str) -> None:
    answer = scene(slug).honest[BAD]
    about, data = read(answer)
    header, table, raw = apart(data)
    draw = random.Random(slug)
    twice = b"{" + b'"x": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]},' * 2 + b'"y": 1}'
    bombs: dict[bytes, str] = {
        b"": "shorter than it says",
        **{draw.randbytes(n): "" for n in (1, 3, 9, 80, 5000)},
        **{said(about, draw.randbytes(n)): "ends before its header|not a Weft message" for n in (1, 9, 80, 5000)},
        **{said(about, b"WEFT\x01\x00" + draw.randbytes(n)): "" for n in (9, 80, 5000)},
        b"\xff" * 4 + answer[4:]: "shorter than it says",
        said(about, data[:6] + b"\xff" * 4 + data[10:]): r"claims 4294967295 bytes where \d+ are left",
        said(about, whole(header, table, raw, (None, 2**63))): r"table of tensors claims 9223372036854775808 bytes",
        said(b"[" * 99_000, data): "not strict JSON",
        said(b'{"x":' * 3_000_000, data): "more than",
        said([about], data): "not a JSON object",
        said(b'{"update": true, "update": true}', data): "a key is given twice",
        said(b'{"update": NaN}', data): "NaN is not a number",
        said(about, b""): "ends before its header",
        said(about, data + b"\0"): "cannot be read",
        said(about, data + bytes(1 << 22)): r"has \d+ bytes; at most 4194304 are allowed",
        said(about, whole(header, twice, raw)): "a key is given twice",
        said(about, whole(header, {n: e | {"dtype": "I64"} for n, e in table.items()}, raw)): "not floating point",
    }
    for bad, says in bombs.items():
        assert_refused(slug, bad, says)


@pytest.mark.parametrize("slug", PATHS)
def test_an_answer_without_an_update_has_no_say(slug: str) -> None:
    abouts: list[dict[str, Any]] = [{}, {"loss": 1.0, "update": False}, {"behind": True}]
    for about, sentences in zip(abouts, ([], [], [ANEW]), strict=True):
        state, told, _ = scene(slug).with_bad(said(about, read(scene(slug).honest[BAD])[1]))
        assert told == sentences
        assert_equal(state, without(slug))


# and then ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", PATHS)
def test_a_site_that_is_honest_again_counts_again(slug: str) -> None:
    script = {
        1: lambda raw: edited(raw, element(float("nan"), 0)),
        2: lambda raw: retold(raw, weight=1e300),
        3: lambda raw: raw[: len(raw) // 2],
    }
    shaken = Played(slug, script, 5)
    shaken.assert_same(Played(slug, {1: "lost", 2: "lost", 3: "lost"}, 5))
    assert [len(s) for s in shaken.sentences] == [0, 1, 1, 1, 0]
    shaken.assert_caught_up()
    (last,) = Played(slug, script | {4: "lost"}, 5).states[4:]
    with pytest.raises(AssertionError):
        assert_equal(shaken.states[4], last)
