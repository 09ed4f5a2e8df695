"""A page of runs: what is on it and what is not, that it loads nothing, and that data stay text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import page_runs
import toy_runs
import weft
from html_tree import Element, parsed
from weft.report import page
from weft.report.table import Table

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> weft.Run:
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(tmp_path_factory.mktemp("runs"), quiet=True)


def written(path: Path, runs: list[weft.Run], **more: Any) -> Element:
    page.write(path, runs, **more)
    return parsed(path.read_text(encoding="utf-8"))


def held(root: Element, what: str) -> Any:
    return json.loads("".join(p for p in root.one(id=what).inside if isinstance(p, str)))


def headings(root: Element, tag: str = "h2") -> list[str]:
    return [e.text for e in root.all(tag)]


def two_by_two(run: weft.Run, to: Path, **more: Any) -> list[weft.Run]:
    return [page_runs.like(run, to / f"{m}-{s}", m, s, 6, **more) for m in ("fedit", "ffa-lora") for s in (0, 1)]


# what is there ------------------------------------------------------------------------------------------------------------


def test_a_run_has_the_sections_that_it_has_numbers_for_and_no_others(tiny_run: weft.Run, tmp_path: Path) -> None:
    bare = written(tmp_path / "bare.html", [page_runs.like(tiny_run, tmp_path / "a", "fedit", 0, 3, extras=())])
    full = written(tmp_path / "full.html", [page_runs.like(tiny_run, tmp_path / "b", "fedit", 0, 3)])
    usual = ["Numbers", "How good the model became", "Whom it serves", "How training went"]
    end = ["What it cost", "Methods", "How to repeat it"]
    assert headings(bare) == usual + end
    assert headings(full) == [*usual, "How the data are dealt out", *end]
    quality = ["Accuracy by round", "Accuracy by megabytes sent", "Accuracy by seconds of training", "Spread over clients"]
    common = [*quality, "Training loss", "Aggregation error"]
    assert headings(bare, "h3") == [*common, "Seconds by stage"]
    more = ["Client drift", "Effective rank", "Peak memory, GB", "Clients and classes", "Seconds by stage"]
    assert headings(full, "h3") == [*common, *more]
    assert bare.all("caption")[0].text == "Accuracy and what it cost"
    assert ("Energy and carbon" in bare.text, "Energy and carbon" in full.text) == (False, True)
    assert set(held(bare, "plots")["specs"]) == {
        e.attributes["data-plot"] for e in bare.all("div") if "data-plot" in e.attributes
    }


def test_an_unfinished_run_without_a_score_has_a_page(tiny_run: weft.Run, tmp_path: Path) -> None:
    run = page_runs.like(tiny_run, tmp_path / "a", "fedit", 0, 2, extras=())
    run.rounds = []
    begun = ("format", "finished", "name", "settings", "method", "data", "backbone", "environment", "seconds")
    run.summary = {n: run.summary[n] for n in begun} | {"finished": False, "seconds": {}}
    root = written(tmp_path / "page.html", [run])
    assert headings(root) == ["Numbers", "Methods", "How to repeat it"]
    assert "unfinished, with 0 rounds so far." in root.text
    assert "Nothing was scored." in root.text
    assert len(root.all("script")) == 2  # no Vega where there is nothing to draw


def test_every_plot_has_a_heading_and_one_sentence_below_it(tiny_run: weft.Run, tmp_path: Path) -> None:
    root = written(tmp_path / "page.html", two_by_two(tiny_run, tmp_path))
    figures = root.all("figure")
    assert len(figures) == 12  # a deal for each seed
    for figure in figures:
        heading, sentence = figure.all("h3")[0], figure.all("p")[0]
        assert heading.text
        assert len(sentence.text) > 40
        assert sentence.text.endswith(".")
        plot = figure.one(**{"class": "plot"})
        assert held(root, "plots")["specs"][plot.attributes["data-plot"]]["description"].startswith(heading.text)


def test_hovering_names_run_round_and_value(tiny_run: weft.Run, tmp_path: Path) -> None:
    plots = held(written(tmp_path / "page.html", two_by_two(tiny_run, tmp_path)), "plots")
    for name, more in (("round-0", []), ("sent-0", ["sent"]), ("loss", [])):
        (hits,) = [layer for layer in plots["specs"][name]["layer"] if "tooltip" in layer["encoding"]]
        value = "loss" if name == "loss" else "value"
        assert [tip["field"] for tip in hits["encoding"]["tooltip"]] == ["label", "round", *more, value]
    assert plots["runs"][1] == {"label": "fedit · seed 1", "group": "fedit"}


def test_every_table_is_one_for_screen_readers_and_has_its_three_texts(tiny_run: weft.Run, tmp_path: Path) -> None:
    mine = Table("Mine", ("a", "b"), (("x|y", "1"), ("z", "2")), frozenset({(1, 1)}), ("A note.",))
    root = written(tmp_path / "page.html", two_by_two(tiny_run, tmp_path), tables=[mine], title="T", notes=["Said first."])
    texts = held(root, "texts")
    tables = root.all("table")
    assert len(tables) == len(texts) > 5
    assert texts[0] == {"markdown": mine.markdown(), "latex": mine.latex(), "csv": mine.csv()}
    for table in tables:
        (caption,) = table.all("caption")
        assert caption.text
        assert all(e.attributes["scope"] == "col" for e in table.all("thead")[0].all("th"))
        for row in table.all("tbody")[0].all("tr"):
            assert row.all("th", "td")[0].attributes.get("scope") == "row"
    assert tables[0].all("strong")[0].text == "2"
    buttons = [(e.attributes["data-copy"], e.attributes["data-kind"]) for e in root.all("button")]
    assert len(buttons) == len(set(buttons)) == 3 * len(tables)
    assert {place for place, _ in buttons} == {str(i) for i in range(len(tables))}
    assert (root.all("h1")[0].text, root.all("title")[0].text) == ("T", "T")
    assert "Said first." in root.text


def test_the_headline_is_the_mean_over_seeds_with_its_deviation(tiny_run: weft.Run, tmp_path: Path) -> None:
    runs = two_by_two(tiny_run, tmp_path)
    for run, value in zip(runs, (0.5, 0.7, 0.8, 0.8), strict=True):
        for e in run.rounds[-1]["evaluations"]:
            e["value"] = value - 0.1 * (e["pooling"] == "worst client")
    root = written(tmp_path / "page.html", runs)
    rows = [[c.text for c in row.all("th", "td")] for row in root.all("table")[0].all("tr")]
    assert rows[0][:4] == ["method", "accuracy", "seeds", "worst client"]
    assert rows[1][:4] == ["fedit", "0.6000 ± 0.1414", "2", "0.5000 ± 0.1414"]
    assert rows[2][:4] == ["ffa-lora", "0.8000 ± 0.0000", "2", "0.7000 ± 0.0000"]
    assert root.all("table")[0].all("strong") == [], "the largest mean need not be seen to be better"
    line = runs[0].rounds[0]
    each = line["bytes"]["train"]["up"]["wire"] / len(line["cohort"])
    from weft.communication.ledger import format_bytes

    assert rows[1][rows[0].index("up / client / round")] == format_bytes(each)
    assert rows[1][rows[0].index("training, s")] == f"{6 * (1.1 + 1.2) / 2:.3g}"


def test_declared_energy_says_so_and_measured_energy_does_not(tiny_run: weft.Run, tmp_path: Path) -> None:
    declared, measured = (page_runs.like(tiny_run, tmp_path / s, s, 0, 4) for s in ("fedit", "flora"))
    for line in measured.rounds:
        line["energy"] |= {"kwh": 0.5, "co2_kg": 0.25, "source": "measured: RAPL", "idle_w": 0.0}
    root = written(tmp_path / "page.html", [declared, measured])
    table = next(t for t in root.all("table") if t.all("caption")[0].text == "Energy and carbon")
    rows = [[c.text for c in row.all("th", "td")] for row in table.all("tbody")[0].all("tr")]
    assert rows == [
        ["fedit", "0.004", "0.0016", "declared: 65 W, less 5 W idle"],
        ["flora", "2", "1", "measured: RAPL, idle not subtracted"],
    ]


def test_a_card_says_what_left_the_client_and_where_settings_come_from(tiny_run: weft.Run, tmp_path: Path) -> None:
    root = written(tmp_path / "page.html", two_by_two(tiny_run, tmp_path))
    from weft.methods import registry

    cards = [e for e in root.all("details") if e.all("summary")[0].text.startswith(("fedit:", "ffa-lora:"))]
    assert len(cards) == 2
    for card, slug in zip(cards, ("fedit", "ffa-lora"), strict=True):
        info = registry.infos()[slug]
        assert info.sends[1:] in card.text
        assert info.paper in card.text
        assert [e.attributes["href"] for e in card.all("a")] == [f"https://arxiv.org/abs/{info.arxiv}"]
        heads = [e.text for e in card.all("thead")[0].all("th")]
        assert heads == ["setting", "value", "origin"]
    commands = [e.text for e in root.all("pre")]
    assert commands == [f"weft run {tmp_path / f'{m}-{s}'}/experiment.toml" for m in ("fedit", "ffa-lora") for s in (0, 1)]
    assert tiny_run.summary["data"]["fingerprint"] in root.text
    assert f"torch {tiny_run.summary['environment']['versions']['torch']}" in root.text


def test_the_map_of_a_deal_has_the_largest_clients_and_classes(tiny_run: weft.Run, tmp_path: Path) -> None:
    table = [[i + j for j in range(60)] for i in range(120)]
    counts = {"clients": list(range(120)), "classes": [f"k{j}" for j in range(60)], "rows": table}
    root = written(tmp_path / "page.html", [page_runs.like(tiny_run, tmp_path / "a", "fedit", 0, 2, counts=counts)])
    deal = held(root, "plots")["data"]["deal0"]
    assert deal["columns"] == ["client", "label", "rows"]
    cells = {(client, label): rows for client, label, rows in deal["rows"]}
    assert cells == {(str(i), f"k{j}"): i + j for i in range(20, 120) for j in range(10, 60)}
    assert "Shown are the 100 largest of 120 clients and the 50 largest of 60 classes." in root.text


# nothing but the file -----------------------------------------------------------------------------------------------------


def test_a_page_loads_nothing_and_has_one_bundle(tiny_run: weft.Run, tmp_path: Path) -> None:
    root = written(tmp_path / "page.html", two_by_two(tiny_run, tmp_path))
    assert [e.tag for e in root.all() if "src" in e.attributes or e.tag in ("link", "iframe", "object", "embed", "base")] == []
    links = {e.attributes["href"] for e in root.all() if "href" in e.attributes}
    inside = {link for link in links if link.startswith("#")}
    assert {link[1:] for link in inside} <= {e.attributes.get("id") for e in root.all()}
    assert all(link.startswith("https://arxiv.org/abs/") for link in links - inside)
    scripts = [e for e in root.all("script") if e.attributes.get("type") != "application/json"]
    assert [("vegaEmbed=" in "".join(map(str, e.inside))) for e in scripts] == [True, False]
    (style,) = root.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    policy = root.one(**{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-eval' 'sha256-")
    assert "http" not in policy


def test_what_comes_from_data_does_nothing(tiny_run: weft.Run, tmp_path: Path) -> None:
    counts = {"clients": [EVIL, "b"], "classes": [EVIL, "</style>"], "rows": [[1, 2], [3, 4]]}
    run = page_runs.like(tiny_run, tmp_path / "a", "fedit", 0, 3, counts=counts, name=EVIL)
    run.summary["method"] |= {"title": EVIL, "paper": EVIL, "arxiv": '" onclick="x', "slug": EVIL}
    run.summary["settings"]["template"] = {"value": EVIL, "origin": "user"}
    run.summary["environment"]["platform"] = EVIL
    run.folder = tmp_path / EVIL.replace("/", "-")
    table = Table(EVIL, (EVIL, "b"), ((EVIL, EVIL),), notes=(EVIL,))
    label = f"{EVIL} · seed 0"
    root = written(tmp_path / "page.html", [run], labels=[label], title=EVIL, tables=[table], notes=[EVIL])
    assert root.all("img") == []
    assert [n for e in root.all() for n in e.attributes if n.startswith("on")] == []
    assert len(root.all("script")) == 4
    assert root.text.count(EVIL) > 12
    plots = held(root, "plots")
    assert plots["runs"] == [{"label": label, "group": EVIL}]
    assert plots["data"]["deal0"]["rows"][0][0] == EVIL
    assert held(root, "texts")[0]["csv"].startswith(EVIL)


def test_a_page_of_twenty_long_runs_stays_below_two_megabytes(tiny_run: weft.Run, tmp_path: Path) -> None:
    slugs = ("fedit", "ffa-lora", "flora", "fedsa-lora", "fedbf")
    runs = [page_runs.like(tiny_run, tmp_path / f"{m}-{s}", m, s, 500) for m in slugs for s in range(4)]
    path = tmp_path / "page.html"
    page.write(path, runs)
    assert path.stat().st_size < 2_000_000
    curves = held(parsed(path.read_text()), "plots")["data"]["curves"]
    at = {name: i for i, name in enumerate(curves["columns"])}
    mine = [row for row in curves["rows"] if row[at["run"]] == 7]
    assert len(mine) == 100
    assert [row[at["round"]] for row in mine][::99] == [1, 500]


def test_many_notes_on_single_runs_are_folded(tiny_run: weft.Run, tmp_path: Path) -> None:
    runs = [page_runs.like(tiny_run, tmp_path / str(i), "fedit", i, 2) for i in range(5)]
    for run in runs:
        run.summary["finished"] = False
    folded = written(tmp_path / "page.html", runs, notes=["Said first."])
    (box,) = [e for e in folded.all("div") if e.attributes.get("class") == "notes"]
    assert box.all("summary")[0].text == "5 notes on single runs"
    assert "Said first." not in box.all("details")[0].text
    many = written(tmp_path / "many.html", runs, notes=[f"The {i}th." for i in range(7)])
    first, second = next(e for e in many.all("div") if e.attributes.get("class") == "notes").all("details")
    assert first.all("summary")[0].text == "7 notes on what is compared"
    assert "The 6th." in first.text
    assert "The 6th." not in second.text
    few = written(tmp_path / "few.html", runs[:2], notes=[f"The {i}th." for i in range(6)])
    assert not next(e for e in few.all("div") if e.attributes.get("class") == "notes").all("details")
