"""``flwr run`` with processes of Flower's own: the commands that ``weft serve --write-app`` says. Needs the extra ``flower``."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import command_line
import tiny
import weft
from patience import patience
from weft.runs.checkpoint import Checkpoint
from weft.sites.flower.processes import free_port

pytestmark = pytest.mark.processes

SITES = ("c0", "c1")


class Typed:
    """Terminals in a folder, where a person has typed what silences Flower."""

    def __init__(self, root: Path):
        self.root = root
        self.running: list[subprocess.Popen[bytes]] = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = os.environ | {"PATH": path, "NO_COLOR": "1", "COLUMNS": "300", "FLWR_HOME": str(root / "home")}

    def export(self, line: str) -> None:
        self.env |= dict(word.split("=", 1) for word in shlex.split(line)[1:])

    def type(self, line: str, seconds: float = 60) -> str:
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=patience(seconds)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, line: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(["sh", "-c", f"exec {line}"], cwd=self.root, env=self.env, stdout=log, stderr=log)
            )

    def until(self, what: Callable[[], object], seconds: float) -> None:
        end = time.monotonic() + patience(seconds)
        while not what():
            logs = {p.name: p.read_text(errors="replace")[-2000:] for p in self.root.glob("*.log")}
            assert time.monotonic() < end, logs
            assert all(p.poll() is None for p in self.running), logs
            time.sleep(0.1)


@contextmanager
def terminals(root: Path) -> Iterator[Typed]:
    found = Typed(root)
    try:
        yield found
    finally:
        for process in reversed(found.running):
            process.terminate()
        for process in found.running:
            process.wait(patience(30))


def experiment(root: Path) -> Path:
    """Two sites that have the rows of the clients of a deal, so that a simulation can be compared."""
    command_line.table(root / "rows.csv")
    file = root / "experiment.toml"
    file.write_text(
        f'model = "{tiny.folder("bert")}"\ndata = "{root / "rows.csv"}"\nclasses = ["class 0", "class 1", "class 2"]\n'
        f'clients = {len(SITES)}\npartition = "iid"\nrounds = 2\neval_every = 0\nmax_length = 16\nrecipes = false\n'
        f'precision = "float64"\ndevice = "cpu"\ncodec = "quant8"\nruns = "{root / "runs"}"\nname = "served"\n'
        '[method]\nname = "fedit"\nrank = 2\nbatch = 4\n'
    )
    return file


@pytest.mark.slow
def test_flwr_run_with_flowers_own_processes_gives_the_numbers_of_the_simulation(tmp_path: Path) -> None:
    file, port = experiment(tmp_path), free_port()
    weft_ = f"{shlex.quote(sys.executable)} -m weft"
    with terminals(tmp_path) as shell:
        said = shell.type(f"{weft_} serve experiment.toml --insecure --port {port} --write-app app")
        lines = [line.strip() for line in said.splitlines()]
        (export,) = (x for x in lines if x.startswith("export "))
        (superlink,) = (x for x in lines if x.startswith("flower-superlink "))
        (supernode,) = (x for x in lines if x.startswith("flower-supernode "))
        (run,) = (x for x in lines if " flwr run " in x)
        shell.export(export)
        assert (shell.env["FLWR_TELEMETRY_ENABLED"], shell.env["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")

        shell.start("superlink", superlink)
        shell.until(lambda: "Uvicorn running" in (tmp_path / "superlink.log").read_text(errors="replace"), 60)
        for name in SITES:
            shell.type(f"{weft_} join experiment.toml --as {name} --device cpu --write {name}.json")
            shell.start(name, supernode.replace("NAME.json", f"{name}.json") + f" --port {free_port()}")
        said = shell.type(run, 400)

    there = weft.load_run(tmp_path / "runs" / "served")
    assert there.finished, said
    assert there.adapter is not None
    here = weft.run(file=str(file), name="simulated")
    mine, theirs = (Checkpoint(run.folder / "checkpoint").load() for run in (here, there))
    assert mine is not None
    assert theirs is not None
    wanted, found = mine.servers[0][0], theirs.servers[0][0]
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
    assert [(r["round"], r["cohort"]) for r in there.rounds] == [(t, [*SITES]) for t in range(2)]
    assert [r["loss"] for r in there.rounds] == pytest.approx([r["loss"] for r in here.rounds], abs=1e-9)


def test_the_app_for_a_coordinator_with_keys_leaves_no_way_in_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path)
    command_line.weft(capsys, "keys", "coordinator", "--host", "fl.example.org")
    done = command_line.weft(capsys, "serve", "experiment.toml", "--write-app", "app")
    assert done.code == 0, done.err
    assert "insecure" not in done.out
    assert "--enable-supernode-auth" in done.out
    config = tomllib.loads((tmp_path / "app" / ".flwr" / "config.toml").read_text())
    assert config["superlink"]["weft"] == {
        "address": "127.0.0.1:9393",
        "root-certificates": str(tmp_path / "keys" / "ca.pem"),
    }


@pytest.mark.parametrize(
    ("more", "said"), [(["--set", "rounds=3"], "the app reads its settings from experiment.toml alone"), ([], "is there already")]
)
def test_an_app_that_would_not_be_what_was_typed_is_not_written(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path)
    (tmp_path / "app").mkdir()
    done = command_line.weft(capsys, "serve", "experiment.toml", "--insecure", "--write-app", "app", *more)
    assert done.code == 2
    assert said in done.err
    assert not list((tmp_path / "app").iterdir())
