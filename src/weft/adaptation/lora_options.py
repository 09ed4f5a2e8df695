"""Options of LoRA, whatever method has it: what they make of the LoRA parts of an adaptation."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from weft.adaptation.dora import DoRA
from weft.adaptation.lora import Dropped, LoRA, Scaling
from weft.typed import Positive, check


@dataclass(frozen=True)
class LoRAOptions:
    """One of each kind; the first of each is LoRA as methods have it.

    Attributes:
        scaling, ratio, dropout: see :class:`weft.adaptation.lora.LoRA`.
        variant: ``lora``, or ``dora`` (:class:`weft.adaptation.dora.DoRA`).
    """

    scaling: Scaling = "usual"
    ratio: Positive = 1.0
    dropout: Dropped = 0.0
    variant: Literal["lora", "dora"] = "lora"

    def __post_init__(self) -> None:
        check(self)

    @property
    def chosen(self) -> dict[str, Any]:
        """Those that are not as methods have them, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def words(self) -> tuple[str, ...]:
        """What names of methods say of them."""
        found = {"scaling": self.scaling, "ratio": "loraplus", "dropout": "dropout", "variant": self.variant}
        return tuple(word for name, word in found.items() if name in self.chosen)

    def over(self, part: LoRA) -> LoRA:
        """The part with the options."""
        made = replace(part, scaling=self.scaling, ratio=self.ratio, dropout=self.dropout)
        if self.variant == "lora":
            return made
        return DoRA(**{f.name: getattr(made, f.name) for f in fields(made)})
