"""Whether there is memory for one client at all: asked before a run that trains whole weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from weft.communication.ledger import format_bytes
from weft.engines import packing
from weft.errors import UserError

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
    more = (servers - 1) * packing.SERVER * guess.trained
    if guess.messages:
        needs = [(guess.total(1) - guess.fixed + more, guess.available, "of memory")]
    else:
        needs = [
            (guess.total(1) - guess.fixed, guess.available, f"of the memory of {device}"),
            (guess.server + more, packing.available_memory(torch.device("cpu")), "of memory at the server"),
        ]
    for need, free, what in needs:
        if need > free:
            numbers, kept = guess.trained // 4, method.optim.copies
            optimizer = f", {kept + 1} times with what {method.optim.kind} keeps" if kept else ""
            raise UserError(
                f"{method.info.slug} trains {numbers:,} numbers of a client whole{optimizer}: that takes about "
                f"{format_bytes(need)} {what}, and {format_bytes(free)} are free; {_advice(method, guess)}."
            )


def _advice(method: Method, guess: packing.Estimate) -> str:
    ways = []
    if method.optim.copies:
        ways.append("use plain SGD (--set method.optim.kind=sgd)")
    if guess.kept > guess.trained:
        ways.append("train on fewer rows at once (--set method.batch, --max-length) or with --recompute")
    return ", ".join([*ways, "take a smaller --model, or tune LoRA instead (--method fedit)"])
