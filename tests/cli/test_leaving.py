"""``weft join --dry-run`` says what would leave a site, and what that reveals."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import table, weft
from experiment_files import experiment, texts
from weft.methods import registry

Capture = pytest.CaptureFixture[str]


def test_every_tensor_that_goes_up_is_named_with_its_shape_and_nothing_is_written(capsys: Capture, tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    where = ("--data", rows, "--name", "north", "--device", "cpu", "--folder", tmp_path / "site")
    got = weft(capsys, "join", texts(tmp_path, "fedsa-lora"), *where, "--dry-run")
    assert got.code == 0
    listed = [line.split()[0] for line in got.out.splitlines() if line.startswith(("lora/", "head/"))]
    assert listed
    assert all(name.endswith("/A") for name in listed)  # B and the head are personal
    assert registry.info("fedsa-lora").sends in " ".join(got.out.split())
    assert "how many rows it trains on" in got.out
    assert "Nothing was sent." in got.out
    assert "histogram" not in got.out
    assert not (tmp_path / "site").exists()


def test_facts_that_the_method_asks_for_are_shown_with_their_values(capsys: Capture, tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    where = ("--data", rows, "--name", "north", "--device", "cpu", "--fact", "rank=3")
    got = weft(capsys, "join", texts(tmp_path, "flora"), *where, "--dry-run")
    assert "rank: 3" in got.out
    assert "3×" in got.out


def test_prototypes_are_named_as_what_they_reveal(capsys: Capture, tmp_path: Path) -> None:
    digits = ", ".join(f'"{i}"' for i in range(10))
    lines = ('model = "glyph-clip"', 'data = "digits"', f"classes = [{digits}]", "clients = 20", 'partition = "iid"')
    file = experiment(tmp_path, "mpft", *lines)
    got = weft(capsys, "join", file, "--as", "c00", "--device", "cpu", "--dry-run")
    assert got.code == 0, got.err
    assert "made from your rows" in got.out
    assert "like a histogram of your labels" in " ".join(got.out.split())


@pytest.mark.parametrize(
    ("rule", "names"), [("scaffold", ["change/head/"]), ("mime", ["full-gradient/head/", "head/"]), ("feddyn", ["head/"])]
)
def test_what_a_rule_over_the_method_sends_is_shown(rule: str, names: list[str], capsys: Capture, tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    file = texts(tmp_path, "fedit")
    file.write_text(f'rule = "{rule}"\n{file.read_text()}')
    got = weft(capsys, "join", file, "--data", rows, "--name", "north", "--device", "cpu", "--dry-run")
    assert got.code == 0, got.err
    assert all(f"\n{name}" in got.out for name in names)
    trained = got.out.count("trained values")
    assert trained > 2
    assert got.out.count("sums over your rows") == (0 if rule == "feddyn" else trained)
    assert "by class" not in got.out


def test_what_the_site_would_refuse_is_refused(capsys: Capture, tmp_path: Path) -> None:
    rows = table(tmp_path / "rows.csv")
    rows.write_text(rows.read_text().replace("class 2", "class 9"))
    got = weft(capsys, "join", texts(tmp_path, "fedit"), "--data", rows, "--device", "cpu", "--dry-run")
    assert got.code == 2
    assert 'has the label "class 9"' in got.err
    got = weft(capsys, "join", "--data", rows, "--dry-run")
    assert got.code == 2
    assert "--dry-run needs your copy of the experiment" in got.err
