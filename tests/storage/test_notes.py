"""What a server notes of each client: found again, undone, gone back to, and nothing else left on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from weft.errors import UserError, WeftError
from weft.methods import FedIT
from weft.storage.notes import Notes
from weft.tensors.lowrank import LowRank


@pytest.mark.parametrize("here", [False, True])
def test_tensors_products_and_json_come_back(tmp_path: Path, here: bool) -> None:
    notes = Notes(None if here else tmp_path / "notes")
    assert notes.get("a") == {}
    value = LowRank(B=torch.ones(3, 1), A=torch.arange(4.0)[None], scale=0.1)
    notes.put("a", {"t": torch.tensor([1.5], dtype=torch.float64), "v": value, "n": [1, 2]})
    notes.put("b/../ü", {"n": 7})
    notes.put("a", {"n": [3]})
    found = notes.get("a")
    assert found.keys() == {"t", "v", "n"}
    assert found["n"] == [3]
    assert torch.equal(found["t"], torch.tensor([1.5], dtype=torch.float64))
    assert torch.equal(found["v"].dense(), value.dense())
    assert notes.get("b/../ü") == {"n": 7}
    with pytest.raises(WeftError, match="JSON does not"):
        notes.put("a", {"n": (1, 2)})


def test_a_file_stays_as_long_as_a_manifest_names_it(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    for n in range(3):
        notes.put("a", {"n": n})
        notes.put("b", {"n": 0})
        if n == 0:
            old = dict(notes.manifest)
    assert len(list(notes.folder.iterdir())) == 4  # type: ignore[union-attr]
    notes.sweep([old])
    assert len(list(notes.folder.iterdir())) == 3  # type: ignore[union-attr]
    again = Notes(tmp_path / "notes")
    again.manifest = dict(old)
    assert again.get("a") == {"n": 0}
    again.sweep()
    assert len(list(notes.folder.iterdir())) == 2  # type: ignore[union-attr]
    with pytest.raises(UserError, match="missing or damaged"):
        notes.get("a")


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.put("a", {"t": torch.zeros(4)})
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="missing or damaged"):
        notes.get("a")


def test_a_server_takes_its_notes_along() -> None:
    run = tiny.federation(FedIT(rank=2), rounds=1)
    run.server.notes.put("client-0", {"t": torch.ones(2)})
    undo = run.server.snapshot()
    tensors, state = run.server.tensors_and_json()
    state = dict(state) | {"notes": dict(state["notes"])}
    run.server.notes.put("client-0", {"t": torch.zeros(2)})
    run.server.notes.put("client-1", {"t": torch.zeros(2)})
    later = dict(run.server.notes.manifest)
    undo()
    assert torch.equal(run.server.notes.get("client-0")["t"], torch.ones(2))
    assert run.server.notes.get("client-1") == {}
    run.server.notes.manifest.update(later)
    run.server.roll_back(tensors, state)
    assert torch.equal(run.server.notes.get("client-0")["t"], torch.ones(2))


class Spoiling(FedIT):
    def aggregate(self, server, updates):  # type: ignore[no-untyped-def]
        super().aggregate(server, updates)
        server.notes.put("client-0", {"t": torch.tensor([torch.nan])})


def test_a_round_with_a_note_that_is_not_finite_is_undone() -> None:
    run = tiny.federation(Spoiling(rank=2), rounds=1)
    record = run.simulation.round(0)
    assert record is not None
    assert "skipped" in record["robust"]
    assert run.server.notes.get("client-0") == {}
