"""Statistics of batch norms over a method: federated averaging of them by hand, and the laws with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from exporting import FAST, RUN_CLOSE, exported
from weft.adaptation.optim import Optim
from weft.contract import Tune
from weft.errors import UserError
from weft.experiment import idle, resolve
from weft.export import export_run
from weft.export import load as load_export
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.server_step import ServerStep
from weft.methods import FedAvg, FedIT, FedKSeed
from weft.rules import composed, with_norms, without_options
from weft.testing import laws, models, plays

SIZES = (5, 3, 4)
PLAIN = Optim("sgd", lr=0.05, schedule="constant")
ALL = FedAvg(batch=2, epochs=1.0, optim=PLAIN)
KINDS = ("averaged", "static")


def backbone(precision: str = "float64") -> Any:
    return tiny.backbone("resnet", precision=precision)


def federation(method: Method, **more: Any) -> tiny.Federation:
    return tiny.federation(method, backbone(), **{"sizes": SIZES, "rounds": 2, "participation": 0.67, **more})


# by hand ----------------------------------------------------------------------------------------------------------------


def trained(run: tiny.Federation, state: dict[str, Tensor], client: Any, t: int) -> tuple[Any, list[np.ndarray]]:
    """A client's copy of the model after its own steps, by PyTorch alone, and the rows of its steps."""
    from weft.federation import plans

    model = copy.deepcopy(run.bench.backbone.model).train().requires_grad_(True)
    model.load_state_dict(model.state_dict() | state)
    table, about = run.bench.table, {"seed": run.bench.seed, "client": client.id, "turn": t, "epochs": 1.0}

    def rows(stream: str) -> list[np.ndarray]:
        lengths = table.lengths[client.data.train]
        found = plans.turn(lengths, size=2, steps=None, stream=stream, by_length=run.bench.by_length, cap=None, **about)
        return [client.data.train[b] for b in found.batches]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in rows("main"):
        optimizer.zero_grad()
        out = model(**run.bench.backbone.to_model(table.collate(batch))).logits
        F.cross_entropy(out, torch.from_numpy(table.labels[batch]).flatten()).backward()
        optimizer.step()
    return model, rows("statistics")


def seen(run: tiny.Federation, model: Any, steps: list[np.ndarray]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and mean square of all that enters each norm, batch by batch in training mode."""
    entered: dict[str, list[Tensor]] = {s.name: [] for s in run.bench.backbone.norms}
    handles = [
        model.get_submodule(n).register_forward_pre_hook(lambda _m, args, keep=keep: keep.append(args[0].detach()))
        for n, keep in entered.items()
    ]
    with torch.no_grad():
        for rows in steps:
            model(**run.bench.backbone.to_model(run.bench.table.collate(rows)))
    for handle in handles:
        handle.remove()
    flat = {n: torch.cat([x.movedim(1, -1).flatten(0, -2) for x in some]) for n, some in entered.items()}
    return {n: (x.mean(0), x.square().mean(0)) for n, x in flat.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_of_federated_averaging_are_those_by_hand(kind: Any) -> None:
    run = federation(with_norms(ALL, kind))
    state: dict[str, Tensor] = {}
    for name, value in run.server.shared.items():
        part, site, role = name.split("/")
        assert isinstance(value, Tensor)
        state[f"{site}.{'running_' if part == 'statistics' else ''}{role}"] = value.clone()
    for site in [n.removesuffix(".running_square") for n in state if n.endswith(".running_square")]:
        state[f"{site}.running_var"] = state.pop(f"{site}.running_square") - state[f"{site}.running_mean"].square()
    absent = False
    for t in range(2):
        record = run.simulation.round(t)
        assert record is not None
        who = [c for c in run.clients if c.id in record["cohort"]]
        absent = absent or len(who) < len(SIZES)
        models_, weight = {}, {c.id: c.n / sum(d.n for d in who) for c in who}
        moments: dict[str, Any] = {}
        for client in who:
            models_[client.id], steps = trained(run, state, client, t)
            after = copy.deepcopy(models_[client.id])
            moments[client.id] = seen(run, after, steps) if kind == "static" else {}
        state = {n: sum((weight[c] * m.state_dict()[n] for c, m in models_.items()), torch.zeros(())) for n in state}
        for site in next(iter(moments.values())):
            mean, square = (sum((weight[c] * m[site][i] for c, m in moments.items()), torch.zeros(())) for i in (0, 1))
            state |= {f"{site}.running_mean": mean, f"{site}.running_var": square - mean.square()}
    assert absent
    model = copy.deepcopy(run.bench.backbone.model).eval()
    model.load_state_dict(model.state_dict() | state)
    with torch.no_grad():
        wanted = model(**run.bench.backbone.to_model(run.bench.table.collate(np.arange(len(run.bench.table))))).logits
    torch.testing.assert_close(run.global_logits().to(wanted), wanted, rtol=0, atol=1e-6)  # start values are in single precision
    for name, value in run.server.shared.items():
        part, site, role = name.split("/")
        if role != "square":
            found = state[f"{site}.{'running_' if part == 'statistics' else ''}{role}"]
            torch.testing.assert_close(value, found, rtol=0, atol=1e-12)


# laws -------------------------------------------------------------------------------------------------------------------

LAWS = ("pack", "return", "sums", "sites", "ledger", "resuming", "backbone", "loading", "counting", "reading", "roll-back")
LAWFUL: dict[str, Method] = {
    "averaged norms": with_norms(FedAvg(tune=Tune("norm")), "averaged"),
    "averaged weights": with_norms(FedAvg(), "averaged"),
    "static norms": with_norms(FedAvg(tune=Tune("norm")), "static"),
    "averaged, scaffold": composed(with_norms(FedAvg(tune=Tune("norm")), "averaged"), "scaffold"),
}


@pytest.fixture
def of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods are held to the laws on a network with batch norms."""
    monkeypatch.setattr(models, "home", lambda method, *a, **k: "resnet")
    monkeypatch.setattr(plays, "at_home", lambda method, *a, **k: "resnet")
    monkeypatch.setattr(plays, "shallow", lambda method, precision="float64", *a, **k: backbone(precision))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("which", LAWFUL)
@pytest.mark.usefixtures("of_convolutions")
def test_the_laws_hold(which: str, law: str) -> None:
    laws.check(LAWFUL[which], law)


def test_messages_hold_two_numbers_for_each_feature_of_a_norm() -> None:
    features = sum(s.d_out for s in backbone().norms)
    for kind in KINDS:
        run = federation(with_norms(ALL, kind), participation=1.0).run()
        ledger = run.simulation.setup.exchange.ledger
        for t, way in ((0, "up"), (1, "up"), (1, "down")):  # before the first round all have what the checkpoint has
            found = ledger.totals(round=t, phase="train", direction=way).parts["statistics"]
            assert found == len(SIZES) * 2 * features * 8
        assert "statistics" not in ledger.totals(round=0, phase="train", direction="down").parts


def test_a_servers_step_is_not_taken_along_statistics() -> None:
    after = []
    for step in (ServerStep(), ServerStep("avgm", lr=3.0)):
        run = federation(with_norms(ALL, "averaged"), rounds=1, participation=1.0)
        run.server.step = step
        after.append(run.run().server.shared)
    plain, stepped = after
    for name, value in plain.items():
        assert torch.equal(value, stepped[name]) == name.startswith("statistics")  # type: ignore[arg-type]


def test_weights_of_a_static_mean_are_rows() -> None:
    method = with_norms(FedAvg(tune=Tune("norm"), weighting="uniform"), "static")
    run = federation(method)
    name = next(n for n in run.server.shared if n.startswith("statistics") and n.endswith("/mean"))
    clients = run.server.clients[:2]
    like = run.server.shared[name]
    assert isinstance(like, Tensor)
    sent = [
        Update({name: torch.full_like(like, v)}, {}, c, float(c.n), run.server.adaptation)
        for c, v in zip(clients, (1.0, 3.0), strict=True)
    ]
    method.aggregate(run.server, iter(sent))
    torch.testing.assert_close(run.server.shared[name], torch.full_like(like, (5 * 1 + 3 * 3) / 8))


# what leaves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tune", ["weights", "norm", "head"])
def test_an_export_and_the_merged_model_keep_them(kind: Any, tune: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    method = with_norms(FedAvg(tune=Tune(tune), batch=2, epochs=1.0, optim=FAST.but(lr=0.01)), kind)
    run = tiny.federation(method, backbone("float32"), sizes=SIZES, rounds=1).run()
    (tmp_path / "m").mkdir()
    assert exported(run, tmp_path / "m").kind == "weft"
    wanted = run.global_logits()
    rows = tiny.states(SIZES, reads="images")[0]
    found = load_export(tmp_path / "m", device="cpu", precision="float32").logits_of(rows)
    torch.testing.assert_close(found, wanted, **RUN_CLOSE)
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        merged = model(**run.bench.table.collate(np.arange(len(run.bench.table)))).logits
    torch.testing.assert_close(merged, wanted, **RUN_CLOSE)
    frozen = run.bench.backbone.model.get_buffer("resnet.embedder.embedder.normalization.running_mean")
    assert not torch.allclose(model.get_buffer("resnet.embedder.embedder.normalization.running_mean"), frozen)


# what is refused or said --------------------------------------------------------------------------------------------------


def test_the_name_says_so_and_the_method_beneath_is_found_again() -> None:
    made = with_norms(ALL, "static")
    assert made.info.slug == "fedavg+static-norms"
    assert "means and variances of batch norms" in made.info.sends
    assert without_options(made) == ALL
    assert with_norms(ALL, "frozen") is ALL


def test_a_method_without_gradients_is_refused() -> None:
    with pytest.raises(UserError, match=r"fedkseed takes no gradient of a pass, so that batch_norms = \"averaged\""):
        resolve({"method": "fedkseed", "batch_norms": "averaged", "recipes": False})
    with pytest.raises(UserError, match="takes no gradient"):
        with_norms(FedKSeed(), "static")


def test_a_backbone_without_batch_norms_is_refused() -> None:
    with pytest.raises(UserError, match='has no batch norms that batch_norms = "averaged" could be of'):
        tiny.federation(with_norms(FedIT(), "averaged"), sizes=SIZES, rounds=1)


def test_it_is_a_setting_of_every_experiment_and_idle_where_a_head_alone_is_trained() -> None:
    asked = {"method": "fedavg", "batch_norms": "static", "recipes": False, "rule": "scaffold"}
    assert resolve(asked).played.info.slug == "fedavg+static-norms+scaffold"
    (sentence,) = [s for s in idle(resolve(asked | {"rule": "none", "baseline": "probe"}), {}) if "batch_norms" in s]
    assert sentence == "batch_norms = static has no effect: baseline probe is played instead of the federation."
