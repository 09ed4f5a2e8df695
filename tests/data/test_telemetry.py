"""Nothing is posted: flwr-datasets has telemetry on by default; Weft switches it off before the import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import weft.data
from weft.data._telemetry import flower_partitioners

PROGRAM = """
import socket
tried = []
def refuse(*arguments, **named):
    tried.append(arguments)
    raise OSError("the network is blocked")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse

import numpy as np
from weft.data import Rows, Source, partition, picture
keys = [f"k{i % 6}" for i in range(60)]
rows = Rows([str(i) for i in range(60)], None, np.arange(60) % 3, np.arange(60), keys)
for scheme in ("iid", "dirichlet", "pathological", "natural"):
    fed = partition(Source("toy", ("a", "b", "c"), rows), clients=3, scheme=scheme)
picture(fed, "deal.png")

from flwr_datasets.common import telemetry
answer = telemetry.event(telemetry.EventType.PING).result()
print(len(tried), answer)
telemetry.FLWR_TELEMETRY_ENABLED = "1"  # the control: were it on, the blocked sockets would notice
telemetry.event(telemetry.EventType.PING).result()
print(len(tried) > 0)
"""


@pytest.mark.slow
def test_dealing_touches_no_socket_even_where_telemetry_is_switched_on(tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    switched_on = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=switched_on,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 disabled", "True"]


def test_the_switch_also_holds_where_flower_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr_datasets.common import telemetry

    monkeypatch.setattr(telemetry, "FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    flower_partitioners()
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"


def test_flower_is_imported_through_one_door_only() -> None:
    package = Path(weft.data.__file__).parent.parent
    doors = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from)\s+flwr_datasets", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert doors == ["data/_telemetry.py"]
