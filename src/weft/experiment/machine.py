"""Settings of the machine: what computes, how much at once, and how batches are made. They are not the experiment's idea."""

from __future__ import annotations

from typing import ClassVar, Literal

from weft.experiment.declare import Count, Group, Name, setting


class Machine(Group):
    """What computes, and how."""

    title: ClassVar[str] = "Machine"

    pack: Count | Literal["auto"] = setting("auto", "Clients trained in one pass, or `auto` (from memory).")
    max_length: Count = setting(128, "Tokens of a row; the rest is cut off.", everyday=True, common=True)
    device: Name = setting("auto", "`auto`, `cpu`, `cuda` or `mps`.", everyday=True)
    precision: Literal["auto", "float32", "bfloat16", "float64"] = setting(
        "auto",
        "Of the frozen backbone: `auto`, `float32` or `bfloat16`.",
        "`auto` is bfloat16 where the processor computes in it.",
        common=True,
    )
    quantise: Literal["none", "int8", "int4"] = setting(
        "none",
        "Frozen weights of a language model in 8 or 4 bits: `none`, `int8` or `int4` (NF4).",
        "It needs bitsandbytes or torchao (the extra `quantised`); what is trained stays in single precision.",
    )
    device_map: Literal["none", "auto", "balanced", "sequential"] = setting(
        "none",
        "Spread a language model over all GPUs of this machine: `none`, or `auto`, `balanced` or `sequential`.",
        "Modules lie where Hugging Face Accelerate puts them.",
    )
    prefix_cache: Literal["auto", "off"] = setting(
        "auto", "`auto` or `off`: compute frozen lower layers once per row.", "Those are the layers below every trained part."
    )
    recompute: bool = setting(
        False,
        "Keep only what goes into each block, and compute blocks once more in the backward pass.",
        "It takes much less memory and one and a half to two times the time on a CPU, and changes no number.",
    )
    sequence_packing: bool = setting(
        False,
        "Put rows of a language model one after another in lines, each blind to the others, so that less is padded.",
        "It changes no number, and needs a decoder. It pays with `--no-by-length`, whose rows differ more in length.",
    )
    by_length: bool = setting(
        True,
        "Batches of rows of like length, or of rows at random.",
        "The former pad less, the latter is what most papers do: see "
        "[what it changes](methods.md#what-differs-for-every-method).",
        common=True,
    )
    engine: Literal["simulation", "ray", "flower"] = setting(
        "simulation",
        "`simulation`; `ray`: packs on all cores, GPUs or machines that Ray has; `flower`: every client a process of its own.",
        "With `flower` it is [a federation on one machine](deployment.md#on-one-machine), over Flower.",
        everyday=True,
    )
    debug: bool = setting(False, "Clients one by one; errors say stage, client and batch.")
    trust_remote_code: bool = setting(False, "Let a hub backbone run its own Python code.")
