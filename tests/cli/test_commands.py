"""What people type, and what they see."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

import command_line
import tiny
import toy_runs
import weft as library
from command_line import Outcome, flowing, refused, weft
from paths import ROOT
from patience import patience
from weft.cli import app
from weft.experiment import Experiment
from weft.methods import registry

COMMANDS = (
    "run",
    "resume",
    "eval",
    "predict",
    "export",
    "serve",
    "join",
    "runs",
    "diff",
    "watch",
    "report",
    "compare",
    "methods",
    "data",
    "models",
    "env",
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def options(command: str) -> dict[str, object]:
    """The parameters of a command by name."""
    import typer

    return {p.name: p for p in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]


# help -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_fits_eighty_columns_and_shows_an_example(command: str, capsys: Capture) -> None:
    got = weft(capsys, command, "--help")
    assert got.code == 0
    assert max(map(len, got.out.splitlines())) <= 80
    assert command in got.out.split("Usage:")[1].splitlines()[0]
    if command != "env":
        assert re.search(rf"weft ({command}|run)\b", got.out.split("Usage:")[1].split("\n", 1)[1])


@pytest.mark.parametrize("line", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(line: list[str], capsys: Capture) -> None:
    got = weft(capsys, *line)
    assert got.code == 0
    assert all(re.search(rf"│ {command} ", got.out) for command in COMMANDS)


def test_the_options_of_run_are_fields_of_the_experiment() -> None:
    own = {"file", "set_", "repeat", "dry_run", "quiet", "as_json", "help_all"}
    assert set(options("run")) - own <= set(Experiment.model_fields) - {"parameters"}


def test_the_help_of_run_tells_the_defaults_of_the_experiment() -> None:
    told = {}
    for name, option in options("run").items():
        if found := re.search(r"\\\[default: (.*?)\]", getattr(option, "help", None) or ""):
            told[name] = found[1]
    fields = {n: f.default for n, f in Experiment.model_fields.items()}
    words = {"baselines": "none", "recipes": "on", "by_length": "on", "report": "on", "eval_clients": "all", "track": "none"}
    words |= {"stop_after": "never", "lora_target": "two thirds of the method's"}
    words |= dict.fromkeys(("blocks", "roles", "head", "image", "text", "pair", "label", "key"), "guessed")
    words |= {"name": "METHOD-DATA-MODEL-sSEED", "template": "as suits the backbone"}
    words |= {"metrics": "of the data, or usual for the task", "server_lr": "1 for `avgm`, 0.001 for the others"}
    words |= {"ranks": "as the method deals them", "devices": "no clock, and for methods that ask as the method deals them"}
    words |= {"deadline": "rounds wait for the slowest", "peers": "nobody plays peers", "grids": "no carbon of devices is told"}
    words |= {
        "energy_budget": "none",
        "carbon_budget": "none",
        "mixing": "0.6",
        "concurrency": "as many as --participation draws",
    }
    words |= {"epsilon": "no budget: the noise is the chain's"}
    words |= {"availability": "at the hours that kinds in the file of `--devices` have, else always"}
    words |= {"buffer": "10, or as many as train at a time where these are fewer"}
    words |= {
        "public": "none",
        "public_rows": "all",
        "carbon": "not told",
        "shots": "all",
        "pairs": "that of the data",
        "label_words": "the names of the classes",
    }
    assert len(told) > 40
    assert told == {n: words.get(n, str(fields[n])) for n in told}


def test_the_page_on_the_command_line_has_every_option_of_run_with_its_default() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    page = page.split("### Options of `weft run`")[1].split("\n### ")[0]
    listed = {}
    for names, default in re.findall(r"^\| (`-.*?`) \| (.*?) ?\| ", page, re.MULTILINE):
        listed |= dict.fromkeys(re.findall(r"`(--.*?)`", names), default)
    for name, option in options("run").items():
        flags = [f for f in (*option.opts, *option.secondary_opts) if f.startswith("--")]  # type: ignore[attr-defined]
        assert [f for f in flags if f not in listed] == [], name
        told = re.search(r"\\\[default: (.*?)\]", getattr(option, "help", None) or "")
        if told:
            assert listed[flags[0]] == told[1]


def test_help_and_lists_load_nothing_heavy() -> None:
    script = (
        "import sys\nfrom weft.cli import main\n"
        "for line in ('--help', 'methods', 'methods --json', 'data', 'models', '--version', 'run --help'):\n"
        "    try:\n        main(line.split())\n    except SystemExit as e:\n        assert e.code == 0, line\n"
        "    if line != 'run --help':\n        assert 'pydantic' not in sys.modules, line\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'matplotlib', 'pandas', 'scipy', 'sklearn'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patience(30))
    assert done.returncode == 0, done.stderr


def test_python_dash_m_weft_is_weft() -> None:
    done = subprocess.run([sys.executable, "-m", "weft", "models"], capture_output=True, text=True, timeout=patience(30))
    assert done.returncode == 0
    assert "minilm" in done.stdout


# lists ------------------------------------------------------------------------------------------------------------------


def test_methods_lists_paper_evidence_challenges_and_what_leaves_the_client_of_every_method(capsys: Capture) -> None:
    text = flowing(weft(capsys, "methods").out)
    words = {"paper": "the paper", "code": "the paper's code", "reconstructed": "reconstructed"}
    for info in registry.infos().values():
        card = text.split(f" {info.slug} {info.title}")[1]
        assert card.index(info.paper) < card.index(words[info.evidence]) < card.index(f"sends {info.sends}")
        assert all(c in card for c in info.challenges)


def test_methods_are_chosen_by_family_need_and_challenge(capsys: Capture) -> None:
    infos = registry.infos().values()
    prompts = {i.slug for i in infos if i.family == "prompts"}
    images = {i.slug for i in infos if "images" in i.needs}
    skewed = {i.slug for i in infos if "data heterogeneity" in i.challenges}
    for line, wanted in (
        (["--family", "prompts"], prompts),
        (["--needs", "images"], images),
        (["--challenge", "data heterogeneity"], skewed),
        (["--family", "prompts", "--needs", "images", "--challenge", "data heterogeneity"], prompts & images & skewed),
    ):
        assert wanted
        assert {card["slug"] for card in json.loads(weft(capsys, "methods", *line, "--json").out)} == wanted
        shown = weft(capsys, "methods", *line).out
        assert {i.slug for i in infos if re.search(rf"^  {i.slug} ", shown, re.MULTILINE)} == wanted
    everything = json.dumps([dataclasses.asdict(i) for i in infos], indent=2, ensure_ascii=False)
    assert weft(capsys, "methods", "--json").out == everything + "\n"


def test_a_choice_that_no_method_meets_is_an_empty_list(capsys: Capture) -> None:
    line = ("methods", "--family", "reparameterized", "--needs", "two towers")
    assert json.loads(weft(capsys, *line, "--json").out) == []
    assert "No method is of that kind yet." in weft(capsys, *line).out


@pytest.mark.parametrize(
    ("option", "word", "near"),
    [
        ("--family", "prompt", "prompts"),
        ("--needs", "image", "images"),
        ("--challenge", "heterogeneous data", None),
        ("--challenge", "data heterogenity", "data heterogeneity"),
    ],
)
def test_a_word_of_no_method_is_refused_with_the_nearest(option: str, word: str, near: str | None, capsys: Capture) -> None:
    for more in ([], ["--json"]):
        said = refused(weft(capsys, "methods", option, word, *more), f'"{word}"', "there are: ")
        assert near is None or said.endswith(f'Did you mean "{near}"?')


def test_a_name_and_a_choice_at_once_are_refused(capsys: Capture) -> None:
    refused(weft(capsys, "methods", "flora", "--family", "prompts"), "--family", "flora")


def test_lists_fit_eighty_columns(capsys: Capture) -> None:
    for line in (["methods"], ["methods", "flora"], ["data"], ["models"]):
        assert max(map(len, weft(capsys, *line).out.splitlines())) <= 80


@pytest.mark.parametrize("line", [["methods"], ["methods", "flora"], ["data"], ["models"], ["env"]])
def test_json_of_a_list_is_json_and_nothing_else(line: list[str], capsys: Capture) -> None:
    got = weft(capsys, *line, "--json")
    assert json.loads(got.out)
    assert got.err == ""


def test_a_method_in_full_names_every_setting_with_its_default(capsys: Capture) -> None:
    listed = json.loads(weft(capsys, "methods", "flora", "--json").out)["settings"]
    expected = {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in registry.parameters(registry.load("flora"))
    }
    assert {s["name"]: s["default"] for s in listed} == expected
    shown = weft(capsys, "methods", "flora").out
    assert all(re.search(rf"^{re.escape(name)} ", shown, re.MULTILINE) for name in expected)


def test_sizes_of_a_method_are_those_of_its_formula(capsys: Capture) -> None:
    line = ("--model", tiny.folder("bert"), "--clients", 4, "--classes", 5, "--json")
    sizes = json.loads(weft(capsys, "methods", "fedit", *line).out)["sizes"]
    layers, d, rank = 3, 32, 16  # of the tiny model; q alone
    lora, head = layers * (rank * d + d * rank), d * 5 + 5
    assert {p["part"]: p["elements"] for p in sizes["parts"]} == {"lora": lora, "head": head}
    first, second, _ = sizes["rounds"]
    assert sum(first["down"].values()) == 0  # start values come from the seed
    for side in (first["up"], second["up"], second["down"]):
        assert {n: b for n, b in side.items() if b} == {"lora": 4 * lora, "head": 4 * head}


def test_sizes_tell_that_a_stack_comes_down_where_factors_went_up(capsys: Capture) -> None:
    line = ("--model", tiny.folder("bert"), "--clients", 2, "--json")  # more would outgrow the tiny weights
    _, second, _ = json.loads(weft(capsys, "methods", "flora", *line).out)["sizes"]["rounds"]
    assert second["down"]["base"] == 2 * second["up"]["lora"]  # everybody's factors


def test_data_counts_every_row_once_and_draws_a_picture(capsys: Capture, tmp_path: Path) -> None:
    rows = command_line.table(tmp_path / "rows.csv", 90)
    line = ("data", rows, "--clients", 5, "--alpha", 0.3, "--out", tmp_path / "deal.png")
    found = json.loads(weft(capsys, *line, "--json").out)
    assert sum(n for c in found["clients"] for n in c["labels"].values()) == 90
    assert len(found["clients"]) == 5
    shown = weft(capsys, *line).out
    for client in found["clients"]:
        cells = re.search(rf"^{client['id']}\s+(.*)$", shown, re.MULTILINE)
        assert cells is not None
        numbers = [0 if cell == "·" else int(cell) for cell in cells[1].split()]
        assert numbers == [sum(client["labels"].values()), *client["labels"].values()]
    assert (tmp_path / "deal.png").read_bytes().startswith(b"\x89PNG")


def test_data_with_more_labels_than_fit_names_the_largest_of_each_client(capsys: Capture, tmp_path: Path) -> None:
    lines = "".join(f"text {i},label {i % 40:02d}\n" for i in range(200))
    (tmp_path / "many.csv").write_text("text,label\n" + lines)
    got = weft(capsys, "data", tmp_path / "many.csv", "--clients", 2, "--partition", "iid")
    assert max(map(len, got.out.split("rows at 2 clients")[0].splitlines())) <= 80
    assert re.search(r"^c0 +100 +\d+ +label \d\d \d+ %", got.out, re.MULTILINE)


def test_a_domain_is_left_out_of_a_folder_of_pictures(capsys: Capture, tmp_path: Path) -> None:
    for domain, name, i in itertools.product(("art", "photo", "sketch"), ("cat", "dog"), range(5)):
        (tmp_path / "set" / domain / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / "set" / domain / name / f"{i}.png")
    line = ("data", tmp_path / "set", "--clients", 1, "--leave-out", "sketch", "--leave-out", "art")
    found = json.loads(weft(capsys, *line, "--json").out)
    assert [(new["facts"], new["test"]) for new in found["new_clients"]] == [({"domain": "art"}, 10), ({"domain": "sketch"}, 10)]
    assert [(client["facts"], client["labels"]) for client in found["clients"]] == [({"domain": "photo"}, {"cat": 5, "dog": 5})]
    assert "3 domains (art, photo, sketch) × 2 classes, domain is the natural key" in flowing(weft(capsys, *line).out)


# a run ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.mark.usefixtures("light")
def test_a_run_shows_a_row_for_every_round_and_its_baselines_beside_it(capsys: Capture, tmp_path: Path) -> None:
    got = weft(capsys, *command_line.small(tmp_path, "--baselines", "probe,local", "--set", "probe_rounds=2"))
    assert got.code == 0
    run = _only_run(tmp_path)
    for line in run.rounds:
        accuracy = next(e["value"] for e in line["evaluations"] if (e["people"], e["metric"]) == ("global test", "accuracy"))
        assert re.search(rf"^ +{line['round'] + 1}  {line['loss']:.3f}  {accuracy:.3f} \(", got.out, re.MULTILINE)
    head, numbers = re.search(r"(.*last round.*)\n.*\n.*\n(accuracy .*)", got.out).groups()  # type: ignore[union-attr]
    assert re.sub(r"\s{2,}", "|", head.strip()) == "last round|best by validation|probe|local"
    baselines = [run.summary["baselines"][n]["metrics"]["accuracy"] for n in ("probe", "local")]
    assert numbers.split()[3:] == [f"{v:.3f}" for v in baselines]
    assert numbers.split()[1] == f"{run.metrics['accuracy']:.3f}"
    assert str(run.folder) in got.out
    assert re.search(r"^Next: weft run .*\n +weft methods$", got.out, re.MULTILINE)


def _only_run(where: Path) -> library.Run:
    (folder,) = (where / "runs").iterdir()
    return library.load_run(folder)


@pytest.mark.usefixtures("light")
def test_what_is_not_a_terminal_gets_no_colours_and_no_bars(capsys: Capture, tmp_path: Path) -> None:
    got = weft(capsys, *command_line.small(tmp_path))
    assert "\x1b" not in got.out + got.err
    assert "━" not in got.out


@pytest.mark.usefixtures("light")
def test_quiet_prints_nothing(capsys: Capture, tmp_path: Path) -> None:
    assert weft(capsys, *command_line.small(tmp_path, "--quiet")) == Outcome(0, "", "")


@pytest.mark.usefixtures("light")
def test_json_prints_the_summary_and_nothing_else_on_stdout(capsys: Capture, tmp_path: Path) -> None:
    got = weft(capsys, *command_line.small(tmp_path, "--json"))
    assert json.loads(got.out) == _only_run(tmp_path).summary
    assert "round" in got.err  # progress is there for people, elsewhere


@pytest.mark.usefixtures("light")
def test_the_header_names_what_differs_from_the_paper_and_who_said_so(capsys: Capture, tmp_path: Path) -> None:
    got = weft(capsys, *command_line.small(tmp_path, "--set", "method.rank=3", "--set", "method.lr=0.01"))
    usual = {p.name: p.default for p in registry.parameters(registry.load("fedit"))}
    assert re.search(rf"^method.rank +3 +{usual['rank']} +you *$", got.out, re.MULTILINE)
    assert re.search(rf"^method.optim.lr +0.01 +{usual['optim.lr']} +you *$", got.out, re.MULTILINE)
    assert "method.alpha" not in got.out
    assert re.search(r"memory: about .* clients?; .* free", got.out)


@pytest.mark.usefixtures("light")
def test_a_run_leaves_out_what_is_typed(capsys: Capture, tmp_path: Path) -> None:
    text = command_line.table(tmp_path / "rows.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join([f"{text[0]},site", *(f"{line},s{i % 4}" for i, line in enumerate(text[1:]))]))
    line = command_line.small(tmp_path, "--leave-out", "s1", "--leave-out", "s2", "--rounds", 1, "--json")
    data = json.loads(weft(capsys, *line).out)["data"]
    assert data["new_clients"] == 2
    assert data["rows"]["new clients"] == 2 * (len(text) - 1) // 4
    assert sum("is never trained on" in note for note in data["notes"]) == 2


@pytest.mark.usefixtures("light")
def test_a_dry_run_shows_sizes_and_bytes_and_writes_nothing(capsys: Capture, tmp_path: Path) -> None:
    line = command_line.small(tmp_path, "--dry-run", "--set", "method.rank=2")
    got = weft(capsys, *line)
    assert got.code == 0
    assert not (tmp_path / "runs").exists()
    layers, d, rank, classes = 3, 32, 2, 3
    assert re.search(rf"^lora +LoRA +shared +{layers} +{layers * 2 * d * rank} *$", got.out, re.MULTILINE)
    sizes = json.loads(weft(capsys, *line, "--json").out)["sizes"]
    assert sizes["cohort"] == 3
    assert sizes["rounds"][1]["up"]["head"] == 8 * (d * classes + classes)  # toy runs compute in float64


@pytest.mark.usefixtures("light")
def test_a_file_and_options_make_one_experiment(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('rounds = 5\nseed = 3\n[method]\nname = "fedit"\nrank = 2\n')
    weft(capsys, *command_line.small(tmp_path), file)
    settings = _only_run(tmp_path).summary["settings"]
    assert {n: settings[n]["value"] for n in ("rounds", "seed", "method.rank")} == {"rounds": 2, "seed": 3, "method.rank": 2}


@pytest.mark.usefixtures("light")
def test_a_repeat_says_that_the_numbers_are_the_same(capsys: Capture, tmp_path: Path) -> None:
    got = weft(capsys, *command_line.small(tmp_path, "--repeat", 2))
    assert got.code == 0
    assert "the same numbers, bit for bit" in got.out


def test_bars_come_and_go_and_rows_stay() -> None:
    from weft.report.progress import watching

    file = StringIO()
    with watching(Console(file=file, force_terminal=True, width=80, color_system=None), quiet=False) as observer:
        observer.begin("rounds", 2)
        observer.begin("clients", 4)
        observer.advance("steps")
        observer.advance("clients", 4)
        observer.end("clients")
        observer.say("a sentence")
        observer.advance("rounds")
        observer.end("rounds")
    shown = file.getvalue()
    assert "Rounds" in shown
    assert "a sentence" in shown
    assert not re.search(r"\x1b\[[0-9;]*m", shown)  # colours were not asked for
    assert shown.rsplit("\x1b[2K", 1)[1].replace("\x1b[?25h", "").strip() == ""  # the last thing is to wipe the bars
