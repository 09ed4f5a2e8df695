"""The page of a run that goes on, over HTTP: made once for each state of the folder, and for this machine alone."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import toy_runs
from audited_runs import result
from html_tree import parsed
from served_pages import Answered, asked, contents, grow, served
from weft.errors import UserError
from weft.report import page
from weft.report.page import document, followed
from weft.report.page.followed import Followed
from weft.report.page.local_server import LocalServer
from weft.runs import audit_file
from weft.runs.directory import RunDirectory, locked
from weft.runs.glance import Glance, glance
from weft.storage import files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds, finished."""
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(tmp_path_factory.mktemp("runs"), rounds=3, baselines=["local"], quiet=True).folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """The same after two rounds."""
    grow(whole, tmp_path / "run", 2)
    return tmp_path / "run"


def captions(got: Answered) -> list[str]:
    return [e.text for e in got.page.all("caption")]


def test_a_run_that_was_attacked_since_has_another_page(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    following = Followed(tmp_path / "run")
    assert b'id="learnt"' not in following.page().html
    audit_file.keep(tmp_path / "run", "labels", [result()])
    assert b'id="learnt"' in following.page().html


# while a run goes on ------------------------------------------------------------------------------------------------------


def test_it_follows_a_run_from_before_its_first_round_to_its_end(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with served(run) as server:
        for rounds in (0, 0):  # before and after the summary is begun
            got = asked(server)
            assert (got.status, got.page.all("h1")[0].text) == (200, "run")
            assert "No round of this run has been saved yet." in got.page.text
            grow(whole, run, rounds)
        assert "Set-up" not in asked(server).page.text
        shutil.copytree(whole / "checkpoint", run / "setup" / "checkpoint")
        shutil.copy(whole / "rounds.jsonl", run / "setup")
        assert "Set-up: 3 rounds of the head's own training." in asked(server).page.text
        for rounds in (1, 2):
            grow(whole, run, rounds)
            state, got = asked(server, "/state").json, asked(server)
            assert (state["rounds"], state["planned"], state["finished"], state["trouble"]) == (rounds, 3, False, "")
            assert got.live.text == f"round {rounds} of 3, follows the run"
            assert (got.live.attributes["data-page"], "data-finished" in got.live.attributes) == (state["page"], False)
            assert got.page.all("h1")[0].text == "fedit on toy"
            assert "unfinished" not in got.page.text  # it has just been said better
            assert "Compared with" not in captions(got)
        grow(whole, run, 3, finished=True)
        state, got = asked(server, "/state").json, asked(server)
    assert (state["rounds"], state["finished"]) == (3, True)
    assert (got.live.text, "data-finished" in got.live.attributes) == ("finished", True)
    assert "Compared with" in captions(got)


def test_it_is_the_page_of_the_report_with_what_refreshing_needs(whole: Path, tmp_path: Path) -> None:
    grow(whole, tmp_path / "run", 3, finished=True)
    page.write(tmp_path / "report.html", [glance(tmp_path / "run")])
    file = parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
    with served(tmp_path / "run") as server:
        got = asked(server)
    assert captions(got) == [e.text for e in file.all("caption")]
    assert [e.text for e in got.page.all("h2", "h3", "td")] == [e.text for e in file.all("h2", "h3", "td")]

    def policy(root: Any) -> list[str]:
        (meta,) = [e for e in root.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
        return [word for word in re.split(r"[; ]+", meta.attributes["content"]) if word]

    more = [word for word in policy(got.page) if word not in policy(file)]
    assert [word for word in policy(file) if word not in policy(got.page)] == []
    assert more[:2] == ["connect-src", "'self'"]
    assert [word[:8] for word in more[2:]] == ["'sha256-"]
    assert len(got.page.all("script")) == len(file.all("script")) + 1
    assert [e.attributes["href"] for e in got.page.all("link")] == ["data:,"]  # or browsers ask for /favicon.ico
    assert not any("id" in e.attributes and e.attributes["id"] == "live" for e in file.all())
    assert got.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert (got.headers["X-Content-Type-Options"], got.headers["Cache-Control"]) == ("nosniff", "no-store")


def test_nothing_is_written_and_a_lock_is_no_obstacle(run: Path) -> None:
    before = contents(run)
    with locked(RunDirectory(run)), served(run) as server:
        assert asked(server).live.text == "round 2 of 3, follows the run"
        assert asked(server, "/state").status == 200
    assert contents(run) == before


def test_a_page_is_made_once_for_each_state_of_the_folder(whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    read: list[Path] = []
    html, look = document.html, glance

    def counted(runs: Any, *more: Any, **named: Any) -> str:
        made.append(len(runs[0].rounds))
        return html(runs, *more, **named)

    def counted_look(folder: Path) -> Glance:
        read.append(folder)
        return look(folder)

    monkeypatch.setattr(document, "html", counted)
    monkeypatch.setattr(followed, "glance", counted_look)
    with served(run) as server:
        first, again = asked(server), asked(server)
        assert asked(server, "/state").json["page"] == first.live.attributes["data-page"]
        assert first.body == again.body
        assert (made, len(read)) == ([2], 1)
        grow(whole, run, 3)
        assert asked(server, "/state").json["rounds"] == 3
        assert asked(server).live.text == "round 3 of 3, follows the run"
        assert asked(server).status == 200
    assert made == [2, 3]


def test_a_round_that_is_saved_in_the_middle_of_a_look_is_one_more_page_and_not_two(
    whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = iter([3])

    def looked(folder: Path) -> Glance:
        for rounds in later:
            grow(whole, run, rounds)
        return glance(folder)

    monkeypatch.setattr(followed, "glance", looked)
    with served(run) as server:
        first, state = asked(server), asked(server, "/state").json
    assert first.live.text == "round 3 of 3, follows the run"
    assert first.live.attributes["data-page"] == state["page"]


# what is in the way -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_damaged_or_moved_leaves_the_last_good_page(whole: Path, run: Path, tmp_path: Path) -> None:
    summary, state = run / "summary.json", run / "checkpoint" / "state.json"

    def no_rounds() -> None:
        state.unlink()

    def gone() -> None:
        run.rename(tmp_path / "away")

    def half() -> None:
        summary.write_bytes((whole / "summary.json").read_bytes()[:1000])

    def other_shape() -> None:
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"method": {"slug": ["fedit"]}, "data": {"name": {}}}))
        state.write_text("[]")

    def unsealed() -> None:
        state.write_bytes(state.read_bytes().replace(b"length", b"lentgh"))

    def finished_before_its_rounds() -> None:
        shutil.copy(whole / "summary.json", run)

    def shorter() -> None:
        (run / "rounds.jsonl").write_bytes(b"")
        files.write_sealed(state, files.read_sealed(state))  # with a time of its own

    what = "round 2 of 3, follows the run"
    with served(run) as server:
        good = asked(server)
        assert good.live.text == what
        for harm in (no_rounds, gone, half, other_shape, unsealed, finished_before_its_rounds, shorter):
            harm()
            got, told = asked(server), asked(server, "/state").json
            assert (got.status, got.body) == (200, good.body), harm.__name__
            assert (told["page"], told["rounds"], told["finished"]) == (good.live.attributes["data-page"], 2, False)
            assert str(run) in told["trouble"], harm.__name__
            shutil.rmtree(run, ignore_errors=True)
            grow(whole, run, 2)
            assert asked(server, "/state").json["trouble"] == "", harm.__name__
            good = asked(server)
            assert good.live.text == what


def test_damage_from_the_beginning_is_said_on_a_page_that_waits(whole: Path, run: Path) -> None:
    good = (run / "summary.json").read_bytes()
    (run / "summary.json").write_text("{")
    with served(run) as server:
        assert "No round" in asked(server).page.text
        assert "summary.json is damaged" in asked(server, "/state").json["trouble"]
        (run / "summary.json").write_text(json.dumps(json.loads(good) | {"method": {}}))
        assert "No round" in asked(server).page.text
        assert asked(server, "/state").json["trouble"] == f"{run} is damaged (KeyError: 'slug')."
        grow(whole, run, 3)
        assert asked(server).live.text == "round 3 of 3, follows the run"
        assert asked(server, "/state").json["trouble"] == ""


# who may ask, and for what ------------------------------------------------------------------------------------------------


def test_only_pages_of_this_machine_are_answered(run: Path) -> None:
    with served(run) as server:
        port = server.server_address[1]
        for host in ("localhost", "LocalHost:1", f"127.0.0.1:{port}", "127.0.0.1"):  # another port is that of a tunnel
            assert asked(server, hosts=(host,)).status == 200, host
        strangers = ("", "evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.10")
        more = ("localhost:", "localhost:x", "localhost@evil.example", "x localhost", "[::1]", "0.0.0.0")
        for hosts in (*((s,) for s in (*strangers, *more)), (), ("localhost", "evil.example"), ("localhost", "localhost")):
            for path in ("/", "/state"):
                got = asked(server, path, hosts=hosts)
                assert (got.status, b"round" in got.body) == (403, False), hosts


def test_it_listens_on_this_machine_alone(run: Path) -> None:
    with served(run) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_there_is_nothing_else_at_any_address(run: Path) -> None:
    names = [str(p.relative_to(run)) for p in run.rglob("*")]
    assert "summary.json" in names
    odd = ("/state/", "/State", "/?", "/state?x=1", "/favicon.ico", "/..", "/./", "*", "http://localhost/", f"/{run}")
    encoded = ("/%2e%2e/", "/..%2fsummary.json", "/%2F")
    with served(run) as server:
        for path in (*(f"/{name}" for name in names), *odd, *encoded):
            got = asked(server, path)
            assert (got.status, got.body) == (404, b"There is nothing here; the page is at /.\n"), path


def test_only_reading_is_answered(run: Path) -> None:
    with served(run) as server:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "get"):
            got = asked(server, "/state", method)
            assert (got.status, b"rounds" in got.body) == (501, False), method
        for path, status in (("/", 200), ("/state", 200), ("/summary.json", 404)):
            head, got = asked(server, path, "HEAD"), asked(server, path)
            assert (head.status, head.body, got.status) == (status, b"", status)
            assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(got.body))


def test_a_port_that_is_taken_is_a_sentence(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"^port {port} is in use: give another --port, or leave it out for one that is free\.$"
        ):
            LocalServer(Followed(run), port)
    with served(run, port) as server:
        assert server.server_address[1] == port


def test_a_browser_that_has_gone_is_no_error_and_anything_else_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(run) as server:
        for error in (BrokenPipeError(), ConnectionResetError()):
            try:
                raise error
            except OSError:
                server.handle_error(None, ("127.0.0.1", 1))
        assert capsys.readouterr().err == ""
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            server.handle_error(None, ("127.0.0.1", 1))
        assert "ZeroDivisionError" in capsys.readouterr().err
