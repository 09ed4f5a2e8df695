"""Real processes that are killed, come late, come back, or have no business here. Needs the extra ``flower``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from patience import patience, until
from site_processes import Federation, federation
from weft.sites.flower import proof

pytestmark = pytest.mark.processes

BOTH = ["north", "south"]


@pytest.mark.slow
def test_a_federation_outlives_its_sites_and_its_coordinator_and_lets_no_stranger_in(tmp_path: Path) -> None:
    with federation(tmp_path) as f:
        for name in ("north", "south"):
            f.site(name)
        late = f.site("late", known=False)
        f.site("stranger", known=False)
        liar = f.site("liar", known=False)  # it believes another authority
        f.weft(liar, "keys", "coordinator", "--host", "localhost", "--folder", "other")
        (liar / "keys" / "ca.pem").write_bytes((liar / "other" / "ca.pem").read_bytes())

        f.serve()
        for name in ("north", "south"):
            f.join(name)
        f.until(lambda: len(f.rounds()) >= 2)
        f.join("stranger")
        f.join("liar")

        f.kill("south")
        before = f.site_state("south")["last"]["round"]
        f.until(lambda: "south did not answer in round" in f.said("coordinator"))
        missed = len(f.rounds())
        f.until(lambda: len(f.rounds()) > missed)  # the others go on

        f.join("late")
        f.until(lambda: "does not know this site's key" in f.said("late"))
        f.known("late").write_bytes((late / "keys" / "late.pub").read_bytes())
        f.until(lambda: "late joins in round" in f.said("coordinator"))
        f.join("south")
        f.until(lambda: "south is back" in f.said("coordinator"))
        f.until(lambda: f.site_state("south")["last"]["round"] > before + 1)

        f.kill("coordinator")
        f.serve()
        f.until(lambda: "going on with" in f.said("coordinator"))
        at = len(f.rounds())
        everybody = ["late", "north", "south"]
        f.until(lambda: any(line["cohort"] == everybody and not line["lost"] for line in f.rounds()[at:]))
        f.until(lambda: "does not know this site's key" in f.said("stranger"))
        f.known("south").unlink()
        f.until(lambda: "south's key has gone from the folder" in f.said("coordinator"))
        at = len(f.rounds())
        f.until(lambda: any(line["cohort"] == everybody and line["lost"] == ["south"] for line in f.rounds()[at:]))
        f.running["coordinator"].send_signal(signal.SIGINT)
        assert f.running["coordinator"].wait(patience(60)) == 130
        assert "every finished round is saved; weft serve with the same experiment file goes on" in f.said("coordinator")

        lines = f.rounds()
        assert [line["round"] for line in lines] == list(range(len(lines)))
        assert {s for line in lines for s in line["cohort"]} == set(everybody)
        assert any("south" in line["lost"] for line in lines)
        for name in ("late", "north"):
            assert f.site_state(name)["last"]["round"] in (len(lines) - 1, len(lines))
        assert "no connection" in f.said("stranger")
        assert "no connection" in f.said("liar")
        assert "CERTIFICATE_VERIFY_FAILED" in f.said("liar")
        for name in ("stranger", "liar"):
            assert name not in f.said("coordinator")
            assert not list((tmp_path / name).glob("sites/*/*/agreed.json"))
    until(lambda: left_of(tmp_path) == [], 60, lambda: left_of(tmp_path))  # nobody who was killed leaves a process behind


def left_of(root: Path) -> list[str]:
    """Processes that name a folder in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = process.read_bytes()
            if str(root).encode() in text:
                found.append(text.decode(errors="replace"))
    return found


@pytest.mark.slow
def test_a_superlink_that_dies_or_is_tampered_with_is_begun_anew_and_the_same_run_goes_on(tmp_path: Path) -> None:
    with federation(tmp_path) as f:
        for name in BOTH:
            f.site(name)
        f.serve("--deadline", "600")  # nobody is given up
        for name in BOTH:
            f.join(name)
        f.until(lambda: len(f.rounds()) >= 2)
        for count, harm in enumerate((killed, stopped, unregistered), 1):
            harm(f)
            f.until(lambda n=count: f.said("coordinator").count("Flower's superlink is begun anew") == n)  # type: ignore[misc]
            at = len(f.rounds())
            f.until(lambda n=at: any(line["cohort"] == BOTH and not line["lost"] for line in f.rounds()[n:]))  # type: ignore[misc]
        said = f.said("coordinator")
        for words in ("it was killed by signal 9", "its run was stopped from outside", "north's registration has gone from it"):
            assert f"({words}); the run goes on." in said
        with f.control() as control:
            (number,) = (n for n, key in control.nodes().items() if key == f.key("south"))
            stranger = tmp_path / "stranger"
            f.weft(tmp_path, "keys", "site", "stranger", "--folder", str(stranger))
            control.register(proof.of_file(stranger / "stranger.pub"), "south")
            f.until(lambda: "somebody else has registered a site of their own" in f.said("coordinator"))
            assert sorted(control.nodes().values()) == sorted(f.key(name) for name in ("north", "south"))
            assert number in control.nodes()
        lines = f.rounds()
        assert [line["round"] for line in lines] == list(range(len(lines)))
        assert f.running["coordinator"].poll() is None


def killed(f: Federation) -> None:
    (link,) = (p for p in Path("/proc").glob("[0-9]*") if f.runs_here(p, "superlink"))
    os.kill(int(link.name), signal.SIGKILL)


def stopped(f: Federation) -> None:
    """As by ``flwr stop``, if somebody had the secret."""
    with f.control() as control:
        (run,) = control.runs()
        control.stop(run)


def unregistered(f: Federation) -> None:
    with f.control() as control:
        (number,) = (n for n, key in control.nodes().items() if key == f.key("north"))
        control.unregister(number)


class Proxy:
    """Counts who would like to go out."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.calls = 0
        threading.Thread(target=self._count, daemon=True).start()
        address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.environment = {
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address),
            **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1"),
            "FLWR_TELEMETRY_ENABLED": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "0",  # whatever a person has set
        }

    def _count(self) -> None:
        while True:
            peer, _ = self.socket.accept()
            self.calls += 1
            peer.close()


def test_sites_that_do_not_agree_are_turned_away_by_a_sentence_and_nothing_leaves_any_process(tmp_path: Path) -> None:
    proxy = Proxy()
    with federation(tmp_path, proxy.environment) as f:
        folder = f.site("north")
        text = (folder / "rows.csv").read_text().replace("class 2", "class 9")
        (folder / "rows.csv").write_text(text)
        f.serve()
        f.join("north")
        f.until(lambda: "north does not take part" in f.said("coordinator"))
        said = f.said("coordinator")
        assert "it refuses: its rows have a label that the experiment does not declare; its log says which." in said
        assert "class 9" not in said
        assert str(folder) not in said
        words = 'has the label "class 9", which is none of the classes of this experiment: class 0, class 1, class 2.'
        assert words in f.said("north")
    assert proxy.calls == 0
    post = "from flwr.supercore.telemetry import EventType, event; event(EventType.PING).result()"
    subprocess.run([sys.executable, "-c", post], env=os.environ | proxy.environment)
    assert proxy.calls > 0  # Flower by itself would have called
