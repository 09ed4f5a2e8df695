"""What each robust rule buys when a fifth of the clients is malicious: fedit on the digits, with the ViT that comes with Weft.

    python benchmarks/poison.py [--clients 10] [--rounds 8] [--repeats 1] [--quick]

The malicious clients do as they are told, but for what they send or train on:

- sign-flip: they send the server's values minus four times what they learnt;
- scaled: plus twenty times what they learnt, and claim as many examples as all others together;
- backdoor: half of their rows carry a white corner and the label 0; they learn both tasks, and send the honest size of a step;
- backdoor x5: the same, five times as far (model replacement).

Columns are the last round's accuracy on a global test set, and the share of other digits with a white corner that the model
takes for 0 ("backdoor"), mean over the repeats. A rule that does worse than the plain mean is printed like the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from torch import Tensor

import weft
from weft.adaptation.optim import Optim
from weft.data import partition
from weft.data.digits import digits
from weft.data.images import Images
from weft.data.rows import ClientData, FederatedData, Rows
from weft.federation.message import Update
from weft.federation.pack import Pack
from weft.federation.robust_mean import RULES
from weft.methods import FedIT

TARGET = 0
ATTACKS: dict[str, tuple[float, float]] = {  # how far they send what they learnt, and how many examples they claim for one
    "nobody": (1.0, 1.0),
    "sign-flip": (-4.0, 1.0),
    "scaled": (20.0, 8.0),
    "backdoor": (1.0, 1.0),
    "backdoor x5": (5.0, 1.0),
}


class Poisoned(FedIT):
    """FedIT, some of whose clients send ``held + factor (trained - held)`` and claim ``boast`` times their examples.

    Attributes:
        bad: their ids, joined by commas.
    """

    bad: str = ""
    factor: float = 1.0
    boast: float = 1.0

    def train(self, pack: Pack) -> Iterable[Update]:
        held = {c.id: {n: pack.value(k, n) for n in pack.tensors} for k, c in enumerate(pack.clients)}
        for update in super().train(pack):
            if update.client.id in self.bad.split(","):
                before = held[update.client.id]
                for name, value in update.tensors.items():
                    assert isinstance(value, Tensor)
                    update.tensors[name] = before[name] + self.factor * (value - before[name])
                update.weight *= self.boast
            yield update


def marked(rows: Rows, first_id: int) -> Rows:
    """The same pictures with a white corner, labelled as the target."""
    assert rows.images is not None
    pictures = []
    for i in range(len(rows)):
        picture = np.asarray(rows.images[i]).copy()
        picture[-2:, -2:] = 255
        pictures.append(picture)
    labels = np.full(len(rows), TARGET)
    return Rows(None, None, labels, np.arange(first_id, first_id + len(rows)), images=Images(pictures))


def dealt(clients: int, bad: list[str], backdoor: bool, seed: int) -> FederatedData:
    """The digits, dealt out; triggered test rows as those of a client that never takes part."""
    data = partition(digits(), clients=clients, scheme="dirichlet", alpha=1.0, seed=seed)
    people = []
    for client in data.clients:
        if backdoor and client.id in bad:
            half = np.arange(len(client.train)) % 2 == 0
            first = 10_000 * (1 + bad.index(client.id))
            client = replace(client, train=Rows.concatenate([client.train.take(~half), marked(client.train.take(half), first)]))
        people.append(client)
    others = data.test.take(data.test.labels != TARGET)
    empty = data.test.take(np.zeros(0, np.int64))
    trigger = ClientData("trigger", empty, empty, marked(others, 1_000_000))
    return replace(data, clients=people, unseen=[trigger])


def score(attack: str, rule: str, args: argparse.Namespace, seed: int, folder: str) -> tuple[float, float]:
    """Accuracy on the global test set, and success of the backdoor."""
    factor, boast = ATTACKS[attack]
    names = sorted(c.id for c in dealt(args.clients, [], False, seed).clients)
    bad = names[:: round(1 / args.share)][: round(args.share * args.clients)] if attack != "nobody" else []
    settings: dict[str, Any] = {"robust_share": args.share, "robust": rule}
    method = Poisoned(bad=",".join(bad), factor=factor, boast=boast, rank=8, sites="all", optim=Optim("adamw", lr=5e-3))
    done = weft.run(
        method, model="glyph-vit", data=dealt(args.clients, bad, attack.startswith("backdoor"), seed), rounds=args.rounds,
        seed=seed, runs=folder, precision="float32", device="cpu", eval_every=0, eval_clients=1, recipes=False, **settings,
    )  # fmt: skip
    found = {
        e["people"]: e["value"]
        for e in done.rounds[-1]["evaluations"]
        if (e["metric"], e["pooling"], e["view"]) == ("accuracy", "pooled", "global")
    }
    return found["global test"], found["new clients"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.2, help="of malicious clients, and what the rules are told of it")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two rounds, one attack")
    args = parser.parse_args()
    attacks = ["nobody", "sign-flip"] if args.quick else list(ATTACKS)
    args.rounds = 2 if args.quick else args.rounds
    print(
        f"{args.clients} clients, {round(args.share * args.clients)} of them malicious, {args.rounds} rounds; accuracy, backdoor"
    )
    print("| attack | " + " | ".join(RULES) + " |")
    print("|---" * (len(RULES) + 1) + "|")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for attack in attacks:
            cells = []
            for rule in RULES:
                both = [score(attack, rule, args, seed, folder) for seed in range(args.repeats)]
                accuracy, success = (statistics.mean(v) for v in zip(*both, strict=True))
                cells.append(f"{accuracy:.2f}, {success:.2f}")
            print(f"| {attack} | " + " | ".join(cells) + " |", flush=True)
    print(f"{(time.perf_counter() - began) / 60:.1f} min")


if __name__ == "__main__":
    main()
