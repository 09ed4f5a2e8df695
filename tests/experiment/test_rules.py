"""Rules over methods as settings of an experiment: refused in one sentence, kept in its file, agreed on with its sites."""

from __future__ import annotations

from typing import Any

import pytest

import weft
from weft.errors import UserError
from weft.experiment import as_played, read, resolve, to_toml
from weft.federation.server_step import ServerStep
from weft.methods import FedIT
from weft.rules import RULES, composed, plain
from weft.sites.terms import Terms, differences


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rule": "scafold"}, r'rule is "scafold", but must be .* \(did you mean "scaffold"\?\)'),
        ({"rule": ["scaffold", "feddyn"]}, "rule is .*, but must be"),
        ({"server_step": "adan"}, r'\(did you mean "adam"\?\)'),
        ({"rule": "feddyn", "feddyn_alpha": 0.0}, "feddyn_alpha is 0.0, but must be more than 0"),
        ({"rule": "feddyn", "feddyn_alpha": -1.0}, "feddyn_alpha is -1.0, but must be more than 0"),
        ({"server_step": "adam", "server_lr": -0.1}, "server_lr is -0.1, but must be more than 0"),
        ({"server_step": "adam", "server_beta1": 1.0}, "server_beta1 is 1.0, but must be less than 1"),
        ({"server_step": "adam", "server_beta2": -0.5}, "server_beta2 is -0.5, but must be at least 0"),
        ({"server_step": "adam", "server_tau": 0.0}, "server_tau is 0.0, but must be more than 0"),
        ({"server_lr": 0.1}, "server_lr is 0.1, but there is no step of the server's that it could be of"),
        ({"server_beta1": 0.5}, "server_beta1 is 0.5, but there is no step"),
        ({"rule": "scaffold", "method": "flora"}, '^flora needs each update by itself and not their mean, so rule = "scaffold"'),
        ({"server_step": "avgm", "method": "flora"}, '^flora needs each update by itself .* server_step = "avgm"'),
        ({"rule": "scaffold", "robust": "median"}, 'robust = "median" stands in for the mean of models and not for what rule'),
        ({"rule": "mime", "robust": "clip"}, "leave one of the two out"),
        ({"rule": "scaffold", "codec": "quant8"}, "what the codec quant8 does to an update would add up"),
        ({"rule": "feddyn", "codec": "quant8"}, "take --codec identity, or --rule mime"),
        ({"rule": "feddyn", "server_step": "adam"}, 'rule = "feddyn" says what the server makes of a mean, and so does'),
        ({"rule": "mimelite", "method": "ffa-lora", "recipes": False}, "ffa-lora trains by SGD without momentum"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_one_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        resolve(settings)
    assert "\n" not in str(refusal.value)


def test_what_can_work_together_does() -> None:
    resolve({"rule": "mime", "codec": "quant8"})
    resolve({"rule": "scaffold", "server_step": "avgm", "server_lr": 0.5, "server_beta1": 0.0})
    resolve({"rule": "feddyn", "method.prox": 0.01})
    resolve({"server_step": "yogi", "robust": "median", "codec": "quant8"})
    resolve({"rule": "mimelite", "method": "ffa-lora", "method.kind": "sgd", "method.momentum": 0.9})


@pytest.mark.parametrize("word", RULES)
def test_what_is_played_is_the_method_with_the_rule_over_it(word: str) -> None:
    found = resolve({"rule": word, "method.rank": 3, "feddyn_alpha": 0.5})
    assert found.method.info.slug == "fedit"
    assert found.played is found.played
    assert found.played.info.slug == f"fedit+{word}"
    assert found.played == composed(found.method, word, **({"feddyn_alpha": 0.5} if word == "feddyn" else {}))
    assert plain(found.played) == found.method == plain(found.method)
    assert resolve({"method.rank": 3}).played.info.slug == "fedit"
    with pytest.raises(UserError, match=f"fedit.{word} has a rule over it already"):
        composed(found.played, "scaffold")


def test_an_object_takes_a_rule_too() -> None:
    found = resolve({"rule": "scaffold"}, method=FedIT(rank=3))
    assert found.played == composed(found.method, "scaffold")
    assert found.method.rank == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("baseline", ["local", "central", "probe", "zero-shot"])
def test_a_baseline_is_played_without(baseline: str) -> None:
    found = resolve({"rule": "scaffold", "server_step": "adam", "baseline": baseline})
    assert found.played is found.method
    assert as_played.step_of(found.experiment) == ServerStep()


def test_the_step_of_an_experiment() -> None:
    given = {"server_lr": 0.5, "server_beta1": 0.1, "server_beta2": 0.2, "server_tau": 0.3}
    assert as_played.step_of(resolve({"server_step": "yogi"} | given).experiment) == ServerStep("yogi", 0.5, 0.1, 0.2, 0.3)
    assert as_played.step_of(resolve({"server_step": "avgm"}).experiment) == ServerStep("avgm")


def test_a_file_keeps_them(tmp_path: Any) -> None:
    first = resolve({"rule": "feddyn", "feddyn_alpha": 0.25})
    (tmp_path / "x.toml").write_text(to_toml(first.experiment, {}))
    again = resolve({}, read(tmp_path / "x.toml"))
    assert (again.experiment.rule, again.experiment.feddyn_alpha) == ("feddyn", 0.25)
    assert again.played == first.played
    (tmp_path / "y.toml").write_text('[rules]\nrule = "scaffold"\nserver_step = "adam"\nserver_lr = 0.01\n')
    x = resolve({}, read(tmp_path / "y.toml")).experiment
    assert (x.rule, x.server_step, x.server_lr) == ("scaffold", "adam", 0.01)


def test_sites_are_told_the_rule_and_not_what_the_server_does_for_itself() -> None:
    here = resolve({"rule": "feddyn", "feddyn_alpha": 0.25, "classes": ["a", "b"]})
    terms = Terms.from_json(Terms.of("0" * 32, here.experiment).as_json())
    assert not [n for n in terms.common if n.startswith("server_")]
    there = terms.resolved({"device": "cpu"})
    assert there.played == here.played
    other = resolve({"rule": "scaffold", "classes": ["a", "b"]}).experiment
    assert differences(terms, other)["rule"] == 'rule is "feddyn" at the coordinator and "scaffold" here'


def test_from_python_an_unknown_rule_is_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r'there is no rule "mim" over methods: use scaffold, feddyn, mime, mimelite. Did you mean'
    ):
        composed(FedIT(), "mim")
    with pytest.raises(UserError, match="feddyn_alpha > 0"):
        composed(FedIT(), "feddyn", feddyn_alpha=0.0)
    with pytest.raises(UserError, match="rule is"):
        weft.run("fedit", rule="scaffolds", quiet=True)
