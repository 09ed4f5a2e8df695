"""How the training of a run would have gone on the peers that its settings name."""

from __future__ import annotations

from typing import Any

from weft.adaptation.boundary import Boundary
from weft.backbones.quantised import size
from weft.communication.ledger import format_bytes
from weft.devices import peers, span
from weft.experiment import Experiment
from weft.federation.bench import Bench
from weft.federation.layout import named
from weft.runs.stage import FinishedStage
from weft.tensors.forms import tensors_in
from weft.words import count


def told(x: Experiment, main: FinishedStage, bench: Bench) -> tuple[dict[str, Any], str]:
    """For ``summary.json``, and in a sentence. Peers' numbers are simulated; that of operations is counted.

    Raises:
        UserError: the file of peers has changed since the run began, or a stage loses its last peer for good.
    """
    assert x.peers is not None
    (server,) = main.servers
    boundary = next(part for part, _ in server.adaptation.values() if isinstance(part, Boundary))
    work = [line["work"] for line in main.lines]
    steps, rows, forward, backward = (sum(one[n] for one in work) for n in ("steps", "examples", "forward", "backward"))
    lengths, trained = bench.table.lengths, {n for n, _, _ in named(server.adaptation, bench.backbone)}
    training = peers.Training(
        steps,
        rows,
        forward / rows,
        backward / rows,
        float(lengths.mean()),
        bench.backbone.d,
        sum(size(p) for p in bench.backbone.model.parameters()),
        sum(t.numel() * t.element_size() for n, v in server.shared.items() if n in trained for t in tensors_in([v])),
    )
    found = peers.read(x.peers, boundary.stages).played(training, boundary.block, x.seed)
    about = {
        "seconds": found.seconds,
        "samples": rows,
        "samples_per_second": found.rate,
        "micro_batches": found.done,
        "retries": found.retries,
        "bytes": round(found.sent),
        "moves": [list(move) for move in found.moves],
        "tasks": {f"{peer}, stage {stage}": n for (peer, stage), n in sorted(found.tasks.items())},
    }
    moves = f", {count(len(found.moves), 'peer')} moved" if found.moves else ""
    return about, (
        f"on these peers, simulated: {found.rate:.3g} samples a second, {span(found.seconds)} altogether, "
        f"{count(found.retries, 'task')} sent again, {format_bytes(found.sent)} across boundaries{moves}."
    )
