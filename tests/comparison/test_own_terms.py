"""Whether a reader is told that methods of a comparison had other optimizers, work or weights."""

from __future__ import annotations

from typing import Any

from weft.comparison.cell_grid import Grid
from weft.comparison.own_terms import differing


def told(*methods: str, own: dict[str, Any] | None = None, **common: Any) -> list[str]:
    return differing(Grid(methods, common={f"method.{n}": v for n, v in common.items()}, own=own or {}))


def test_what_differs_is_told_with_those_who_have_it() -> None:
    own = {"flora": {"method.optim.clip": None}, "ffa-lora": {"method.optim.clip": None}}
    same: dict[str, Any] = {
        "weighting": "examples", "optim.kind": "sgd", "optim.lr": 0.5, "optim.schedule": "constant", "optim.momentum": 0.0,
        "optim.weight_decay": 0.0, "optim.clip": 1.0,
    }  # fmt: skip
    assert told("fedit", "flora", "ffa-lora", own=own, **same) == [
        "method.optim.clip differs: 1 for fedit; none for flora, ffa-lora."
    ]
    assert told("fedit", "flora", "ffa-lora", "local", **same) == []


def test_what_an_optimizer_does_not_use_is_not_told() -> None:
    own = {"flora": {"method.optim.momentum": 0.5, "method.optim.warmup": 0.2}}
    same = {"optim.kind": "adamw", "optim.lr": 1e-3, "optim.schedule": "constant", "optim.weight_decay": 0.0, "optim.clip": 1.0}
    assert told("fedit", "flora", own=own, weighting="examples", **same) == []
    assert told("fedit", "flora", own=own, weighting="examples", **(same | {"optim.kind": "sgd"})) == [
        "method.optim.momentum differs: 0 for fedit; 0.5 for flora."
    ]
    assert told("fedit", "flora", own=own, weighting="examples", **(same | {"optim.schedule": "linear"})) == [
        "method.optim.warmup differs: 0 for fedit; 0.2 for flora."
    ]


def test_moments_are_told_of_both_kinds_of_adam_and_of_sgd_they_are_not() -> None:
    own = {"flora": {"method.optim.betas": (0.8, 0.9)}}
    same = {"optim.lr": 1e-3, "optim.schedule": "constant", "optim.weight_decay": 0.0, "optim.clip": 1.0}
    for kind in ("adam", "adamw"):
        (said,) = told("fedit", "flora", own=own, weighting="examples", **same, **{"optim.kind": kind})
        assert said.startswith("method.optim.betas differs:")
    assert told("fedit", "flora", own=own, weighting="examples", **same, **{"optim.kind": "sgd"}) == []


def test_work_and_weights_are_told_and_what_is_a_dimension_is_not() -> None:
    own: dict[str, Any] = {"flora": {"method.batch": 4, "method.weighting": "uniform", "method.optim.lr": 0.25}}
    grid = Grid(("fedit", "flora"), own=own, common={"method.optim.lr": 0.5})
    names = [s.split(" ")[0] for s in differing(grid)]
    assert names == ["method.weighting", "method.batch", "method.optim.lr"]
    over = Grid(("fedit", "flora"), own={"flora": {"method.batch": 4}}, dimensions={"method.optim.lr": (0.1, 0.2)})
    assert [s.split(" ")[0] for s in differing(over)] == ["method.batch"]


def test_a_method_whose_settings_are_refused_is_left_to_its_own_reason() -> None:
    assert told("fedit", "flora", own={"flora": {"method.rank": -1}}, weighting="examples") == []
