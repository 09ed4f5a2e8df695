"""A pass in three pieces, on packs of one client: up to the blocks, through them, and from there to the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft.backbones.cut import through_blocks, up_to_blocks
from weft.federation import answers
from weft.tasks.outputs import Output

if TYPE_CHECKING:
    from weft.federation.batch import Batch
    from weft.federation.pack import Pack


def inputs_of(pack: Pack, batch: Batch) -> dict[str, Tensor]:
    """What the model reads of a batch's rows."""
    return pack.backbone.to_model(pack.bench.table.collate(batch.index.reshape(-1)))


def embedded(pack: Pack, batch: Batch) -> tuple[Tensor, Tensor]:
    """What enters the first block, [b, T, d], and which tokens are the rows' own, [b, T]."""
    inputs = inputs_of(pack, batch)
    pack.weave.prefix = None
    with pack.weave.attached(None, 1, None), up_to_blocks(pack.backbone) as found:
        pack.backbone.model(**inputs)
    return found[0], inputs["attention_mask"]


def through(pack: Pack, hidden: Tensor, mask: Tensor) -> Tensor:
    """What leaves the last block, [b, T, d], of what enters the first and of the rows' own tokens; no token is read."""
    pack.weave.prefix = (0, hidden)
    with pack.weave.attached(None, 1, None), through_blocks(pack.backbone) as found:
        pack.backbone.model(input_ids=torch.zeros_like(mask), attention_mask=mask)
    return found[0]


def read(pack: Pack, batch: Batch, hidden: Tensor) -> Output:
    """What is predicted in a batch's rows of what leaves the last block, [b, T, d]."""
    pack.weave.prefix = (len(pack.backbone.blocks), hidden)
    return answers.read(pack.weave, pack.bench, batch, inputs_of(pack, batch), None)
