"""The class that most of a client's rows are of, by the direction of its update; not behind noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attacked
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.audits import majority_class
from weft.methods import FedAvg, FedIT

PLAIN = FedAvg(tune=Tune("lora", rank=2), epochs=2.0, batch=4, optim=Optim("sgd", lr=0.2))


@pytest.mark.parametrize("tune", [Tune("lora", rank=2), Tune("bias", head=False)], ids=["head", "no head"])
def test_most_clients_are_told_where_nothing_protects_and_not_behind_noise(tmp_path: Path, tune: Tune) -> None:
    method = replace(PLAIN, tune=tune, optim=Optim("sgd", lr=0.2 if tune.head else 1.0))
    run = attacked.attacked(tmp_path, method, classes=6, sizes=(16,) * 16)
    assert majority_class.missing(run) is None
    (plain,) = majority_class.attack(run)
    assert plain.n == 16
    assert plain.found
    assert plain.score > plain.chance + 0.2
    # noise as large as the update still leaves the one direction of it that is asked about
    assert attacked.behind_noise(run, majority_class.attack, noise=4.0) < plain.chance + 0.05


@pytest.mark.parametrize("tune", [Tune("lora", rank=2), Tune("weights")], ids=["lora", "weights"])
def test_a_shadow_with_a_clients_own_rows_moves_as_it_did(tmp_path: Path, tune: Tune) -> None:
    """But for the order of its batches, which is drawn by its name: one batch has none."""
    run = attacked.attacked(tmp_path, replace(PLAIN, batch=64, epochs=1.0, tune=tune), sizes=(6, 9))
    for update in run.updates:
        (shadow,) = run.shadows(update, [run.rows(update)])
        moved = run.moved(update)
        assert shadow.keys() == moved.keys()
        assert all(torch.allclose(shadow[n], moved[n], atol=1e-9) for n in moved)
    assert len(run.shadows(run.updates[0], [run.rows(u) for u in run.updates])) == 2
    assert majority_class.alike(run, *run.updates)
    other = replace(run.updates[1], began={n: v + 1 for n, v in run.updates[1].began.items()})  # type: ignore[operator]
    assert not majority_class.alike(run, run.updates[0], other)


def test_the_nearest_centroid_is_that_of_the_smallest_angle() -> None:
    """However long it is, and by the tensors that all have: by distance, and by the product alone, class 4 would be nearer."""
    centres = {4: {"w": torch.tensor([5.0, 5.0])}, 7: {"w": torch.tensor([0.1, 0.5]), "other": torch.zeros(3)}}
    assert majority_class.nearest({"w": torch.tensor([1.0, 4.0]), "more": torch.ones(2)}, centres) == 7
    assert majority_class.nearest({"w": torch.tensor([1.0, 1.2])}, centres) == 4


def test_what_has_no_classes_has_no_majority(tmp_path: Path) -> None:
    assert majority_class.missing(attacked.attacked(tmp_path, FedIT(rank=2), task="tokens")) == "rows have no class each"
