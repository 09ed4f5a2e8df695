"""Settings of the contract are listed where they have an effect, and refused where they have none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from command_line import refused
from command_line import weft as command
from every_method import KINDS, METHODS, built, some
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation.method import Method
from weft.methods import FedHPL, FLoRA, HeteroFL, registry
from weft.testing import plays
from weft.testing.compare import state
from weft.testing.federation import federation

WITHOUT = {
    "fedalt": ["weighting"],
    "fedhpl": ["weighting"],
    "gf-pt": ["optim"],
    "hetlora": ["weighting"],
    "mpft": ["weighting", "epochs", "steps", "batch"],
    "pfedpg": ["weighting"],
    "powder": ["weighting"],
}


def left(method: Method) -> dict[str, Any]:
    rounds = max(3, plays.exchanges(method))
    return state(federation(method, plays.shallow(method), sizes=plays.SIZES, rounds=rounds).run())


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("slug", some(METHODS, (*KINDS, "hetlora", "powder")))
def test_weights_of_a_mean_are_a_setting_where_they_change_what_is_learnt(slug: str) -> None:
    method = plays.steady(built(slug))
    found = [left(replace(method, weighting=weighting)) for weighting in ("examples", "uniform")]
    assert same(*found) == ("weighting" in method.unused)


@pytest.mark.parametrize("change", [{"epochs": 3.0, "batch": 1}, {"steps": 2}])
def test_a_method_whose_clients_take_no_steps_has_no_settings_of_them(change: dict[str, Any]) -> None:
    method = plays.steady(built("mpft"))
    assert same(left(method), left(replace(method, **change)))


@pytest.mark.parametrize("slug", METHODS)
def test_what_has_no_effect_is_neither_listed_nor_set(slug: str) -> None:
    cls = registry.load(slug)
    assert list(cls.unused) == WITHOUT.get(slug, [])
    names = [p.name for p in registry.parameters(cls)]
    assert not [n for n in names if n.split(".")[0] in cls.unused]
    assert set(registry.values(built(slug))) == set(names)
    for name in cls.unused:
        with pytest.raises(UserError, match=f"{name}.* has no effect on what it does: leave it out"):
            registry.build(slug, {"optim.lr" if name == "optim" else name: "1"})


def test_it_is_said_on_the_command_line_and_of_objects(capsys: pytest.CaptureFixture[str]) -> None:
    got = command(capsys, *["run", "--method", "pfedpg", "--set", "method.weighting=uniform"])
    said = refused(got, 'method "pfedpg": weighting has no effect')
    assert said.endswith("leave it out.")
    assert "weighting" not in command(capsys, "methods", "pfedpg").out
    assert "weighting" in command(capsys, "methods", "fedit").out
    with pytest.raises(UserError, match="fedhpl was made with weighting, of no effect"):
        resolve({}, method=FedHPL(weighting="uniform"))
    assert "weighting" not in resolve({}, method=FedHPL()).experiment.parameters


MEANS = {
    FLoRA(rank=2, ranks=(), sites="q"): {"base", "shared:head"},
    HeteroFL(rank=4, rates=(1.0, 0.5), masked=True): {"shared:lora", "shared:head"},
}


@pytest.mark.parametrize("method", MEANS, ids=lambda method: method.info.slug)
def test_one_weighting_is_that_of_all_that_is_averaged(method: Method) -> None:
    """Of stacks and of masked rows too, and from the first round on."""
    both = [replace(plays.steady(method), weighting=weighting) for weighting in ("examples", "uniform")]
    examples, uniform = (state(federation(one, sizes=(9, 2), rounds=1).run()) for one in both)
    changed = {name.split("/")[0] for name in examples if not torch.equal(examples[name], uniform[name])}
    assert changed >= MEANS[method]
