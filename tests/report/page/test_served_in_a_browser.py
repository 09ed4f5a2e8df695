"""The page of a run that goes on, in Chromium: it renews itself, looks as it did, complains of nothing, and asks nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import browser
import toy_runs
from browser_tab import Tab, tab
from patience import until
from served_pages import grow, served
from weft.report.page import document
from weft.report.page.followed import Followed
from weft.report.page.local_server import LocalServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here")]

STATUS = "document.getElementById('live')?.textContent"
FOLDS = "[...document.querySelectorAll('main section > details')].map((one) => one.open)"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rounds, finished."""
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(tmp_path_factory.mktemp("runs"), rounds=4, baselines=[], quiet=True).folder


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tab]:
    """A browser, and pages that ask ten times as often as they would."""
    file = document._file
    assert "EVERY = 2000;" in file("follow.js")
    monkeypatch.setattr(document, "_file", lambda name: file(name).replace("EVERY = 2000;", "EVERY = 200;"))
    with tab(tmp_path / "profile") as found:
        yield found


def shows(page: Tab, status: str) -> None:
    """Wait for a page that says this of itself, with all its plots."""
    drawn = "document.body.dataset.drawn === 'all' || document.querySelector('[data-plot]') === null"
    until(lambda: page.says(STATUS) == status and page.says(drawn), said=lambda: (page.says(STATUS), page.console))


def asked(page: Tab, what: str = "state") -> int:
    """How often the pages have asked whether there is more, or how often (for "") one was loaded."""
    page.says("0")  # what happened is told with an answer
    return sum(url.endswith(f"/{what}") for url in page.asked)


def test_it_renews_itself_until_the_run_is_finished_and_asks_nobody_else(whole: Path, tmp_path: Path, opened: Tab) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with served(run) as server:
        opened.open(server.url)
        shows(opened, "follows the run")
        for rounds in (1, 3):
            grow(whole, run, rounds)
            shows(opened, f"round {rounds} of 4, follows the run")
            assert opened.says("document.querySelectorAll('svg.marks').length") > 3
            assert opened.says("document.documentElement.scrollWidth") <= 1400
        loaded, before = asked(opened, ""), asked(opened)
        until(lambda: asked(opened) > before + 3)
        assert asked(opened, "") == loaded  # nothing new, nothing loaded
        grow(whole, run, 4, finished=True)
        shows(opened, "finished")
        before = asked(opened)
        time.sleep(2)  # ten times as long as it waited between two questions
        assert asked(opened) == before
    assert set(opened.asked) == {server.url, f"{server.url}state"}
    assert opened.console == []
    assert opened.says("document.body.dataset.errors ?? null") is None


@pytest.mark.parametrize("width", [390, 1400])
def test_a_page_that_was_renewed_looks_as_it_did(whole: Path, tmp_path: Path, opened: Tab, width: int) -> None:
    run = tmp_path / "run"
    grow(whole, run, 2)
    with served(run) as server:
        opened.open(server.url, width, 700)
        shows(opened, "round 2 of 4, follows the run")
        folds = opened.says(FOLDS)
        assert sorted(folds) == [False, True]
        opened.says("for (const one of document.querySelectorAll('main section > details')) one.open = !one.open")
        opened.says("document.querySelectorAll('.scroll')[0].scrollLeft = 60")
        height = opened.says("document.body.scrollHeight")
        place = opened.says("scrollTo(0, document.getElementById('figure-loss').getBoundingClientRect().top); scrollY")
        assert place > 700
        grow(whole, run, 3)
        shows(opened, "round 3 of 4, follows the run")
        assert opened.says(FOLDS) == [not one for one in folds]
        assert abs(opened.says("document.getElementById('figure-loss').getBoundingClientRect().top")) < 40
        assert abs(opened.says("document.body.scrollHeight") - height) < 40
        assert opened.says("document.querySelectorAll('.scroll')[0].scrollLeft") == (60 if width == 390 else 0)
        opened.open(f"{server.url}state", width, 700)
        opened.open(server.url, width, 700)  # that is no reload
        shows(opened, "round 3 of 4, follows the run")
        assert (opened.says("scrollY"), opened.says(FOLDS)) == (0, folds)


def test_it_waits_for_who_has_selected_something(whole: Path, tmp_path: Path, opened: Tab) -> None:
    run = tmp_path / "run"
    grow(whole, run, 2)
    with served(run) as server:
        opened.open(server.url)
        shows(opened, "round 2 of 4, follows the run")
        for hold, release in (
            ("getSelection().selectAllChildren(document.querySelector('h1'))", "getSelection().removeAllRanges()"),
            ("document.querySelector('.plot details').open = true", "document.querySelector('.plot details').open = false"),
        ):
            opened.says(hold)
            rounds = 3 if "getSelection" in hold else 4
            grow(whole, run, rounds)
            before = asked(opened)
            until(lambda: asked(opened) > before + 3)  # noqa: B023
            assert opened.says(STATUS) == f"round {rounds - 1} of 4, follows the run"
            opened.says(release)
            shows(opened, f"round {rounds} of 4, follows the run")


def test_it_says_when_nobody_answers_and_what_is_in_the_way_and_goes_on(whole: Path, tmp_path: Path, opened: Tab) -> None:
    run = tmp_path / "run"
    grow(whole, run, 2)
    with served(run) as server:
        port = server.server_address[1]
        opened.open(server.url)
        shows(opened, "round 2 of 4, follows the run")
    gone = "round 2 of 4, follows the run: weft watch no longer answers, so this page stays as it is"
    shows(opened, gone)
    (run / "summary.json").write_text("{")
    with LocalServer(Followed(run), port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        until(lambda: "summary.json is damaged" in str(opened.says(STATUS)))
        assert opened.says(STATUS).startswith("follows the run: ")  # of a server that has not seen the run whole
        grow(whole, run, 3)
        shows(opened, "round 3 of 4, follows the run")
        server.shutdown()
