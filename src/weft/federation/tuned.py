"""A method whose rule holds for whatever is tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from weft.adaptation.tune import Tune
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.scope import SHARED, Scope

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.tasks.task import Task


class Tuned(Method):
    """Federated averaging of any kind of part; a subclass is a rule that names none.

    Attributes:
        tune: what is trained, ``tune.kind`` and its settings.
        shares: the scope of its tensors.
    """

    shares: ClassVar[Scope] = SHARED
    tune: Tune = Tune()

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {name: (part, self.shares) for name, part in self.tune.parts(backbone, task.head).items()}
