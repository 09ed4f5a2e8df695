"""The laws of the contract over methods with a rule over them."""

from __future__ import annotations

from typing import Any

import pytest

from sliced import Sliced
from weft.adaptation.optim import Optim
from weft.federation.method import Method
from weft.methods import FedBF, FedDAT, FedIT, FedRA, FFALoRA, PromptFL, RoLoRA
from weft.rules import RULES, composed
from weft.testing import laws

METHODS: dict[str, Method] = {
    "fedit": FedIT(rank=2),
    "feddat": FedDAT(reduction=8),
    "fedbf": FedBF(),
    "promptfl": PromptFL(tokens=2),
    "ffa-lora": FFALoRA(optim=Optim("sgd", lr=0.1, momentum=0.9)),
    "fedra": FedRA(rank=2),
    "rolora": RoLoRA(train_head=True),
    "sliced": Sliced(),
}
QUICK = {("scaffold", "fedit"), ("scaffold", "fedra"), ("feddyn", "sliced"), ("mime", "fedra"), ("mimelite", "feddat")}
"""Of each rule one, and of clients that lack tensors, or entries of them, or have others of their own."""


def cases() -> list[Any]:
    pairs = [(rule, slug) for rule in RULES for slug in METHODS]
    return [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("rule", "slug"), cases())
def test_a_method_with_a_rule_over_it_keeps_the_laws(rule: str, slug: str) -> None:
    laws.check(composed(METHODS[slug], rule))
