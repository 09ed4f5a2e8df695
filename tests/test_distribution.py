"""The name that is installed: nothing tells a person to install a package that is not Weft's or not one that Weft pins."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import weft
from paths import ROOT
from weft import distribution

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WHERE = (
    "README.md",
    "CHANGELOG.md",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
    "mkdocs.yml",
    ".ci/run",
    "src",
    "docs",
    "scripts",
)
WRITTEN = {".py", ".md", ".toml", ".txt", ".yml", ".svg", ".html", ""}
COMMAND = re.compile(r"\bpip[3]?(?:\.exe)?(?: --[\w-]+)* install\b(?P<rest>[^\n`]*)")
ELSEWHERE = {"atheris", "torch"}  # for scripts/fuzz.py; a warning against it on the page about torch


def texts() -> Iterator[tuple[Path, str]]:
    for name in WHERE:
        start = ROOT / name
        for path in [start] if start.is_file() else sorted(start.rglob("*")):
            if path.is_file() and path.suffix in WRITTEN:
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8", errors="replace")


def strange(rest: str) -> list[str]:
    """What an install command names that is neither this project by its path nor a package of the tested set."""
    pinned = set(re.findall(r"(?m)^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8")))
    found, words = [], iter(re.split(r"\s+", rest.strip()))
    for word in words:
        word = word.strip("\"'.,;:)(") if not word.strip("\"'").startswith(".") else word.strip("\"'")
        if word in ("--constraint", "-c", "-e", "--editable", "--find-links", "--index-url"):
            next(words, None)
        elif word.startswith(("-", ".")) or not word:
            continue
        elif word.startswith(("{", "$")):
            break  # a name that the code fills in: the tests of those sentences hold it
        elif re.match(r"[A-Za-z0-9_.-]+", word):
            if re.split(r"[\[=<>]", word)[0] not in pinned | ELSEWHERE:
                found.append(word)
            break  # what follows is the rest of a sentence
    return found


def test_no_install_command_names_a_package_that_is_not_ours() -> None:
    found = {
        f"{path}: {command.group()}" for path, text in texts() for command in COMMAND.finditer(text) if strange(command["rest"])
    }
    assert not found


@pytest.mark.parametrize(
    "rest", [" weft", " 'weft[flower]'", " weft[offline].", " --upgrade weft", " 'fedweft[flower]'", " fedweft"]
)
def test_the_search_notices_a_name_that_is_not_ours(rest: str) -> None:
    assert strange(rest)


def test_the_installed_distribution_is_fedweft_with_both_commands() -> None:
    from importlib.metadata import distribution as installed

    found = installed(distribution.NAME)
    assert PROJECT["name"] == distribution.NAME == "fedweft"
    assert weft.__version__ == found.version == PROJECT["version"]
    commands = {entry.name: entry.value for entry in found.entry_points if entry.group == "console_scripts"}
    assert commands == {"weft": "weft.cli:main", "fedweft": "weft.cli:main"}


def test_every_extra_that_a_sentence_names_exists() -> None:
    calls = [call for _, text in texts() for call in re.findall(r"distribution\.install\(([^)]*)\)", text)]
    named = {extra for call in calls for extra in re.findall(r"[\"']([\w-]+)[\"']", call)}
    assert named
    assert named <= set(PROJECT["optional-dependencies"])
