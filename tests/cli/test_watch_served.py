"""``weft watch --serve`` shows a run at the terminal and serves its page, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

import toy_runs
from command_line import refused, weft
from patience import patience, until
from served_pages import contents, grow
from weft.cli import watch as module

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is heard also where a shell started the tests in the background, with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds, finished."""
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(tmp_path_factory.mktemp("runs"), rounds=3, quiet=True).folder


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """The same after two rounds."""
    grow(done, tmp_path / "run", 2)
    return tmp_path / "run"


class Person:
    """Waits in a thread for the browser to be opened, does something, and presses Ctrl-C.

    Attributes:
        url: that was opened. failed: what went wrong.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, there: bool = True):
        self.url, self.failed = "", ""
        self._opened, self._there = threading.Event(), there
        monkeypatch.setattr(webbrowser, "open", self._open)
        monkeypatch.setattr(module, "POLL", 0.05)

    def _open(self, url: str) -> bool:
        self.url = url
        self._opened.set()
        return self._there

    def acts(self, *steps: object) -> None:
        threading.Thread(target=self._act, args=steps, daemon=True).start()

    def _act(self, *steps: object) -> None:
        if not self._opened.wait(patience(60)):
            return  # the command has ended without it, and the test says how
        try:
            for step in steps:
                assert callable(step)
                step()
        except AssertionError as e:
            self.failed = str(e) or repr(e)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def reads(self, words: str) -> None:
        def there() -> bool:
            with urllib.request.urlopen(self.url, timeout=patience(60)) as got:
                return words in got.read().decode()

        until(there)


def test_a_run_is_followed_to_its_end_and_served_until_ctrl_c(
    done: Path, run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(monkeypatch)
    shown = threading.Event()
    show = module._show

    def told(*what: object) -> None:
        show(*what)  # type: ignore[arg-type]
        shown.set()

    monkeypatch.setattr(module, "_show", told)
    person.acts(
        lambda: person.reads("round 2 of 3, follows the run"),
        lambda: grow(done, run, 3, finished=True),
        lambda: until(shown.is_set),
        lambda: person.reads("data-finished>finished<"),
    )
    got = weft(capsys, "watch", run, "--serve", "--open")
    assert (person.failed, got.code, got.err) == ("", 0, "")
    first, *_ = got.out.splitlines()
    assert first == f"Served at {person.url} until Ctrl-C, which the run does not notice."
    assert [line.split()[0] for line in got.out.splitlines() if line[:1].isdigit() or line.strip()[:1].isdigit()] == [
        "1",
        "2",
        "3",
    ]
    assert "3 of 3" in got.out
    assert got.out.endswith(
        f"The run is finished. Its page stays at {person.url} until Ctrl-C.\n\nThe page is no longer served.\n"
    )
    with pytest.raises(OSError, match="refused"):
        person.reads("")


def test_ctrl_c_ends_it_while_the_run_goes_on_and_leaves_the_folder_as_it_was(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run)
    person = Person(monkeypatch, there=False)
    person.acts(
        lambda: person.reads("round 2 of 3"), lambda: (run / "summary.json").write_text("{"), lambda: person.reads("round 2")
    )
    got = weft(capsys, "watch", run, "--serve", "--open")
    assert (person.failed, got.code, got.err) == ("", 0, "")
    assert "No browser was found: open that address in one." in got.out
    assert "finished" not in got.out
    assert got.out.endswith("\nThe page is no longer served.\n")
    after = contents(run)
    assert [name for name in before | after if before.get(name) != after.get(name)] == [str(run / "summary.json")]  # ours


def test_the_address_can_be_clicked_at_a_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, width=90, legacy_windows=False)
    monkeypatch.setattr(module, "out", lambda: screen)
    person = Person(monkeypatch)
    person.acts(lambda: person.reads("round 2"))
    with screen.capture() as got:
        module.watch(run, serve=True, browse=True)
    assert person.failed == ""
    assert f";{person.url}\x1b\\" in got.get()
    assert "2 of 3" in got.get()


def test_the_port_is_that_which_was_asked_for_and_no_browser_is_opened_unasked(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(monkeypatch)

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_show", ctrl_c)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    got = weft(capsys, "watch", run, "--serve", "--port", port)
    assert (got.code, person.url) == (0, "")
    assert f"Served at http://127.0.0.1:{port}/ until" in got.out


def test_what_can_not_be_served_is_a_sentence(run: Path, tmp_path: Path, capsys: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(weft(capsys, "watch", run, "--serve", "--port", port), f"port {port} is in use: give another --port")
    refused(weft(capsys, "watch", run, "--serve", "--port", 70000), "70000")
    refused(weft(capsys, "watch", run, "--serve", "--once"), "leave one of them out")
    refused(weft(capsys, "watch", run, "--port", 8000), "--port is about the page that --serve serves: add --serve")
    refused(weft(capsys, "watch", run, "--open"), "--open is about the page")
    refused(weft(capsys, "watch", tmp_path / "nowhere", "--serve"), "does not exist")
    refused(weft(capsys, "watch", tmp_path, "--serve"), "holds no run")
