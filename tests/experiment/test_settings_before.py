"""Files and command lines written for version 0.1 give the experiments that they gave then."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import weft as library
from command_line import Outcome, weft
from weft import experiment
from weft import start as starting
from weft.experiment import Experiment

Capture = pytest.CaptureFixture[str]

FILE = """\
# Every setting of this run, with nothing left to defaults and recipes: `weft run` this file to repeat it.

format = 1
baseline = "probe"
baselines = [
    "local",
    "central",
]
model = "owner/one,owner/two"
task = "similarity"
template = "this is {}."
blocks = "trunk.steps"
roles = "Wqkv=q+k+v,wo=o"
head = "pool,classifier"
data = "my rows/a b's.csv"
classes = [
    "yes",
    "no, never",
]
image = "img"
text = "body"
pair = "second"
label = "stars"
key = "site"
limit = 500
clients = 12
partition = "dirichlet"
alpha = 0.3
classes_per_client = 3
min_rows = 4
new_clients = 2
leave_out = [
    "sketch",
    "it's",
]
keyless = "apart"
val_fraction = 0.15
test_fraction = 0.25
rounds = 7
participation = 0.75
dropout = 0.125
seed = 5
start_head = "probe"
probe_rounds = 33
probe_lr = 0.05
robust = "clip"
robust_norm = 2.5
robust_share = 0.3
max_weight = 1000
max_bytes = 1048576
class_counts = true
max_factor = 50.0
codec = "quant8"
pack = 3
max_length = 64
device = "cpu"
precision = "float32"
eval_every = 2
eval_clients = 4
prefix_cache = "off"
by_length = false
engine = "flower"
debug = true
trust_remote_code = true
recipes = false

[method]
name = "fedit"
weighting = "examples"
epochs = 1.0
steps = "none"
batch = 32
rank = 4
alpha = 16.0
sites = "q"

[method.optim]
kind = "adamw"
lr = 0.01
weight_decay = 0.0
betas = [
    0.9,
    0.999,
]
eps = 1e-08
momentum = 0.0
clip = 1.0
schedule = "linear"
warmup = 0.0
decay_biases = true
"""
"""A complete file as version 0.1 wrote it, in which no setting but the method has the value that it has anyway."""

FLAT: dict[str, Any] = {
    "method": "fedit",
    "method.weighting": "examples",
    "method.epochs": 1.0,
    "method.steps": None,
    "method.batch": 32,
    "method.optim.kind": "adamw",
    "method.optim.lr": 0.01,
    "method.optim.weight_decay": 0.0,
    "method.optim.betas": [0.9, 0.999],
    "method.optim.eps": 1e-08,
    "method.optim.momentum": 0.0,
    "method.optim.clip": 1.0,
    "method.optim.schedule": "linear",
    "method.optim.warmup": 0.0,
    "method.optim.decay_biases": True,
    "method.rank": 4,
    "method.alpha": 16.0,
    "method.sites": "q",
    "baseline": "probe",
    "baselines": ["local", "central"],
    "model": "owner/one,owner/two",
    "task": "similarity",
    "template": "this is {}.",
    "blocks": "trunk.steps",
    "roles": "Wqkv=q+k+v,wo=o",
    "head": "pool,classifier",
    "data": "my rows/a b's.csv",
    "classes": ["yes", "no, never"],
    "image": "img",
    "text": "body",
    "pair": "second",
    "label": "stars",
    "key": "site",
    "limit": 500,
    "clients": 12,
    "partition": "dirichlet",
    "alpha": 0.3,
    "classes_per_client": 3,
    "min_rows": 4,
    "new_clients": 2,
    "leave_out": ["sketch", "it's"],
    "keyless": "apart",
    "val_fraction": 0.15,
    "test_fraction": 0.25,
    "rounds": 7,
    "participation": 0.75,
    "dropout": 0.125,
    "seed": 5,
    "start_head": "probe",
    "probe_rounds": 33,
    "probe_lr": 0.05,
    "robust": "clip",
    "robust_norm": 2.5,
    "robust_share": 0.3,
    "max_weight": 1000,
    "max_bytes": 1048576,
    "class_counts": True,
    "max_factor": 50.0,
    "codec": "quant8",
    "pack": 3,
    "max_length": 64,
    "device": "cpu",
    "precision": "float32",
    "eval_every": 2,
    "eval_clients": 4,
    "prefix_cache": "off",
    "by_length": False,
    "engine": "flower",
    "debug": True,
    "trust_remote_code": True,
    "recipes": False,
    "name": "mine",
    "runs": "elsewhere",
}
"""What version 0.1 made of it, and of the words below; no file holds name and runs."""

LINE = """
    --method fedit --set method.rank=4 --set method.lr=0.01 --baseline probe --baselines local,central --model owner/one,owner/two
    --task similarity --template 'this is {}.' --blocks trunk.steps --roles Wqkv=q+k+v,wo=o --head pool,classifier
    --data "my rows/a b's.csv" --set 'classes=["yes", "no, never"]' --image img --text body --pair second --label stars --key site
    --limit 500 --clients 12 --partition dirichlet --alpha 0.3 --classes-per-client 3 --min-rows 4 --new-clients 2
    --leave-out sketch --leave-out "it's" --keyless apart --set val_fraction=0.15 --set test_fraction=0.25 --rounds 7
    --participation 0.75 --dropout 0.125 --seed 5 --start-head probe --set probe_rounds=33 --set probe_lr=0.05 --robust clip
    --robust-norm 2.5 --robust-share 0.3 --max-weight 1000 --max-bytes 1048576 --set class_counts=true --max-factor 50
    --codec quant8 --pack 3 --max-length 64 --device cpu --precision float32 --eval-every 2 --eval-clients 4 --prefix-cache off
    --no-by-length --engine flower --debug --trust-remote-code --no-recipes --name mine --runs elsewhere
"""
"""Every option that ``weft run`` of version 0.1 had for a setting."""


def typed(words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> experiment.Resolved | Outcome:
    """The experiment that ``weft run WORDS`` would run, or what it says instead."""
    found: list[experiment.Resolved] = []

    def start(resolved: experiment.Resolved, **_: object) -> None:
        found.append(resolved)
        raise library.UserError("enough.")

    monkeypatch.setattr(starting, "start", start)
    got = weft(capsys, "run", *words, "--quiet")
    return found[0] if found else got


def flat(found: experiment.Resolved | Outcome) -> dict[str, Any]:
    assert isinstance(found, experiment.Resolved), found
    every = {n: list(v) if isinstance(v, tuple) else v for n, v in found.experiment.flat().items()}
    plain = experiment.resolve({"recipes": False}, {"method": {"name": "fedit"}}).experiment.flat()
    usual, known = plain | Experiment().flat(), {*FLAT, "name", "runs"}
    assert all(v == usual[n] for n, v in every.items() if n not in known), "what came later is as if it were not there"
    return {n: v for n, v in every.items() if n in known}


def test_a_complete_file_is_the_same_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / "experiment.toml").write_text(FILE, encoding="utf-8")
    found = typed([str(tmp_path / "experiment.toml")], monkeypatch, capsys)
    assert flat(found) == FLAT | {"name": None, "runs": "runs"}
    usual = Experiment().flat()
    assert [n for n, v in flat(found).items() if n in usual and usual[n] == v] == ["method", "name", "runs"]


def test_what_is_written_is_what_was_written() -> None:
    """But for the order, and for settings that came later."""
    found = experiment.resolve({}, tomllib.loads(FILE)).experiment
    written, before = tomllib.loads(experiment.to_toml(found, {})), tomllib.loads(FILE)
    assert common(written, before) == before


def common(table: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What ``table`` says of the settings that ``other`` has, at any depth."""
    return {n: common(v, other[n]) if isinstance(v, dict) else v for n, v in table.items() if n in other}


def test_every_option_of_before_is_the_same_setting(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    found = typed(shlex.split(LINE), monkeypatch, capsys)
    assert flat(found) == FLAT
    assert isinstance(found, experiment.Resolved)
    fine = {n for n in FLAT if n.startswith("method.") and n not in ("method.rank", "method.optim.lr")}
    assert {n for n, origin in found.origin.items() if origin != "user" and n in FLAT} == fine


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("-m flora", "method", "flora"),
        ("-r 3", "rounds", 3),
        ("--baselines none", "baselines", []),
        ("--baselines probe", "baselines", ["probe"]),
        ("--recipes --by-length", "by_length", True),
        ("--pack auto", "pack", "auto"),
        ("--max-factor off", "max_factor", "off"),
        ("--max-factor auto", "max_factor", "auto"),
        ("--max-factor 1e3", "max_factor", 1000.0),
        ("--leave-out=a,b", "leave_out", ["a,b"]),
        ("--text 3", "text", "3"),
        ("--name=2", "name", "2"),
        ("--limit 5", "limit", 5),
        ("--set limit=none", "limit", None),
        ("--eval-every 0", "eval_every", 0),
        ("--dropout 0", "dropout", 0.0),
    ],
)
def test_other_words_of_before(words: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    found = typed(words.split(), monkeypatch, capsys)
    assert isinstance(found, experiment.Resolved), found
    assert getattr(found.experiment, name) == value
    assert type(getattr(found.experiment, name)) is type(value)
    assert found.origin[name] == "user"
    assert {n for n, origin in found.origin.items() if origin == "user"} <= {name, "recipes"}


def test_what_is_not_typed_is_left_to_recipes_and_files(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    found = typed([], monkeypatch, capsys)
    assert isinstance(found, experiment.Resolved)
    assert "user" not in found.origin.values()
    assert found.experiment == experiment.resolve().experiment


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--rounds 0", "rounds is 0, but must be at least 1."),
        ("--rounds x", "Invalid value for '--rounds' / '-r': 'x' is not a valid integer; see weft run --help."),
        ("--pack 1.5", 'pack is "1.5", but must be a whole number or "auto".'),
        ("--pack 0", 'pack is 0, but must be at least 1 or "auto".'),
        (
            "--max-factor some",
            'max_factor is "some", but must be a valid number, unable to parse string as a number or "auto" or "off".',
        ),
        ("--max-factor 1", 'max_factor is 1, but must be more than 1.0 or "auto" or "off".'),
        ("--partition dirichelt", 'partition is "dirichelt", but must be "auto", "iid", "dirichlet"'),
        ("--baselines probe,locl", 'baselines is "locl", but must be'),
        ("--rounds 3 --set rounds=4", "rounds is given twice: leave one out."),
        ("--rounds 3 -r 4", "--rounds/-r is given 2 times: leave all but one out; see weft run --help."),
        ("--val-fraction 0.2", 'weft run has no option "--val-fraction".'),
        ("--no-debug", 'weft run has no option "--no-debug".'),
    ],
)
def test_what_was_refused_is_refused_in_the_same_words(
    words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    got = typed(words.split(), monkeypatch, capsys)
    assert isinstance(got, Outcome)
    assert got.code == 2
    assert got.err.startswith(f"Error: {sentence}")
