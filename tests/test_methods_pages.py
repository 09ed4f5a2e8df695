"""What the documentation says about methods is what the code says, and every method has a measured figure."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from command_line import weft
from weft.experiment import Resolved
from weft.federation.info import MethodInfo
from weft.methods import registry
from weft.methods.settings import docs_of
from weft.methods.sources import sources
from weft.runs import execute

ROOT = Path(__file__).parents[1]
SLUGS = sorted(slug for slug, source in sources().items() if source.package == "weft")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_pages", ROOT / "scripts" / "methods_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods_pages"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wanted(script: ModuleType) -> dict[Path, str]:
    return script.wanted()  # type: ignore[no-any-return]


def written(slug: str) -> str:
    return (ROOT / "docs" / "methods" / f"{slug}.md").read_text(encoding="utf-8")


def table(slug: str, head: str) -> dict[str, dict[str, str]]:
    """A table of a page by its first column and the names of the others; ``head`` is how its first line begins."""
    (text,) = re.findall(rf"^({re.escape(head)}.*?)\n\n", written(slug) + "\n", re.MULTILINE | re.DOTALL)
    first, _, *lines = ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines())
    return {line[0]: dict(zip(first, line, strict=True)) for line in lines}


# the script ---------------------------------------------------------------------------------------------------------------


def test_pages_readme_and_nav_are_what_the_script_writes(wanted: dict[Path, str]) -> None:
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python scripts/methods_pages.py"


def test_there_is_one_page_for_each_method_and_no_other(wanted: dict[Path, str]) -> None:
    assert {p.stem for p in (ROOT / "docs" / "methods").glob("*.md")} == {*SLUGS, "index"}
    nav = wanted[ROOT / "mkdocs.yml"]
    assert sorted(re.findall(r"^ +- (.+): methods/\1\.md$", nav, re.MULTILINE)) == SLUGS
    assert sorted(re.findall(r"^\| \[`(.+)`\]\(\1\.md\)", wanted[ROOT / "docs" / "methods" / "index.md"], re.MULTILINE)) == SLUGS
    assert sorted(re.findall(r"^\| \[`(.+)`\]\(docs/methods/\1\.md\)", wanted[ROOT / "README.md"], re.MULTILINE)) == SLUGS


# figures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", SLUGS)
def test_a_page_shows_its_figure_with_setting_and_command(script: ModuleType, slug: str) -> None:
    figure = script.figures(script.FIGURES.read_text(encoding="utf-8"))[slug]
    run = written(slug).split("\n## Run it\n")[1]
    for text in (figure.setting, figure.command, figure.figure, figure.compared_with, figure.note):
        assert text in run
    assert "indicative" in run


@pytest.mark.parametrize("name", ["setting", "command", "figure"])
def test_a_figure_that_says_too_little_is_refused(script: ModuleType, name: str) -> None:
    lines = {n: f'{n} = "x"' for n in ("setting", "command", "figure")}
    assert script.figures("[fedit]\n" + "\n".join(lines.values()))["fedit"].figure == "x"
    with pytest.raises(TypeError, match=name):
        script.figures("[fedit]\n" + "\n".join(text for n, text in lines.items() if n != name))
    with pytest.raises(ValueError, match=f"the {name} of a figure is empty"):
        script.figures("[fedit]\n" + "\n".join((lines | {name: f'{name} = " "'}).values()))


@pytest.mark.parametrize("change", ["lost", "unknown"])
def test_a_method_without_a_figure_and_a_figure_without_a_method_are_refused(
    script: ModuleType, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = script.FIGURES.read_text(encoding="utf-8")
    changed = text.replace("[flora]", "[florida]") if change == "lost" else text + text.split("\n\n")[-1].replace("[", "[x-", 1)
    (tmp_path / "figures.toml").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(script, "FIGURES", tmp_path / "figures.toml")
    with pytest.raises(ValueError, match="one entry for each method.*" + ("flor" if change == "lost" else "x-")):
        script.wanted()


@pytest.mark.parametrize("slug", SLUGS)
def test_the_command_of_a_figure_runs_its_method(
    script: ModuleType, slug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(script.figures(script.FIGURES.read_text(encoding="utf-8"))[slug].command)
    assert words[:4] == ["weft", "run", "--method", slug]
    started: list[Resolved] = []

    def start(resolved: Resolved, **_: Any) -> None:
        started.append(resolved)
        raise typer.Exit

    monkeypatch.setattr(execute, "start", start)
    done = weft(capsys, *words[1:])
    assert (done.code, done.err) == (0, "")
    assert started[0].experiment.method == slug


# pages --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", SLUGS)
def test_front_matter_is_the_identity_card_with_command_and_figure(script: ModuleType, slug: str) -> None:
    _, front, body = written(slug).split("---\n", 2)
    found, info = yaml.safe_load(front), registry.info(slug)
    figure = script.figures(script.FIGURES.read_text(encoding="utf-8"))[slug]
    assert found.pop("title").endswith(info.title)
    assert (found.pop("command"), found.pop("figure")) == (figure.command, figure.figure)
    assert list(found) == ["slug", "paper", "arxiv", "family", "evidence", "deviations", "sends", "views", "additive"]
    assert found == {n: list(v) if isinstance(v := getattr(info, n), tuple) else v for n in found}
    assert body.count("\n# ") == 1


@pytest.mark.parametrize("slug", SLUGS)
def test_a_page_has_every_setting_of_its_method(slug: str) -> None:
    page = written(slug)
    for parameter in registry.parameters(registry.load(slug)):
        assert f"| `{parameter.name.split('.')[0]}` |" in page


@pytest.mark.parametrize("slug", SLUGS)
def test_the_rows_of_settings_say_what_the_method_says_of_them(slug: str) -> None:
    cls = registry.load(slug)
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*?) ?\|$", written(slug).split("\n## Settings\n")[1], re.MULTILINE)
    said = {name: text.replace(r"\|", "|") for name, text in rows}
    assert "optim" in said
    assert said == {name: docs_of(cls).get(name, "") for name in said}


@pytest.mark.parametrize(
    ("slug", "setting", "reason"),
    [
        ("rolora", "weighting", "as in the paper, and in effect in the supplement"),
        ("fedsa-lora", "weighting", "as in effect in the code"),
        *((slug, "optim", "it clips gradients at a norm of 1") for slug in ("fedit", "flora", "flexlora")),
        ("fedbf", "optim", "clips gradients at the norm of 1"),
    ],
)
def test_a_default_that_is_not_everybodys_stands_with_its_source(slug: str, setting: str, reason: str) -> None:
    (row,) = re.findall(rf"^\| `{setting}` .*$", written(slug), re.MULTILINE)
    assert reason in row


@pytest.mark.parametrize("slug", SLUGS)
def test_a_method_says_what_differs_from_its_paper(slug: str, capsys: pytest.CaptureFixture[str]) -> None:
    info = registry.info(slug)
    assert info.deviations.endswith(".")
    assert f"differs from the paper {info.deviations}" in " ".join(weft(capsys, "methods", slug).out.split())


def test_a_method_that_names_no_deviation_is_not_said_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from weft.cli import cards

    cards.method_card(Console(), MethodInfo("toy", "Toy", "Nobody", "full", "nothing"), [], None)
    assert re.search(r"differs from the paper +not stated", capsys.readouterr().out)


def test_numbers_and_bytes_on_a_page_follow_from_the_backbone() -> None:
    blocks, d, classes = 6, 384, 12  # minilm
    rank = registry.build("fedit").rank  # type: ignore[attr-defined]
    lora, head = blocks * 2 * rank * d, (d + 1) * classes
    parts, sent = table("fedit", "| part | kind"), table("fedit", "| part | round")
    assert {n: (row["places"], row["numbers"]) for n, row in parts.items()} == {
        "`lora`": (str(blocks), f"{lora:,}"),
        "`head`": ("1", f"{head:,}"),
    }
    for way in ("round 1, up", "rounds 2-3, down", "rounds 2-3, up"):
        assert {n: row[way] for n, row in sent.items()} == {"`lora`": f"{4 * lora:,}", "`head`": f"{4 * head:,}"}
    assert {row["round 1, down"] for row in sent.values()} == {"0"}  # start values come from the seed


def test_roles_of_different_scopes_have_rows_of_their_own() -> None:
    found = table("fedsa-lora", "| part | kind")
    ways = ("comes down", "goes up", "is kept")
    assert {n: tuple(row[w] for w in ways) for n, row in found.items()} == {
        "`lora` A": ("yes", "yes", ""),
        "`lora` B": ("", "", "yes"),
        "`head`": ("", "", "yes"),
    }


def test_what_goes_up_beside_the_parts_is_counted_too() -> None:
    classes = 12
    found = table("fedhpl", "| part | round")
    assert (found["`logits`"]["round 1, up"], found["`accuracy`"]["round 1, up"]) == (str(4 * classes**2), str(4 * classes))
