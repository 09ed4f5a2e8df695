"""What a run leaves on disk: names, formats, numbers that say what they are, bytes really sent, and nothing in memory."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import tiny
import toy_runs
import weft
from weft.data.rows import ClientData, FederatedData, Rows, Source
from weft.errors import UserError
from weft.federation.client import ClientState
from weft.runs import directory as directories
from weft.runs import stage
from weft.runs.checkpoint import digest
from weft.runs.result import best_by_validation, headline
from weft.testing.data import names_of_several, several_of


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def head_bytes(classes: int = 3, d: int = 32, item: int = 8) -> int:
    return (d + 1) * classes * item


# names --------------------------------------------------------------------------------------------------------------------


def test_nothing_is_ever_written_over(tmp_path: Path) -> None:
    first = toy_runs.run(tmp_path)
    before = {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}
    second, third = toy_runs.run(tmp_path), toy_runs.run(tmp_path)
    assert [r.folder.name for r in (second, third)] == [f"{first.folder.name}-2", f"{first.folder.name}-3"]
    assert {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == before
    toy_runs.run(tmp_path, name="mine")
    with pytest.raises(UserError, match=r"mine exists already: choose another --name, or continue it with weft resume"):
        toy_runs.run(tmp_path, name="mine")


def test_a_name_whose_run_was_killed_before_it_saved_anything_is_free(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert directories.create(tmp_path, "mine", "usual").root == tmp_path / "mine"
    (tmp_path / "mine" / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="exists already"):
        directories.create(tmp_path, "mine", "usual")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "fedit-pydocs-minilm-s0"),
        (
            {"method": "flora", "data": "fancyzhx/ag_news", "model": "FacebookAI/roberta-base", "seed": 3},
            "flora-ag_news-roberta-base-s3",
        ),
        ({"data": "/some/where/my reviews.csv", "model": "./models/mine/"}, "fedit-my-reviews-mine-s0"),
        ({"baseline": "local"}, "fedit-local-pydocs-minilm-s0"),
        ({"baseline": "probe"}, "probe-pydocs-minilm-s0"),
    ],
)
def test_a_run_is_named_after_method_data_model_and_seed(settings: dict[str, Any], name: str) -> None:
    assert directories.usual_name(weft.Experiment(**settings)) == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "."])
def test_a_run_has_a_plain_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain folder name"):
        toy_runs.run(tmp_path, name=name)


def test_an_unusable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't write .*; choose another folder with --runs"):
        toy_runs.run(tmp_path / "file" / "runs")


def test_what_goes_wrong_before_the_first_round_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few for 500 clients"):
        toy_runs.run(tmp_path, clients=500)
    with pytest.raises(UserError, match="no codec"):
        toy_runs.run(tmp_path, codec="gzip")
    assert not list(tmp_path.iterdir())


# files --------------------------------------------------------------------------------------------------------------------


def test_every_file_says_its_format_and_tensors_are_safetensors_only(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, method="fedsa-lora", start_head="probe", probe_rounds=1, baselines=["local"])
    kinds: dict[str, int] = {}
    for path in (p for p in run.folder.rglob("*") if p.is_file()):
        kinds[path.suffix] = kinds.get(path.suffix, 0) + 1
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as f:
                assert json.loads(f.metadata()["weft"])["format"] == 1, path
        elif path.suffix == ".jsonl":
            assert {json.loads(line)["format"] for line in path.read_text().splitlines()} == {1}, path
        else:
            assert (tomllib.loads if path.suffix == ".toml" else json.loads)(path.read_text())["format"] == 1, path
    assert set(kinds) == {".safetensors", ".jsonl", ".json", ".toml"}


def test_the_experiment_file_of_a_run_gives_the_same_numbers_again(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "participation": 0.7,
        "start_head": "probe",
        "probe_rounds": 2,
        "parameters": {"rank": 2, "lr": 0.01},
    }
    first = toy_runs.run(tmp_path, clients=4, seed=5, **common)
    again = weft.run(data=toy_runs.source(), file=first.folder / "experiment.toml", runs=str(tmp_path))
    assert again.folder != first.folder
    assert digest(again.folder) == digest(first.folder)
    assert digest(again.folder / "setup") == digest(first.folder / "setup")
    assert (again.folder / "experiment.toml").read_bytes() == (first.folder / "experiment.toml").read_bytes()


def test_a_replay_finds_local_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = toy_runs.source().train
    lines = [f"{t},{toy_runs.CLASSES[y]}" for t, y in zip(table.texts, table.labels.tolist(), strict=True)]
    Path("toy.csv").write_text("\n".join(["text,label", *lines]))
    first = toy_runs.run(Path("runs"), data="toy.csv", model=os.path.relpath(tiny.folder("bert")))
    file = (tmp_path / first.folder / "experiment.toml").resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = weft.run(file=file)
    assert digest(again.folder) == digest(file.parent)


def test_what_auto_turned_out_to_be_is_written_down(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, clients=5)
    saved = tomllib.loads((run.folder / "experiment.toml").read_text())
    assert saved["pack"] == run.summary["pack"] == 5
    assert (saved["device"], saved["precision"]) == ("cpu", "float64")


def test_the_summary_says_what_was_run_on_what_and_with_what(tmp_path: Path) -> None:
    summary = toy_runs.run(tmp_path, parameters={"rank": 2}).summary
    assert summary["settings"]["method.rank"] == {"value": 2, "origin": "user"}
    assert summary["settings"]["method.alpha"] == {"value": 16.0, "origin": "default"}
    assert set(summary["environment"]["versions"]) >= {"weft", "torch", "transformers", "peft"}
    assert summary["environment"]["threads"] == 1
    assert summary["data"]["fingerprint"] == toy_runs.source().fingerprint
    assert summary["backbone"]["sha256"] == tiny.backbone("bert").weight_hash
    rows = summary["data"]["rows"]
    assert rows["train"] + rows["val"] + rows["test"] == len(toy_runs.source().train)
    assert summary["finished"] is True
    json.dumps(summary, allow_nan=False)


# numbers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "scored"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (0, [4]), (9, [4])])
def test_rounds_are_scored_every_so_often_and_always_at_the_end(every: int, scored: list[int], tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, rounds=5, eval_every=every)
    assert [line["round"] for line in run.rounds] == [0, 1, 2, 3, 4]
    assert [line["round"] for line in run.rounds if line.get("evaluations")] == scored
    for line in run.rounds:
        for number in line.get("evaluations", []):
            assert {"view", "people", "moment", "metric", "pooling", "value", "n"} <= set(number)


def test_the_headline_is_the_last_round_and_the_best_is_chosen_without_test_rows() -> None:
    def line(t: int, validation: float, test: float) -> dict[str, Any]:
        common = {"view": "global", "moment": "received", "metric": "accuracy", "pooling": "pooled", "n": 9}
        scores = [common | {"people": "global test", "value": test}, common | {"people": "validation", "value": validation}]
        return {"round": t, "evaluations": scores}

    lines = [line(0, 0.4, 0.9), line(1, 0.6, 0.5), line(2, 0.6, 0.7), {"round": 3}, line(4, 0.5, 0.3)]
    last, best = headline(lines[-1]), best_by_validation(lines)
    assert last is not None
    assert best is not None
    assert (last["round"], last["value"]) == (4, 0.3)
    assert (best["round"], best["value"], best["validation"]) == (1, 0.5, 0.6)
    assert headline(lines[3]) is None


def test_a_personal_method_is_headed_by_its_clients_own_tests(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, method="fedsa-lora")
    assert run.summary["headline"]["people"] == "own test"
    assert run.summary["headline"]["pooling"] == "pooled"
    assert run.metrics["accuracy"] == run.summary["headline"]["value"]
    assert 0 <= run.metrics["worst_client"] <= run.metrics["mean_client"] <= 1


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, parameters={"optim.kind": "sgd", "lr": 1e200})
    for line in (run.folder / "rounds.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert run.finished


def test_a_run_without_test_rows_has_no_numbers_and_no_trouble(tmp_path: Path) -> None:
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid", test_fraction=0.0, val_fraction=0.0)
    run = toy_runs.run(tmp_path, data=dealt, clients=None)
    assert run.finished
    assert run.metrics == {}
    assert run.summary["headline"] is None


# bytes --------------------------------------------------------------------------------------------------------------------


def test_a_trained_head_is_billed_as_set_up_once_to_each_client(tmp_path: Path) -> None:
    rounds, probes, clients = 4, 3, 6
    run = toy_runs.run(
        tmp_path, clients=clients, rounds=rounds, participation=0.5, start_head="probe", probe_rounds=probes, method="fedsa-lora"
    )
    seen: set[str] = set()
    for line in run.rounds:
        new = set(line["cohort"]) - seen
        seen |= new
        handed = line["bytes"].get("setup", {"down": {"parts": {}, "messages": 0}})["down"]
        assert handed["messages"] == len(new)
        assert handed["parts"].get("head", 0) == len(new) * head_bytes()
    assert seen < {f"c{i}" for i in range(clients)} or len(seen) == clients
    # of the probe itself: every turn sends the head up; the first download of a client that comes before any write is empty
    probe = [json.loads(line) for line in (run.folder / "setup" / "rounds.jsonl").read_text().splitlines()]
    ups = sum(len(line["cohort"]) for line in probe)
    total = run.summary["bytes"]["setup"]
    assert total["up"]["parts"]["head"] == ups * head_bytes()
    downs = sum(len(line["cohort"]) for line in probe[1:])
    assert total["down"]["parts"]["head"] == (downs + len(seen)) * head_bytes()
    assert total["down"]["wire"] > total["down"]["payload"]


def test_a_shared_head_that_is_sent_anyway_is_not_handed_over_as_well(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, clients=6, rounds=4, participation=0.5, start_head="probe", probe_rounds=1)
    first, *later = run.rounds
    assert first["bytes"]["setup"]["down"]["parts"]["head"] == len(first["cohort"]) * head_bytes()
    assert any(set(line["cohort"]) - set(first["cohort"]) for line in later)
    assert all("setup" not in line["bytes"] for line in later)


def test_no_probe_is_trained_for_a_method_that_could_not_start_from_it(tmp_path: Path) -> None:
    """Its heads are one for each of several tasks, under other names than the probe's."""
    told = toy_runs.Told()
    data = Source("toy", names_of_several(), several_of(tiny.rows(60)), fingerprint="toy several")
    common: dict[str, Any] = {"method": "mt-fedadapter", "data": data, "probe_rounds": 2, "baselines": ["probe"]}
    run = toy_runs.run(tmp_path, start_head="probe", observer=told, name="probing", **common)
    assert [text for text in told.sentences if "no head that could start from a probe" in text]
    assert not (run.folder / "setup").exists()
    assert not told.open
    plain = toy_runs.run(tmp_path, start_head="random", name="plain", **common)
    assert run.summary["bytes"] == plain.summary["bytes"]
    assert [line["loss"] for line in run.rounds] == [line["loss"] for line in plain.rounds]
    assert run.summary["baselines"]["probe"]["bytes"] == plain.summary["baselines"]["probe"]["bytes"]


def test_no_byte_is_billed_where_nobody_is_apart(tmp_path: Path) -> None:
    for baseline in ("local", "central"):
        run = toy_runs.run(tmp_path, baseline=baseline, start_head="probe", probe_rounds=1)
        assert all(line["bytes"] == {} for line in run.rounds)
        assert run.summary["bytes"] == {}


# many clients -------------------------------------------------------------------------------------------------------------


def crowd(clients: int) -> FederatedData:
    """Four rows each, two of them for training."""
    table = tiny.rows(4 * clients)
    place = np.arange(4 * clients).reshape(clients, 4)
    people = [ClientData(f"c{i:05d}", table.take(p[:2]), table.take(p[2:3]), table.take(p[3:])) for i, p in enumerate(place)]
    few = people[:50]
    return FederatedData(
        "crowd",
        toy_runs.CLASSES,
        people,
        Rows.concatenate([p.test for p in few]),
        Rows.concatenate([p.val for p in few]),
        [],
        "",
    )


def test_ten_thousand_clients_are_no_burden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[list[ClientState]] = []
    original = stage.Player.play

    def watched(self: stage.Player) -> stage.FinishedStage:
        held.append([c for people in self.stage.federations for c in people])
        return original(self)

    monkeypatch.setattr(stage.Player, "play", watched)
    run = toy_runs.run(
        tmp_path,
        data=crowd(10_000),
        method="fedsa-lora",
        participation=0.001,
        eval_clients=20,
        eval_every=0,
        parameters={"rank": 1},
    )
    assert run.summary["data"]["clients"] == 10_000
    took_part = {c for line in run.rounds for c in line["cohort"]}
    assert [len(line["cohort"]) for line in run.rounds] == [10, 10]
    (clients,) = held
    assert len(clients) == 10_000
    assert not any(c.kept or c.memo for c in clients)  # personal state is on disk, and nowhere else
    assert len(list((run.folder / "clients").iterdir())) == len(took_part)


def test_rows_of_a_client_are_neighbours_in_the_table_and_each_row_is_there_once(tmp_path: Path) -> None:
    from weft.runs.prepare import _layout

    dealt = crowd(7)
    rows, (test, val, *own) = _layout(dealt)
    assert sorted(rows.ids.tolist()) == list(range(28))
    assert rows.ids[test].tolist() == dealt.test.ids.tolist()
    assert rows.ids[val].tolist() == dealt.val.ids.tolist()
    for i, client in enumerate(dealt.clients):
        mine = own[3 * i : 3 * i + 3]
        assert [rows.ids[p].tolist() for p in mine] == [s.ids.tolist() for s in (client.train, client.val, client.test)]
        assert sorted(np.concatenate(mine).tolist()) == list(range(4 * i, 4 * i + 4))
        assert [rows.texts[p] for p in mine[0]] == list(client.train.texts)


def test_a_client_store_keeps_any_id_apart_and_survives_no_more_than_its_checkpoint_names(tmp_path: Path) -> None:
    import torch

    from weft.storage.store import ClientStore

    ids = ["a", "A", "..", "x/y", "", "ü" * 300, "a.0", "a.1"]
    store = ClientStore(tmp_path)
    for n, name in enumerate(ids):
        client = ClientState(
            name, kept={"lora/s/A": torch.tensor([float(n)])}, memo={"n": n, "t": torch.tensor(n)}, rounds_seen=n
        )
        store.save(client)
        assert not client.kept
    manifest = json.loads(json.dumps(store.manifest()))
    store.commit()
    store.save(ClientState("a", kept={"lora/s/A": torch.tensor([99.0])}, rounds_seen=77))  # never committed
    again = ClientStore(tmp_path, manifest)
    for n, name in enumerate(ids):
        client = ClientState(name)
        again.load(client)
        assert client.kept["lora/s/A"].item() == n
        assert client.memo["n"] == n
        assert client.memo["t"].item() == n
        assert client.rounds_seen == n
    assert len(list(tmp_path.iterdir())) == len(ids)
