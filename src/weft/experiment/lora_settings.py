"""Settings of the LoRA of whatever method has one."""

from __future__ import annotations

from typing import ClassVar, Literal

from weft.experiment.declare import Count, Fraction, Group, Positive, setting


class LoRA(Group):
    """Options of LoRA parts, over the method's own settings."""

    title: ClassVar[str] = "Options of LoRA"

    lora_scaling: Literal["usual", "rslora"] = setting(
        "usual",
        "Scale of the update B A: `usual` (α/r), or `rslora` (α/√r).",
        "See [options of LoRA](methods.md#options-of-lora).",
        common=True,
    )
    lora_ratio: Positive = setting(1.0, "Learning rate of B over that of A (LoRA+); its paper tries 2 to 16.", common=True)
    lora_dropout: Fraction = setting(0.0, "Share of a LoRA's input that is dropped in steps of training.", common=True)
    lora_variant: Literal["lora", "dora", "vera", "adalora", "dylora"] = setting(
        "lora",
        "`lora`, `dora` (a layer's magnitudes are trained apart from its directions), `vera` (vectors behind frozen random "
        "factors), `adalora` (ranks stay in the layers that need them) or `dylora` (any leading ranks are a LoRA by themselves).",
        common=True,
    )
    lora_target: Count | None = setting(
        None, "AdaLoRA: ranks that a layer keeps on average.", unset="two thirds of the method's", common=True
    )
    lora_start: Literal["usual", "orthogonal", "pissa", "olora"] = setting(
        "usual",
        "Where LoRA begins: `usual` (B = 0), `orthogonal` (both factors random, with a product of 0), `pissa` (the leading "
        "singular triplets of the weights) or `olora` (their QR).",
        common=True,
    )
