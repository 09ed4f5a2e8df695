"""What ``benchmarks/privacy.py`` tells is of rates that other rows and another seed have chosen."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from paths import ROOT


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "benchmarks" / "privacy.py"
    spec = importlib.util.spec_from_file_location("privacy_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "privacy_benchmark", module)
    monkeypatch.syspath_prepend(str(path.parent))
    spec.loader.exec_module(module)
    return module


class Cells:
    """Runs that are reckoned: validation rows like a rate of 4.5 best, test rows one of 0.5; noise costs 10 points at ε = 1.

    Attributes:
        played: method, settings and rate of every run. missing: seeds of which no run is there.
    """

    def __init__(self, best: float = 4.5, missing: tuple[int, ...] = ()) -> None:
        self.best, self.missing = best, missing
        self.played: list[tuple[str, dict[str, Any], float]] = []

    def play(self, place: Path, method: str, *, parameters: dict[str, Any], **settings: Any) -> dict[str, Any] | None:
        rate = parameters["optim.lr"]
        self.played.append((method, settings, rate))
        if settings["seed"] in self.missing:
            return None
        liked = 0.8 - 0.1 * abs(math.log(rate / self.best))
        tested = 0.9 - 0.1 * abs(math.log(rate / 0.5)) - 0.1 / settings.get("epsilon", math.inf) + 0.01 * settings["seed"]
        about = {"view": "global", "metric": "accuracy", "pooling": "pooled"}
        return {
            "headline": {"view": "global", "value": tested},
            "evaluations": [about | {"people": "validation", "value": liked}, about | {"people": "global test", "value": tested}],
        }


def study(benchmark: ModuleType, cells: Cells, *typed: str) -> Any:
    return benchmark.Study(benchmark.options().parse_args(list(typed)), cells)


def test_rates_are_chosen_by_validation_rows_of_seeds_that_are_not_told(benchmark: ModuleType) -> None:
    cells = Cells()
    one = study(benchmark, cells)
    cell = benchmark.Cell("fedit", 1.0, one.usual)
    found = one.fill([cell])[cell]
    first, second = benchmark.TUNING
    assert not {first, second} & set(range(one.args.seeds))
    assert found.choice.rate == 4.5
    assert not found.choice.edge
    played = [(s["seed"], rate) for _, s, rate in cells.played]
    assert played[:3] == [(first, rate) for rate in (0.5, 1.5, 4.5)]
    near = 1.5, 4.5, 13.5  # 0.5 is 22 points behind
    assert set(played[3:-3]) == {(seed, rate) for seed in benchmark.TUNING for rate in near}
    assert played[-3:] == [(0, 4.5), (1, 4.5), (2, 4.5)]
    assert found.scores == pytest.approx([0.9 - 0.1 * math.log(9) - 0.1 + 0.01 * s for s in range(3)])


@pytest.mark.parametrize(
    ("best", "tried", "rate", "edge"),
    [
        (4.5, [0.5, 1.5, 4.5, 13.5], 4.5, False),
        (1.5, [0.5, 1.5, 4.5], 1.5, False),
        (0.1, [0.5, 1.5, 4.5, 0.5 / 3, 0.5 / 9], 0.5 / 3, False),
        (1000.0, [0.5, 1.5, 4.5, 13.5, 40.5, 121.5], 121.5, True),
    ],
)
def test_a_grid_grows_where_its_best_rate_is_at_an_edge(
    benchmark: ModuleType, best: float, tried: list[float], rate: float, edge: bool
) -> None:
    asked: list[float] = []

    def score(one: float, seed: int) -> float:
        asked.append(one)
        assert len(asked) < 30
        return -abs(math.log(one / best))

    found = benchmark.choose(score, [0.5, 1.5, 4.5], [7])
    assert found.rate == pytest.approx(rate)
    assert found.edge is edge
    assert list(dict.fromkeys(asked)) == pytest.approx(tried)
    assert list(found.tried) == pytest.approx(tried)


def test_of_rates_near_the_best_the_mean_of_all_seeds_decides(benchmark: ModuleType) -> None:
    scores = {(1.0, 7): 0.4, (3.0, 7): 0.7, (9.0, 7): 0.8, (27.0, 7): 0.1, (3.0, 8): 0.7, (9.0, 8): 0.5}
    found = benchmark.choose(lambda rate, seed: scores[rate, seed], [1.0, 3.0, 9.0, 27.0], [7, 8])
    assert found.rate == 3.0  # the best of seed 7 alone is 9
    assert found.tried == pytest.approx({1.0: 0.4, 3.0: 0.7, 9.0: 0.65, 27.0: 0.1})


def test_a_grid_grows_beyond_what_is_best_by_all_seeds(benchmark: ModuleType) -> None:
    first, second = {0.5: 0.5, 1.0: 0.7, 3.0: 0.75, 9.0: 0.1}, {0.5: 0.5, 1.0: 0.7, 3.0: 0.6}
    found = benchmark.choose(lambda rate, seed: (first if seed == 7 else second)[rate], [1.0, 3.0, 9.0], [7, 8], factor=2.0)
    assert found.rate == 1.0  # 3 by seed 7
    assert sorted(found.tried) == [0.5, 1.0, 3.0, 9.0]
    assert not found.edge


def test_what_diverged_is_never_best_and_what_is_not_there_chooses_nothing(benchmark: ModuleType) -> None:
    def chosen(scores: dict[float, float | None]) -> Any:
        return benchmark.choose(lambda rate, seed: scores[rate], [1.0, 3.0, 9.0], [7])

    assert chosen({1.0: 0.2, 3.0: math.nan, 9.0: math.nan, 1 / 3: 0.1}).rate == 1.0
    assert chosen({1.0: 0.2, 3.0: None, 9.0: 0.1}) is None
    assert chosen({1.0: 0.1, 3.0: 0.2, 9.0: 0.2, 27.0: 0.1}).rate == 3.0  # of equal ones the smaller
    late = benchmark.choose(lambda rate, seed: None if seed == 8 else -abs(rate - 3.0), [1.0, 3.0, 9.0], [7, 8])
    assert late is None


def test_a_budget_is_of_noise_that_it_takes_and_no_noise_keeps_the_clip(benchmark: ModuleType) -> None:
    cells = Cells()
    one = study(benchmark, cells)
    for epsilon in (3.0, math.inf):
        one.play(benchmark.Cell("fedit", epsilon, one.usual), 1.5, 0)
    (_, noisy, _), (_, plain, _) = cells.played
    assert (noisy["privacy"], noisy["epsilon"], noisy["delta"]) == ("dp-sgd:clip=1,accountant=rdp", 3.0, 1e-3)
    assert plain["privacy"] == "dp-sgd:clip=1,accountant=rdp,noise=0"
    assert "epsilon" not in plain


def test_no_two_cells_share_a_folder(benchmark: ModuleType) -> None:
    one = study(benchmark, Cells())
    sizes = [one.usual, *(benchmark.replace(one.usual, **{n: 7}) for n in ("rounds", "batch", "rank"))]
    cells = [benchmark.Cell(slug, e, size) for slug in ("fedit", "fedbf") for e in (1.0, math.inf) for size in sizes]
    places = [one.place(cell, rate, seed) for cell in cells for rate in (0.5, 1.5) for seed in (0, *benchmark.TUNING)]
    assert len(set(places)) == len(cells) * 6


def test_the_tables_tell_accuracy_rate_and_what_the_same_seed_loses(benchmark: ModuleType) -> None:
    one = study(benchmark, Cells(best=1.5), "--methods", "fedit,fedbf", "--epsilons", "1,inf")
    accuracy, lost = benchmark.by_epsilon(one)
    mean = 100 * (0.91 - 0.1 * math.log(3))
    assert accuracy.splitlines()[2] == f"| fedit | {mean - 10:.1f} ± 1.0 (1.5) | {mean:.1f} ± 1.0 (1.5) |"
    assert lost.splitlines()[2] == "| fedit | -10.0 ± 0.0 |"


def test_tables_of_what_is_there_leave_the_rest_empty(benchmark: ModuleType) -> None:
    few = benchmark.by_epsilon(study(benchmark, Cells(best=1.5, missing=(1,)), "--methods", "fedit", "--epsilons", "1,inf"))
    assert "±" not in few[0]  # of one seed
    assert "(1.5)" in few[0]
    none = benchmark.by_epsilon(study(benchmark, Cells(missing=benchmark.TUNING), "--methods", "fedit", "--epsilons", "1"))
    assert none[0].splitlines()[2] == "| fedit | |"


def test_what_both_factors_and_one_do_at_the_same_rate_is_told_of_the_seeds_of_choice(benchmark: ModuleType) -> None:
    cells = Cells(best=1.5)
    head, _, *rows = benchmark.by_rate(study(benchmark, cells, "--epsilons", "1,inf")).splitlines()
    assert head == "| validation, % at a rate of | 0.5 | 1.5 | 4.5 |"
    assert rows[0] == "| fedit, ε = 1 | 69.0 | 80.0 | 69.0 |"
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| fedit, no noise", "| ffa-lora, ε = 1", "| ffa-lora, no noise"]
    assert not {s["seed"] for _, s, _ in cells.played} & {0, 1, 2}


def test_how_large_a_factor_became_is_told_in_its_start(benchmark: ModuleType, tmp_path: Path) -> None:
    one = study(benchmark, Cells(), "--runs", str(tmp_path), "--seeds", "1")
    cell = benchmark.Cell("fedit", 1.0, one.usual)
    folder = one.place(cell, 1.5, 0) / "adapter"
    folder.mkdir(parents=True)
    start = (2 * torch.rand(64, 300, generator=torch.Generator().manual_seed(0)) - 1) / math.sqrt(300)
    save_file({"x.lora_A.weight": 3 * start, "x.lora_B.weight": torch.ones(5, 64)}, folder / "adapter_model.safetensors")
    assert one.stretch(cell, 1.5) == pytest.approx(3, rel=0.02)


def test_tables_are_written_between_the_marks_of_a_page_and_nowhere_else(benchmark: ModuleType) -> None:
    begin, end = benchmark.MARKS
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    assert benchmark.written(page, "new") == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    for text in ("none", page + page):
        with pytest.raises(ValueError, match="values to unpack"):
            benchmark.written(text, "new")


def test_the_page_of_privacy_has_the_marks(benchmark: ModuleType) -> None:
    benchmark.written((ROOT / "docs" / "privacy.md").read_text(encoding="utf-8"), "new")
