"""A coordinator goes on whatever a site answers, and a site whatever it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from raw_messages import junk, read, said
from toy_runs import Told
from weft.communication.strict import Refused
from weft.engines.question import Question
from weft.federation.exchange import Limits
from weft.methods import FedIT
from weft.testing.sites import remote

BAD = "client-1"
Change = Callable[[dict[str, Any], bytes], bytes]


def changed(change: Change | None, limits: Limits | None = None) -> tuple[tiny.Federation, Told, dict[str, Any]]:
    """A round of sites, one of which answers otherwise (None: not at all), and a scoring."""
    run, loop = remote(FedIT(batch=3, rank=2, steps=1), rounds=1)
    told = Told()
    run.simulation.setup.observer, run.simulation.setup.exchange.limits = told, limits or Limits()
    ask = loop.ask

    def bent(questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        found = dict(ask(questions))
        if BAD in found:
            raw = found.pop(BAD)
            if change is not None:
                found[BAD] = change(*read(raw))
        return found

    loop.ask = bent  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    for score in run.simulation.evaluate(0):
        assert score.value == score.value
        assert abs(score.value) < float("inf")
    json.dumps(record, allow_nan=False)
    return run, told, record


def values(run: tiny.Federation) -> dict[str, torch.Tensor]:
    return {n: v for n, v in run.server.shared.items() if isinstance(v, torch.Tensor)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    "change",
    [
        lambda about, data: b"",
        lambda about, data: b"\xff\xff\xff\xff",
        lambda about, data: said(b"[" * 200_000, data),
        lambda about, data: said(b'{"loss": NaN}', data),
        lambda about, data: said([], data),
        lambda about, data: said(about, data[:-1]),
        lambda about, data: said(about, data + b"\0"),
        lambda about, data: said(about, b""),
        lambda about, data: said(about, bytes(70_000)),
        lambda about, data: said(about, data + bytes(70_000)),
    ],
)
def test_an_answer_that_is_none_leaves_the_round_to_the_others_and_says_so(change: Change) -> None:
    run, told, record = changed(change, Limits(max_bytes=65_536))
    assert same(values(run), values(changed(None)[0]))
    assert BAD in record["refused"] or any(BAD in s and ("refused" in s) for s in told.sentences)


@pytest.mark.parametrize("loss", [b"1" + b"0" * 400, b"1e999", b"-1e999", b"true", b'"3"', b"[]", b"1e300"])
def test_a_loss_that_is_no_number_is_left_out_of_the_mean_and_the_update_counts(loss: bytes) -> None:
    run, _, record = changed(
        lambda about, data: said(b'{"loss": %s, "update": true}' % loss, data) if "loss" in about else said(about, data)
    )
    assert not record["refused"]
    assert not same(values(run), values(changed(None)[0]))
    assert record["loss"] is not None
    assert 0 < record["loss"] < 100


@pytest.mark.parametrize(
    "counts",
    [b"3", b"[]", b'{"own test": 3}', b'{"own test": {}}', b'{"own test": {"n": 0, "right": 0, "loss": 0}}']
    + [
        b'{"own test": {"n": %s, "right": %s, "loss": %s}}' % three
        for three in [
            (b"3", b"4", b"1"),
            (b"3", b"-1", b"1"),
            (b"1e999", b"1", b"1"),
            (b"3.5", b"1", b"1"),
            (b"9" * 400, b"1", b"1"),
            (b"3", b"1", b"1e999"),
            (b"3", b"1", b"9" * 400),
            (b"true", b"true", b"1"),
            (b"3", b'"1"', b"1"),
        ]
    ],
)  # fmt: skip
def test_scores_that_cannot_be_are_refused_and_those_of_the_others_stand(counts: bytes) -> None:
    _, told, _ = changed(
        lambda about, data: said(about, data) if "update" in about else said(b'{"global": ' + counts + b"}", data)
    )
    assert [s for s in told.sentences if s.startswith(f"scores of {BAD} refused")] or counts in (b"3", b"[]")


def test_a_stranger_names_no_part_of_the_ledger() -> None:
    """Bytes are billed before anybody has looked at the names."""
    import struct

    import safetensors.torch

    def many(about: dict[str, Any], data: bytes) -> bytes:
        if "update" not in about:
            return said(about, data)
        (length,) = struct.unpack_from("<I", data, 6)
        return said(about, data[: 10 + length] + safetensors.torch.save({f"{i}/x": torch.ones(1) for i in range(50)}))

    run, _, record = changed(many)
    assert "not expected" in record["refused"][BAD] or "marks" in record["refused"][BAD]
    parts = run.simulation.setup.exchange.ledger.totals(direction="up").parts
    assert set(parts) <= {"lora", "head", "facts", "refused"}
    assert parts["refused"] == 50 * 4


@settings(max_examples=150)
@given(st.data())
def test_any_question_is_answered_or_refused(data: st.DataObject) -> None:
    plan: dict[str, Any] = {"what": "train", "round": {"index": 0, "kind": "train", "extra": {}}, "since": 0, "now": 1}
    for _ in range(data.draw(st.integers(0, 3))):
        where = plan["round"] if data.draw(st.booleans()) and isinstance(plan.get("round"), dict) else plan
        where[data.draw(st.sampled_from([*where, "x"]))] = data.draw(junk)
    raw = bytearray(said(plan, b"body"))
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        question = Question.decode(bytes(raw))
    except Refused:
        return
    assert question.what in ("train", "test")
    assert type(question.round.index) is int
    assert isinstance(question.round.extra, dict)
