"""A method that distils, on rows that may have some of the classes alone: what the others' rows of a head are stays as it is."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weft.adaptation.optim import Optim
from weft.methods import AdaFedSelecKD, DepthFL, FedDAT, FedHPL, FjORD
from weft.tasks.classification import Classification

CLASSES, OPEN = 5, 3  # of which no row may have the last two
DISTILS: dict[str, Any] = {
    "adafedseleckd": AdaFedSelecKD(tau=1.0, local_init="keep"),
    "adafedseleckd, unsure": AdaFedSelecKD(tau="median"),
    "depthfl": DepthFL(stages=3),
    "feddat": FedDAT(),
    "fedhpl": FedHPL(),
    "fjord": FjORD(),
}


@pytest.mark.parametrize("which", DISTILS)
def test_classes_that_no_row_may_have_are_not_learnt_of_a_teacher(which: str) -> None:
    method = DISTILS[which]
    given = {"optim": Optim("sgd", lr=0.5, schedule="constant"), "epochs": 2.0, "batch": 4}
    method = replace(method, **{n: v for n, v in given.items() if n in {f.name for f in fields(method)}})
    run = tiny.federation(method, classes=CLASSES, rounds=3, participation=1.0)
    table = run.bench.table
    allowed = np.zeros((len(table.labels), CLASSES), bool)
    allowed[:, :OPEN] = True
    run.bench.table = replace(table, labels=table.labels % OPEN, allowed=allowed)
    assert isinstance(run.bench.task, Classification)
    begun = heads(run)
    run.run()
    ended = heads(run)
    assert ended.keys() == begun.keys()
    assert any(not torch.equal(v[:OPEN], begun[n][:OPEN]) for n, v in ended.items()), "something is learnt"
    for name, value in ended.items():
        assert torch.equal(value[OPEN:], begun[name][OPEN:]), name


def heads(run: tiny.Federation) -> dict[str, Tensor]:
    """Rows by class of all that anybody holds."""
    found = {}
    pack = run.pack(range(len(run.clients)), run.rounds - 1)
    for name, value in pack.params("*").items():
        for k, own in enumerate(value):
            if own.dim() and own.shape[0] == CLASSES:
                found[f"{k}: {name}"] = own.detach().clone()
    return found
