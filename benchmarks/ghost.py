"""A step of fedavg on all weights under dp-sgd: gradients of rows one by one, against clipped sums that need none.

    python benchmarks/ghost.py [--layers 8] [--hidden 512] [--lengths 32,128] [--rows 16] [--repeats 5] [--threads 1] [--quick]

A BERT with random weights in float32 on a CPU, clipped without noise, so that both ways give the same sum; they are compared
before a time is printed. Times are of the processor, medians of steps by turns in one process; their ratio is that of the
medians. Memory is the largest resident set of two steps, beyond what the process held with the client's pack ready, in a process
of its own for each way.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import Tensor

from _rounds import states, words_of
from weft.backbones.load import load
from weft.backbones.token_table import Tokens
from weft.federation.bench import Bench
from weft.federation.hidden_rows import HiddenRows
from weft.federation.message import Message
from weft.federation.pack import Pack
from weft.federation.rounds import begin, enter
from weft.federation.turn import Turn
from weft.methods import FedAvg
from weft.privacy.hiding import Privacy, mechanisms
from weft.tasks.classification import Classification

VOCABULARY = 30522
CLASSES = ("a", "b", "c")
WAYS = ("one by one", "ghost")


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def backbone(args: argparse.Namespace) -> Any:
    from transformers import BertConfig, BertModel

    with tempfile.TemporaryDirectory() as folder:
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 64,
            intermediate_size=4 * args.hidden,
            max_position_embeddings=512,
        )
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
        words_of(VOCABULARY).save_pretrained(folder)
        return load(folder, classes=CLASSES, device="cpu", precision="float32")


def steps(args: argparse.Namespace, length: int) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The clipped sums of one client's rows, made in either way."""
    model = backbone(args)
    rng = np.random.default_rng(0)
    rows = Tokens(
        ids=rng.integers(1000, VOCABULARY, args.rows * length).astype(np.int32),
        offsets=np.arange(args.rows + 1, dtype=np.int64) * length,
        types=None,
        labels=rng.integers(0, len(CLASSES), args.rows),
        row_ids=np.arange(args.rows),
        pad=0,
    )
    privacy = Privacy(mechanisms("dp-sgd:noise=0,clip=0.1"), insecure=True, rounds=1)
    bench = Bench(model, Classification(CLASSES), rows, seed=0, privacy=privacy)
    method, (client,) = FedAvg(batch=args.rows), states(1, args.rows)
    server = begin(method, bench, [client.info(())], 1)
    turn = Turn(client, server.adaptation, server.held_by(client, server.adaptation, Message()))
    pack: Pack = enter(method, bench, [turn], server.round, hides=True)
    names = list(pack.params("*"))
    found: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for way in WAYS:
        hidden = HiddenRows(pack, privacy, [0.0])
        (batch,) = hidden.over(pack).batches(1.0, None, args.rows)
        if way != "ghost":
            hidden.ghosts.shares = False
        found[way] = lambda h=hidden, b=batch.behind: h._clipped(pack, method.objective, b, names, torch.arange(1))[0]
    return found


def peak(run: Callable[[], Any]) -> int:
    """Bytes of the largest resident set while it runs twice, beyond what there was."""
    gc.collect()
    base, most, over = resident(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, resident())

    watch = threading.Thread(target=look)
    watch.start()
    run()
    run()
    over.set()
    watch.join()
    return most - base


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of two sums, over the norm of the first."""
    norm, apart = (
        sum(float(v.double().square().sum()) for v in some) for some in (one.values(), [one[n] - other[n] for n in one])
    )
    return float((apart / norm) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[32, 128])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one length, two steps of each")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.lengths, args.repeats = args.lengths[:1], 2
    if args.way:
        print(json.dumps(peak(steps(args, args.lengths[0])[args.way])))
        return
    for length in args.lengths:
        both = steps(args, length)
        apart = gap(*(run() for run in both.values()))
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.repeats):
            for way, run in both.items():
                began = time.process_time()
                run()
                times[way].append(time.process_time() - began)
        own = ["--layers", "--hidden", "--rows", "--threads"]
        command = [sys.executable, __file__, "--lengths", str(length)]
        command += [word for name in own for word in (name, str(getattr(args, name[2:])))]
        peaks = {}
        for way in WAYS:
            said = subprocess.run([*command, "--way", way], check=True, capture_output=True, text=True).stdout
            peaks[way] = json.loads(said.strip().splitlines()[-1])
        medians = {way: statistics.median(some) for way, some in times.items()}
        print(f"{args.rows} rows of {length} tokens; sums differ by {apart:.1e} of their norm")
        for way in WAYS:
            print(f"  {way:<11} {medians[way]:7.2f} s  {peaks[way] / 1e6:7.0f} MB")
        print(
            f"  ghost is {medians[WAYS[0]] / medians[WAYS[1]]:.2f}x as fast, with "
            f"{peaks[WAYS[1]] / peaks[WAYS[0]]:.2f}x the memory",
            flush=True,
        )


if __name__ == "__main__":
    main()
