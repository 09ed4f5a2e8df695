"""Tokens of texts out of the activations that a client of split learning sends: the nearest row of a known table.

What enters the first block is a function of a token and its place. Whoever knows the table of embeddings, as the server of a
federation does that averages it, computes that of every token of the vocabulary at every place, and takes the nearest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.audits.outcome import Outcome, lowest_share
from weft.backbones.cut import up_to_blocks
from weft.backbones.reply_table import Replies
from weft.errors import UserError
from weft.federation.batch import make_batch
from weft.federation.cut_passes import embedded
from weft.federation.rounds import adapted, enter
from weft.federation.split import SplitMethod
from weft.federation.turn import Turn
from weft.tensors.keyed import generator

if TYPE_CHECKING:
    from weft.audits.audited import Audited
    from weft.federation.client import ClientState
    from weft.federation.pack import Pack
    from weft.federation.server import ServerState

CHUNK = 1 << 22
"""Numbers of candidates that are held at once."""


@dataclass(frozen=True)
class Recovery:
    """What was read off some clients' activations.

    Attributes:
        noise: standard deviation of what clients add. tokens: of the texts as they are sent, but for hidden and special ones.
        found: how many of them were recovered. blind: the share that one word alone has, the most frequent of them.
        scale: root of the mean square of an activation's entries, without noise.
    """

    noise: float
    tokens: int
    found: int
    blind: float
    scale: float

    @property
    def share(self) -> float:
        return self.found / self.tokens if self.tokens else 0.0


NAME = "tokens"


def attack(run: Audited) -> list[Outcome]:
    """Attack the clients of a finished run, as if they began another turn.

    Raises:
        UserError: noise below 0.
    """
    method, asked = run.method, run.asked
    assert isinstance(method, SplitMethod)
    if any(sd < 0 for sd in asked.noise):
        raise UserError(f"noise is a standard deviation, and {min(asked.noise):g} is below 0: give numbers from 0.")
    found = [recovered(method, run.server, run.clients, sd, asked.rows) for sd in asked.noise or (method.noise,)]
    return [_outcome(one) for one in found]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    if isinstance(run.method, SplitMethod):
        return None
    return f"{run.method.info.slug} sends no activations that tokens could be read off: that is split learning, such as fedbert"


def _outcome(one: Recovery) -> Outcome:
    sentence = (
        f"{one.found:,} of {one.tokens:,} tokens recovered ({one.share:.1%}) with noise {one.noise:g}; hidden and special tokens "
        f"are not counted, and what clients send has a root mean square of {one.scale:.2g}."
    )
    about = {"noise": one.noise, "found": one.found, "scale": one.scale}
    low = lowest_share(one.found, one.tokens)
    return Outcome(
        NAME, f"activations, noise {one.noise:g}", "tokens recovered", one.share, one.blind, one.tokens, low, sentence, about
    )


def recovered(method: SplitMethod, server: ServerState, clients: Sequence[ClientState], noise: float, rows: int) -> Recovery:
    """Read the tokens of clients' rows off what they would send of these now.

    Args:
        clients: with what they remember. noise: standard deviation of what they add. rows: of each client at most.
    """
    eavesdropper, table = server.pack(), server.bench.table
    assert isinstance(table, Replies)
    special = server.bench.backbone.tokenizer.all_special_ids
    tokens = found = 0
    words: Counter[int] = Counter()
    square, numbers = 0.0, 0
    for client in clients:
        own = client.data.train[:rows]
        if not len(own):
            continue
        hidden, mask = sent(method, server, client, own)
        square, numbers = square + float(hidden[mask].double().square().sum()), numbers + hidden[mask].numel()
        if noise:
            stream = generator(server.seed, "audit", client.id)
            hidden = hidden + noise * torch.randn(hidden.shape, generator=stream).to(hidden)
        guessed = nearest(eavesdropper, hidden).cpu().numpy()
        for row, guess in zip(own, guessed, strict=True):
            at = slice(table.offsets[row], table.offsets[row + 1])
            chosen = ~table.answer[at] & ~np.isin(table.ids[at], special)
            tokens += int(chosen.sum())
            words.update(table.ids[at][chosen].tolist())
            found += int((guess[: len(chosen)] == table.ids[at])[chosen].sum())
    blind = max(words.values(), default=0) / max(tokens, 1)
    return Recovery(noise, tokens, found, blind, (square / max(numbers, 1)) ** 0.5)


@torch.no_grad()
def sent(method: SplitMethod, server: ServerState, client: ClientState, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """h [n, T, d] of a client's rows, and bool [n, T], which tokens are their own."""
    info = client.info(method.info.asks)
    adaptation = adapted(method, server.bench, info)
    turn = Turn(client, adaptation, server.held_by(info, adaptation, method.send_to_test(server, info)))
    pack = enter(method, server.bench, [turn], server.round, server.start)
    hidden, own = embedded(pack, make_batch(pack.task, server.bench.table, rows[None], None, pack.device))
    return hidden, own.bool()


@torch.no_grad()
def nearest(pack: Pack, hidden: Tensor) -> Tensor:
    """int64 [n, T]: of each activation [n, T, d] the token of the vocabulary that a pack's embeddings put nearest to it."""
    n, width, d = hidden.shape
    best, guess = hidden.new_full((width, n), float("inf")), torch.zeros(width, n, dtype=torch.int64, device=hidden.device)
    for tokens, there in _candidates(pack, width, max(CHUNK // (width * d), 1)):
        far = torch.cdist(hidden.transpose(0, 1), there.to(hidden).transpose(0, 1))  # [T, n, c]
        least = far.min(2)
        better = least.values < best
        best, guess = torch.where(better, least.values, best), torch.where(better, tokens[least.indices], guess)
    return guess.mT


def _candidates(pack: Pack, width: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens [c], and what enters the first block of each at every place, [c, T, d]."""
    vocabulary, pack.weave.prefix = pack.backbone.vocabulary, None
    assert vocabulary is not None
    for tokens in torch.arange(vocabulary.size, device=pack.device).split(size):
        ids = tokens[:, None].expand(-1, width).contiguous()
        with pack.weave.attached(None, 1, None), up_to_blocks(pack.backbone) as found:
            pack.backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        yield tokens, found[0]
