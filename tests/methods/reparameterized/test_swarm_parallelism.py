"""SWARM parallelism against its card: LoRA in one place, what int8 at boundaries changes, and peers that change no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import toy_runs
import weft
from bytes_of import SITES, Case, factors_and_head
from toy_runs import Killed, Told
from weft.adaptation.boundary import rounded
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.experiment import resolve
from weft.methods import FedIT, SwarmParallelism
from weft.runs.checkpoint import Checkpoint
from weft.testing.compare import assert_same

PEERS = """
[one]
stage = 0
speed = 0.001
bandwidth = 100
count = 2

[other]
stage = 1
speed = 0.002
bandwidth = 100
away = [[0.05, 0.4]]

[third]
stage = 1
speed = 0.001
bandwidth = 50
"""
SMALL: dict[str, Any] = {"baselines": [], "rounds": 2, "report": False}
LORA: dict[str, Any] = {"rank": 2, "batch": 4, "steps": 2}


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    toy_runs.light(monkeypatch)
    (tmp_path / "peers.toml").write_text(PEERS)
    return str(tmp_path / "peers.toml")


def model(run: weft.Run) -> dict[str, torch.Tensor]:
    saved = Checkpoint(run.folder / "checkpoint").load()
    assert saved is not None
    return {n: v for n, v in saved.servers[0][0].items() if n.startswith("shared:")}


def test_without_rounding_it_is_lora_in_one_place_bit_for_bit(tmp_path: Path, peers: str) -> None:
    central = toy_runs.run(tmp_path, name="central", method="fedit", baseline="central", parameters=LORA, **SMALL)
    swarm = toy_runs.run(tmp_path, name="swarm", method="swarm-parallelism", parameters=LORA | {"block": 0}, peers=peers, **SMALL)
    assert swarm.summary["settings"]["baseline"]["value"] == "central"
    assert_same(model(central), model(swarm), 0.0, "in one place")
    assert central.metrics == swarm.metrics
    rounds = toy_runs.run(tmp_path, name="int8", method="swarm-parallelism", parameters=LORA | {"block": 8}, **SMALL)
    assert any(not torch.equal(v, model(swarm)[n]) for n, v in model(rounds).items())


def test_what_crosses_is_rounded_both_ways_and_only_in_training() -> None:
    """Hidden states that enter the second stage have few levels while training, and are as they are in predictions."""
    method = SwarmParallelism(rank=2, batch=4, stages=2, block=8, optim=Optim("sgd", lr=0.1))
    run, plain = (tiny.federation(m, sizes=(6,), rounds=1) for m in (method, FedIT(rank=2, batch=4)))
    assert_same({"z": plain.global_logits()}, {"z": run.global_logits()}, 0.0, "before training")
    pack = run.pack()
    (site,) = method.adapt(run.bench.backbone, run.bench.task, run.clients[0])["boundary"][0].sites(run.bench.backbone)
    seen: list[torch.Tensor] = []
    query = run.bench.backbone.module(f"{site.name}.attention.self.query")  # which reads what enters its block
    handle = query.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        batch = next(iter(pack.batches(1.0, 1, 4)))
        pack.step(pack.optimizer("lora", settings=method.optim), method.objective, batch)
        run.global_logits()
    finally:
        handle.remove()
    assert len(seen) > 1
    trained, predicted = seen[0].detach(), seen[-1].detach()
    torch.testing.assert_close(rounded(trained, 8), trained, rtol=0, atol=1e-6)
    assert not torch.allclose(rounded(predicted, 8), predicted, atol=1e-5)


def test_peers_are_told_of_and_change_no_number(tmp_path: Path, peers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    about = SMALL | {"method": "swarm-parallelism", "parameters": LORA}
    plain = toy_runs.run(tmp_path, name="plain", **about)
    run = toy_runs.run(tmp_path, name="peers", peers=peers, observer=told, **about)
    assert_same(model(plain), model(run), 0.0, "with peers")
    found = run.summary["swarm"]
    assert "swarm" not in plain.summary
    steps, rows = (sum(line["work"][n] for line in run.rounds) for n in ("steps", "examples"))
    assert (found["samples"], found["micro_batches"]) == (rows, steps)
    assert found["retries"] > 0
    assert sum(found["tasks"].values()) == 2 * 2 * steps
    assert found["samples_per_second"] == pytest.approx(found["samples"] / found["seconds"])
    lengths = run.summary["swarm"]["bytes"] / (2 * found["samples"] * (1 + 4 / 64) * tiny.backbone("bert").d)
    assert 3 < lengths <= 16  # tokens of a row; what was lost in the middle went twice
    (said,) = [s for s in told.sentences if s.startswith("on these peers")]
    assert "samples a second" in said
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="killed", peers="peers.toml", observer=toy_runs.Dies(), **about)
    monkeypatch.chdir("/")
    again = weft.resume(tmp_path / "killed", data=toy_runs.source())
    assert again.summary["swarm"] == found


def test_peers_for_whom_there_is_nothing_to_do_are_refused(peers: str) -> None:
    with pytest.raises(UserError, match=r"^the model of fedit has no stages .* or choose swarm-parallelism\.$"):
        resolve({"method": "fedit", "peers": peers})
    with pytest.raises(UserError, match=r"^peers serve one training on all rows, and baseline is local: "):
        resolve({"method": "swarm-parallelism", "peers": peers, "baseline": "local"})
    with pytest.raises(UserError, match=r"^stage 2 has no peer in "):
        resolve({"method": "swarm-parallelism", "peers": peers, "method.stages": 3})


BYTES = Case(SITES | {"rank": 2}, factors_and_head, factors_and_head)
