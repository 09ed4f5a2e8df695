"""Clients whose parts differ in more than sizes can't share a pack, and are told so before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import by_hand
import tiny
from weft.adaptation.bias import Bias
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.adaptation.tokens import ClassContext
from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.errors import UserError
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.scope import GIVEN, PERSONAL, SHARED
from weft.tasks.classification import Classification
from weft.tensors.init import Init

CARD = MethodInfo(slug="odd", title="a toy", paper="none", family="reparameterized", sends="what its scopes say")


@dataclass(frozen=True)
class Named(LoRA):
    """LoRA with one more tensor, whose form is the client's."""

    more: str = "C"
    init: Init = Init((3,))

    def tensors(self, backbone: Backbone, site: Site) -> dict[str, Init]:
        return dict(super().tensors(backbone, site)) | {self.more: self.init}


START = torch.ones(3)
PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "a head": lambda k: {"lora": (LoRA(2, 2.0, "q"), SHARED)} | ({"other": (Head(), SHARED)} if k else {}),
    "a kind": lambda k: {"lora": (Bias("linear") if k else LoRA(2, 2.0, "q"), SHARED)},
    "a name": lambda k: {"lora": (Named(2, 2.0, "q", more="CE"[k]), SHARED)},
    "a form": lambda k: {"lora": (Named(2, 2.0, "q", init=Init((3,) * (k + 1))), SHARED)},
    "a kind of start": lambda k: {"lora": (Named(2, 2.0, "q", init=Init((3,), ("zeros", "ones")[k])), SHARED)},
    "a start": lambda k: {"lora": (Named(2, 2.0, "q", init=Init((3,), "value", value=START * (1 + k))), SHARED)},
    "a scope": lambda k: {"lora": (LoRA(2, 2.0, "q"), (SHARED, GIVEN)[k])},
    "a role's scope": lambda k: {"lora": (LoRA(2, 2.0, "q"), {"A": SHARED, "B": (SHARED, PERSONAL)[k]})},
}
SAID = {
    "a head": 'only client-1 has a part "other"',
    "a kind": 'the part "lora" is a LoRA for client-0 and a Bias for client-1',
    "a name": r'only client-0 has a tensor "lora/.*/C"',
    "a form": r'the tensor "lora/.*/C" has another form or start',
    "a kind of start": r'the tensor "lora/.*/C" has another form or start',
    "a start": r'the tensor "lora/.*/C" has another form or start',
    "a scope": r'the tensor "lora/.*/A" is shared for client-0 and given for client-1',
    "a role's scope": r'the tensor "lora/.*/B" is shared for client-0 and personal for client-1',
}


class Odd(Method):
    """Third-party: what clients get differs between the first and the others."""

    info: ClassVar[MethodInfo] = CARD
    which: str = "a kind"
    steps: int | None = 2
    batch: int = 4
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")

    def adapt(self, backbone: Backbone, task: Classification, client: ClientInfo) -> Adaptation:
        parts = PARTS[self.which](0 if client.id == "client-0" else 1)
        return parts | {"head": (task.head, SHARED)}


@pytest.mark.parametrize("which", PARTS)
def test_clients_that_differ_in_more_than_sizes_are_refused_before_they_train(which: str) -> None:
    trained: list[Pack] = []

    class Watched(Odd):
        def train(self, pack: Pack) -> Iterable[Update]:
            trained.append(pack)
            return super().train(pack)

    run = tiny.federation(Watched(which=which), sizes=(9, 5), pack=2, rounds=1)
    with pytest.raises(UserError, match=SAID[which] + ".*: train them one by one with --pack 1"):
        run.run()
    assert not trained


def test_ranks_and_scales_may_differ() -> None:
    class Ranks(Odd):
        def adapt(self, backbone: Backbone, task: Classification, client: ClientInfo) -> Adaptation:
            rank = 2 + (client.id == "client-1")
            return {"lora": (LoRA(rank, 3.0, "q"), PERSONAL), "head": (task.head, SHARED)}

    together, alone = (tiny.federation(Ranks(), sizes=(9, 5), pack=k, rounds=2).run() for k in (2, 1))
    for name, found in by_hand.shared(together).items():
        by_hand.close(found, by_hand.shared(alone)[name])


def test_texts_of_one_client_are_not_given_to_another() -> None:
    class Texts(Odd):
        info: ClassVar[MethodInfo] = dataclasses.replace(CARD, needs=("two towers",))

        def adapt(self, backbone: Backbone, task: Classification, client: ClientInfo) -> Adaptation:
            return {"context": (ClassContext(2, where="end" if client.id == "client-0" else "front"), SHARED)}

    with pytest.raises(UserError, match='the part "context" has other settings for client-0 than for client-1'):
        tiny.federation(Texts(), sizes=(9, 5), pack=2, rounds=1).run()
