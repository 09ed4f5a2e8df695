"""Updates of single clients: kept as the server read them, whole, with what each began from, and once for each round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toy_runs
import weft
from weft.errors import UserError
from weft.storage import files
from weft.storage.updates import KeptUpdate, UpdateKeeper, kept
from weft.tensors.forms import Value
from weft.tensors.lowrank import LowRank


def an_update(t: int = 0, client: str = "a", value: float = 1.0, began: float = 0.0) -> KeptUpdate:
    held: dict[str, Value] = {
        "p/x/weight": torch.full((2, 3), began),
        "d/x/ba": LowRank(B=torch.ones(2, 1), A=torch.ones(1, 3), scale=0.5),
    }
    return KeptUpdate(t, t, "train", client, 5.0, {"p/x/weight": torch.full((2, 3), value)}, held, {"n": 3}, {"width": 1})


def test_an_update_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    keeper = UpdateKeeper(tmp_path / "updates")
    keeper.begin(0)
    for client in ("a", "b"):
        keeper.put(an_update(client=client))
    keeper.settle()
    one, two = kept(keeper.folder, 1)
    assert (one.client, one.round, one.kind, one.weight, one.facts, one.told) == ("a", 0, "train", 5.0, {"n": 3}, {"width": 1})
    assert torch.equal(one.tensors["p/x/weight"], torch.ones(2, 3))  # type: ignore[arg-type]
    factored = two.began["d/x/ba"]
    assert isinstance(factored, LowRank)
    assert factored.scale == 0.5
    assert len(list((keeper.folder / "000000").glob("began-*"))) == 1, "what all began from is kept once"
    assert keeper.folder.stat().st_mode & 0o077 == 0


def test_a_round_that_is_played_again_leaves_nothing_of_the_first_time(tmp_path: Path) -> None:
    keeper = UpdateKeeper(tmp_path / "updates")
    for t, clients in ((0, "ab"), (1, "ab"), (2, "a"), (1, "b")):
        keeper.begin(t)
        for client in clients:
            keeper.put(an_update(t, client, value=t))
    assert [(u.round, u.client) for u in kept(keeper.folder, 3)] == [(0, "a"), (0, "b"), (1, "b")]
    assert [(u.round, u.client) for u in kept(keeper.folder, 1)] == [(0, "a"), (0, "b")], "later rounds do not count yet"
    assert list(kept(tmp_path / "nowhere", 3)) == []


def test_a_changed_byte_is_a_sentence(tmp_path: Path) -> None:
    keeper = UpdateKeeper(tmp_path / "updates")
    keeper.begin(0)
    keeper.put(an_update())
    (path,) = (keeper.folder / "000000").glob("began-*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="missing or damaged"):
        list(kept(keeper.folder, 1))


def test_a_run_keeps_none_unless_it_is_asked_to(tmp_path: Path) -> None:
    toy_runs.run(tmp_path, name="off")
    assert not (tmp_path / "off" / "updates").exists()


@pytest.mark.parametrize("codec", ["identity", "quant8"])
def test_what_is_kept_is_what_the_server_averages(tmp_path: Path, codec: str) -> None:
    run = toy_runs.run(tmp_path, name="on", keep_updates=True, codec=codec)
    found = list(kept(tmp_path / "on" / "updates", 2))
    assert [u.round for u in found] == [0, 0, 0, 1, 1, 1]
    assert len(run.rounds) == 2
    weights = [u.weight for u in found[:3]]
    for name in found[0].tensors:
        mean = torch.zeros(())
        for weight, update in zip(weights, found[:3], strict=True):
            value = update.tensors[name]
            assert isinstance(value, torch.Tensor)
            mean = mean + weight / sum(weights) * value
        began = found[3].began[name]
        assert isinstance(began, torch.Tensor)
        assert torch.allclose(mean, began)
    assert any(not torch.equal(found[3].tensors[n], found[3].began[n]) for n in found[3].tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [20, 33, 50, 61])
def test_a_killed_run_goes_on_with_the_very_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    toy_runs.light(monkeypatch)
    toy_runs.run(tmp_path, name="whole", keep_updates=True)
    with monkeypatch.context() as dying:
        toy_runs.kill_at(dying, number)
        with pytest.raises(toy_runs.Killed):
            toy_runs.run(tmp_path, name="killed", keep_updates=True)
    weft.resume(tmp_path / "killed", data=toy_runs.source())
    whole, again = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "whole" / "updates", tmp_path / "killed" / "updates")
    )
    assert whole == again
    assert not [p for p in again if p.name.endswith(files.TEMPORARY)]
