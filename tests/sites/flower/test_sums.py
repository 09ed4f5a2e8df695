"""Hidden sums between real processes: the simulation's numbers, and a coordinator that is killed in each of their questions.
Needs the extra ``flower``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from site_processes import Federation, federation
from toy_runs import by_engine
from weft.communication.strict import Refused
from weft.privacy.ckks.cipher_server import CipherServer
from weft.privacy.secagg.sum_server import SumServer
from weft.privacy.sums.packets import CKKS, SECAGG
from weft.runs.checkpoint import Checkpoint
from weft.sites.key_files import SUM_KEY

pytestmark = pytest.mark.processes

SITES = ("east", "north", "south")
EXPERIMENT = 'rounds = 6\nprivacy = "{}"\n[method]\nname = "fedit"\nrank = 2\nbatch = 4\n'
PROTOCOLS = {"secagg": (SumServer, SECAGG), "ckks": (CipherServer, CKKS)}


@pytest.mark.parametrize("text", PROTOCOLS)
def test_processes_have_the_numbers_of_the_simulation(text: str, tmp_path: Path) -> None:
    here, there = (
        by_engine(tmp_path, "fedit", engine, 3, {"rank": 2}, privacy=text, max_factor="auto")
        for engine in ("simulation", "flower")
    )
    mine, theirs = (tensors(run.folder) for run in (here, there))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(here.rounds, there.rounds, strict=True):
        assert b["lost"] == []
        assert b["loss"] is None
        for way in ("down", "up"):
            assert a["bytes"]["train"][way]["parts"] == b["bytes"]["train"][way]["parts"]
    spooled = [p for p in (there.folder / "spool").rglob("*") if p.is_file()]
    assert spooled == [], "no update of a single site has reached the coordinator"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What the server of a finished run holds."""
    saved = Checkpoint(folder / "checkpoint").load()
    assert saved is not None
    return dict(saved.servers[0][0])


def asking(f: Federation, text: str) -> tuple[int, str]:
    """The round and the question of the sum that the coordinator is at."""
    with contextlib.suppress(OSError, Refused):
        state = PROTOCOLS[text][0].loaded((f.server / "runs" / "run" / "sum.bin").read_bytes())
        return state.terms.round, state.kind or "done"
    return -1, ""


def played(root: Path, text: str, deaths: bool) -> Federation:
    """Six rounds; with deaths, the coordinator is killed once in each question, each time in a later round."""
    root.mkdir()
    with federation(root, experiment=EXPERIMENT.format(text), number=len(SITES)) as f:
        for name in SITES:
            f.site(name)
        if text == "ckks":
            share_key(f)
        f.serve("--deadline", "60")
        for name in SITES:
            f.join(name)
        if deaths:
            at = 0
            for kind in PROTOCOLS[text][1]:
                f.until(lambda k=kind, t=at: asking(f, text)[1] == k and asking(f, text)[0] >= t)  # type: ignore[misc]
                f.kill("coordinator")
                at = asking(f, text)[0] + 1
                f.serve("--deadline", "60")
        f.until(lambda: len(f.rounds()) == 6 and f.running["coordinator"].poll() is not None)
        assert f.running["coordinator"].returncode == 0
    return f


def share_key(f: Federation) -> None:
    """One site makes the key, and the others get it."""
    first, *others = (f.root / name / "keys" / SUM_KEY for name in SITES)
    f.weft(f.root / SITES[0], "keys", "sums")
    for path in others:
        path.write_bytes(first.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("text", PROTOCOLS)
def test_a_coordinator_that_is_killed_in_each_question_comes_to_the_same(text: str, tmp_path: Path) -> None:
    """Nobody is in two sums of a round, or in half of one."""
    whole, cut = played(tmp_path / "whole", text, False), played(tmp_path / "cut", text, True)
    mine, theirs = (tensors(f.server / "runs" / "run") for f in (whole, cut))
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert [line["round"] for line in cut.rounds()] == list(range(6))
    assert all(line["lost"] == [] for line in cut.rounds())
    assert "counts for nothing" not in cut.said("coordinator")
