"""Attacks on runs with and without what claims to stop them: they find something, and no longer do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import label_leakage, majority_class, membership, one_run_bound, update_tokens
from weft.audits.audited import Audited
from weft.audits.outcome import Outcome
from weft.methods import FedAvg
from weft.privacy.hiding import Privacy, mechanisms

PLAIN = FedAvg(tune=Tune("lora", rank=2), epochs=1.0, batch=4, optim=Optim("sgd", lr=0.1, schedule="constant"))
TOKENS = replace(PLAIN, tune=Tune("lora", rank=4, at="q,v"), epochs=3.0)
BY_HEART = FedAvg(tune=Tune("lora", rank=8), epochs=30.0, batch=8, optim=Optim("adamw", lr=1e-2))


def hidden(text: str, seed: int) -> Privacy:
    return Privacy(mechanisms(text), insecure=True, seed=seed)


# noise on rows does not claim to hide what most rows of a client are
STOPPED = [
    (label_leakage.attack, "dp-sgd:noise=4,clip=0.1"),
    (label_leakage.attack, "ldp:noise=4,clip=0.1"),
    (majority_class.attack, "ldp:noise=4,clip=0.1"),
]


@pytest.mark.parametrize(("attack", "text"), STOPPED, ids=["labels-dp-sgd", "labels-ldp", "property-ldp"])
def test_what_updates_tell(tmp_path: Path, attack: Callable[[Audited], list[Outcome]], text: str) -> None:
    few, many = (8, (8,) * 8), (4, (12,) * 8)
    classes, sizes = few if attack is label_leakage.attack else many
    plain = attack(attacked.attacked(tmp_path / "plain", PLAIN, classes=classes, sizes=sizes))[0]
    found = []
    for seed in range(6):
        run = attacked.attacked(tmp_path / str(seed), PLAIN, privacy=hidden(text, seed), classes=classes, sizes=sizes)
        found.append(attack(run)[0])
    assert plain.score > max(plain.chance, sum(one.score for one in found) / 6) + 0.1
    assert sum(one.found for one in found) <= 1, "of six that are nothing, one may be found by luck"


@pytest.mark.parametrize("text", ["dp-sgd:noise=4,clip=0.1", "ldp:noise=4,clip=0.1"])
def test_tokens_that_loras_factor_spans(tmp_path: Path, text: str) -> None:
    (plain,) = update_tokens.attack(attacked.attacked(tmp_path / "plain", TOKENS, sizes=(1,) * 8))
    assert plain.found
    found = []
    for seed in range(6):
        run = attacked.attacked(tmp_path / str(seed), TOKENS, privacy=hidden(text, seed), sizes=(1,) * 8)
        found += update_tokens.attack(run)
    assert plain.score > sum(one.score for one in found) / 6 + 0.2
    assert sum(one.found for one in found) <= 1, "of six that are nothing, one may be found by luck"


def test_members_of_a_model_that_has_learnt_by_heart(tmp_path: Path) -> None:
    """What is left is luck: rows of one class are alike to a model of noise. The bound that losses refute stays below what the
    accountant promises.
    """
    plain = attacked.attacked(tmp_path / "plain", BY_HEART, sizes=(80,), spare=40, classes=8)
    assert membership.attack(plain)[0].score > 0.75
    assert one_run_bound.attack(plain)[0].score > 0.3
    areas = []
    for seed in range(6):
        privacy = hidden("dp-sgd:noise=60", seed)
        run = attacked.attacked(tmp_path / str(seed), BY_HEART, privacy=privacy, sizes=(80,), spare=40, classes=8)
        told = max(said["epsilon"] for name, said in run.server.hiding.items() if name.startswith("told/"))
        assert told < 0.2
        run = replace(run, lines=[{"privacy": {"epsilon": told, "delta": 1e-5}}])
        areas.append(membership.attack(run)[0].score)
        (bound,) = one_run_bound.attack(run)
        assert bound.score <= told
        assert f"its accountant promises at most {told:.3g}" in bound.sentence
    assert sum(areas) / 6 < 0.6
