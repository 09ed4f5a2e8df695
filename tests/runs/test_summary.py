"""What a run says before its first round."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
import toy_runs
from weft.federation.method import Method
from weft.methods import FedIT, FedKSeed, HetLoRA
from weft.runs import prepare
from weft.runs.summary import uploads


def said(method: Method) -> str:
    return uploads(tiny.federation(method, precision="float32").simulation)


def test_what_a_client_may_send_is_counted_whether_or_not_it_is_of_a_part() -> None:
    numbers = 3 * 32 + 3 + 3 * 2 * (2 * 2 * 32)
    assert said(FedIT(rank=2, sites="q,v")) == (
        f"bytes: a client sends up to {4 * numbers / 1000:.2f} kB a round before the codec, of 14 tensors."
    )
    ragged = said(HetLoRA(rank=2, least=1, sites="q,v"))  # whose uploads have the names of its parts
    assert ragged == said(FedIT(rank=2, sites="q,v"))
    assert said(FedKSeed(steps=200)) == "bytes: a client sends up to 800 B a round before the codec, of 1 tensor."
    some = "bytes: a client sends up to 0 B a round before the codec, of 0 tensors, and 1 whose size varies."
    assert said(FedKSeed(steps=None)) == some


def test_work_is_steps_of_clients_and_rows_with_a_gradient(tmp_path: Path) -> None:
    parameters = {"rank": 2, "sites": "q", "batch": 4, "epochs": 2.0, "steps": None}
    plain = toy_runs.run(tmp_path, name="plain", parameters=parameters, rounds=2)
    counts = plain.summary["data"]["counts"]
    rows = [sum(own) for own in counts["rows"]]
    assert counts["classes"] == list(toy_runs.CLASSES)
    assert sum(rows) == plain.summary["data"]["rows"]["train"]
    wanted = {"steps": 2 * sum(2 * -(-n // 4) for n in rows), "examples": 2 * 2 * sum(rows)}
    assert plain.summary["work"] == wanted
    assert all(line["work"] == {name: n // 2 for name, n in wanted.items()} for line in plain.rounds)
    probed = toy_runs.run(tmp_path, name="probed", method="lora-a2", parameters=parameters | {"epochs": 1.0, "steps": 3})
    some = sum(min(4, n - 4 * j) for n in rows for j in range(3))
    assert probed.summary["work"] == {"steps": 2 * 3 * 6, "examples": 2 * 2 * some}  # three of the probe, three of the round
    central = toy_runs.run(tmp_path, name="mimed", parameters=parameters, rule="mime", rounds=2)
    # the first exchange takes all gradients and moves nothing, the second two at each step
    assert [line["work"]["steps"] for line in central.rounds] == [0, wanted["steps"] // 2]
    assert central.rounds[1]["work"]["examples"] == 2 * wanted["examples"] // 2


def test_rows_by_class_are_left_out_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "MOST", 2)
    assert toy_runs.run(tmp_path, parameters={"rank": 2, "steps": 1}, rounds=1).summary["data"]["counts"] is None
