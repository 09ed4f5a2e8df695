"""A method whose server trains on public rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Update
from weft.federation.scope import GIVEN, SHARED
from weft.federation.server import ServerState
from weft.methods import FedIT
from weft.tasks.task import Task


class Taught(FedIT):
    """The server trains a LoRA of its own on public rows, which clients get and use."""

    info: ClassVar[MethodInfo] = replace(FedIT.info, slug="taught", public="nothing is taught")
    demands: ClassVar[tuple[str, ...]] = ()
    rank: int = 2
    sites: str = "q"
    batch: int = 3
    optim: Optim = Optim("sgd", lr=0.3, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        lora = LoRA(self.rank, 4.0, self.sites)
        return {"lora": (lora, SHARED), "ours": (lora, GIVEN), "head": (task.head, SHARED)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates)
        if server.public is None:
            return
        pack = server.pack(public=True)
        optimizer = pack.optimizer("ours", settings=self.optim, total=3)
        for batch in pack.batches(steps=3, size=4, stream="server"):
            pack.step(optimizer, self.objective, batch)
        for name in pack.params("ours"):
            server.write(name, pack.value(0, name))
