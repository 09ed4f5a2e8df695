"""The ledger's bytes are the cards' formulas, up and down, round by round, client by client."""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import of_methods
import tiny
from bytes_of import CLASSES, HEAD, Bits, Case, D, Sizes, Turn, lora
from every_method import SPLIT
from weft.federation.info import common
from weft.methods import registry

CASES: dict[str, Case] = of_methods.said("BYTES")
VARIANTS = {f"{slug}, {words}": (slug, c) for slug, v in of_methods.said("BYTES_VARIANTS").items() for words, c in v.items()}


def play(slug: str, codec: str, rounds: int = 3, case: Case | None = None, **more: Any) -> tiny.Federation:
    case = case or CASES[slug]
    work = {n: v for n, v in {"batch": 4, "steps": 2}.items() if n not in registry.load(slug).unused}
    method = registry.build(slug, case.settings | work)
    return tiny.federation(method, facts=case.facts, precision="float32", rounds=rounds, codec_name=codec, **more)


@functools.cache
def played(slug: str) -> tiny.Federation:
    """Three rounds without a codec, whose bills of training and set-up are read by several tests."""
    return play(slug, "identity").run()


def turns(run: tiny.Federation, t: int) -> list[Turn]:
    """Every client's turn in round t."""
    everybody = [dict(c.facts) for c in run.clients]
    found = []
    for k in range(len(run.clients)):
        labels = run.bench.table.labels[run.clients[k].data.train]
        counts = [int((labels == c).sum()) for c in range(CLASSES)]
        found.append(Turn(k, t, everybody[k], run.pack([k], t).facts[0], everybody, counts))
    return found


def cost(sizes: Sizes, codec: str) -> dict[str, int]:
    def of(elements: int) -> int:
        if isinstance(elements, Bits):
            return elements.bytes
        return 4 * elements if codec == "identity" else elements + 4

    return {part: sum(map(of, tensors)) for part, tensors in sizes.items()}


def added(costs: list[dict[str, int]]) -> dict[str, int]:
    return {part: sum(c.get(part, 0) for c in costs) for part in {p for c in costs for p in c}}


def without_facts(parts: Mapping[str, int]) -> dict[str, int]:
    return {p: n for p, n in parts.items() if p != "facts"}


@pytest.mark.parametrize("slug", [slug for slug in of_methods.slugs() if slug not in SPLIT])  # what those send is of each step
def test_every_method_of_this_package_has_its_cards_formula_in_its_own_test_file(slug: str) -> None:
    assert isinstance(getattr(of_methods.own(slug), "BYTES", None), Case), (
        f"tests/methods/FAMILY/test_{slug.replace('-', '_')}.py must say BYTES = bytes_of.Case(...)"
    )


@pytest.mark.parametrize("codec", ["identity", "quant8"])
@pytest.mark.parametrize("which", [*CASES, *VARIANTS])
def test_bytes_up_and_down_are_the_cards_formula_in_every_round_and_for_every_client(which: str, codec: str) -> None:
    slug, case = VARIANTS[which] if which in VARIANTS else (which, CASES[which])
    run = play(slug, codec, case=case)
    ledger = run.simulation.setup.exchange.ledger
    each: dict[tuple[str, str], int] = {}
    for t in range(3):
        here = turns(run, t) if t < case.rounds else []
        said = {client: len(json.dumps(facts, separators=(",", ":"))) for client, facts in run.server.said.items()}
        assert (run.simulation.round(t) is None) == (not here)
        downs = [cost((case.down if t else case.first)(turn), "identity") for turn in here]  # downloads go exact
        senders = [turn for turn in here if tiny.SIZES[turn.k] and case.answers[t]]
        ups = [cost(case.up(turn), codec) for turn in senders]
        for direction, wanted in (("down", downs), ("up", ups)):
            found = ledger.totals(round=t, phase="train", direction=direction)  # type: ignore[arg-type]
            assert without_facts(found.parts) == added(wanted)
            assert found.messages == len(wanted)
        for turn, down in zip(here, downs, strict=True):
            told = len(json.dumps(turn.told, separators=(",", ":"))) if turn.told else 0
            name = run.clients[turn.k].id
            each[name, "down"] = each.get((name, "down"), 0) + sum(down.values()) + told + said.get(name, 0)
        for turn, up in zip(senders, ups, strict=True):
            name = run.clients[turn.k].id
            each[name, "up"] = each.get((name, "up"), 0) + sum(up.values()) + case.revealed
    for direction in ("down", "up"):
        billed = ledger.by_client(phase="train", direction=direction)  # type: ignore[arg-type]
        assert {c: b.payload for c, b in billed.items()} == {c: n for (c, way), n in each.items() if way == direction}


@pytest.mark.parametrize("slug", CASES)
def test_bytes_are_those_of_the_message_on_the_wire_and_the_example_count_travels_in_its_header(slug: str) -> None:
    run = play(slug, "identity", rounds=1)
    frames: dict[str, bytes] = {}
    put = run.simulation.setup.spool.put

    def keep(client: str, data: bytes) -> None:
        frames[client] = data
        put(client, data)

    run.simulation.setup.spool.put = keep  # type: ignore[method-assign]
    run.run()
    ledger = run.simulation.setup.exchange.ledger
    assert set(frames) == {c.id for c in run.clients if c.n}
    for client in run.clients:
        if not client.n:
            continue
        data = frames[client.id]
        _, _, length = struct.unpack_from("<4sHI", data)
        header = json.loads(data[10 : 10 + length])
        assert (header["weight"], header["client"]) == (client.n, client.id)
        billed = ledger.by_client(phase="train", direction="up")[client.id]
        assert billed.wire == len(data) > billed.payload
        (tensors,) = struct.unpack_from("<Q", data, 10 + length)
        bare = billed.payload - CASES[slug].revealed  # facts lie in the header
        assert bare == len(data) - 10 - length - 8 - tensors, "all but preamble, header and table is payload"


@pytest.mark.parametrize("slug", CASES)
def test_what_the_server_asks_of_clients_is_billed_once_at_set_up(slug: str) -> None:
    run, case = play(slug, "identity", rounds=1), CASES[slug]
    asked = [{n: v for n, v in c.facts.items() if n in run.method.info.asks} for c in run.clients]
    assert bool(case.facts[0]) <= bool(asked[0])
    ledger = run.simulation.setup.exchange.ledger
    before = [ledger.totals(phase="setup", direction=way).payload for way in ("up", "down")]
    told = [{n: v for n, v in f.items() if n.startswith("every ") is listed} for listed in (False, True) for f in asked]
    costs = [len(json.dumps(f, sort_keys=True)) if f else 0 for f in told]
    assert before[0] == sum(costs[: len(asked)])
    lists = sum(costs[len(asked) :])
    assert before[1] == lists or not lists, "what all have for a fact goes down; a method's own start may, too"
    run.run()
    ledger = run.simulation.setup.exchange.ledger
    after = [ledger.totals(phase="setup", direction=way).payload for way in ("up", "down")]
    assert after[: 2 if lists else 1] == before[: 2 if lists else 1]


@pytest.mark.parametrize("slug", [slug for slug, case in CASES.items() if case.head])
def test_a_warm_started_head_is_billed_to_each_client_once_as_set_up(slug: str) -> None:
    start = {"head/classifier/weight": torch.ones(CLASSES, D), "head/classifier/bias": torch.zeros(CLASSES)}
    cold, warm = played(slug), play(slug, "identity", start=start).run()
    for run, wanted in ((cold, 0), (warm, len(tiny.SIZES) * 4 * sum(HEAD))):
        ledger = run.simulation.setup.exchange.ledger
        assert ledger.totals(phase="setup", direction="down").parts.get("head", 0) == wanted
        assert {r for r in range(3) if ledger.totals(round=r, phase="setup", direction="down").parts.get("head")} == (
            {0} if wanted else set()
        )
    trained = [r.simulation.setup.exchange.ledger.totals(phase="train").parts for r in (cold, warm)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("slug", CASES)
def test_the_head_is_a_part_of_its_own_and_absent_where_it_stays_at_home(slug: str) -> None:
    run = played(slug)
    parts = run.simulation.setup.exchange.ledger.totals(phase="train", direction="up").parts
    case = CASES[slug]
    heads = sum(1 for n in tiny.SIZES if n) * sum(case.heads) * 4 * sum(HEAD)
    assert parts.get("head", 0) == (heads if case.head and not case.head_stays else 0)


@pytest.mark.parametrize("slug", CASES)
def test_evaluation_is_billed_apart_from_training(slug: str) -> None:
    run = played(slug)
    ledger = run.simulation.setup.exchange.ledger
    before = ledger.totals(phase="train").payload
    run.simulation.evaluate(2)
    assert ledger.totals(phase="train").payload == before
    keeps = slug == "fedpcl"  # whose clients predict with what they have, and are sent nothing
    assert (ledger.totals(phase="eval").payload > 0) == (not keeps and not all(map(common, run.method.views)))


def test_one_broadcast_to_everybody_can_be_counted_once() -> None:
    run = play("fedit", "identity").run()
    ledger = run.simulation.setup.exchange.ledger
    for t in (1, 2):
        every = ledger.totals(round=t, direction="down").payload
        once = ledger.totals(round=t, direction="down", broadcast_once=True).payload
        assert every == len(tiny.SIZES) * once
        assert once == 4 * (sum(lora(2)) + sum(HEAD))
    own = play("flexlora", "identity").run().simulation.setup.exchange.ledger
    assert own.totals(round=1, direction="down", broadcast_once=True) == own.totals(round=1, direction="down")


def test_an_update_in_eight_bits_is_nearly_four_times_smaller() -> None:
    plain, small = (
        play("fedit", c).run().simulation.setup.exchange.ledger.totals(direction="up").payload for c in ("identity", "quant8")
    )
    assert math.isclose(plain / small, 4, rel_tol=0.1)
    assert plain / small < 4
