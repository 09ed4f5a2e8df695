"""Sequence packing: several rows one after another in a line, each blind to the others, so that next to nothing is padded.

A decoder is told by positions that begin anew where a row begins, and by nothing else: transformers makes the block-diagonal
attention mask of them, sliding windows included. Not every model looks at positions alone, so each is tried first.
"""

from __future__ import annotations

import heapq

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
    rows = [[(int(table.widths[row]), j) for j, row in enumerate(own) if row >= 0] for own in index]
    filled = _filled(rows, int(table.widths.max(initial=1)))
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


def _filled(clients: list[Line], longest: int) -> list[list[Line]]:
    """The rows of each client in as few lines as do: the longest row first, each into the line that is shortest so far
    (R. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17(2), 1969).
    """
    ordered = [sorted(own, key=lambda row: -row[0]) for own in clients]
    count = max((-(-sum(n for n, _ in own) // longest) for own in clients), default=1) or 1
    while True:
        filled = [_spread(own, count) for own in ordered]
        if all(sum(n for n, _ in line) <= longest for own in filled for line in own):
            return filled
        count += 1


def _spread(rows: Line, count: int) -> list[Line]:
    lines: list[Line] = [[] for _ in range(count)]
    shortest = [(0, i) for i in range(count)]
    for n, j in rows:
        so_far, i = heapq.heappop(shortest)
        lines[i].append((n, j))
        heapq.heappush(shortest, (so_far + n, i))
    return lines


@torch.no_grad()
def check(backbone: Backbone, table: object) -> None:
    """
    Raises:
        UserError: rows in one line would not be blind to each other, or they are not a decoder's.
    """
    if type(table) is not Replies or backbone.vocabulary is None:
        raise UserError("--sequence-packing is for --task generation with a decoder: leave it out.")
    model, size = backbone.model, backbone.vocabulary.size
    one, other, two = (torch.arange(1, n + 1, device=backbone.device)[None] * by % size for n, by in ((3, 7), (3, 11), (5, 7)))
    positions = torch.cat([torch.arange(3), torch.arange(5)])[None].to(backbone.device)
    alone = model(input_ids=two).logits.float()
    try:
        both = [model(input_ids=torch.cat([first, two], 1), position_ids=positions).logits for first in (one, other)]
        behind = [logits[:, 3:].float() for logits in both]
    except TypeError:  # it takes no positions
        behind = [torch.full_like(alone, float("inf"))] * 2
    largest = alone.abs().max().clamp(min=1e-6)
    moved, apart = (float((a - b).abs().max() / largest) for a, b in (behind, (behind[0], alone)))
    # another row before it moves nothing at all; a row alone has another shape, which rounds differently
    if not (moved <= 1e-6 and apart <= (0.05 if backbone.dtype in (torch.bfloat16, torch.float16) else 1e-3)):
        raise UserError(f'backbone "{backbone.name}" does not keep rows apart that share a line: leave out --sequence-packing.')
