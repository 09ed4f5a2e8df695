"""Settings are declared once: options, help, pages, tables in files and the terms of sites all follow from the declarations."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import click
import pytest
import typer
from pydantic import Field

from command_line import flowing, refused, weft
from paths import ROOT
from weft import experiment
from weft.cli import app
from weft.cli import settings as options
from weft.errors import UserError
from weft.experiment import GROUPS, SETTINGS, Experiment, resolve
from weft.experiment.declare import Group, declared, setting
from weft.sites.terms import COMMON

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run() -> dict[str, click.Option]:
    """The options of ``weft run`` by name."""
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    return {p.name: p for p in command.params if isinstance(p, click.Option)}


# declarations -------------------------------------------------------------------------------------------------------------


def test_every_field_is_declared_in_one_group_with_words() -> None:
    assert list(SETTINGS) == list(Experiment.model_fields)
    assert sum(len(declared(g)) for g in GROUPS.values()) == len(SETTINGS)
    for s in SETTINGS.values():
        assert s.help[-1] == ".", s.name
        assert s.more == "" or s.more[-1] == ".", s.name
        assert "[" not in s.help, s.name  # which terminals would take for markup
        assert s.default == getattr(Experiment(), s.name)
        assert s.name in (Experiment.__doc__ or "")


def test_no_group_is_called_like_a_setting() -> None:
    """Both are names in a file, and a value and a table can't have the same one."""
    assert not (GROUPS.keys() & {*SETTINGS, "method", "parameters", "format"})
    assert all(g.title for g in GROUPS.values())
    assert len({g.title for g in GROUPS.values()}) == len(GROUPS)


def test_a_field_that_is_no_setting_is_refused() -> None:
    class Odd(Group):
        """Without words."""

        title: ClassVar[str] = "Odd"
        size: int = Field(3, ge=1)

    with pytest.raises(TypeError, match=r"Odd\.size is not declared by setting"):
        declared(Odd)


def test_a_new_group_is_one_class_and_one_name() -> None:
    class Energy(Group):
        """What a run draws."""

        title: ClassVar[str] = "Energy"
        watts: float = setting(7.5, "Power of a device, in watts.", "A number.", everyday=True)

    class More(Energy, Experiment):
        """With another group."""

    assert list(More.model_fields) == [*Experiment.model_fields, "watts"]
    assert More(watts=3.0).flat() == Experiment().flat() | {"watts": 3.0}
    option = options._option(declared(Energy)["watts"], ())
    assert (option.opts, option.hidden, option.type.name) == (["--watts"], False, "float")
    assert "Power of a device, in watts. " in (option.help or "")
    assert "[default: 7.5]" in (option.help or "")
    assert getattr(option, "rich_help_panel", "") == "Energy"


def test_what_a_coordinator_and_its_sites_agree_on_has_not_changed() -> None:
    assert set(COMMON) == {
        *("method", "parameters", "model", "task", "template", "blocks", "roles", "head", "classes", "max_length", "precision"),
        *("codec", "rounds", "seed", "start_head", "probe_rounds", "probe_lr", "val_fraction", "test_fraction", "by_length"),
        *("download_codec", "max_bytes", "max_weight", "class_counts", "metrics", "label_spaces", "label_words", "calibrate"),
        *("answer_loss", "preference_beta", "samples", "new_tokens", "beams", "temperature", "top_p"),
        *("rule", "feddyn_alpha", "batch_norms"),
        *("privacy", "epsilon", "delta", "insecure_noise", "participation"),
        *("periods", "periods_by", "incremental", "views", "view_scale", "view_flip", "core"),
        *("lora_scaling", "lora_ratio", "lora_dropout", "lora_variant", "lora_start", "lora_target"),
    }
    assert len(COMMON) == len(set(COMMON))


@pytest.mark.parametrize("given", ["bleu, chrf", ["bleu,chrf"], ["bleu", "chrf"]])
def test_metrics_may_be_joined_by_commas(given: object) -> None:
    assert Experiment(metrics=given).metrics == ["bleu", "chrf"]  # type: ignore[arg-type]


def test_a_class_with_a_comma_stays_whole() -> None:
    assert Experiment(metrics=["accuracy", "f1:Smith, John"]).metrics == ["accuracy", "f1:Smith, John"]


# help ---------------------------------------------------------------------------------------------------------------------


def test_help_shows_the_options_of_every_day_on_two_screens(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = weft(capsys, "run", "--help").out.splitlines()
    assert len(lines) <= 80
    shown = {line.split()[1] for line in lines if line.startswith("│ --")}
    everyday = {f"--{s.name.replace('_', '-')}" for s in SETTINGS.values() if s.everyday}
    assert shown == everyday | {"--set", "--repeat", "--dry-run", "--quiet", "--json", "--help", "--help-all"}
    assert 15 <= len(everyday) <= 25


def test_help_all_shows_every_option(run: dict[str, click.Option], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    got = weft(capsys, "run", "--help-all", "--rounds", "3")
    lines = got.out.splitlines()
    assert (got.code, got.err) == (0, "")
    assert {line.split()[1] for line in lines if line.startswith("│ --")} == {p.opts[0] for p in run.values()} | {"--help"}
    words = flowing(got.out)
    for s in SETTINGS.values():
        assert not s.option or flowing(s.help.replace("`", ""))[:30] in words
    assert [line.split()[1:-1] for line in lines if line.startswith("╭")][2:] == [g.title.split() for g in GROUPS.values()]


def test_every_setting_has_its_option(run: dict[str, click.Option]) -> None:
    assert {n for n, s in SETTINGS.items() if s.option} == run.keys() & SETTINGS.keys()
    for name in run.keys() & SETTINGS.keys():
        assert run[name].hidden is not SETTINGS[name].everyday
        default = SETTINGS[name].default
        assert bool(run[name].secondary_opts) is (default is True), name
        assert not run[name].required


def test_the_help_of_serve_has_name_and_runs(capsys: Capture) -> None:
    text = flowing(weft(capsys, "serve", "--help").out)
    assert all(words in text for words in ("--name TEXT Of the run's folder.", "--runs TEXT The folder above it.", "--set"))
    assert "--help-all" not in text


def test_an_option_that_does_not_exist_has_its_neighbours_among_the_hidden_ones(capsys: Capture) -> None:
    refused(weft(capsys, "run", "--by-lenght"), 'weft run has no option "--by-lenght". Did you mean "--by-length"?')
    refused(weft(capsys, "run", "--dropout", "0.1", "--dropout", "0.2"), "--dropout is given 2 times")


# tables -------------------------------------------------------------------------------------------------------------------


def test_a_setting_may_stand_in_the_table_of_its_group() -> None:
    text = """
    seed = 4
    [what]
    model = "owner/model"
    [what.method]
    name = "flora"
    rank = 3
    [deal]
    data = "owner/data"
    leave_out = ["a", "b"]
    [federation]
    rounds = 7
    [machine]
    by_length = false
    [output]
    name = "mine"
    """
    flat = {"seed": 4, "model": "owner/model", "method": "flora", "method.rank": 3, "data": "owner/data", "rounds": 7}
    flat |= {"leave_out": ["a", "b"], "by_length": False, "name": "mine"}
    assert experiment.flatten(tomllib.loads(text)) == flat
    assert resolve({}, tomllib.loads(text)).experiment == resolve(flat).experiment
    assert resolve({"federation": {"rounds": 3}, "what": {"method": "flora", "parameters": {"rank": 2}}}).experiment == (
        resolve({"rounds": 3, "method": "flora", "method.rank": 2}).experiment
    )


@pytest.mark.parametrize("name", [n for n in SETTINGS if n != "parameters"])
def test_every_setting_is_reached_by_the_name_of_its_group(name: str) -> None:
    grouped = f"{SETTINGS[name].group}.{name}"
    assert experiment.assignments([f"{grouped}=3"]) == {name: 3}
    assert experiment.flatten({SETTINGS[name].group: {name: 3}}) == {name: 3}


def test_what_is_given_flat_and_in_a_group_is_refused() -> None:
    for twice in ({"rounds": 3, "federation": {"rounds": 3}}, {"federation.rounds": 3, "rounds": 4}):
        with pytest.raises(UserError, match=r"^rounds is given twice: leave one out\.$"):
            resolve(twice)
    with pytest.raises(UserError, match=r"^rounds is given twice"):
        experiment.assignments(["federation.rounds=3"], {"rounds": 3})
    with pytest.raises(UserError, match=r"^rounds is given twice"):
        experiment.assignments(["federation.rounds=3", "rounds=3"])
    assert resolve({"federation": {"rounds": 3}}, {"rounds": 4}).experiment.rounds == 3


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"federation.clients": 3}, 'there is no setting "federation.clients" (did you mean "clients"?).'),
        ({"federation.rouns": 3}, 'there is no setting "federation.rouns" (did you mean "rounds"?).'),
        ({"federation": 3}, 'there is no setting "federation"'),
        ({"federation": {"rounds": 0}}, "rounds is 0, but must be at least 1."),
    ],
)
def test_what_is_wrong_in_a_group_is_said(typed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        resolve(typed)
    assert str(refusal.value).startswith(sentence)


# pages --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_pages", ROOT / "scripts" / "settings_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_declarations_say(script: ModuleType) -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == script.wanted(), "run python scripts/settings_pages.py"


def test_a_page_that_is_out_of_date_is_named_and_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    page = tmp_path / "cli.md"
    page.write_text(script.PAGE.read_text(encoding="utf-8").replace("| `--rounds`, `-r` | 10 |", "| `--rounds` | 11 |"))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script.sys, "argv", ["settings_pages.py", "--check"])
    before = page.read_text()
    assert script.main() == 1
    assert capsys.readouterr().out == "cli.md is out of date: run python scripts/settings_pages.py\n"
    assert page.read_text() == before
    monkeypatch.setattr(script.sys, "argv", ["settings_pages.py"])
    assert script.main() == 0
    assert "| `--rounds`, `-r` | 10 |" in page.read_text()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("classes=a, b,c", ["a", "b", "c"]),
        ("leave_out=art", ["art"]),
        ('test_on=["a, b", "c"]', ["a, b", "c"]),
        ("metrics=f1:no, never", "f1:no, never"),  # split where it is known what is a class
        ("label_words=a=b,c=d", "a=b,c=d"),
    ],
)
def test_a_list_of_names_may_be_joined_by_commas(text: str, value: Any) -> None:
    assert experiment.assignments([text]) == {text.partition("=")[0]: value}
