"""A method whose clients hold leading slices of what the server holds, and other parts, for tests of rules over methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.federation.scope import SHARED
from weft.federation.server import ServerState
from weft.tasks.task import Task

KINDS: list[dict[str, Any]] = [{"rank": 4, "blocks": 2}, {"rank": 2, "blocks": 1, "more": 1}, {"rank": 3, "blocks": 2}]


class Sliced(Method):
    """LoRA of the client's own rank in its lower blocks, a bottleneck for some, and the head."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="sliced", title="Sliced", paper="none", family="selective", sends="what each has", asks=("rank", "blocks", "more")
    )
    batch: int = 3
    optim: Optim = Optim("sgd", lr=0.1, momentum=0.5, schedule="constant")

    def profile(self, position: int) -> dict[str, Any]:
        return KINDS[position % len(KINDS)]

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        rank, blocks = client.facts.get("rank", 4), client.facts.get("blocks", 2)
        lora = LoRA(rank, 1.5 * rank, "q", blocks=tuple(range(blocks)), of=4)
        more = {"x": (Bottleneck(8), SHARED)} if client.facts.get("more", not client.facts) else {}
        return {"lora": (lora, SHARED), **more, "head": (task.head, SHARED)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, leading=True)
