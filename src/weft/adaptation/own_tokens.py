"""Tokens that parts have among those that a model reads: contexts of class names, and soft words before texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weft.adaptation.part import Part
from weft.adaptation.placed import Placed
from weft.errors import WeftError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


class OwnTokens:
    """What a model reads once parts have put their tokens in.

    Args:
        placed: all parts of a weave.
    """

    def __init__(self, backbone: Backbone, placed: Sequence[Placed]):
        self.backbone = backbone
        self._of_names = {p.part_name: p.part for p in placed if p.site.tower == "text"}
        self._of_rows = {p.part_name: p.part for p in placed if p.part.mode == "embeds" and not p.site.tower}
        self._names: dict[frozenset[str], dict[str, Any]] = {}

    def of_names(self, inputs: dict[str, Tensor], k: int, use: Collection[str] | None) -> dict[str, Any]:
        """What the model takes beside the rows of a batch, once for each client if a part in the text tower is on.

        Args:
            use: names of the parts that are on; None = all.
        """
        on = _on(self._of_names, use)
        if not on or self.backbone.names is None:
            return inputs | self.backbone.class_inputs()
        key = frozenset(on)
        if key not in self._names:  # the same in every step
            ids = {"input_ids": self.backbone.names.ids()}
            for part in on.values():
                ids = part.inputs(self.backbone, ids)
            rows, device = ids["input_ids"], self.backbone.device
            common = self.backbone.names.common(rows)
            about = {"classes": len(rows), "common": None if common is None else common.to(device)}
            self._names[key] = about | {"input_ids": (rows if common is None else common.ids).to(device)}
        found = self._names[key]
        return inputs | found | {"input_ids": found["input_ids"].repeat(k, 1)}

    def room(self, use: Collection[str] | None) -> int:
        """How many tokens of parts stand in each row."""
        return sum(part.room(self.backbone) for part in _on(self._of_rows, use).values())

    def of_rows(self, inputs: dict[str, Tensor], use: Collection[str] | None) -> dict[str, Tensor]:
        """Rows of a batch with the tokens that parts put into them."""
        for part in _on(self._of_rows, use).values():
            inputs = part.inputs(self.backbone, inputs)
        return inputs


def _on(parts: Mapping[str, Part], use: Collection[str] | None) -> dict[str, Part]:
    """
    Raises:
        WeftError: two of those that are on have tokens of their own, which nobody could tell apart.
    """
    on = {name: part for name, part in parts.items() if use is None or name in use}
    own = [name for name, part in on.items() if part.mode == "embeds"]
    if len(own) > 1:
        raise WeftError(f'"{own[0]}" and "{own[1]}" both have tokens of their own in one place: a pass takes one of them')
    return on
