"""Options of LoRA, whatever method has it: what they make of the LoRA parts of an adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from weft.adaptation.lora import Dropped, LoRA, Scaling
from weft.adaptation.part import Part
from weft.typed import Positive, check


@dataclass(frozen=True)
class LoRAOptions:
    """One of each kind; the first of each is LoRA as methods have it.

    Attributes:
        scaling, ratio, dropout: see :class:`weft.adaptation.lora.LoRA`.
    """

    scaling: Scaling = "usual"
    ratio: Positive = 1.0
    dropout: Dropped = 0.0

    def __post_init__(self) -> None:
        check(self)

    @property
    def chosen(self) -> dict[str, Any]:
        """Those that are not as methods have them, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def words(self) -> tuple[str, ...]:
        """What names of methods say of them."""
        found = {"scaling": self.scaling, "ratio": "loraplus", "dropout": "dropout"}
        return tuple(word for name, word in found.items() if name in self.chosen)

    def over(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """The LoRA parts of these with the options, by name; others are not among them."""
        changes: dict[str, Any] = {"scaling": self.scaling, "ratio": self.ratio, "dropout": self.dropout}
        return {name: replace(part, **changes) for name, part in parts.items() if isinstance(part, LoRA)}
