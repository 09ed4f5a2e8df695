"""Pictures of a client, out of one update of it: those are looked for whose gradient points where the update does.

J. Geiping, H. Bauermeister, H. Dröge, M. Moeller, "Inverting Gradients - How easy is it to break privacy in federated learning?",
NeurIPS 2020, arXiv 2003.14053 (eq. 4): one minus the cosine between the gradient of a guess and what was sent, plus the guess's
total variation, is minimised by Adam on the signs of its gradient, within the box of possible pixels. Here the cosine is the mean
of those of each tensor: the head's gradient is many times as large as the others', and drowns them in one for all. Labels are
those that the head tells (:mod:`weft.audits.label_leakage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from weft.audits import label_leakage
from weft.audits.outcome import Outcome
from weft.backbones.pixels import Pixels
from weft.tensors.keyed import generator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from weft.audits.audited import Audited
    from weft.federation.pack import Pack
    from weft.storage.updates import KeptUpdate

NAME = "inversion"
ROWS = 4
"""Of a client at most: the gradients of more rows are hardly told apart, and each takes its time."""
CLIENTS = 4
"""That are attacked at most: those with the fewest rows."""
RATE, SMOOTH = 0.1, 3e-2
"""Of Adam, in pixels between 0 and 1, falling to 0 over the steps; what total variation weighs."""
STILL = 1e-4
"""A tensor that has moved by less than this share of all together is left out: attention takes no notice of its keys' bias."""
LIKENESS = 2.0
"""dB by which a picture has to be nearer than the mean of others before it counts as more than chance."""


def attack(run: Audited) -> list[Outcome]:
    """Reconstruct the pictures of the clients with the fewest rows.

    The score is the peak signal-to-noise ratio (dB) of a reconstructed picture to the client's own, in the mean. By chance
    somebody takes the mean of strangers' pictures for each.
    """
    table = run.server.bench.table
    assert isinstance(table, Pixels)
    blank = torch.from_numpy(table.values[run.strangers[:1000]].astype(np.float64).mean(0) / 255)
    score, chance = [], []
    owners = targets(run)
    for update in owners:
        true = torch.from_numpy(table.values[run.rows(update)].astype(np.float64) / 255)
        made = reconstructed(run, update, run.asked.steps)
        score.append(matched(made, true))
        chance.append(matched(blank.expand_as(true), true))
    mean, usual = float(np.mean(score)), float(np.mean(chance))
    low = mean - LIKENESS
    n = sum(len(run.rows(u)) for u in owners)
    nearer = "nearer to" if low > usual else "no nearer to"
    sentence = (
        f"Pictures made of updates alone are {nearer} clients' own (PSNR {mean:.1f} dB) than the mean of others' pictures is "
        f"({usual:.1f} dB); by eye they are recognised from about 15 dB on."
    )
    target = f"{len(owners)} clients, round {owners[0].round + 1}"
    return [Outcome(NAME, target, "PSNR in dB", mean, usual, n, low, sentence, most=None)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    table = run.server.bench.table
    if not isinstance(table, Pixels) or table.others:
        return "rows are no pictures that one encoder reads"
    if run.server.bench.backbone.names is not None:
        return "a model with a text tower is not attacked"
    if (why := label_leakage.missing(run)) is not None:
        return why
    return None if targets(run) else f"every client has more than {ROWS} pictures, whose gradients are not told apart"


def targets(run: Audited) -> list[KeptUpdate]:
    """The updates that are attacked."""
    few = [u for u in run.updates if 1 <= len(run.rows(u)) <= ROWS]
    return sorted(few, key=lambda u: len(run.rows(u)))[:CLIENTS]


def reconstructed(run: Audited, update: KeptUpdate, steps: int) -> Tensor:
    """[n, 3, H, W] between 0 and 1, as many pictures as the update's client has, in double precision."""
    table = run.bench(update).table
    assert isinstance(table, Pixels)
    slope = label_leakage.head_slope(run, update)
    assert slope is not None
    n = len(run.rows(update))
    labels = torch.from_numpy(np.repeat(np.arange(run.classes), label_leakage.guessed(slope, n)))
    wanted = {name: -change for name, change in run.moved(update).items()}
    stream = generator(run.server.seed, "audit", NAME, update.client)
    begun = (0.5 + 0.1 * torch.randn((n, *table.values.shape[1:]), generator=stream)).clamp(0, 1)
    return matching(run.pack(update), wanted, labels, begun, table, steps).double()


def matching(pack: Pack, wanted: Mapping[str, Tensor], labels: Tensor, begun: Tensor, table: Pixels, steps: int) -> Tensor:
    """[n, 3, H, W], pictures whose gradient points where it should.

    Args:
        pack: of one, as the client began. wanted: where its gradient points, by name, at any length. labels: int64 [n].
        begun: [n, 3, H, W] between 0 and 1.
    """
    pack.weave.prefix = None
    least = STILL * sum(float(w.square().sum()) for w in wanted.values()) ** 0.5
    names = [n for n, w in wanted.items() if tuple(pack.tensors[n].shape[1:]) == tuple(w.shape) and float(w.norm()) > least]
    leaves = {n: pack.tensors[n].detach().requires_grad_(True) for n in names}
    aim = {n: wanted[n].to(leaves[n]).unsqueeze(0) for n in names}
    mean, std = (torch.from_numpy(v)[:, None, None].to(pack.device) for v in (table.mean, table.std))
    guess = begun.to(pack.device).requires_grad_(True)
    adam = torch.optim.Adam([guess], lr=RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    # the fused kernels of attention have no second derivative
    with pack.values(leaves), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            pixels = ((guess - mean) / std).to(pack.backbone.dtype)
            with pack.weave.attached(None, 1, None):
                logits = pack.backbone.model(pixel_values=pixels).logits
            loss = F.cross_entropy(logits.to(pack.dtype), labels.to(pack.device))
            slopes = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
            pairs = [(s, aim[n]) for s, n in zip(slopes, names, strict=True) if s is not None]
            apart = torch.stack([1 - F.cosine_similarity(s.flatten(), a.flatten(), dim=0) for s, a in pairs])
            value = apart.mean() + SMOOTH * variation(guess)
            guess.grad = torch.autograd.grad(value, guess)[0].sign()
            adam.step()
            decay.step()
            with torch.no_grad():
                guess.clamp_(0, 1)
    return guess.detach().cpu()


def variation(pictures: Tensor) -> Tensor:
    """The mean difference between neighbouring pixels of [n, 3, H, W], down plus across."""
    return pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean()


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) of pictures between 0 and 1."""
    return -10 * float((made - true).square().mean().clamp(min=1e-10).log10())


def matched(made: Tensor, true: Tensor) -> float:
    """The mean of :func:`psnr` over n pictures each, each with one of the others, so that it is largest."""
    from scipy.optimize import linear_sum_assignment

    table = np.array([[psnr(a, b) for b in true] for a in made])
    return float(table[linear_sum_assignment(table, maximize=True)].mean())
