"""A method's prediction as one pass, told without making it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from weft.federation.one_pass import OnePass, one_pass
from weft.tasks.outputs import Output


def never(*given: Any) -> Any:
    raise AssertionError("a pass was made")


PACK: Any = type("Pack", (), {"__call__": never, "clients": ["a", "b"]})()


def other_values(pack: Any, batch: Any) -> Output:
    with pack.values({"lora/0/A": torch.zeros(2, 1, 1)}):
        out: Output = pack(batch)
    return out


BATCH: Any = SimpleNamespace(clients=None)


@pytest.mark.parametrize("use", [None, {"lora": 0.5}])
def test_one_pass_is_told_with_its_weights_and_without_being_made(use: Any) -> None:
    assert one_pass(PACK, lambda p, b: p(b, use), BATCH) == OnePass(use)
    assert one_pass(PACK, lambda p, b: p(b, use={"lora": len(p.clients)}), BATCH) == OnePass({"lora": 2})


@pytest.mark.parametrize(
    "forward",
    [
        lambda p, b: Output(p(b).logits),
        lambda p, b: Output(p(b).logits * 0.5 + p(b, {"lora": 0.0}).logits * 0.5),
        lambda p, b: p(b).within(torch.ones(1, 1, 1, dtype=torch.bool)),
        lambda p, b: p(b) if p(b, {}).each(torch.amax).sum() else p(b, {}),
        lambda p, b: [p(b), p(b, {})][1],
        lambda p, b: [p(b), Output(torch.zeros(1, 1, 1))][1],
        lambda p, b: Output(torch.zeros(1, 1, 1)),
        lambda p, b: p(b, insert={0: torch.zeros(1, 1, 1, 1)}),
        other_values,
    ],
    ids=[
        "looked at",
        "mean of two",
        "masked",
        "chosen by another",
        "two passes",
        "something else",
        "none",
        "tokens of its own",
        "other values",
    ],
)
def test_anything_more_is_no_single_pass(forward: Any) -> None:
    assert one_pass(PACK, forward, BATCH) is None


def test_a_pass_of_other_values_is_none_of_the_packs_own() -> None:
    def forward(pack: Any, batch: Any) -> Output:
        with pack.values({"lora/q/A": torch.zeros(2, 1, 1)}):
            return pack(batch)

    pack: Any = type("Pack", (), {"__call__": never, "values": lambda self, given: nullcontext()})()
    assert one_pass(pack, forward, BATCH) is None
