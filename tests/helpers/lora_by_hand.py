"""LoRA and its options done again in plain PyTorch: hooks on a copy of the Hugging Face model, and masks in NumPy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

import by_hand
import tiny
from weft.tensors.keyed import key

Term = Callable[[str, torch.nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""What is added at a site: of its name, its module, what goes in and comes out, and the values of the part there by role."""


def predict(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray, term: Term, part: str = "lora") -> Tensor:
    """Logits [n, C] of the model with a head put in place, and with a term at each site of a part."""
    model: Any = by_hand.own_copy(run.bench.backbone.model)
    own: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        which, site, role = name.split("/")
        if which == part:
            own.setdefault(site, {})[role] = value
    hooks = []
    for site, w in own.items():

        def add(module: torch.nn.Module, args: Any, out: Tensor, site: str = site, w: Mapping[str, Tensor] = w) -> Tensor:
            return out + term(site, module, args[0], out, w)

        hooks.append(model.get_submodule(site).register_forward_hook(add))
    head = {n: v for n, v in values.items() if n.startswith("head/")}
    try:
        found: Tensor = functional_call(model, by_hand.merged(run, head, 1.0), kwargs=run.bench.table.collate(rows)).logits
    finally:
        for hook in hooks:
            hook.remove()
    return found


def splitmix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, of unsigned integers."""
    value = value.astype(np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def mask(client: int, site: int, row: int, positions: int, features: int, share: float) -> np.ndarray:
    """[positions, features]: what stays of one row, of keys of its client's step and of the site."""
    golden = 0x9E3779B97F4A7C15
    of_row = splitmix(np.array([(client + (row + 1) * golden) % 2**64], np.uint64))
    begin = splitmix(of_row ^ np.uint64(site))
    with np.errstate(over="ignore"):
        places = np.arange(positions * features, dtype=np.uint64) * np.uint64(golden)
        found = splitmix(begin + places) % np.uint64(2**24)
    return (found >= int(share * 2**24)).reshape(positions, features)


@dataclass(frozen=True)
class Step:
    """One step of a client's turn, the ``number``-th of round ``t``."""

    seed: int
    t: int
    client: str
    number: int

    def dropped(self, site: str, x: Tensor, share: float) -> Tensor:
        """x [n, T, d] of its rows with a share of its entries gone, and the others divided by what is left."""
        of_step, of_site = key(self.seed, "step", self.t, self.client, "main", self.number), key(0, "site", "lora", site)
        stays = np.stack([mask(of_step, of_site, i, x.shape[1], x.shape[2], share) for i in range(len(x))])
        return x * torch.from_numpy(stays) / (1 - share)


def hold(run: tiny.Federation, term: Callable[..., Tensor], rounds: int = 2) -> None:
    """Play FedIT's rounds and do them again: local AdamW at a falling rate, the mean over those who were there, one is away.

    Args:
        term: what is added at a site: of the step, and what :data:`Term` takes.
    """
    method = run.method
    values = by_hand.start_of(run)
    for t in range(rounds):
        plans = {k: by_hand.steps_of(run, k, t) for k in range(len(run.clients))}
        record = run.simulation.round(t)
        assert record is not None
        assert 1 < len(record["cohort"]) < len(run.clients)
        sent = {}
        for client in record["cohort"]:
            counted = itertools.count()

            def forward(
                run: tiny.Federation, leaves: Mapping[str, Tensor], rows: np.ndarray, who: Any = (t, client, counted)
            ) -> Tensor:
                step = Step(run.bench.seed, who[0], who[1], next(who[2]))
                return predict(run, leaves, rows, functools.partial(term, step))

            def local(params: list[Tensor]) -> torch.optim.Optimizer:
                return torch.optim.AdamW(params, lr=method.optim.lr, eps=method.optim.eps, weight_decay=0.0)

            k = int(client.removeprefix("client-"))
            sent[k] = by_hand.train(run, values, plans[k], local, linear=True, predict=forward)
        whole = sum(run.clients[k].n for k in sent)
        values = {n: sum((run.clients[k].n / whole * v[n] for k, v in sent.items()), torch.zeros(())) for n in values}
        for name, found in by_hand.shared(run).items():
            by_hand.close(found, values[name], by_hand.ADAM)
