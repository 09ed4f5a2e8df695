"""The guide on real federations, followed to the letter by three machines that are folders. Needs the extra ``flower``.

Replaced are the coordinator's name and port, the backbone, the number of rounds and the sites' rows; nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tiny
from paths import ROOT
from patience import patience
from weft.sites.flower.processes import free_port

pytestmark = pytest.mark.processes

GUIDE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
MACHINES = ("coordinator", "north", "south")
HOST, MODEL, ROUNDS = "fl.example.org", "minilm", "rounds = 10"
STEP = re.compile(
    r"<!-- (?P<who>[\w, ]+): (?P<what>types|keeps running|prints|writes (?P<file>[\w.]+)) -->\s*```\w*\n(?P<block>.*?)```"
    r"|<!-- (?P<over>\w+): (?P<how>ends|Ctrl-C) -->"
    r"|^\| `(?P<source>\S+)` \| (?P<giver>\w+) \| (?P<taker>\w+) \| `(?P<target>\S+)` \|$",
    re.DOTALL | re.MULTILINE,
)
(CLASSES,) = re.findall(r"^classes = \[(.*)\]$", GUIDE, re.MULTILINE)
LABELS = re.findall(r'"(.+?)"', CLASSES)
FINGERPRINT = re.compile(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}")
SECONDS = 60  # of patience with one command or line, on a usual machine


@pytest.mark.slow
def test_the_guide_leads_from_nothing_to_a_model_that_two_sites_have_trained(tmp_path: Path) -> None:
    steps = [*STEP.finditer(GUIDE)]
    assert sum(not step["source"] for step in steps) == GUIDE.count("<!--")  # none is passed over for a slip of the pen
    with machines(tmp_path) as m:
        for step in steps:
            m.follow(step)
        assert m.ended == {"coordinator": 0, "north": 130, "south": 130}
        said = {name: m.said(name) for name in MACHINES}

    run = tmp_path / "coordinator" / "runs" / "fedit-sites-s0"
    assert {p.name for p in (run / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "weft.json"}
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in lines] == [["north", "south"]] * 3
    fingerprints = [set(FINGERPRINT.findall(text)) for text in said.values()]
    assert all(fingerprints)
    assert len(set.union(*fingerprints)) == 1  # as compared by telephone
    rows = [line for name in MACHINES[1:] for line in (tmp_path / name / "rows.csv").read_bytes().splitlines()[1:]]
    for file in (tmp_path / "coordinator").rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert not any(secret in data for secret in (b"rows.csv", *rows)), file


class Machines:
    """Folders that stand for machines, the processes on them, and what they print."""

    def __init__(self, root: Path):
        self.root, self.port = root, free_port()
        self.model = tiny.folder("bert")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ended: dict[str, int] = {}
        for name in MACHINES:
            (root / name).mkdir()

    def follow(self, step: re.Match[str]) -> None:
        """Do what one step of the guide says, or see that what it shows is printed."""
        found, block = step.groupdict(), self.here(step["block"] or "")
        if found["over"]:
            self.end(found["over"], signal.SIGINT if found["how"] == "Ctrl-C" else None)
        elif found["source"]:
            source, target = self.root / found["giver"] / found["source"], self.root / found["taker"] / found["target"]
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        for name in (found["who"] or "").split(", ") if found["who"] else ():
            if found["file"]:
                (self.root / name / found["file"]).write_text(block + more(name) * found["file"].endswith(".csv"))
            elif found["what"] == "prints":
                for line in block.splitlines():
                    self.until_said(name, line.removesuffix(" …") if line != "…" else "")
            else:
                for line in block.replace("\\\n", " ").splitlines():
                    self.type(name, line, found["what"] == "keeps running")

    def here(self, text: str) -> str:
        """A piece of the guide with what is replaced."""
        text = text.replace(MODEL, self.model).replace(ROUNDS, "rounds = 3")
        text = text.replace(f"--server {HOST}", f"--server localhost:{self.port}").replace(HOST, "localhost")
        return text.replace("localhost, localhost", "localhost")  # a name that is given twice is certified once

    def type(self, name: str, line: str, stays: bool = False) -> None:
        command = shlex.split(line)
        if command[0] == "weft":
            command[:1] = [sys.executable, "-m", "weft"]
        if "serve" in command:
            command += ["--port", str(self.port)]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.root / name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"COLUMNS": "500", "HF_HUB_OFFLINE": "1"},
            )
        if stays:
            self.running[name] = process
            return
        assert process.wait(patience(SECONDS)) == 0, f"{line}: {self.said(name)[-2000:]}"

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text(encoding="utf-8", errors="replace") if self.log(name).exists() else ""

    def until_said(self, name: str, line: str) -> None:
        """Wait for a line that the guide shows; numbers, units and spaces may differ."""
        wanted, end = plain(line), time.monotonic() + patience(SECONDS)
        while True:
            over = name not in self.running or self.running[name].poll() is not None
            said = self.said(name)
            if wanted in plain(said):
                return
            if over or time.monotonic() > end:
                raise AssertionError(f"{name} did not say: {wanted}\n{said[-4000:]}")
            time.sleep(0.1)

    def end(self, name: str, how: int | None = None) -> None:
        process = self.running.pop(name)
        if how is not None:
            process.send_signal(how)
        self.ended[name] = process.wait(patience(SECONDS))


@contextmanager
def machines(root: Path) -> Iterator[Machines]:
    found = Machines(root)
    try:
        yield found
    finally:
        for process in found.running.values():
            process.kill()
            process.wait()


def more(name: str, n: int = 60) -> str:
    """Further rows of a site, below those that the guide shows."""
    rows = tiny.rows(n, len(LABELS), seed=MACHINES.index(name))
    return "".join(f"{text},{LABELS[y]}\n" for text, y in zip(rows.texts or (), rows.labels, strict=True))


def plain(text: str) -> str:
    """What is the same on any machine and for any backbone."""
    text = FINGERPRINT.sub("FINGERPRINT", re.sub(r"─+", "─", text))
    text = re.sub(rf"\b({'|'.join(LABELS)})\b", "LABEL", text)
    return " ".join(re.sub(r"\d+([.,]\d+)*( (k|M|G)?B)?", "#", text).split())
