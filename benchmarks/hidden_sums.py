"""Seconds and bytes of sums that hide what is summed: masks and ciphertexts, side by side, from the first question to the sum.

    OMP_NUM_THREADS=1 python benchmarks/hidden_sums.py
    OMP_NUM_THREADS=1 python benchmarks/hidden_sums.py --numbers 4096 --clients 4 --repeats 1   # to see that it runs

Both protocols get the same whole numbers, and must come to the same sum before any time is printed. Times are of what a client
does for one sum on average, and of what the server does for all; nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from weft.privacy.ckks.cipher import new_key
from weft.privacy.hiding import Privacy, mechanisms
from weft.privacy.sums.protocol import ClientEnd, protocol_of

T = TypeVar("T")


class Played:
    """One sum.

    Attributes:
        seconds: by who has worked. bytes: by direction, of all clients.
    """

    def __init__(self, text: str, vectors: dict[str, np.ndarray], key: bytes):
        self.seconds: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        protocol = protocol_of(replace(Privacy(mechanisms(text)), key=key if text == "ckks" else b""))
        terms = protocol.terms("a run", 0, len(next(iter(vectors.values()))))
        server = protocol.server.begun(terms, vectors)
        clients: dict[str, ClientEnd] = {}
        while (kind := server.kind) is not None:
            for client in server.waiting:
                question = self._timed("server", lambda c=client: server.question(c))
                if kind == protocol.kinds[0]:
                    clients[client] = self._timed("client", lambda c=client, q=question: protocol.client(terms, c, q, None))
                answer = self._timed("client", lambda c=client, q=question: clients[c].answer(q, vectors[c]))
                self._timed("server", lambda c=client, a=answer: server.receive(c, a))
                self.bytes["down"] += len(question)
                self.bytes["up"] += len(answer)
            self._timed("server", server.close)
        self.total = self._timed("server", server.total)

    def _timed(self, who: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[who] += time.perf_counter() - began


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--numbers", type=int, default=600_000, help="of a client's vector")
    p.add_argument("--clients", type=int, default=20)
    p.add_argument("--repeats", type=int, default=3)
    args = p.parse_args()
    rng, key = np.random.default_rng(0), new_key()
    vectors = {
        f"client-{k}": rng.integers(-(2**26), 2**26, args.numbers).astype(np.int32).view(np.uint32) for k in range(args.clients)
    }
    runs: dict[str, list[Played]] = {"secagg": [], "ckks": []}
    for _ in range(args.repeats):  # in turn, so that both see the same machine
        for text, played in runs.items():
            played.append(Played(text, vectors, key))
    assert all((one.total == runs["secagg"][0].total).all() for played in runs.values() for one in played)
    values = args.clients * args.numbers
    print(f"{args.clients} clients, {args.numbers:,} numbers each, median of {args.repeats}; the sums are the same.\n")
    print("| | a client, s | the server, s | bytes up per number | bytes down per number |\n|---|---:|---:|---:|---:|")
    found = {}
    for text, played in runs.items():
        client, server = (statistics.median(one.seconds[who] for one in played) for who in ("client", "server"))
        up, down = (played[0].bytes[way] / values for way in ("up", "down"))
        found[text] = client / args.clients, server
        print(f"| `{text}` | {client / args.clients:.2f} | {server:.2f} | {up:.2f} | {down:.2f} |")
    ratios = [a / b for a, b in zip(found["secagg"], found["ckks"], strict=True)]
    print(f"| `secagg` / `ckks` | {ratios[0]:.2f} | {ratios[1]:.2f} | | |")


if __name__ == "__main__":
    main()
