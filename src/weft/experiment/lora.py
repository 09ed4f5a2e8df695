"""Settings of the LoRA of whatever method has one."""

from __future__ import annotations

from typing import ClassVar, Literal

from weft.experiment.declare import Group, setting


class LoRA(Group):
    """Options of LoRA parts, over the method's own settings."""

    title: ClassVar[str] = "Options of LoRA"

    lora_scaling: Literal["usual", "rslora"] = setting(
        "usual",
        "Scale of the update B A: `usual` (α/r), or `rslora` (α/√r).",
        "See [options of LoRA](methods.md#options-of-lora).",
        option=False,
        common=True,
    )
