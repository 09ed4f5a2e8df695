"""What attacks have learnt, on a page: of one run a table, of several a matrix of methods and mechanisms for each attack."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from audited_runs import hidden, kept, result
from command_line import weft as typed
from html_tree import Element, parsed
from weft.report import page
from weft.report.page.learnt import KEY, learnt
from weft.report.page.shown import shown
from weft.report.table import Table
from weft.runs.audit_file import Impossible

EVIL = "</script><img src=x onerror=alert(1)>"
UNKEPT = Impossible("it has kept no updates", True)
HEADLESS = Impossible("clients send no head", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> weft.Run:
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(tmp_path_factory.mktemp("runs"), quiet=True)


def tables(*runs: weft.Run) -> list[Table]:
    return list(learnt(shown(runs)).tables)


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in table.rows]


def written(path: Path, runs: list[weft.Run], **more: Any) -> Element:
    page.write(path, runs, **more)
    return parsed(path.read_text(encoding="utf-8"))


# one run ------------------------------------------------------------------------------------------------------------------


def test_a_run_that_nobody_attacked_has_no_section(run: weft.Run, tmp_path: Path) -> None:
    one, other = (hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1))
    for some in ([one], [one, other]):
        assert learnt(shown(some)).tables == ()
        assert "What can be learnt" not in written(tmp_path / "page.html", some).text


def test_a_run_has_a_table_with_sentences(run: weft.Run, tmp_path: Path) -> None:
    one = hidden(run, tmp_path, "fedit", 0, "dp-sgd", epsilon=8.0)
    free = result("inversion", 12.5, measure="PSNR in dB", most=None, settings={"steps": 300}, low=10.5, found=False)
    kept(one, result("labels", low=0.7, n=1234), free, property=UNKEPT, tokens=HEADLESS)
    (table,) = tables(one)
    assert table.title == "Attacks on a run with privacy dp-sgd, ε = 8"
    assert cells(table) == [
        ["labels", "3 clients, round 1", "labels guessed", "0.800", "0.400", "0.700", "1,234", "yes", ""],
        ["inversion", "3 clients, round 1", "PSNR in dB", "12.500", "0.400", "10.500", "40", "no", "steps 300"],
        ["property", "", "", "", "", "", "", "nothing kept", ""],
        ["tokens", "", "", "", "", "", "", "not possible", ""],
    ]
    assert table.bold == {(0, 3)}
    assert "labels: What labels has found." in table.notes
    assert "property: not tried, since it has kept no updates." in table.notes
    root = written(tmp_path / "page.html", [one])
    assert [e.text for e in root.all("h2")][-3:] == ["What can be learnt", "Methods", "How to repeat it"]
    assert "#learnt" in {e.attributes.get("href") for e in root.all("a")}
    assert table.title in [e.text for e in root.all("caption")]


# several ------------------------------------------------------------------------------------------------------------------


def test_several_runs_have_a_matrix_of_methods_and_mechanisms(run: weft.Run, tmp_path: Path) -> None:
    """None first, then chains as they come, the largest budget first; means over seeds with their number; empty: not attacked."""
    strict, loose = (hidden(run, tmp_path, "fedit", 0, "dp-sgd", epsilon=e) for e in (1.0, 8.0))
    sums = hidden(run, tmp_path, "fedit", 0, "secagg")
    plain = [hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1, 2)]
    other = hidden(run, tmp_path, "ffa-lora", 0, "none")
    for one, score, chance in zip(plain, (0.6, 0.8, 0.85), (0.3, 0.4, 0.8), strict=True):
        kept(one, result(score=score, chance=chance))
    kept(strict, result(score=0.41, found=False))
    kept(sums, labels=UNKEPT)
    kept(other, labels=HEADLESS)
    (table,) = tables(strict, loose, sums, *plain, other)
    assert table.title == "labels: labels guessed, round 1"
    assert table.columns == ("method", "none", "dp-sgd, ε = 8", "dp-sgd, ε = 1", "secagg")
    assert cells(table) == [
        ["fedit", "0.750 ± 0.132 (0.500) ×3", "", "0.410 (0.400) ×1", "nothing kept"],
        ["ffa-lora", "not possible", "", "", ""],
    ]
    assert table.bold == {(0, 1)}
    assert "Nothing kept: it has kept no updates." in table.notes
    assert "Not possible: clients send no head." in table.notes


def test_a_cell_stands_out_where_most_of_its_runs_are_above_chance(run: weft.Run, tmp_path: Path) -> None:
    def bold(*found: bool) -> bool:
        place = tmp_path / "".join(map(str, found))
        place.mkdir()
        some = [hidden(run, place, "fedit", seed, "none") for seed in range(len(found))]
        for one, yes in zip(some, found, strict=True):
            kept(one, result(found=yes))
        (table,) = tables(*some, hidden(run, place, "flora", 0, "none"))
        return bool(table.bold)

    assert (bold(True, True, False), bold(True, False), bold(False), bold(True)) == (True, False, False, True)


@pytest.mark.parametrize(
    ("score", "chance", "most", "dark"),
    [(0.5, 0.4, 1.0, 1), (0.59, 0.4, 1.0, 1), (0.61, 0.4, 1.0, 2), (0.81, 0.4, 1.0, 3), (1.0, 0.4, 1.0, 3), (0.6, 0.5, 1.0, 1)],
)
def test_a_cell_is_the_darker_the_further_it_is_on_the_way_to_everything(
    run: weft.Run, tmp_path: Path, score: float, chance: float, most: float, dark: int
) -> None:
    one, other = (hidden(run, tmp_path, slug, 0, "none") for slug in ("fedit", "flora"))
    kept(one, result(score=score, chance=chance, most=most))
    kept(other, result(score=1.0, chance=chance, most=most, found=False))
    (table,) = tables(one, other)
    assert table.shades == ((0, 1, dark),)


def test_where_there_is_no_end_the_highest_of_the_table_is_darkest(run: weft.Run, tmp_path: Path) -> None:
    some = [hidden(run, tmp_path, slug, 0, "none") for slug in ("fedit", "flora", "fedbf")]
    for one, score in zip(some, (30.0, 20.0, 12.0), strict=True):
        kept(one, result("inversion", score, chance=10.0, most=None))
    (table,) = tables(*some)
    assert table.shades == ((0, 1, 3), (1, 1, 2), (2, 1, 1))
    assert table.notes == ("There is no score of who has learnt everything: the highest of this table is darkest.",)
    root = written(tmp_path / "page.html", some)
    (shown_one,) = [t for t in root.all("table") if t.all("caption")[0].text.startswith("inversion")]
    assert [td.attributes["class"] for td in shown_one.all("td")] == ["n dark-3", "n dark-2", "n dark-1"]


def test_results_of_other_settings_rounds_or_measures_have_no_mean(run: weft.Run, tmp_path: Path) -> None:
    one, other = (hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1))
    kept(one, result("inversion", 20.0, settings={"steps": 300}), result(score=0.8), result("tokens", 0.6, round=None))
    kept(other, result("inversion", 10.0, settings={"steps": 20}), result(score=0.6, round=2), result("tokens", 0.2, measure="x"))
    found = {t.title: t.rows[0][1] for t in tables(one, other)}
    assert found == {
        "inversion: labels guessed, round 1, steps 300": "20.000 (0.400) ×1",
        "inversion: labels guessed, round 1, steps 20": "10.000 (0.400) ×1",
        "labels: labels guessed, round 1": "0.800 (0.400) ×1",
        "labels: labels guessed, round 2": "0.600 (0.400) ×1",
        "tokens: labels guessed": "0.600 (0.400) ×1",
        "tokens: x, round 1": "0.200 (0.400) ×1",
    }
    assert all("tables of their own" in " ".join(t.notes) for t in tables(one, other))


def test_runs_that_differ_in_more_than_privacy_and_seed_have_no_mean(run: weft.Run, tmp_path: Path) -> None:
    some = [hidden(run, tmp_path, "fedit", 0, "none", alpha=alpha, rounds=r) for alpha, r in ((0.1, 2), (1.0, 2), (1.0, 3))]
    some.append(hidden(run, tmp_path, "fedit", 1, "dp-sgd", epsilon=1.0, delta=1e-3, alpha=0.1, rounds=2))
    for one in some:
        kept(one, result())
    (table,) = tables(*some)
    assert [row[0] for row in table.rows] == ["fedit · α 0.1 · rounds 2", "fedit · α 1 · rounds 2", "fedit · α 1 · rounds 3"]
    assert cells(table)[0][1:] == ["0.800 (0.400) ×1"] * 2


def test_budgets_of_another_delta_or_of_no_secret_noise_are_columns_of_their_own(run: weft.Run, tmp_path: Path) -> None:
    some = [hidden(run, tmp_path, "fedit", 0, "dp-sgd", epsilon=1.0, delta=delta) for delta in (1e-3, 1e-5)]
    some.append(hidden(run, tmp_path, "fedit", 0, "dp-sgd", epsilon=1.0, delta=1e-5, insecure_noise=True))
    kept(some[0], result())
    (table,) = tables(*some)
    ends = ["δ = 0.001", "δ = 1e-05", "δ = 1e-05, noise from the seed"]
    assert list(table.columns[1:]) == [f"dp-sgd, ε = 1, {end}" for end in ends]


def test_a_run_from_before_there_was_privacy_has_none(run: weft.Run, tmp_path: Path) -> None:
    one, other = (hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1))
    for name in ("privacy", "epsilon", "delta", "insecure_noise"):
        one.summary["settings"].pop(name, None)
    kept(one, result())
    kept(other, result())
    (table,) = tables(one, other)
    assert table.columns == ("method", "none")
    assert table.rows == (("fedit", "0.800 ± 0.000 (0.400) ×2"),)


def test_attacks_that_no_run_allows_are_a_sentence_and_versions_are_told(run: weft.Run, tmp_path: Path) -> None:
    one, other = (hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1))
    kept(one, result(), tokens=HEADLESS)
    kept(other, result(weft=None, score=None), tokens=HEADLESS)
    found = learnt(shown([one, other]))
    assert list(found.key) == [KEY, "Not possible in any of these runs that were attacked: tokens."]
    (table,) = found.tables
    assert table.rows[0][1] == "0.800 (0.400) ×1"
    assert table.notes[-1] == "Attacked by 2 versions of Weft: 0.1, a checkout."
    assert " ".join(found.key) in written(tmp_path / "page.html", [one, other]).text


# what is broken, and what is written ----------------------------------------------------------------------------------------


def test_a_broken_file_is_a_sentence_and_the_page_is_made(
    run: weft.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1))
    kept(one, result())
    (other.folder / "audit.json").write_text('{"format": 1, "results": [')
    said = f"fedit · seed 1: {other.folder / 'audit.json'} is damaged"
    root = written(tmp_path / "page.html", [one, other])
    assert said in root.text
    assert "labels: labels guessed, round 1" in [e.text for e in root.all("caption")]
    got = typed(capsys, "report", other.folder)
    assert (got.code, got.err) == (0, "")
    alone = parsed((other.folder / "report.html").read_text(encoding="utf-8"))
    assert "audit.json is damaged" in alone.text
    assert "What can be learnt" not in [e.text for e in alone.all("h2")]


def test_names_stay_text_and_tables_can_be_copied(run: weft.Run, tmp_path: Path) -> None:
    some = [hidden(run, tmp_path, "fedit", seed, "none") for seed in (0, 1)]
    evil = {"target": EVIL, "measure": EVIL, "sentence": EVIL, "settings": {EVIL: EVIL}, "weft": EVIL}
    for one in some:
        kept(one, result(EVIL, **evil), **{f"other{EVIL}": Impossible(EVIL, False)})
        one.summary["settings"]["privacy"]["value"] = EVIL
    for runs in (some[:1], some):
        root = written(tmp_path / "page.html", runs)
        assert root.all("img") == []
        assert len(root.all("script")) == 4
        assert root.text.count(EVIL) > 4
    (table,) = tables(*some)
    assert list(csv.reader(io.StringIO(table.csv()))) == [list(table.columns), *cells(table)]
    assert r"\textbf{0.800 $\pm$ 0.000 (0.400) $\times$2}" in table.latex()


def test_attacks_of_a_run_are_rows_in_python(run: weft.Run, tmp_path: Path) -> None:
    one = hidden(run, tmp_path, "fedit", 0, "none")
    assert one.attacks() == []
    kept(one, result(), result("tokens", 0.5, settings={"noise": 1.0}))
    assert [(row["attack"], row["score"], row["settings"]) for row in one.attacks()] == [
        ("labels", 0.8, {}),
        ("tokens", 0.5, {"noise": 1.0}),
    ]
