"""What a pass over rows of a language model gives: hidden states where answers are predicted, in the order of the rows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from weft.adaptation.in_flight import Weight
from weft.adaptation.row_tokens import row_tokens
from weft.adaptation.weave import Weave
from weft.backbones.lines import lines
from weft.backbones.reply_table import Replies
from weft.federation.batch import Batch
from weft.federation.bench import Bench
from weft.tasks.outputs import Hidden


def in_lines(bench: Bench, use: Mapping[str, Weight] | None) -> bool:
    """Whether the rows of a client lie in lines together: it was asked for, and no part has a weight for each of them."""
    by_row = any(isinstance(weight, Tensor) and weight.dim() > 1 for weight in (use or {}).values())
    return bench.sequence_packing and not by_row


def read(
    weave: Weave, bench: Bench, batch: Batch, inputs: Mapping[str, Tensor] | None, use: Mapping[str, Weight] | None
) -> Hidden:
    """
    Args:
        inputs: of the batch's rows, on the model's device; None = the rows lie in lines.
    """
    backbone, table, order, own = bench.backbone, bench.table, None, None
    assert backbone.vocabulary is not None and isinstance(table, Replies)
    if inputs is None:
        packed, places, order = lines(table, batch.index)
        inputs = backbone.to_model(packed)
    else:
        places, own = table.places(batch.index.reshape(-1)), row_tokens(backbone, inputs, batch.index)
    with (
        weave.attached(batch.clients, len(batch.index), use, batch.dropping, own=own),
        backbone.vocabulary.at(backbone.model, places) as rows,
    ):
        logits = backbone.model(**inputs).logits
    hidden, layer = backbone.vocabulary.finish(rows, logits)
    if order is not None:
        hidden = hidden[order.to(hidden.device)]
    return Hidden(hidden.to(backbone.device), batch.mask, layer)
