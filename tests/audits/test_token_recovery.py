"""Tokens out of activations: all of them without noise, by the right table, and fewer the more noise there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
import toy_runs
from command_line import refused, weft
from weft.audits import token_recovery
from weft.backbones.masked_table import Masked
from weft.engines.stepwise import End
from weft.methods import FedBERT

SMALL = FedBERT(epochs=1.0, batch=3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("average", ["ends", "none"])
def test_every_token_is_recovered_without_noise_and_few_with_much(kind: str, average: str) -> None:
    run = tiny.federation(replace(SMALL, average=average), kind, task="masked", sizes=(6, 4), rounds=1).run()  # type: ignore[arg-type]
    found = [token_recovery.recovered(run.method, run.server, run.clients, sd, 32) for sd in (0.0, 1.0, 30.0)]  # type: ignore[arg-type]
    assert found[0].share == 1.0
    assert found[0].share >= found[1].share > found[2].share
    assert found[2].share < 0.2
    assert found[0].scale > 0.1
    table = run.bench.table
    assert isinstance(table, Masked)
    shown = 0
    for client in run.clients:
        for row in client.data.train:
            own = slice(table.offsets[row], table.offsets[row + 1])
            shown += int((~table.answer[own]).sum()) - 2  # the first and the last are special ones
    assert found[0].tokens == shown > 20


def test_another_table_than_the_clients_does_not_recover_them() -> None:
    """It is the table that tells: with rows in another order no token is found."""
    run = tiny.federation(SMALL, "bert", task="masked", sizes=(6,), rounds=1).run()
    hidden, own = token_recovery.sent(SMALL, run.server, run.clients[0], run.clients[0].data.train)
    pack, ids = run.server.pack(), run.bench.table.collate(run.clients[0].data.train)["input_ids"]
    assert torch.equal(token_recovery.nearest(pack, hidden)[own], ids[own])
    name = next(n for n in pack.tensors if n.endswith("word_embeddings/weight"))
    pack.tensors[name] = pack.tensors[name].roll(1, 1)
    assert torch.equal(token_recovery.nearest(pack, hidden)[own], (ids[own] + 1) % pack.tensors[name].shape[1])


def test_what_a_client_sends_has_noise_on_it() -> None:
    found = []
    for noise in (0.0, 0.5):
        run = tiny.federation(replace(SMALL, noise=noise), "bert", task="masked", sizes=(6,), rounds=1)
        found.append([End(run.pack([0]), run.method, 1).forward()[0] for _ in range(2)])  # type: ignore[arg-type]
    assert torch.equal(*found[1]), "it is drawn from the run's seed"
    gap = found[1][0] - found[0][0]
    assert float(gap.std()) == pytest.approx(0.5, rel=0.1)
    assert abs(float(gap.mean())) < 0.1


def test_the_command_tells_it_of_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": " ".join(f"w{i + j}" for j in range(6))}) + "\n" for i in range(40)))
    settings = {"data": str(data), "model": tiny.folder("bert", "mlm"), "task": "masked", "clients": 2, "rounds": 1}
    parameters = {"epochs": 1.0, "batch": 4}
    toy_runs.run(tmp_path, **settings | {"method": "fedbert", "name": "cut", "parameters": parameters, "recipes": False})
    toy_runs.run(tmp_path, **settings | {"method": "fedit", "name": "whole", "parameters": {"rank": 2}, "recipes": False})
    capsys.readouterr()
    only = ("--attack", "tokens")
    said = json.loads(weft(capsys, "audit", tmp_path / "cut", *only, "--noise", "0,40", "--json").out)
    assert [one["about"]["noise"] for one in said["results"]] == [0, 40]
    assert said["results"][0]["score"] == 1
    assert said["results"][1]["score"] < 0.3
    assert said["results"][0]["chance"] < 0.3
    assert "tokens recovered (100.0%)" in weft(capsys, "audit", tmp_path / "cut", *only).out
    assert "sends no activations" in refused(weft(capsys, "audit", tmp_path / "whole", *only))
    assert "is below 0" in refused(weft(capsys, "audit", tmp_path / "cut", *only, "--noise=-1"))
    assert "must be numbers joined by commas" in refused(weft(capsys, "audit", tmp_path / "cut", *only, "--noise", "much"))
