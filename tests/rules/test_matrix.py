"""Every rule over every method, and with every codec: it trains and is billed as its formula says, or it is refused."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from every_method import METHODS, small
from weft.communication import Direction
from weft.communication.codecs import codec
from weft.communication.ledger import Ledger
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.scope import PERSONAL
from weft.federation.server_step import KINDS, ServerStep
from weft.methods import FedIT
from weft.rules import RULES, composed
from weft.rules.over import both_ways
from weft.testing.compare import logits, server_state
from weft.testing.of_settings import CODECS
from weft.testing.plays import shallow

STEPS = KINDS[1:]
SIZES = (4, 2, 3)
WHY = (
    *("needs each update by itself", "SGD without momentum", "in every update", "has nothing to act on"),
    *("moves nothing that it sends along a gradient", "by no optimizer", "does not aggregate with the server's mean"),
    "adds something of its own to every gradient",
    "would add up between the two",  # the codec of a method that is one
    "sends some entries of its tensors",
)
"""Parts of the sentences with which a rule over a method is refused."""


def refusal(settings: Mapping[str, Any]) -> str:
    """The sentence with which an experiment is refused before anything is loaded, "" if it is not."""
    try:
        resolve({**settings, "recipes": False})
    except UserError as e:
        return str(e)
    return ""


def play(method: Method, rule: str, rounds: int, codec: str = "identity") -> tuple[tiny.Federation, list[dict[str, int]]]:
    """A federation after its rounds, and bytes of all that was sent back of what was received, round by round."""
    made = composed(method, rule) if rule in RULES else method
    run = tiny.federation(made, shallow(method), sizes=SIZES, rounds=rounds, codec_name=codec)
    if rule in STEPS:
        run.server.step = ServerStep(rule)  # type: ignore[arg-type]
    seen = by_hand.record(run)
    run.run()
    acted = both_ways(run.server.adaptation, run.bench.backbone)
    shared = [
        {"tensors": len(sent), "bytes": sum(8 * v.numel() for v in sent)}
        for updates in seen
        if (sent := [v for u in updates for n, v in u.tensors.items() if n in acted and isinstance(v, Tensor)]) is not None
    ]
    return run, shared


@functools.cache
def start_of(slug: str, rounds: int) -> dict[str, Tensor]:
    """What the server of a method has before its first round."""
    method = small(slug)
    return server_state(tiny.federation(method, shallow(method), sizes=SIZES, rounds=rounds))


@functools.cache
def plain_ledger(slug: str) -> Ledger:
    """Of two rounds without a rule."""
    run, _ = play(small(slug), "none", 2)
    return run.simulation.setup.exchange.ledger


def billed(ledger: Ledger, t: int, way: Direction) -> dict[str, int]:
    """Bytes by part."""
    return {n: v for n, v in ledger.totals(round=t, phase="train", direction=way).parts.items() if v}


def trained(run: tiny.Federation, before: dict[str, Tensor]) -> None:
    after = server_state(run)
    assert all(bool(torch.isfinite(v).all()) for v in (*after.values(), *logits(run).values()))
    assert any(not torch.equal(v, after[n]) for n, v in before.items())


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("rule", [*RULES, *STEPS])
def test_every_rule_over_every_method(rule: str, slug: str) -> None:
    method = small(slug)
    sentence = refusal({"method": slug, "rule" if rule in RULES else "server_step": rule})
    rounds = 4 if rule == "mime" else 2
    start = start_of(slug, rounds)
    if not sentence:
        assert method.sums
        try:
            run, shared = play(method, rule, rounds)
        except UserError as e:
            sentence = str(e)
    if sentence:
        assert any(w in sentence for w in WHY), sentence
        assert method.sums or "needs each update by itself" in sentence
        assert "\n" not in sentence
        return
    trained(run, start)
    ledger = run.simulation.setup.exchange.ledger
    others = plain_ledger(slug)
    for t in range(rounds):
        up, down = billed(ledger, t, "up"), billed(ledger, t, "down")
        of_plain = t // 2 if rule == "mime" else t
        own = billed(others, of_plain, "up")
        both = shared[t]["bytes"]
        if rule == "scaffold":
            assert up == own | ({"change": both} if both else {})  # FedLin moves nothing in its first exchange
            assert ("control" in down) == any(one["bytes"] for one in shared[:t])
        elif rule == "mimelite":
            assert up == own | {"full-gradient": both}
            assert ("moments" in down) == (t > 0)
        elif rule == "mime":
            after = shared[t + 1]["bytes"] if t % 2 == 0 else 0
            # FedRA deals other blocks in the second exchange, and FedOBD sends other ones
            assert slug in ("fedra", "fedobd") or up == ({"full-gradient": after} if t % 2 == 0 else own)
            assert ("mean-gradient" in down) == (t % 2 == 1)
        else:
            # LotteryFL and CELL prune where a model is good, and a server step makes another model of it
            assert slug in ("cell", "lotteryfl") or up == own
        if rule not in ("scaffold", "mime", "mimelite") and slug not in ("cell", "lotteryfl"):
            assert down == billed(others, t, "down")


@pytest.mark.parametrize("text", CODECS)
@pytest.mark.parametrize("rule", [*RULES, *STEPS])
def test_every_rule_with_codecs_of_every_kind(rule: str, text: str) -> None:
    """What is added up over rounds at both ends of the wire may not change on it."""
    setting = "rule" if rule in RULES else "server_step"
    sentence = refusal({"method": "fedit", setting: rule, "codec": text})
    if rule in ("scaffold", "feddyn") and codec(text).omega(100) > 0:
        assert f"what the codec {text} does to an update would add up" in sentence
        return
    assert sentence == ""
    method = FedIT(rank=2, batch=3)
    rounds = 4 if rule == "mime" else 2
    start = server_state(tiny.federation(method, shallow(method), sizes=SIZES, rounds=rounds))
    run, _ = play(method, rule, rounds, text)
    trained(run, start)
    assert run.simulation.setup.exchange.ledger.totals(direction="up").payload > 0


class Alone(FedIT):
    """Nobody gets anything of anybody."""

    def adapt(self, backbone: Any, task: Any, client: Any) -> Any:
        return {n: (part, PERSONAL) for n, (part, _) in super().adapt(backbone, task, client).items()}


class Shaken(FedIT):
    """Moves what it sends, but not by steps."""

    def train(self, pack: Pack) -> Iterable[Update]:
        moved = [{n: pack.value(k, n) + 0.1 for n in pack.params("lora")} for k in range(len(pack.clients))]
        return pack.updates(tensors=moved)


@pytest.mark.parametrize("rule", RULES)
def test_a_method_that_does_without_steps_is_refused(rule: str) -> None:
    tiny.federation(Shaken(rank=2), sizes=SIZES, rounds=1).run()
    with pytest.raises(UserError, match=f'^fedit moves .* rule = "{rule}" .*: leave --rule out'):
        tiny.federation(composed(Shaken(rank=2), rule), sizes=SIZES, rounds=1).run()


@pytest.mark.parametrize("rule", RULES)
def test_a_method_that_shares_nothing_is_refused(rule: str) -> None:
    with pytest.raises(
        UserError, match=f'no tensor that clients receive and send back, so rule = "{rule}" has nothing to act on'
    ):
        tiny.federation(composed(Alone(rank=2), rule))
