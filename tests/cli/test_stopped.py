"""A command that is ended from outside: Ctrl-C at any moment, and a reader who has gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from command_line import weft
from patience import patience

pytestmark = pytest.mark.processes

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

IMPORTS = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background with Ctrl-C ignored
real, left = builtins.__import__, int(sys.argv[1])
def importing(*what, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*what, **named)
from weft.cli import main
builtins.__import__ = importing
main(["methods"])
"""


@pytest.mark.parametrize("after", [1, 2, 10, 60, 300])
def test_ctrl_c_during_the_imports_leaves_without_a_traceback(after: int) -> None:
    """Pressed at an import of ours or of a library, from the first that follows ``from weft.cli import main``."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(after)], env=ENVIRONMENT, capture_output=True, text=True, timeout=patience(100)
    )
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stderr.strip()) == (130, "Stopped.")


def test_the_module_that_holds_main_imports_nothing_that_takes_time() -> None:
    script = "import sys, weft.cli; print(sorted({'typer', 'click', 'rich', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=patience(100))
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("wrapped", ["bare", "in an error of a library", "as click has it"])
def test_ctrl_c_is_known_in_whatever_it_comes(
    wrapped: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weft.methods import registry

    def interrupted() -> Any:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as e:
            if wrapped == "bare":
                raise
            raise (click.Abort() if wrapped.startswith("as click") else ImportError("numpy could not be imported")) from e

    monkeypatch.setattr(registry, "infos", interrupted)
    got = weft(capsys, "methods")
    assert (got.code, got.out, got.err.strip()) == (130, "", "Stopped.")


@pytest.mark.parametrize("line", [["methods"], ["methods", "--json"], ["--help"], ["data"], ["env"]])
def test_a_reader_who_has_gone_is_no_bug(line: list[str]) -> None:
    command = [sys.executable, "-m", "weft", *line]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()  # as head does, once it has its lines
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(patience(100)) == 128 + signal.SIGPIPE
    assert said == ""


@pytest.mark.parametrize("shell", ["{} methods >&-", "{} methods 2>&-", "{} nonsense 2>&-", "{} --help < /dev/null"])
def test_closed_streams_are_no_bug(shell: str) -> None:
    line = shell.format(f"{sys.executable} -m weft")
    done = subprocess.run(["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, timeout=patience(100))
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if "nonsense" in shell else 0)


@pytest.mark.parametrize(
    "place",
    [
        *({"COLUMNS": width} for width in ("20", "0", "x")),
        *({"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"}, {"HOME": "/nonexistent"}),
        *({"LANG": "C", "LC_ALL": "C"}, {"LC_ALL": "xx_XX.nonsense"}, {"PYTHONIOENCODING": "ascii"}),
    ],
    ids=lambda p: " ".join(f"{n}={v}" for n, v in p.items()),
)
def test_lists_are_printed_in_any_terminal(place: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weft", "methods"], env=ENVIRONMENT | place, capture_output=True, text=True, timeout=patience(100)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fedit" in done.stdout


def test_a_working_folder_that_has_gone_is_said(tmp_path: Path) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m weft data rows.csv"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=patience(100)
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
