"""Commands that make no sense: one sentence that names what is wrong, exit code 2, and nothing made on the way.

In the lines, MODEL is a tiny backbone, ROWS a csv file, and RUN what a small run needs besides what the line says itself.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

import command_line
import tiny
import toy_runs
from command_line import refused, weft

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    command_line.table(Path("rows.csv"))
    Path("exp.toml").write_text('classes = ["class 0", "class 1", "class 2"]\nclients = 2\nrounds = 1\n')
    Path("latin.toml").write_bytes('name = "é"\n'.encode("latin-1"))
    Path("deep.toml").write_text("a = " + "[" * 100_000)
    Path("binary.toml").write_bytes(bytes(range(256)))


def words(line: str) -> list[object]:
    given = shlex.split(line.replace("MODEL", tiny.folder("bert")))
    return given if given[:1] != ["RUN"] else command_line.small(Path.cwd(), "--quiet", *given[1:])


REFUSED = [
    # wrong types, empty texts, numbers out of any range
    ("RUN --set method.rank=0", "rank"),
    ("RUN --set method.rank=-4", "rank"),
    ("RUN --set method.rank=1000000000", "choose ranks up to"),
    ("RUN --set method.rank=100000000000000000000000", "choose ranks up to"),
    ("RUN --set method.rank=1000000000 --dry-run", "choose ranks up to"),
    ("methods fedit --model MODEL --classes 1000000000", "--classes"),
    ("methods fedit --model MODEL --clients 100000", "--clients"),
    ("RUN --set method.lr=nan", "optim.lr"),
    ("RUN --set method.lr=-1", "lr"),
    ("RUN --set method.optim=3", "optim"),
    ("RUN --set method.sites=", "site"),
    ("RUN --set method.=3", '""'),
    ("RUN --set probe_lr=inf", "probe_lr is inf, but must be a finite number"),
    ("RUN --robust clip --robust-norm inf", "robust_norm is inf"),
    ("RUN --alpha nan", "alpha is nan"),
    ("RUN --participation nan", "participation is nan"),
    ("RUN --set probe_rounds=2000-01-01", "probe_rounds is 2000-01-01"),
    ("RUN --set probe_rounds=inf", "probe_rounds is inf"),
    ("RUN --rounds 1e3", "--rounds"),
    ("RUN --clients 1000000000", "fewer clients"),
    ("RUN --min-rows 1000000", "fewer clients"),
    ("RUN --pack 0", "pack is 0"),
    ("RUN --pack -1", 'pack is "-1"'),
    ("RUN --seed -1", "seed is -1"),
    ("RUN --limit 1", "limit of 1 rows"),
    ("RUN --repeat 0", "--repeat"),
    ("RUN --set ''", "sets nothing"),
    ("RUN --set =3", "sets nothing"),
    ("RUN --set .=3", '"."'),
    ("RUN --set method=3", '"3"'),
    ("RUN --set parameters.rank=3", "write method.rank"),
    ("RUN --set x=" + "[" * 5000, "nested too deeply"),
    ("RUN --set 'leave_out=[[1]]'", "leave_out"),
    ("RUN --method ''", '""'),
    ("RUN --data ''", 'data is ""'),
    ("RUN --model ''", 'model is ""'),
    ("RUN --device ''", 'device is ""'),
    ("RUN --codec ''", 'codec is ""'),
    ("RUN --baselines ,", "baselines"),
    ("RUN --set max_bytes=1", "--max-bytes"),
    ("data rows.csv --seed -1", "--seed"),
    ("data rows.csv --text label --label label", "would read the answer"),
    ("data rows.csv --partition natural", "name its column with --key"),
    ("data rows.csv --alpha 0", "alpha"),
    ("data rows.csv --new-clients -1", "-1"),
    ("eval nowhere --data rows.csv --limit 0", "nowhere"),
    ("models MODEL --task nonsense", "--task"),
    ("serve exp.toml --insecure --port 0", "--port"),
    ("serve exp.toml --insecure --port 99999999", "--port"),
    ("serve exp.toml --insecure --deadline nan", "--deadline"),
    ("serve exp.toml --insecure --sites 0", "clients is 0"),
    ("join exp.toml --data rows.csv --insecure --server ''", '""'),
    ("join exp.toml --data rows.csv --insecure --server :9", '":9"'),
    ("join exp.toml --data rows.csv --insecure --server h:x", '"h:x"'),
    ("join exp.toml --data rows.csv --insecure --server h:99999999", '"h:99999999"'),
    ("join exp.toml --data rows.csv --insecure --server ::1", "[::1]"),
    ("join exp.toml --data rows.csv --dry-run --fact x", '"x"'),
    ("keys coordinator --host a.b --days 0", "0 days"),
    ("keys site ../x", '"../x"'),
    # given twice
    ("RUN --method flora --method fedit", "--method/-m is given 2 times"),
    ("RUN --quiet -q", "--quiet/-q is given"),
    ("RUN --recipes --no-recipes", "--recipes is given 2 times"),
    ("RUN --set rounds=3", "rounds is given twice"),
    ("RUN --set seed=3 --set seed=4", "seed is given twice"),
    ("RUN --set method.lr=1 --set method.optim.lr=2", "twice"),
    ("methods fedit --model MODEL --model MODEL", "--model is given 2 times"),
    ("keys coordinator --days 3 --days 4", "--days is given 2 times"),
    ("serve exp.toml --set alpha=1 --set alpha=2", "alpha is given twice"),
    ("join exp.toml --dry-run --data rows.csv --fact rank=4 --fact rank=5", "rank is given twice"),
    ("run exp.toml exp.toml", "exp.toml"),
    # places that are something else
    ("RUN --runs rows.csv", "rows.csv"),
    ("RUN --runs /proc/self", "/proc/self"),
    ("RUN --name ''", '""'),
    ("RUN --name ..", '".."'),
    ("RUN --name a/b", '"a/b"'),
    (f"RUN --name {'a' * 300}", "too long"),
    ("RUN --model rows.csv", '"rows.csv"'),
    ("RUN --model .", "config.json"),
    ("RUN --data /dev/null", "/dev/null"),
    ("RUN --data MODEL", "bert"),
    ("RUN --text ''", '""'),
    ("run .", "experiment file"),
    ("run latin.toml", "latin.toml"),
    ("run deep.toml", "deep.toml is nested too deeply"),
    ("run binary.toml", "binary.toml"),
    ("serve .", "experiment file"),
    ("serve rows.csv --insecure", "TOML"),
    ("resume rows.csv", "rows.csv is a file"),
    ("resume .", "experiment.toml"),
    ("predict rows.csv x", "rows.csv"),
    ("export . --to new", "weft.json"),
    ("keys site a --folder /proc/x", "/proc/x"),
    ("join exp.toml --data rows.csv --write /proc/x.json", "/proc/x.json"),
    # no command
    ("''", '""'),
    ("-", "weft --help"),
    ("--", "weft --help"),
    ("--nonsense", "--nonsense"),
    ("keys nonsense", "nonsense"),
    ("env --nonsense", "--json"),
]


@pytest.mark.parametrize(("line", "fragment"), REFUSED, ids=[line[:60] for line, _ in REFUSED])
def test_it_is_refused_in_one_sentence(line: str, fragment: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(line.startswith(f"RUN --{known}") for known in ("model", "device")):
        toy_runs.light(monkeypatch)
    before = set(Path.cwd().rglob("*"))
    refused(weft(capsys, *words(line)), fragment)
    made = set(Path.cwd().rglob("*")) - before
    assert all(path.is_relative_to(Path.cwd() / "runs") for path in made)


@pytest.mark.parametrize("place", [".", "/proc/x.png"])
def test_a_picture_that_can_not_be_written_leaves_the_table(place: str, capsys: Capture) -> None:
    got = weft(capsys, "data", "rows.csv", "--out", place)
    assert got.code == 2
    assert "class 0" in got.out
    assert place in got.err
    assert "Traceback" not in got.err


ODD = [
    "RUN --set method.batch=1000000000000",
    "RUN --set method.epochs=1e-300",
    "RUN --seed 1000000000000000000000000000000",
    "RUN --max-length 100000000000",
    "RUN --pack 1000000000000",
    "RUN --alpha 1e300 --partition dirichlet",
    "RUN --limit 100000000000000000000",
    "RUN --limit 3",
    "RUN --set val_fraction=0 --set test_fraction=0",
    "RUN --eval-every 1000000000000000000000",
    "RUN --eval-clients 1000000000",
    "RUN --baselines local,local",
    "RUN --dropout 0.999999999",
    "RUN --set max_weight=1",
    f"RUN --name {'a' * 200}",
]


@pytest.mark.parametrize("line", ODD, ids=[line[:60] for line in ODD])
def test_it_is_odd_but_can_be_done(line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    given = [word for word in words(line) if word != "--quiet"]
    got = weft(capsys, *given)
    assert (got.code, got.err) == (0, "")
    assert "Saved in" in got.out


def test_a_folder_that_nobody_may_write_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(os, "mkdir", denied)  # root may write anywhere, so that no mode of a folder would do
    refused(weft(capsys, *words("RUN --runs elsewhere")), "permission")


def test_one_setting_of_a_site_is_not_two(capsys: Capture) -> None:
    line = "join exp.toml --data rows.csv --insecure --server a --server b"
    refused(weft(capsys, *words(line)), "--server is given 2 times")


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (("--name", "../z"), "can't be called"),
        (("--name", ""), '""'),
        (("--max-bytes", "10"), "--max-bytes"),
        (("--set", "stop_delta=0.1"), "give --stop-after too"),
        (("--stop-after", "1", "--set", "val_fraction=0"), "there are none"),
        (("--method", "fedsa-lora", "--set", "keep=best"), "leave out keep"),
        (("--method", "flora", "--download-codec", "half"), "leave --download-codec out"),
        (("--runs", ".", "--name", "taken"), "exists already"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(more: tuple[str, ...], fragment: str, capsys: Capture) -> None:
    Path("taken/of/another").mkdir(parents=True)
    line = command_line.small(Path.cwd(), "--quiet", *more)
    before = sorted(Path.cwd().rglob("*"))
    said = refused(weft(capsys, *line, "--dry-run"), fragment)
    if "--max-bytes" not in more:
        assert refused(weft(capsys, *line), fragment) == said
    assert sorted(p for p in Path.cwd().rglob("*") if p.name != "runs") == before
