"""The README: its Python runs as it stands, its commands exist, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from paths import ROOT
from weft import experiment
from weft import start as starting

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    rows = tiny.rows(160)
    lines = [json.dumps({"text": t, "label": f"class {y}"}) for t, y in zip(rows.texts, rows.labels, strict=True)]
    (tmp_path / "small.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    for name, stand_in in (("minilm", tiny.folder()), ("pydocs", "small.jsonl")):
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(stand_in))
    found: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), found)
    printed = capsys.readouterr().out
    assert re.search(r"^ *round +loss +accuracy", printed, re.MULTILINE)  # progress, as on the command line
    assert "'accuracy'" in printed
    assert "class " in printed
    assert str(Path("runs") / "flora-small-") in printed


def test_the_ten_lines_of_python_are_the_experiment_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe and all: what is printed there comes out here."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    started: list[Any] = []

    class Enough(Exception):
        pass

    def start(resolved: Any, *_: object, **__: object) -> None:
        started.append(resolved)
        raise Enough

    monkeypatch.setattr(starting, "start", start)
    with pytest.raises(Enough):
        exec(compile(code, "README.md", "exec"), {})
    typed = {"method": "flora", "method.rank": 8, "model": "minilm", "data": "pydocs", "clients": 8, "rounds": 5}
    wanted = experiment.resolve(typed)
    assert started[0].experiment == wanted.experiment
    assert started[0].method == wanted.method
    assert dict(started[0].origin) == wanted.origin
    assert wanted.origin["method.optim.lr"] == wanted.origin["start_head"] == "recipe"


def test_make_has_every_target_that_is_named() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"run", "test"} <= named
    assert named <= targets


def test_the_command_line_has_every_option_that_is_named() -> None:
    from typer.main import get_command

    from weft.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    lines = [line for line in README.splitlines() if line.startswith(".venv/bin/weft ")]
    assert lines
    for line in lines:
        _, command, *words = line.split()
        known = {name for p in commands[command].params for name in p.opts}
        assert {w for w in words if w.startswith("--")} <= known
    known = {name for c in commands.values() for p in c.params for name in p.opts}
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_to_files_and_their_sections_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, section = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file() or (file.is_dir() and not section), f"{page.name} links to {target}"
        if section:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert section in slugs, f"{page.name} links to {target}"
