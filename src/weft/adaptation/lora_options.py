"""Options of LoRA, whatever method has it: what they make of the LoRA parts of an adaptation."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from weft.adaptation.adalora import AdaLoRA
from weft.adaptation.dora import DoRA
from weft.adaptation.dylora import DyLoRA
from weft.adaptation.from_weights import FromWeights
from weft.adaptation.lora import Dropped, LoRA, Scaling
from weft.adaptation.orthogonal import Orthogonal
from weft.adaptation.vera import VeRA
from weft.errors import UserError
from weft.typed import Count, Positive, Whole, check

Variant = Literal["lora", "dora", "vera", "adalora", "dylora"]


@dataclass(frozen=True)
class LoRAOptions:
    """One of each kind; the first of each is LoRA as methods have it.

    Attributes:
        scaling, ratio, dropout: see :class:`weft.adaptation.lora.LoRA`.
        variant: ``lora``, ``dora`` (:class:`weft.adaptation.dora.DoRA`), ``vera`` (:class:`weft.adaptation.vera.VeRA`),
            ``adalora`` (:class:`weft.adaptation.adalora.AdaLoRA`) or ``dylora`` (:class:`weft.adaptation.dylora.DyLoRA`).
        seed: of VeRA's frozen matrices: that of the run.
        start: ``usual``, ``orthogonal`` (:class:`weft.adaptation.orthogonal.Orthogonal`), ``pissa`` or ``olora``
            (:class:`weft.adaptation.from_weights.FromWeights`).
        target: of AdaLoRA.

    Raises:
        UserError: VeRA has no scale and no factors that the other options are about, other variants have starts of their own or
            their own order of ranks, and a target is AdaLoRA's.
    """

    scaling: Scaling = "usual"
    ratio: Positive = 1.0
    dropout: Dropped = 0.0
    variant: Variant = "lora"
    seed: Whole = 0
    start: Literal["usual", "orthogonal", "pissa", "olora"] = "usual"
    target: Count | None = None

    def __post_init__(self) -> None:
        check(self)
        for name in ("scaling", "ratio"):
            if self.variant == "vera" and name in self.chosen:
                raise UserError(
                    f'lora.variant = "vera" has no factors that are trained and no scale, so that lora.{name} would be without '
                    "effect: leave one out."
                )
        if self.variant != "lora" and "start" in self.chosen:
            raise UserError(
                f'lora.variant = "{self.variant}" has a start of its own, so that lora.start = "{self.start}" would not be what '
                "it says: leave one out."
            )
        if self.target is not None and self.variant != "adalora":
            raise UserError(
                f"lora.target = {self.target} is of AdaLoRA, which prunes ranks: leave it out, or give lora.variant = "
                '"adalora" too.'
            )

    @property
    def chosen(self) -> dict[str, Any]:
        """Those that are not as methods have them, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def words(self) -> tuple[str, ...]:
        """What names of methods say of them."""
        found = {"scaling": self.scaling, "ratio": "loraplus", "dropout": "dropout", "variant": self.variant, "start": self.start}
        return tuple(word for name, word in found.items() if name in self.chosen)

    def over(self, part: LoRA) -> LoRA:
        """The part with the options."""
        made = replace(part, scaling=self.scaling, ratio=self.ratio, dropout=self.dropout)
        if self.variant == "lora" and self.start == "usual":
            return made
        own = {f.name: getattr(made, f.name) for f in fields(made)}
        if self.start == "orthogonal":
            return Orthogonal(**own)
        if self.start == "pissa" or self.start == "olora":
            return FromWeights(**own, begins=self.start)
        if self.variant == "adalora":
            return AdaLoRA(**own, target=self.target)
        if self.variant == "vera":
            return VeRA(**own, seed=self.seed)
        return DoRA(**own) if self.variant == "dora" else DyLoRA(**own)
