"""What the documentation says about methods is what the code says, and every method has a measured figure."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import figure_files
import methods_pages
import of_methods
from command_line import weft
from figure_files import Figure
from method_page import page
from paths import ROOT
from weft import start as starting
from weft.experiment import Resolved
from weft.federation.info import FAMILIES, MethodInfo
from weft.methods import FedIT, registry
from weft.methods.settings import docs_of

SLUGS = of_methods.slugs()
NOTED = {
    "setting": "x",
    "command": "x",
    "figure": "x",
    "commit": "0" * 40,
    "seconds": 1.0,
    "versions": dict.fromkeys(figure_files.VERSIONS, "1"),
    "hardware": {"cores": 2, "cpu": "x", "device": "cpu", "precision": "float32"},
}


@functools.cache
def figure(slug: str) -> Figure:
    return figure_files.read(figure_files.FOLDER / f"{slug}.toml")


@functools.cache
def written(slug: str) -> str:
    """A method's page."""
    return page(slug, figure(slug))


def table(slug: str, head: str) -> dict[str, dict[str, str]]:
    """A table of a page by its first column and the names of the others; ``head`` is how its first line begins."""
    (text,) = re.findall(rf"^({re.escape(head)}.*?)\n\n", written(slug) + "\n", re.MULTILINE | re.DOTALL)
    first, _, *lines = ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines())
    return {line[0]: dict(zip(first, line, strict=True)) for line in lines}


# the tables ---------------------------------------------------------------------------------------------------------------


def test_tables_in_files_of_git_are_what_the_script_writes() -> None:
    for path, text in methods_pages.wanted().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python scripts/methods_pages.py"


def test_a_table_in_git_has_every_family_and_its_folder_and_says_nothing_that_a_new_method_would_change() -> None:
    for path in (methods_pages.README, methods_pages.INDEX):
        text = methods_pages.wanted()[path]
        found = text.split(methods_pages.FAMILY_TABLE[0])[1].split(methods_pages.FAMILY_TABLE[1])[0]
        links = re.findall(r"^\| \[(\w+)\]\((\S+)\) .* `weft methods --family \1` \|$", found, re.MULTILINE)
        assert [family for family, _ in links] == list(FAMILIES)
        assert all((path.parent / at).is_dir() for _, at in links)
        assert not re.search(r"\d", found)
        assert not [slug for slug in SLUGS if f"{slug}" in found]


def test_the_checker_says_which_table_is_out_of_date_and_which_figure_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["methods_pages.py", "--check"])
    assert methods_pages.main() == 0
    text = methods_pages.README.read_text(encoding="utf-8").replace("trainable tokens", "tokens")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(methods_pages, "ROOT", tmp_path)
    monkeypatch.setattr(methods_pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(methods_pages, "INDEX", tmp_path / "methods.md")
    (tmp_path / "methods.md").write_text((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(figure_files, "FOLDER", tmp_path)
    assert methods_pages.main() == 1
    said = capsys.readouterr().out
    assert "README.md is out of date: run python scripts/methods_pages.py\n" in said
    assert f"there is no docs/figures/{SLUGS[0]}.toml: measure it with python scripts/figure.py {SLUGS[0]}\n" in said
    monkeypatch.setattr(sys, "argv", ["methods_pages.py"])
    assert methods_pages.main() == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


# the site -----------------------------------------------------------------------------------------------------------------


def test_the_site_has_one_page_for_each_method_and_names_it_in_the_index_and_in_the_navigation() -> None:
    index = methods_pages.index(methods_pages.INDEX.read_text(encoding="utf-8"))
    for slug in SLUGS:
        (row,) = re.findall(rf"^\| \[`{slug}`\]\(methods/{slug}\.md\) .*$", index, re.MULTILINE)
        assert figure(slug).figure in row
    assert len(re.findall(r"^\| \[`", index, re.MULTILINE)) == len(SLUGS)
    assert "src/weft/methods" not in index  # a link out of the documentation, which no site can follow
    places = [place for section in methods_pages.nav() for entries in section.values() for place in entries]
    assert sorted(slug for place in places for slug in place) == SLUGS
    assert all(path == f"methods/{slug}.md" for place in places for slug, path in place.items())


def test_all_pages_are_built_and_their_links_lead_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(slug: str, of: Figure) -> str:
        assert of == figure(slug)
        return written(slug)

    monkeypatch.setattr(methods_pages, "page", once)  # each page rehearses rounds on a real backbone
    pages = methods_pages.pages()
    assert sorted(pages) == sorted(f"methods/{slug}.md" for slug in SLUGS)
    for name, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("http"):
                continue
            file, _, section = target.partition("#")
            there = (ROOT / "docs" / "methods" / file).resolve()
            assert there.is_file(), f"{name} links to {target}"
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert section in {h.lower().replace(" ", "-") for h in headings}, f"{name} links to {target}"


def test_the_site_takes_its_pages_from_the_hook() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^hooks:\n  - scripts/docs_hook\.py\b", text, re.MULTILINE)
    assert not [slug for slug in SLUGS if slug in text]
    kept = subprocess.run(["git", "ls-files", "docs/methods"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert kept.stdout == ""


# figures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", SLUGS)
def test_a_page_shows_its_figure_with_setting_and_command(slug: str) -> None:
    run = written(slug).split("\n## Run it\n")[1]
    for text in (figure(slug).setting, figure(slug).command, figure(slug).figure, figure(slug).compared_with, figure(slug).note):
        assert text in run
    assert "indicative" in run


def test_a_page_says_with_what_its_figure_was_measured_on_what_and_for_how_long() -> None:
    run = page("fedit", Figure(**NOTED)).split("\n## Run it\n")[1]
    assert "| measured with | weft 1, torch 1, transformers 1 |" in run
    assert "| measured on | cores 2, cpu x, device cpu, precision float32 |" in run
    assert f"| commit | {'0' * 40} |\n| took | 1 s |" in run


@pytest.mark.parametrize("name", ["setting", "command", "figure", "commit", "seconds", "versions", "hardware"])
def test_a_figure_that_says_too_little_is_refused(name: str) -> None:
    assert Figure(**NOTED).figure == "x"
    some = {n: v for n, v in NOTED.items() if n != name}
    with pytest.raises((TypeError, ValueError), match=name):
        Figure(**some)
    if name in ("setting", "command", "figure"):
        with pytest.raises(ValueError, match=f"the {name} of a figure is empty"):
            Figure(**some | {name: " "}, carried_over=True)
    else:
        assert Figure(**some, carried_over=True)


def test_a_figure_that_was_written_is_read_again_and_one_with_an_unknown_field_is_not(tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    figure_files.write(file, Figure(**NOTED, note='with "quotes" and ünïcode'))
    assert figure_files.read(file) == Figure(**NOTED, note='with "quotes" and ünïcode')
    file.write_text('setings = "x"\n' + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"docs/figures/it\.toml: a figure has no field setings"):
        figure_files.read(file)


def test_a_method_without_a_figure_and_a_figure_without_a_method_are_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no docs/figures/a-new-one\.toml.*scripts/figure\.py a-new-one"):
        figure_files.figures([*SLUGS, "a-new-one"])
    with pytest.raises(ValueError, match=r"docs/figures/flora\.toml is of no method"):
        figure_files.figures(set(SLUGS) - {"flora"})
    assert sorted(figure_files.figures(SLUGS)) == SLUGS


@pytest.mark.parametrize("slug", SLUGS)
def test_the_command_of_a_figure_runs_its_method(
    slug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(figure(slug).command)
    assert words[:4] == ["weft", "run", "--method", slug]
    started: list[Resolved] = []

    def start(resolved: Resolved, **_: Any) -> None:
        started.append(resolved)
        raise typer.Exit

    monkeypatch.setattr(starting, "start", start)
    done = weft(capsys, *words[1:])
    assert (done.code, done.err) == (0, "")
    assert started[0].experiment.method == slug


# pages --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", SLUGS)
def test_front_matter_is_the_identity_card_with_command_and_figure(slug: str) -> None:
    _, front, body = written(slug).split("---\n", 2)
    found, info = yaml.safe_load(front), registry.info(slug)
    assert found.pop("title").endswith(info.title)
    assert (found.pop("command"), found.pop("figure")) == (figure(slug).command, figure(slug).figure)
    assert list(found) == ["slug", "paper", "arxiv", "family", "evidence", "deviations", "sends", "views"]
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
    assert said == {name: docs_of(cls).get(name, "").replace("``", "`") for name in said}


@pytest.mark.parametrize(
    ("slug", "setting", "reason"),
    [(slug, setting, why) for slug, says in of_methods.said("PAGE_SAYS").items() for setting, why in says.items()],
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

    class Toy(FedIT):
        info = MethodInfo("toy", "Toy", "Nobody", "full", "nothing")

    cards.method_card(Console(), Toy(), [], None)
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
