"""AdaLoRA's budget in a federation: the server says which triplets of a common LoRA stay, fewer from round to round.

With b⁰ triplets in all layers together and b in the end, at the end of round t = 1 … T (Zhang et al., ICLR 2023, equation 12):

    b(t) = b⁰                                          t ≤ t_i
    b(t) = b + (b⁰ - b) (1 - (t - t_i)/(T - t_i - t_f))³
    b(t) = b                                           t > T - t_f

Those of the b(t) largest |E_i| stay, of the two measures of importance in the paper's section 3.2 the one for which clients need
not send more than they do; E_i of the others is set to 0. As in the paper it may come back until t_f rounds are left; from then
on A_i and B_i are 0 as well, so that nothing moves them. Where the paper counts steps, this counts rounds; t_i and t_f are a
tenth and a half of them, as for its largest set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.adaptation.adalora import AdaLoRA
from weft.errors import UserError
from weft.federation.server import ServerState

FIRST, LAST = 0.1, 0.5
"""t_i and t_f, as shares of T."""


def budget(t: int, rounds: int, first: int, last: int) -> int:
    """b(t).

    Args:
        t: rounds that are over, from 1. rounds: T. first, last: b⁰ and b.
    """
    whole, fixed = int(FIRST * rounds), int(LAST * rounds)
    if t <= whole:
        return first
    if t > rounds - fixed:
        return last
    left = 1 - (t - whole) / (rounds - fixed - whole)
    return int(last + (first - last) * left**3)


def check(server: ServerState, slug: str) -> None:
    """
    Raises:
        UserError: the server has no common LoRA whose triplets it could choose from.
    """
    if not _places(server):
        raise UserError(
            f'{slug} has no LoRA in common, of which the server could say what stays: leave lora.variant = "adalora" out, or '
            "choose a method such as fedit."
        )


def allocate(server: ServerState) -> None:
    """Keep the triplets of the round that is ending."""
    places = _places(server)
    t, rounds = server.round.index + 1, server.rounds
    values = {place: server.shared[f"{place}/E"] for place in places}
    sizes = [len(_tensor(value)) for value in values.values()]
    kept = budget(t, rounds, sum(sizes), sum(places.values()))
    if kept >= sum(sizes):
        return
    score = torch.cat([_tensor(value).abs() for value in values.values()])
    stays = torch.zeros(len(score), dtype=torch.bool)
    stays[score.argsort(descending=True, stable=True)[:kept]] = True  # of equal ones the first
    fixed = t > rounds - int(LAST * rounds)
    for place, keep in zip(values, stays.split(sizes), strict=True):
        if bool(keep.all()):
            continue
        server.write(f"{place}/E", _tensor(values[place]) * keep)
        if fixed:
            server.write(f"{place}/A", _tensor(server.shared[f"{place}/A"]) * keep[:, None])
            server.write(f"{place}/B", _tensor(server.shared[f"{place}/B"]) * keep)


def _places(server: ServerState) -> dict[str, int]:
    """ "part/site" of the triplets that the server holds -> how many of them there is room for in the end."""
    found = {}
    for name, (part, _) in server.adaptation.items():
        if isinstance(part, AdaLoRA):
            for site in part.sites(server.bench.backbone):
                if all(f"{name}/{site.called}/{role}" in server.shared for role in ("A", "B", "E")):
                    found[f"{name}/{site.called}"] = part.kept_at(site)
    return found


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
