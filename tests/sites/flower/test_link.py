"""A coordinator's SuperLink that ends, and what comes of it. Needs the extra ``flower``; nothing here is another process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer

from paths import ROOT
from weft.cli.errors import Commands, guarded
from weft.errors import Elsewhere, UserError
from weft.sites.flower import link
from weft.sites.flower.link import Link

DOCS = ROOT / "docs"


def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[], object]) -> tuple[Link, list[str]]:
    said = list[str]()
    monkeypatch.setattr(link, "PAUSE", 0.0)
    made = Link(tmp_path / "link", "127.0.0.1", 9, None, None, said.append)
    monkeypatch.setattr(made, "_begin", begin)
    return made, said


def test_a_superlink_that_does_not_come_up_again_is_tried_a_few_times_and_then_left_to_whoever_starts_us_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[int]()

    def begin() -> object:
        tries.append(1)
        raise httpx.ConnectError("nobody listens") if len(tries) % 2 else UserError("it did not come up.")

    made, said = broken(tmp_path, monkeypatch, begin)
    with pytest.raises(Elsewhere, match="what was saved before is intact, and the same command goes on"):
        made._anew("its run was stopped from outside")
    assert len(tries) == len(said) == link.OFTEN


def test_one_that_comes_up_again_is_gone_on_with_and_may_be_lost_once_more_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said = broken(tmp_path, monkeypatch, lambda: "a grid")
    clock = [0.0]
    monkeypatch.setattr(link.time, "monotonic", lambda: clock[0])
    for _ in range(3 * link.OFTEN):
        clock[0] += link.LATELY
        assert made._anew("it has ended") == "a grid"
    assert len(said) == 3 * link.OFTEN


def test_what_something_outside_has_ended_is_started_again_by_the_documented_service(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(cls=Commands)

    @app.command()
    def serve() -> None:
        raise Elsewhere("Flower's superlink has ended.")

    @app.command()
    def other() -> None:
        raise UserError("there is no such file.")

    assert guarded(app, ["serve"]) == 75
    assert "Error: Flower's superlink has ended." in capsys.readouterr().err
    assert guarded(app, ["other"]) == 2
    text = (DOCS / "deployment.md").read_text(encoding="utf-8")
    for unit in re.findall(r"```ini\n(.*?)```", text, re.DOTALL):
        lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
        assert (lines["Restart"], lines["RestartPreventExitStatus"], lines["SuccessExitStatus"]) == ("on-failure", "2", "130 143")
