"""What crosses the wire between server and client, before encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weft.federation.asynchrony import Late
from weft.federation.layout import Adaptation, named
from weft.tensors.forms import Value
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

APPENDED = "+"
"""A low-rank tensor name that ends in this carries terms to be added to the receiver's copy instead of a whole value."""


@dataclass
class ClientInfo:
    """What the server may know of a client: its id, its number of training examples, and the facts that the method asks for.

    Attributes:
        model: which of the federation's backbones it has, "" = the first.
    """

    id: str
    n: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    model: str = ""


@dataclass
class Message:
    """One direction, one client.

    Attributes:
        tensors: floats; a codec, noise or clipping may touch them.
        facts: exact values (counts, indices, masks); never touched.
    """

    tensors: dict[str, Value] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Update(Message):
    """A client's message to the server.

    Attributes:
        client: who sent it. weight: examples used, unless the method says otherwise.
        adaptation: the sender's parts, known to both sides (ranks, scales).
        shift: how far what its differences were taken from lies from what the client received, by name: of a codec with shifts.
        forgotten: shifts that the server noted of the client, and the client has lost.
        late: what its change counts, where the server has gone on meanwhile; None = it is of this round, and counts as it is.
    """

    client: ClientInfo = field(default_factory=lambda: ClientInfo(""))
    weight: float = 0.0
    adaptation: Adaptation = field(default_factory=dict)
    shift: Mapping[str, Tensor] = field(default_factory=dict)
    forgotten: Mapping[str, Tensor] = field(default_factory=dict)
    late: Late | None = None

    def lowrank(self, part: str, site: Site) -> LowRank:
        """B, A and this client's α/r at one site as one value."""
        lora = self.adaptation[part][0]
        a, b = self.tensors[f"{part}/{site.name}/A"], self.tensors[f"{part}/{site.name}/B"]
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        return LowRank(B=b, A=a, scale=lora.constants(site)["scale"])


def beside(adaptation: Adaptation, backbone: Backbone, tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Those of a message's tensors that are of no part: see :meth:`weft.federation.method.Method.downloads`."""
    names = {name for name, _, _ in named(adaptation, backbone)}
    return {n: v for n, v in tensors.items() if n.removesuffix(APPENDED) not in names}
