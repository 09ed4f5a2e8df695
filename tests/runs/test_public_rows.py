"""Runs with public rows: which they are, which are refused, and that they are said, saved and resumed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import command_line
import tiny
import toy_runs
import weft
from taught import Taught
from toy_runs import Dies, Killed, Told
from weft.cli.retyped import command
from weft.data.rows import Rows, fingerprint
from weft.errors import UserError
from weft.experiment import Experiment, resolve
from weft.federation.message import Update
from weft.federation.server import ServerState
from weft.methods import FedIT
from weft.playing.run import Run
from weft.runs import prepare, public_rows
from weft.runs.checkpoint import digest
from weft.runs.prepare import Material
from weft.sites.terms import COMMON
from weft.tasks.kinds import CLASSES, GENERATION

WORDS = toy_runs.CLASSES


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def file(where: Path, texts: Sequence[str], names: Sequence[str], columns: Sequence[str] = ("text", "label")) -> str:
    with open(where, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(zip(texts, names, strict=True))
    return str(where)


def others(where: Path, n: int = 20, seed: int = 9, names: Sequence[str] = WORDS) -> str:
    """Rows that the toy source has not."""
    rows = tiny.rows(n, len(names), seed)
    assert rows.texts is not None
    return file(where, [f"{t} w{seed} w{i}" for i, t in enumerate(rows.texts)], [names[y] for y in rows.labels])


def run(root: Path, **more: Any) -> weft.Run:
    return toy_runs.run(root / "runs", **{"method": Taught(), "clients": 2, "eval_every": 0, "recipes": False} | more)


def material(where: Path, **more: Any) -> Material:
    """Of an experiment on the toy source."""
    about = {"model": tiny.folder("bert"), "clients": 2, "max_length": 16, "partition": "iid", "precision": "float64"}
    x = Experiment(**about | {"device": "cpu"} | more)
    return prepare.prepare(x, toy_runs.source(), Told())


# which rows ---------------------------------------------------------------------------------------------------------------


def test_labels_are_counted_as_the_run_counts_them_and_clients_have_the_tables_of_a_run_without(tmp_path: Path) -> None:
    """The file has two of the three classes, in another order."""
    path = file(tmp_path / "p.csv", ["w1 w2 w3", "w4 w5", "w6"], ["two", "three", "two"])
    found, bare = material(tmp_path, public=path), material(tmp_path)
    assert found.public is not None
    assert found.public.table.labels.tolist() == [WORDS.index(w) for w in ("two", "three", "two")]
    assert found.public.table is not found.bench.table
    assert np.array_equal(found.bench.table.ids, bare.bench.table.ids)  # type: ignore[union-attr]
    assert [c.data.train.tolist() for c in found.clients] == [c.data.train.tolist() for c in bare.clients]
    assert found.data["public"]["rows"] == 3
    assert bare.public is None
    assert bare.data["public"] is None
    assert {n: v for n, v in found.identity().items() if v != bare.identity()[n]} == {
        "public": found.data["public"]["fingerprint"]
    }


def test_rows_of_the_run_are_left_out_and_others_are_drawn_by_the_seed(tmp_path: Path) -> None:
    source = toy_runs.source()
    assert source.train.texts is not None
    distinct = list(dict.fromkeys(source.train.texts))[:5]
    mine = [source.train.texts.index(t) for t in distinct]
    new = [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(12)]
    path = file(
        tmp_path / "p.csv", [*distinct, *new], [*(WORDS[source.train.labels[i]] for i in mine), *["one"] * 6, *["two"] * 6]
    )

    def texts(**more: Any) -> tuple[list[str], list[str]]:
        x = Experiment(public=path, **more)
        rows, notes = public_rows.read(x, CLASSES, "texts", WORDS, source.train)
        assert rows.texts is not None
        return list(rows.texts), notes

    found, notes = texts()
    assert found == new
    assert "5 rows of p.csv that the clients or the tests have too, which are left out." in notes
    assert notes[-1] == "12 rows of p.csv, at the server alone."
    few, notes = texts(public_rows=4)
    assert len(few) == 4
    assert few == texts(public_rows=4)[0] != texts(public_rows=4, seed=1)[0]
    assert set(few) < set(new)
    assert few == sorted(few, key=new.index)
    assert notes[-1] == "4 rows of p.csv, at the server alone."
    x = Experiment(public=path)
    unknown, _ = public_rows.read(x, CLASSES, "texts", WORDS, None)  # at sites nobody knows
    assert len(unknown) == 17


def test_what_a_limit_leaves_of_a_set_can_be_public(tmp_path: Path) -> None:
    whole = others(tmp_path / "all.csv", 40)
    about: dict[str, Any] = {"clients": 2, "max_length": 16, "partition": "iid", "precision": "float64", "device": "cpu"}
    x = Experiment(model=tiny.folder("bert"), data=whole, limit=25, public=whole, **about)
    found = prepare.prepare(x, None, Told())
    assert found.public is not None
    assert (len(found.bench.table), len(found.public.table)) == (25, 15)


def test_columns_are_those_of_the_data_or_guessed(tmp_path: Path) -> None:
    odd = file(tmp_path / "odd.csv", ["w1 w2", "w3 w4"], ["one", "two"], ("body", "stars"))
    usual = file(tmp_path / "usual.csv", ["w1 w2", "w3 w4"], ["one", "two"])
    for path in (odd, usual):
        x = Experiment(public=path, text="body", label="stars")
        rows, _ = public_rows.read(x, CLASSES, "texts", WORDS, None)
        assert rows.texts is not None
        assert (list(rows.texts), rows.labels.tolist()) == (["w1 w2", "w3 w4"], [0, 1])
    with pytest.raises(UserError, match="no column"):
        public_rows.read(Experiment(public=odd), CLASSES, "texts", WORDS, None)


def test_a_run_that_generates_takes_prompts_with_answers_and_any_text(tmp_path: Path) -> None:
    prompts = file(tmp_path / "prompts.csv", ["w1 w2", "w3"], ["w5", "w6"], ("instruction", "output"))
    (tmp_path / "plain.txt").write_text("w1 w2 w3 w4\n\nw5 w6 w7 w8\n")
    for path in (prompts, str(tmp_path / "plain.txt")):
        x = Experiment(public=path, task=GENERATION)
        rows, _ = public_rows.read(x, GENERATION, "texts", ("answer",), None)
        assert rows.answers is not None
        assert len(rows) == 2
        assert not rows.labels.any()


def test_rows_that_are_not_the_runs_are_refused_in_a_sentence(tmp_path: Path) -> None:
    own = toy_runs.source().train
    strange = file(tmp_path / "strange.csv", ["w1 w2", "w3"], ["one", "four"])
    asked = file(tmp_path / "asked.csv", ["w1 w2", "w3"], ["w5 w6", "w7 w8"], ("instruction", "output"))
    pairs = Rows(own.texts, own.texts, own.labels)

    def read(path: str, **more: Any) -> None:
        usual: dict[str, Any] = {"kind": CLASSES, "reads": "texts", "classes": WORDS, "own": own}
        public_rows.read(Experiment(public=path, task=more.pop("task", "auto")), **usual | more)

    for path, more, words in (
        (strange, {}, r'strange.csv has the label "four", which is none of the classes of this experiment: one, two, three\.'),
        (asked, {}, "asked.csv"),
        (strange, {"reads": "images"}, r"the rows of strange.csv are texts, and those of the run images: give other --public"),
        (strange, {"own": pairs}, "the rows of strange.csv are single texts, and those of the run pairs of texts"),
        (strange, {"kind": "tokens"}, "the rows of strange.csv are not what the run learns from, which is tokens"),
        (str(tmp_path / "none.csv"), {}, "none.csv"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read(path, **more)
        assert str(caught.value)[-1] in ".?"
    assert own.texts is not None
    same = file(tmp_path / "same.csv", own.texts[:6], [WORDS[y] for y in own.labels[:6]])
    with pytest.raises(UserError, match=r"all rows of same.csv are rows of the run's own data: give other --public data\."):
        read(same)


def test_a_method_without_use_for_them_refuses_them_and_one_with_says_what_it_is_without() -> None:
    with pytest.raises(UserError, match=r"the server of fedit trains on nothing, and has no use for public rows: leave --public"):
        resolve({"method": "fedit", "public": "x.csv"})
    with pytest.raises(UserError, match=r"public_rows counts the rows of --public data: name those too"):
        resolve({"method": "fedit", "public_rows": 5})
    assert resolve({}, method=Taught()).notes == ("taught gets no public rows (--public): nothing is taught.",)
    assert resolve({"public": "x.csv"}, method=Taught()).notes == ()
    assert resolve({}, method=FedIT()).notes == ()


# whole runs ---------------------------------------------------------------------------------------------------------------


def test_a_run_says_and_saves_how_many_there_are_and_its_server_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told, had = others(tmp_path / "p.csv"), Told(), []
    aggregate = Taught.aggregate

    def watched(self: Taught, server: ServerState, updates: Iterable[Update]) -> None:
        had.append(None if server.public is None else len(server.public.table))
        aggregate(self, server, updates)

    monkeypatch.setattr(Taught, "aggregate", watched)
    found = run(tmp_path, public=path, public_rows=8, observer=told, name="with")
    without = run(tmp_path, name="without")
    assert had == [8, 8, None, None]
    about = found.summary["data"]["public"]
    assert (about["name"], about["rows"]) == (path, 8)
    assert without.summary["data"]["public"] is None
    assert "public rows: 8 rows of p.csv, at the server alone." in told.sentences
    assert digest(found.folder)["server"] != digest(without.folder)["server"]
    assert f'public = "{path}"' in (found.folder / "experiment.toml").read_text()


def test_a_stopped_run_goes_on_with_the_same_rows_and_not_with_others(tmp_path: Path) -> None:
    path = others(tmp_path / "p.csv")
    more = {"public": path, "public_rows": 8, "rounds": 3}
    whole = run(tmp_path, **more, name="whole")
    with pytest.raises(Killed):
        run(tmp_path, **more, name="stopped", observer=Dies())
    stopped = tmp_path / "runs" / "stopped"

    def resumed() -> Run:
        return weft.resume(stopped, method=Taught(), data=toy_runs.source(), observer=Told())

    kept = Path(path).read_bytes()
    others(Path(path), seed=10)
    with pytest.raises(UserError, match="the public rows are others since it was saved"):
        resumed()
    Path(path).write_bytes(kept)
    assert digest(resumed().folder) == digest(whole.folder)


def test_a_repeated_run_is_the_same(tmp_path: Path) -> None:
    found = run(tmp_path, public=others(tmp_path / "p.csv"), repeat=2)
    assert found.summary["repeat"] == {"runs": 2, "identical": True}


def test_sites_are_not_told_of_public_rows() -> None:
    assert not {"public", "public_rows"} & set(COMMON)


def test_a_fingerprint_is_of_the_rows_that_are_used(tmp_path: Path) -> None:
    path = others(tmp_path / "p.csv")
    found = material(tmp_path, public=path, public_rows=8)
    x = Experiment(public=path, public_rows=8)
    rows, _ = public_rows.read(x, CLASSES, "texts", WORDS, toy_runs.source().train)
    assert found.data["public"]["fingerprint"] == fingerprint(WORDS, {"public": rows})


def test_a_dry_run_says_how_many_there_are_and_what_goes_down_for_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = command_line.table(tmp_path / "p.csv", 20, seed=5)
    line = command_line.small(tmp_path, "--dry-run", "--method", "fedbiot", "--set", "method.adapter_blocks=1")
    got = command_line.weft(capsys, *line, "--public", path, "--public-rows", 8)
    assert got.code == 0
    assert "8 public ones at the server." in command_line.flowing(got.out)
    found = json.loads(command_line.weft(capsys, *line, "--public", path, "--json").out)
    assert found["data"]["public"]["rows"] == 20
    assert [r["down"].get("emulator", 0) > 0 for r in found["sizes"]["rounds"]] == [True] * 3
    said = command_line.weft(capsys, *line)
    assert "fedbiot gets no public rows (--public): the emulator stays" in command_line.flowing(said.out + said.err)
    bare = json.loads(command_line.weft(capsys, *line, "--json").out)
    assert [r["down"].get("emulator", 0) for r in bare["sizes"]["rounds"]] == [0] * 3
    command_line.refused(command_line.weft(capsys, *command_line.small(tmp_path, "--public", path)), "leave --public out")


def test_without_public_rows_a_run_says_once_what_it_is(tmp_path: Path) -> None:
    told = Told()
    small = {"adapter_blocks": 1, "steps": 1, "batch": 4}
    toy_runs.run(tmp_path / "runs", method="fedbiot", parameters=small, observer=told, rounds=1, recipes=False)
    said = [s for s in told.sentences if "public" in s]
    assert said == ["fedbiot gets no public rows (--public): the emulator stays as it was cut out, which is FedOT."]


def test_the_next_command_leaves_them_out_for_a_method_that_has_no_use_for_them(tmp_path: Path) -> None:
    path = others(tmp_path / "p.csv")
    x = {"method": "fedbiot", "public": path, "public_rows": 8, "model": "minilm"}
    settings = {n: {"value": v, "origin": "user"} for n, v in x.items()} | {"data": {"value": "pydocs", "origin": "default"}}
    summary = {"method": {"object": False}, "data": {"object": False}, "settings": settings}
    assert command(summary, {"rounds": 3}) is not None
    assert path in str(command(summary, {"rounds": 3}))
    assert command(summary, {"method": "flora"}) == "weft run --method flora"
