"""Data, backbone and tokens of a run: read once, shared by the federation, its set-up and its baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weft.backbones.backbone import Backbone
from weft.backbones.load import load as load_backbone
from weft.backbones.prefix import PrefixCache
from weft.backbones.tokens import tokenize
from weft.data.partitioners import partition
from weft.data.rows import FederatedData, Rows, Source, fingerprint
from weft.data.sources import load as load_data
from weft.engines.observer import Observer
from weft.engines.simulation import Tests
from weft.experiment import Experiment
from weft.federation.client import ClientState, Splits
from weft.federation.pack import Bench
from weft.tasks.classification import Classification


@dataclass(frozen=True)
class Material:
    """What a run works on.

    Attributes:
        bench: backbone, task, tokens. clients: in the order of their ids, as the data give them.
        tests: rows that scores are taken on. data: what is said of the data in ``summary.json``.
    """

    bench: Bench
    clients: list[ClientState]
    tests: Tests
    data: dict[str, Any]

    @property
    def backbone(self) -> Backbone:
        return self.bench.backbone

    def fresh(self) -> Material:
        """The same with an empty prefix cache."""
        prefix = None if self.bench.prefix is None else PrefixCache(self.bench.backbone)
        return replace(self, bench=replace(self.bench, prefix=prefix))

    def identity(self) -> dict[str, Any]:
        """What a checkpoint's numbers rest on: data as dealt, weights, and precision."""
        return {
            "data": self.data["fingerprint"],
            "clients": len(self.clients),
            "rows": len(self.bench.table),
            "weights": self.backbone.weight_hash,
            "precision": str(self.backbone.dtype).removeprefix("torch."),
        }


def prepare(experiment: Experiment, given: Source | FederatedData | None, observer: Observer) -> Material:
    """Load, deal out, tokenise.

    Args:
        given: data as an object; a :class:`Source` is dealt out, :class:`FederatedData` already are.
    """
    x = experiment
    if isinstance(given, FederatedData):
        dealt = given
    else:
        columns = {"text": x.text, "pair": x.pair, "label": x.label, "key": x.key}
        dealt = partition(
            given or load_data(x.data, seed=x.seed, limit=x.limit, **columns),
            clients=x.clients,
            scheme=x.partition,
            alpha=x.alpha,
            classes_per_client=x.classes_per_client,
            seed=x.seed,
            val_fraction=x.val_fraction,
            test_fraction=x.test_fraction,
            min_rows=x.min_rows,
            new_clients=x.new_clients,
        )
    for note in dealt.notes:
        observer.say(note)
    observer.advance("set-up", step="data")
    backbone = load_backbone(
        x.model,
        classes=len(dealt.classes),
        device=x.device,
        precision=x.precision,
        trust_remote_code=x.trust_remote_code,
    )
    for note in backbone.notes:
        observer.say(note)
    observer.advance("set-up", step="backbone")
    rows, positions = _layout(dealt)
    table = tokenize(backbone, rows, x.max_length)
    observer.advance("set-up", step="tokens")
    test, val, *rest = positions
    own, new = rest[: 3 * len(dealt.clients)], rest[3 * len(dealt.clients) :]
    clients = [
        ClientState(c.id, len(c.train), dict(c.facts), data=Splits(*own[3 * i : 3 * i + 3])) for i, c in enumerate(dealt.clients)
    ]
    prefix = None if x.prefix_cache == "off" else PrefixCache(backbone)
    about = {
        "name": dealt.name,
        "fingerprint": dealt.fingerprint or fingerprint(dealt.classes, {"rows": rows}),
        "object": given is not None,
        "classes": list(dealt.classes),
        "clients": len(clients),
        "rows": {"train": sum(c.n for c in clients), "val": len(val), "test": len(test), "new clients": sum(map(len, new))},
        "new_clients": len(dealt.unseen),
        "notes": list(dealt.notes),
    }
    return Material(
        Bench(backbone, Classification(tuple(dealt.classes)), table, x.seed, prefix, x.by_length),
        sorted(clients, key=lambda c: c.id),
        Tests(test, val, {c.id: rows for c, rows in zip(dealt.unseen, new, strict=True)}),
        about,
    )


def _layout(dealt: FederatedData) -> tuple[Rows, list[np.ndarray]]:
    """One table of all different rows, those of a client next to each other, and where each split's rows are in it.

    Returns:
        the rows; positions of the test set, the validation set, each client's (train, val, test), each new client's test rows.
    """
    own = [split for c in dealt.clients for split in (c.train, c.val, c.test)]
    parts = [*own, *(c.test for c in dealt.unseen), dealt.test, dealt.val]  # clients first: the order of the table
    ids = np.concatenate([p.ids for p in parts])
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    cuts = np.cumsum([len(p) for p in parts])[:-1]
    positions = np.split(place[inverse], cuts)
    return Rows.concatenate(parts).take(np.sort(first)), [*positions[-2:], *positions[:-2]]


def copies(clients: list[ClientState]) -> list[ClientState]:
    """Clients without memory, for another federation on the same rows."""
    return [ClientState(c.id, c.n, dict(c.facts), data=c.data) for c in clients]
