"""Whether there is memory for one client at all: asked before a run that trains whole weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from weft.communication.ledger import format_bytes
from weft.engines import packing
from weft.errors import UserError
from weft.federation.tuned import Tuned

if TYPE_CHECKING:
    from weft.federation.bench import Bench
    from weft.federation.layout import Adaptation
    from weft.federation.method import Method


def check(method: Method, bench: Bench, adaptation: Adaptation, servers: int = 1) -> None:
    """Compare what one client takes beside the backbone, which is there already, with what is free.

    Whole weights have no smaller pack to fall back on, and a system that runs out of memory ends the process without a word. The
    clients' passes and the server share a CPU's memory; beside a GPU the server has the machine's own.

    Args:
        adaptation: a client's. servers: beside each other, as of the baseline ``local``.

    Raises:
        UserError: it is more.
    """
    guess, device = packing.of_adaptation(bench, method, adaptation), bench.backbone.device
    passes, server = guess.total(1) - guess.fixed, guess.server + (servers - 1) * packing.SERVER * guess.trained
    if guess.apart:
        main = packing.available_memory(torch.device("cpu"))
        needs = [(passes, guess.available, f"of the memory of {device}"), (server, main, "of main memory for the server")]
    else:
        needs = [(passes + server - guess.server, guess.available, "of memory, the server's included,")]
    for need, free, what in needs:
        if need > free:
            copies = method.optim.copies
            kept = f" and the {copies} times as many that {method.optim.kind} keeps" if copies else ""
            raise UserError(
                f"{method.info.slug} trains whole weights, {guess.trained // 4:,} numbers a client: with gradients{kept} that "
                f"takes about {format_bytes(need)} {what} where {format_bytes(free)} are free; {_advice(method, guess, servers)}."
            )


def _advice(method: Method, guess: packing.Estimate, servers: int) -> str:
    ways = []
    if method.optim.copies:
        ways.append("use plain SGD (--set method.optim.kind=sgd)")
    if guess.kept > guess.trained:
        ways.append("take fewer or shorter rows at once (--set method.batch, --max-length), or --recompute")
    if servers > 1:
        ways.append("leave the baseline local out")
    lora = "--set method.tune.kind=lora" if isinstance(method, Tuned) else "--method fedit"
    return ", ".join([*ways, f"take a smaller --model, or tune LoRA instead ({lora})"])
