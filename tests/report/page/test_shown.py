"""How runs are named, grouped and drawn, and the numbers of their curves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.errors import WeftError
from weft.report.page.curves import curves
from weft.report.page.palette import styles
from weft.report.page.plots import rounds
from weft.report.page.shown import Shown, shown


def run(slug: str = "fedit", seed: int = 0, folder: str = "a", lines: Any = (), about: Any = None, **settings: Any) -> Any:
    """As much of a run as a label is made of."""
    values = {"method": slug, "seed": seed, "data": "d", "alpha": 0.5} | settings
    method = {"slug": slug, "rule": settings.get("rule", "none"), "server_step": "none"}
    summary = {"method": method, "settings": {n: {"value": v, "origin": "user"} for n, v in values.items()}} | (about or {})
    return SimpleNamespace(folder=Path(folder), summary=summary, rounds=list(lines))


def labels(*runs: Any) -> list[str]:
    return [one.label for one in shown(runs)]


def test_a_label_tells_what_differs() -> None:
    assert labels(run()) == ["fedit · seed 0"]
    assert labels(run(), run("flora", 3)) == ["fedit · seed 0", "flora · seed 3"]
    assert labels(run(alpha=0.1), run("flora")) == ["fedit · α 0.1 · seed 0", "flora · α 0.5 · seed 0"]
    assert labels(run(rule="scaffold"), run()) == ["fedit + scaffold · seed 0", "fedit · seed 0"]
    assert labels(run(baseline="local"), run(baseline="probe")) == ["fedit local · seed 0", "probe · seed 0"]


def test_a_setting_of_methods_is_told_where_two_runs_of_one_differ_in_it() -> None:
    ranks = [run(**{"method.rank": 4}), run(**{"method.rank": 8}), run("ffa-lora", **{"method.rank": 16})]
    assert labels(*ranks) == ["fedit · rank 4 · seed 0", "fedit · rank 8 · seed 0", "ffa-lora · rank 16 · seed 0"]
    assert labels(ranks[0], ranks[2]) == ["fedit · seed 0", "ffa-lora · seed 0"]


def test_runs_that_differ_in_nothing_or_in_much_are_told_by_their_folders() -> None:
    assert labels(run(folder="x/a"), run(folder="x/b")) == ["fedit · a · seed 0", "fedit · b · seed 0"]
    assert labels(run(folder="x/a"), run(folder="y/a")) == ["fedit · a · seed 0", "fedit · a · seed 0 · 2"]
    much = {"rounds": 1, "clients": 2, "max_length": 3, "codec": "q"}
    assert labels(run(folder="a"), run(folder="b", **much)) == ["fedit · a · seed 0", "fedit · b · seed 0"]


def test_runs_that_differ_in_their_seed_are_one_group() -> None:
    made = shown(
        [run(), run(), run(), run()], ["fedit · α 0.1 · seed 0", "fedit · α 0.1 · seed 11", "fedit · α 1 · seed 0", "seed 3"]
    )
    assert [one.group for one in made] == ["fedit · α 0.1", "fedit · α 0.1", "fedit · α 1", "seed 3"]


def test_wrong_numbers_of_runs_and_labels_are_errors() -> None:
    with pytest.raises(WeftError, match="one run at least"):
        shown([])
    with pytest.raises(WeftError, match="2 labels for 1 runs"):
        shown([run()], ["a", "b"])


def test_methods_have_colours_and_groups_have_dashes_and_shapes() -> None:
    made = shown([run(alpha=0.1), run(alpha=1.0), run(alpha=1.0, seed=1), run("flora", alpha=1.0)])
    one, two, three = styles(made)
    assert one.colour == two.colour != three.colour
    assert len({s.dash for s in (one, two, three)}) == len({s.shape for s in (one, two, three)}) == 3


def line(r: int, up: int, value: float | None = None, setup: int = 0, **more: Any) -> dict[str, Any]:
    way = {"down": {"wire": 0}, "up": {"wire": up}}
    phases = {"train": way, "eval": {"down": {"wire": 10**9}, "up": {"wire": 0}}}
    if setup:
        phases["setup"] = {"down": {"wire": setup}, "up": {"wire": 0}}
    score = {"view": "global", "people": "global test", "metric": "accuracy", "pooling": "pooled", "value": value, "n": 5}
    told = {"evaluations": [score]} if value is not None else {}
    return {"round": r, "bytes": phases, "seconds": {"training": 2.0, "evaluation": 1.0}} | told | more


def test_curves_add_up_bytes_and_seconds() -> None:
    lines = [line(0, 1_000_000, setup=500_000, loss=1.5, memory=2_500_000_000), line(1, 2_000_000, 0.5, loss=float("nan"))]
    setup = {"setup": {"down": {"wire": 500_000}, "up": {"wire": 250_000}}}
    rows = curves(shown([run(lines=lines, about={"bytes": setup})]), ["accuracy"])
    assert [row["round"] for row in rows] == [1, 2]
    assert [row["sent"] for row in rows] == [1.75, 3.75]  # a probe's 250 kB before the first round; none of evaluation
    assert [row["seconds"] for row in rows] == [2.0, 4.0]
    assert [(row["value"], row["k"]) for row in rows] == [(None, None), (0.5, 0)]
    assert [(row["loss"], row["memory"], row["drift"]) for row in rows] == [(1.5, 2.5, None), (None, None, None)]


def test_long_runs_are_thinned_and_keep_their_ends_and_scores() -> None:
    lines = [line(r, 1, 0.5 if r % 100 == 99 else None) for r in range(5000)]
    found = shown([run(lines=lines), run(seed=1, lines=lines[:7])])
    rows = curves(found, ["accuracy"])
    long = [row for row in rows if row["run"] == 0]
    assert 1000 <= len(long) <= 1050
    assert (long[0]["round"], long[-1]["round"]) == (1, 5000)
    assert sum(row["value"] is not None for row in long) == 50
    assert len([row for row in rows if row["run"] == 1]) == 7
    assert sum(row["mark"] for row in long) <= 9


def test_ticks_of_rounds_are_whole_numbers() -> None:
    assert rounds(2, 4).ticks == (2, 3, 4)
    assert rounds(1, 30).ticks == (5, 10, 15, 20, 25, 30)
    assert rounds(1, 1).ticks == (1,)
    assert rounds(10, 1000).ticks == (200, 400, 600, 800, 1000)


def test_a_run_is_shown_with_its_settings() -> None:
    (one,) = shown([run(alpha=0.25)])
    assert isinstance(one, Shown)
    assert one.method == "fedit"
