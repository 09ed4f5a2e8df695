"""Sequence packing: several rows one after another in a line, each blind to the others, so that next to nothing is padded.

A decoder is told by positions that begin anew where a row begins, and by nothing else: transformers makes the block-diagonal
attention mask of them, sliding windows included. Not every model looks at positions alone, so each is tried first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weft.backbones.backbone import Backbone
from weft.backbones.reply_table import Replies
from weft.errors import UserError


def lines(table: Replies, index: np.ndarray) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Model inputs of rows of k clients, and where in them answers are predicted.

    The rows of a client are spread over lines of nearly equal length; all clients have as many, and none is longer than the
    longest row of the table: attention, whose cost grows with the length of a line, costs no more than that of such rows.

    Args:
        index: [k, b] rows of the table, -1 = padding.

    Returns:
        ``input_ids`` and ``position_ids`` [k * lines, T]; bool [k * lines, T], the positions whose output predicts an answer; and
        the order [r] that puts what is found there, line by line, into that of the rows.
    """
    filled = _filled([[(int(table.widths[row]), j) for j, row in enumerate(own) if row >= 0] for own in index], table)
    width = max((sum(n for n, _ in line) for own in filled for line in own), default=1)
    shape = (sum(map(len, filled)), max(width, 1))
    ids = np.full(shape, table.pad, dtype=np.int64)
    positions = np.zeros_like(ids)  # of padding, each token is a row of its own
    places = np.zeros(shape, dtype=bool)
    owners = np.zeros(shape, dtype=np.int64)
    for r, (i, line) in enumerate((i, line) for i, own in enumerate(filled) for line in own):
        start = 0
        for n, j in line:
            where = slice(int(table.offsets[index[i, j]]), int(table.offsets[index[i, j] + 1]))
            ids[r, start : start + n], positions[r, start : start + n] = table.ids[where], np.arange(n)
            places[r, start : start + n - table.ahead] = table.answer[where][table.ahead :]
            owners[r, start : start + n] = i * index.shape[1] + j
            start += n
    order = np.argsort(owners[places], kind="stable")
    inputs = {"input_ids": torch.from_numpy(ids), "position_ids": torch.from_numpy(positions)}
    return inputs, torch.from_numpy(places), torch.from_numpy(order)


Line = list[tuple[int, int]]  # (length, position in the batch) of its rows


def _filled(clients: list[Line], table: Replies) -> list[list[Line]]:
    """The rows of each client in as few lines as do: the longest row first, each into the line that is shortest so far
    (R. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17(2), 1969).
    """
    longest = int(table.widths.max(initial=1))
    count = max((-(-sum(n for n, _ in own) // longest) for own in clients), default=1) or 1
    while True:
        filled: list[list[Line]] = []
        for own in clients:
            lines: list[Line] = [[] for _ in range(count)]
            for row in sorted(own, key=lambda row: (-row[0], row[1])):
                min(lines, key=lambda line: sum(n for n, _ in line)).append(row)
            filled.append(lines)
        if all(sum(n for n, _ in line) <= longest for own in filled for line in own):
            return filled
        count += 1


@torch.no_grad()
def check(backbone: Backbone, table: object) -> None:
    """
    Raises:
        UserError: rows in one line would not be blind to each other, or they are not a decoder's.
    """
    if type(table) is not Replies or backbone.vocabulary is None:
        raise UserError("--sequence-packing is for --task generation with a decoder: leave it out.")
    count = backbone.vocabulary.size
    one, two = (torch.arange(3 + n, device=backbone.device)[None] * 7 % count for n in (0, 2))
    packed = {
        "input_ids": torch.cat([one, two], 1),
        "position_ids": torch.cat([torch.arange(one.shape[1]), torch.arange(two.shape[1])])[None].to(backbone.device),
    }
    alone = torch.cat([backbone.model(input_ids=ids).logits for ids in (one, two)], 1).float()
    try:
        together = backbone.model(**packed).logits.float()
    except TypeError:  # it takes no positions
        together = torch.full_like(alone, float("inf"))
    gap = (together - alone).abs().max() / alone.abs().max().clamp(min=1e-6)
    if not bool(gap <= (0.05 if backbone.dtype in (torch.bfloat16, torch.float16) else 1e-3)):
        raise UserError(f'backbone "{backbone.name}" does not keep rows apart that share a line: leave out --sequence-packing.')
