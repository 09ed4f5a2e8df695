"""What a grid consists of: cells, their settings, and what makes none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from weft.comparison.cell_grid import SPLIT, Grid, read_grid
from weft.comparison.cells import planned
from weft.errors import UserError
from weft.methods import registry


def grid(text: str, tmp_path: Path, **typed: object) -> Grid:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return read_grid(path, typed)


def test_lists_are_dimensions_and_methods_have_settings_of_their_own(tmp_path: Path) -> None:
    found = grid(
        """
        rounds = 3
        [grid]
        method = ["fedit", "flora", "local"]
        alpha = [0.1, 0.5]
        seeds = 2
        data = "digits"
        [methods.flora]
        rank = 2
        [tune]
        lr = [1e-4, 1e-3]
        """,
        tmp_path,
    )
    assert found.methods == ("fedit", "flora", "local")
    assert (found.seeds, found.dimensions, found.tune) == ((0, 1), {"alpha": (0.1, 0.5)}, ("lr", (1e-4, 1e-3)))
    assert found.common == {"rounds": 3, "data": "digits", "partition": "dirichlet"}
    cells = found.cells()
    assert [c.label for c in cells[:4]] == [
        "fedit · alpha 0.1 · seed 0",
        "flora · alpha 0.1 · seed 0",
        "local · alpha 0.1 · seed 0",
        "fedit · alpha 0.1 · seed 1",
    ]
    assert len(cells) == 3 * 2 * 2
    fedit, flora, local = cells[:3]
    assert {n: fedit.settings[n] for n in ("method", "rounds", "alpha", "seed", "data")} == {
        "method": "fedit", "rounds": 3, "alpha": 0.1, "seed": 0, "data": "digits",
    }  # fmt: skip
    assert "method.rank" not in fedit.settings
    assert flora.settings["method.rank"] == 2
    assert (local.settings["method"], local.settings["baseline"]) == ("fedit", "local")


def test_one_method_may_have_several_rows_with_other_settings(tmp_path: Path) -> None:
    found = grid(
        """
        [grid]
        method = ["small", "large", "fedit", "local"]
        [method]
        lr = 0.5
        [methods.small]
        method = "fedit"
        rank = 2
        [methods.large]
        method = "fedit"
        rank = 32
        """,
        tmp_path,
    )
    assert found.variants == {"small": "fedit", "large": "fedit"}
    cells = found.cells()
    assert [c.label for c in cells] == ["small · seed 0", "large · seed 0", "fedit · seed 0", "local · seed 0"]
    assert [c.settings["method"] for c in cells] == ["fedit"] * 4
    assert [c.settings.get("method.rank") for c in cells] == [2, 32, None, 2], "a baseline is one of the first row"
    assert {c.settings["method.optim.lr"] for c in cells} == {0.5}
    assert found.lacking() == {}
    plans = [planned(c, Path("cells"), None) for c in cells]
    assert all(p.resolved is not None for p in plans)
    assert [p.place.name.split("-s0-")[0] for p in plans] == ["fedit", "fedit", "fedit", "local"]
    assert len({p.place for p in plans}) == 4
    renamed = replace(found, methods=("tiny",), variants={"tiny": "fedit"}, own={"tiny": found.own["small"]}).cells()[0]
    assert planned(renamed, Path("cells"), None).place == plans[0].place, "the same cell by another name is found"


def test_what_is_typed_goes_over_the_file(tmp_path: Path) -> None:
    text = '[grid]\nmethod = ["fedit"]\nalpha = [0.1, 0.5]\nrounds = 3\n'
    assert grid(text, tmp_path, alpha=1.0).dimensions == {}
    assert grid(text, tmp_path, rounds=[2, 4]).dimensions == {"alpha": (0.1, 0.5), "rounds": (2, 4)}
    assert grid(text, tmp_path, partition="natural").common["partition"] == "natural"
    several = grid(text, tmp_path, **{"method.lr": [0.1, 0.2], "metrics": ["accuracy", "macro_f1"]})
    assert several.dimensions["method.lr"] == (0.1, 0.2)
    assert several.common["metrics"] == ["accuracy", "macro_f1"]
    assert read_grid(tmp_path / "grid.toml", {}, ["flora"], "5,7", "lr=0.1,0.2") == Grid(
        ("flora",), (5, 7), {"alpha": (0.1, 0.5)}, {"rounds": 3, "partition": "dirichlet"}, {}, ("lr", (0.1, 0.2))
    )


def test_work_is_the_same_for_all_unless_somebody_says_otherwise() -> None:
    slugs = tuple(registry.infos())
    for at, wanted in (({}, (1.0, None, 32)), ({"method.steps": 3, "method.batch": 4}, (1.0, 3, 4))):
        for cell in Grid(slugs, common=at).cells():
            plan = planned(cell, Path("cells"), None)
            assert plan.resolved is not None, plan.reason
            made = plan.resolved.method
            steps = (1.0, None, 32) if cell.row == "mpft" else wanted  # whose clients take none
            assert (made.epochs, made.steps, made.batch) == steps, cell.row
            assert (plan.resolved.experiment.pack, plan.resolved.experiment.baselines) == (8, [])


def test_a_setting_goes_to_the_methods_that_have_it() -> None:
    found = Grid(("fedit", "fedbf"), common={"method.rank": 2}, dimensions={"method.lr": (0.1, 0.2)})
    assert found.lacking() == {"fedbf": ["method.rank"]}
    fedit, fedbf, *_ = found.cells()
    assert fedit.settings["method.rank"] == 2
    assert "method.rank" not in fedbf.settings
    assert fedbf.settings["method.optim.lr"] == fedit.settings["method.optim.lr"] == 0.1
    with pytest.raises(UserError, match=r"^no method of the grid has a setting method.rnak: weft methods NAME lists"):
        Grid(("fedit", "fedbf"), common={"method.rnak": 2}).lacking()


def test_commas_part_numbers_and_choices_and_no_names_with_commas_of_their_own() -> None:
    assert {"alpha", "rounds", "limit", "codec", "partition", "lora_variant", "data"} <= SPLIT
    assert not {"model", "ranks", "metrics", "classes", "roles", "blocks", "method", "parameters"} & SPLIT


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({"methods": ("fedtt", "flora", "flroa")}, r"^there is no method fedtt, flroa: weft methods lists them\. .*fedit.*flora"),
        ({"methods": ("fedit",), "own": {"flora": {}}}, r"^settings are given for flora, which the grid does not compare"),
        ({"methods": ("a",), "variants": {"a": "fedtt"}}, r"^there is no method fedtt: .*fedit"),
        ({"methods": ("flora",), "variants": {"flora": "fedit"}}, r"^flora is a method's own name: give its variant another one"),
        ({"methods": ("local",), "variants": {"local": "fedit"}}, r"^local is a method's own name"),
        ({"methods": ("fedit",), "variants": {"a": "fedit"}, "own": {"a": {}}}, r"^settings are given for a, which the grid"),
        ({"methods": ()}, r"^the grid has no cell, since methods has no value"),
        ({"methods": ("fedit",), "seeds": ()}, r"^the grid has no cell, since seeds has no value"),
        ({"methods": ("fedit",), "dimensions": {"alpha": ()}}, r"^the grid has no cell, since alpha has no value"),
        ({"methods": ("fedit", "fedit")}, r"^fedit stands twice among the methods, and would count twice: leave one out"),
        ({"methods": ("fedit",), "seeds": (0, 1, 0)}, r"^0 stands twice among the seeds, and would count twice"),
        ({"methods": ("fedit",), "dimensions": {"alpha": (0.5, 0.5)}}, r"^0\.5 stands twice among the alpha"),
        ({"methods": ("local", "central")}, r"^the grid compares baselines alone"),
        (
            {"methods": ("fedit",), "dimensions": {"alpha": (1.0,)}, "common": {"alpha": 1.0}},
            r"^alpha is set for all cells and a dimension of the grid: leave one of the two out",
        ),
        ({"methods": ("fedit",), "common": {"seed": 3}}, r"^seed is no setting of all cells: leave it out, --seeds says which"),
        ({"methods": ("fedit",), "common": {"baseline": "local"}}, r"^baseline is no setting .* it stands among the methods"),
        ({"methods": ("fedit",), "dimensions": {"name": ("a",)}}, r"^name is no setting of all cells: leave it out, --to says"),
    ],
)
def test_what_makes_no_grid_is_one_sentence(made: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        Grid(**made)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[grid]\nalpha = [0.1]\n", r"^no method is named: give some, as in --methods"),
        ("grid = 3\n", r"^\[grid\] in .* is no table"),
        ('[grid]\nmethod = ["fedit"]\nseeds = "x"\n', r'^seeds is "x", but must be a number of them'),
        ('[grid]\nmethod = ["fedit"]\nseed = [0.5]\n', r'^seeds is "\[0\.5\]", but must be a number of them'),
        ('[grid]\nmethod = ["fedit"]\n[tune]\nlr = [0.1]\n', r"^a search needs a setting of methods and two values or more"),
        ('[grid]\nmethod = ["fedit"]\n[tune]\nlr = [0.1, 1]\nrank = [1, 2]\n', r"^\[tune\] names 2 settings, but one"),
    ],
)
def test_what_is_no_grid_file_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        grid(text, tmp_path)


def test_what_is_said_of_a_method_goes_over_what_is_said_of_all_and_that_over_what_is_the_same_anyway() -> None:
    found = Grid(
        ("fedit", "flora"),
        common={"method.rank": 2, "method.batch": 4, "pack": 3},
        own={"flora": {"method.rank": 3, "method.lr": 0.5}},
        tune=("lr", (0.1, 0.2)),
    )
    fedit, flora = found.cells()
    assert [fedit.settings[f"method.{n}"] for n in ("rank", "batch", "epochs")] == [2, 4, 1.0]
    assert [flora.settings[f"method.{n}"] for n in ("rank", "batch", "optim.lr")] == [3, 4, 0.5]
    assert flora.settings["pack"] == 3
    alone = replace(found, methods=("flora", "local"), own={**found.own, "local": {"method.lr": 0.7}}).cells()[1]
    assert [alone.settings[n] for n in ("method", "baseline", "method.rank", "method.optim.lr")] == ["flora", "local", 3, 0.7]
    assert found.cell("flora", {}, 0, ("lr", 0.2)).settings["method.optim.lr"] == 0.2
