"""Which tokens a client's texts have, out of one update of it.

Where the table of embeddings is trained, the rows of the tokens that occur have moved. Where it is not, what enters the first
block's attention is a function of a token and its place, and how a layer changes there, or LoRA's factor A [r, d] beside it, is a
sum of outer products with just these inputs (:mod:`weft.audits.input_pursuit`). Plain SGD keeps that over all its steps; Adam
divides entry by entry, and destroys it.

Tokens at places are too many candidates, and too like each other, to be told apart by few rows. So what places have in common,
whatever the token, is taken off the change and off all candidates, and a token is looked for by the mean of its inputs over all
places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from weft.audits.input_pursuit import apart, pursue, row_space, without
from weft.audits.outcome import Outcome, lowest_share
from weft.backbones.cut import up_to_layer
from weft.backbones.token_table import Tokens
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator

if TYPE_CHECKING:
    from weft.audits.audited import Audited
    from weft.backbones.model_site import Site
    from weft.federation.bench import Bench
    from weft.federation.pack import Pack
    from weft.storage.updates import KeptUpdate

NAME = "update-tokens"
PLACES = 64
"""Of a row, at which tokens are tried: the first ones."""
INSIDE = 0.01
"""What lies no farther off a span than this, over its length, is taken to lie in it."""
SOUGHT = 1 << 21
"""Tokens that are looked for in turns, times rows of the span: those that are nearest to it, which with many rows are few."""
AT_MOST = 256
"""Tokens that are found in turns."""
CHUNK = 1 << 22
"""Numbers of candidates that are held at once."""


def attack(run: Audited) -> list[Outcome]:
    """Name as many tokens as each client's texts have, special ones aside.

    By chance somebody names any tokens, or those that are most frequent in texts of strangers, whichever are more of them.
    """
    owners = [u for u in run.updates if len(run.rows(u))]
    hits = frequent = n = 0
    anyhow = 0.0
    ways: Counter[str] = Counter()
    for update in owners:
        way, score = scores(run, update)
        ways[way] += 1
        bench = run.bench(update)
        score[bench.backbone.tokenizer.all_special_ids] = -np.inf
        true = used(bench, run.rows(update))
        prior = np.bincount(ids_of(bench, run.strangers), minlength=len(score))[: len(score)].astype(np.float64)
        prior[bench.backbone.tokenizer.all_special_ids] = -1
        hits += len(np.intersect1d(most(score, len(true)), true))
        frequent += len(np.intersect1d(most(prior, len(true)), true))
        anyhow += len(true) ** 2 / int(np.isfinite(score).sum())
        n += len(true)
    share, chance, low = hits / max(n, 1), max(frequent, anyhow) / max(n, 1), lowest_share(hits, n)
    more = "more than" if low > chance else "no more than"
    sentence = (
        f"{share:.0%} of the {n:,} tokens that clients' texts have are named from {' and '.join(ways)}, {more} by chance or by "
        f"what is frequent elsewhere ({chance:.0%})."
    )
    return [Outcome(NAME, f"{len(owners)} clients, round {owners[0].round + 1}", "tokens named", share, chance, n, low, sentence)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    if any(run.bench(u).backbone.reads != "texts" for u in run.updates):
        return "rows are no texts"
    if any(run.bench(u).backbone.encoder_decoder for u in run.updates):
        return "a model that reads a text and writes another has two sorts of tokens"
    owners = [u for u in run.updates if len(run.rows(u))]
    moved = [(run.bench(u), run.moved(u)) for u in owners]
    if any(rows_of_table(bench, some) is None and not spanning(bench, some) for bench, some in moved):
        return "clients send no embeddings of words, and nothing of the first block's attention whose rows tell its inputs"
    return None


def scores(run: Audited, update: KeptUpdate) -> tuple[str, np.ndarray]:
    """What of an update tells, in a few words, and [V] of each token of the vocabulary: more is likelier in a text."""
    bench, moved = run.bench(update), run.moved(update)
    pack = run.pack(update)
    if (found := rows_of_table(bench, moved)) is not None:
        name, change = found
        return "rows of the embedding table", distances(change, pack.value(0, name).double()).numpy()
    (site, changes), *_ = spanning(bench, moved).items()
    size = bench.backbone.reader.d_in  # type: ignore[union-attr]
    width = min(int(bench.table.lengths[run.rows(update)].max()), PLACES)
    change = torch.cat(changes)
    least = max(rounding(update, bench, site, moved), 1e-12 * float(torch.linalg.matrix_norm(change, 2)))
    return "what the first block's inputs span", likelihoods(change, least, size, inputs(pack, site, width)).numpy()


def rows_of_table(bench: Bench, moved: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """Name and change [V, d] of the trained table of words, if there is one."""
    reader = bench.backbone.reader
    for name, change in moved.items() if reader is not None and reader.role == "words" else ():
        if name.endswith(f"/{reader.called}/weight") and change.dim() == 2 and bool(change.any()):  # type: ignore[union-attr]
            return name, change
    return None


def distances(change: Tensor, began: Tensor) -> Tensor:
    """[V] how far each row [V, d] has moved, but for what weight decay does to all rows alike."""
    shrunk = (change * began).sum(1) / began.square().sum(1).clamp(min=1e-30)
    return (change - shrunk.median() * began).norm(dim=1)


def spanning(bench: Bench, moved: Mapping[str, Tensor]) -> dict[Site, list[Tensor]]:
    """Layers of the first block's attention, each with changes [m, d_in] whose rows lie in the span of what goes into it.

    Layers that are fed alike (queries, keys, values) are under the first of them, with the changes of all.
    """
    backbone = bench.backbone
    first = [s for s in backbone.linears if s.block == 0 and set(s.roles) <= {"q", "k", "v"} and s.per_row and not s.tower]
    found: list[Tensor] = []
    for site in first:
        straight = isinstance(backbone.module(site.name), nn.Linear)  # a Conv1D holds its weights the other way round
        for name, change in moved.items():
            _, _, rest = name.partition("/")
            if rest == f"{site.called}/A":
                found.append(change)
            elif rest == f"{site.called}/weight" and change.dim() == 2:
                found.append(change if straight else change.mT)
    found = [change for change in found if change.shape[1] == first[0].d_in and bool(change.any())]
    return {first[0]: found} if found else {}


def rounding(update: KeptUpdate, bench: Bench, site: Site, moved: Mapping[str, Tensor]) -> float:
    """How large a singular value of a change can be that is rounding and nothing else, in the precision that was sent."""
    largest = 0.0
    for name in moved:
        value = update.tensors[name]
        if isinstance(value, Tensor) and value.dim() == 2 and f"/{site.called}/" in f"/{name}":
            rms = float(value.double().square().mean().sqrt())
            largest = max(largest, torch.finfo(value.dtype).eps * rms * (value.shape[0] ** 0.5 + value.shape[1] ** 0.5))
    return largest


def likelihoods(change: Tensor, least: float, size: int, candidates: Iterable[Tensor]) -> Tensor:
    """[V] of each token: first those that lie in the span of a change [m, d], then those that explain it, then the nearest.

    All are alike, and none is looked at, if the change spans all of the space, in which every token lies.

    Args:
        least: singular values of the change up to this are rounding. size: of the vocabulary, V.
        candidates: what would enter the layer, [c, width, d], of some tokens after others at each of some places.
    """
    span, d = row_space(change, least), change.shape[1]
    if len(span) == d:
        return torch.zeros(size, dtype=torch.float64)
    far, means = list[Tensor](), list[Tensor]()
    of_place: Tensor | float = 0.0
    for x in candidates:
        far.append(apart(x.flatten(0, 1), span).view(x.shape[:2]).min(1).values)
        means.append(x.mean(1))
        of_place = of_place + x.sum(0)
    distance, tokens, of_place = torch.cat(far), torch.cat(means), torch.as_tensor(of_place)
    score = torch.where(distance > INSIDE, -distance, d + 1 - distance)
    if int((distance <= INSIDE).sum()) >= len(span):
        return score  # as many tokens as the span has directions: they explain it
    places = row_space(of_place, 1e-6 * float(of_place.norm()))[: d // 4]
    change, tokens = without(change, places), without(tokens, places)
    near = apart(tokens, row_space(change, least)).argsort()[: SOUGHT // max(len(span), 1)]
    found = near[pursue(change, tokens[near], least, min(d - len(places) - 1, AT_MOST))]
    found = found[distance[found] > INSIDE]
    score[found] = torch.arange(len(found), 0, -1, dtype=torch.float64)
    return score


@torch.no_grad()
def inputs(pack: Pack, site: Site, width: int) -> Iterator[Tensor]:
    """What enters a layer, [c, width, d], of some tokens of the vocabulary after others, at each of the first places."""
    reader = pack.backbone.reader
    assert reader is not None
    for tokens in torch.arange(reader.d_in, device=pack.device).split(max(CHUNK // (width * site.d_in), 1)):
        ids = tokens[:, None].expand(-1, width).contiguous()
        pack.weave.prefix = None
        with pack.weave.attached(None, 1, None), up_to_layer(pack.backbone, site.name) as entered:
            pack.backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        yield entered[0].double().cpu().view(len(tokens), width, site.d_in)


def ids_of(bench: Bench, rows: np.ndarray) -> np.ndarray:
    """The tokens of rows of a table, one after another."""
    table = bench.table
    if not isinstance(table, Tokens):
        raise UserError("rows have no tokens: choose another attack.")
    return np.concatenate([table.ids[table.offsets[r] : table.offsets[r + 1]] for r in rows] or [np.zeros(0, np.int32)])


def used(bench: Bench, rows: np.ndarray) -> np.ndarray:
    """Which tokens rows have, each once, special ones aside."""
    return np.setdiff1d(ids_of(bench, rows), bench.backbone.tokenizer.all_special_ids)


def most(score: np.ndarray, n: int) -> np.ndarray:
    """Positions of the n largest; which of equals is drawn."""
    return np.lexsort((numpy_generator(0, "audit", "ties").random(len(score)), -score))[:n]
