"""FedBERT against the whole model in plain PyTorch: gradients, rounds in every order and with every mean, bytes, and ties."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import by_hand
import tiny
import toy_runs
import weft
from toy_runs import Killed, kill_at
from weft.adaptation.optim import Optim
from weft.backbones.masked_table import Masked
from weft.cli import retyped
from weft.engines import stepwise
from weft.errors import UserError
from weft.experiment import handed, resolve
from weft.export.trained import capture
from weft.federation.batch import make_batch
from weft.federation.cut_passes import embedded, read, through
from weft.federation.scope import GIVEN
from weft.methods import FedBERT
from weft.runs.checkpoint import digest

ADAM = Optim("adamw", lr=1e-2, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-6, schedule="constant")
SMALL = FedBERT(epochs=1.0, batch=3, optim=ADAM)
AVERAGED, ORDERS = ("ends", "embeddings", "none", "all"), ("parallel", "sequential")
PARTS = {"E": "embeddings", "H": "lm_head", "T": "body"}
"""The method's names for what the reference below calls by the paper's letters."""

Values = dict[str, Tensor]


def part_of(name: str) -> str:
    """Whose a parameter of BERT is."""
    return "T" if ".encoder." in name else "E" if name.startswith("bert.embeddings.") else "H"


def called(values: Mapping[str, Any]) -> Values:
    """Values of ours by their names in the model."""
    return {name.split("/", 1)[1].replace("/", "."): v for name, v in values.items() if name.split("/")[0] in PARTS.values()}


@functools.cache
def whole_model(dtype: torch.dtype = torch.float64) -> Any:
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(tiny.folder("bert", "mlm"), dtype=dtype).eval()


def loss_of(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of transformers' own model, whose decoder is tied to its embeddings."""
    table = run.bench.table
    assert isinstance(table, Masked)
    inputs = table.collate(rows)
    labels = torch.full_like(inputs["input_ids"], -100)
    for r, i in enumerate(rows):
        own = slice(table.offsets[i], table.offsets[i + 1])
        chosen = torch.from_numpy(table.answer[own])
        labels[r, : len(chosen)][chosen] = torch.from_numpy(table.originals[own]).long()[chosen]
    loss: Tensor = functional_call(whole_model(dtype), dict(values), kwargs={**inputs, "labels": labels}).loss
    return loss


def slopes(loss: Tensor, by: Mapping[str, Tensor]) -> Values:
    found = torch.autograd.grad(loss, list(by.values()), allow_unused=True)
    return {n: g for n, g in zip(by, found, strict=True) if g is not None}


# a step -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_the_gradients_of_a_step_in_pieces_are_those_of_the_whole_model(precision: str, tolerance: float) -> None:
    dtype = getattr(torch, precision)
    run = tiny.federation(SMALL, sizes=(6, 4), rounds=1, precision=precision)
    rows = run.clients[0].data.train[:5]
    values = {n: p.detach().clone().requires_grad_() for n, p in whole_model(dtype).named_parameters()}
    wanted = slopes(loss_of(run, values, rows, dtype), values)

    end = stepwise.End(run.pack([0]), SMALL, 1)
    body = stepwise.Body(run.server, SMALL, 1, {})
    end.batch = make_batch(end.pack.task, run.bench.table, rows[None], None, end.pack.device)
    end.batches = iter([end.batch])
    hidden, own = end.forward()
    slope = end.head(body.forward(hidden.clone(), own))
    found: Values = {}
    end.optimizer.descend = lambda grads, *_: found.update(grads)  # type: ignore[method-assign, assignment]
    end.backward(body.backward(slope))
    found |= body.slopes
    found = {n: g[0] for n, g in called(found).items()}
    assert found.keys() == wanted.keys() == values.keys()
    assert {part_of(n) for n in found} == {"E", "H", "T"}
    for name, slope in wanted.items():
        scale = max(float(slope.abs().max()), 1.0)
        assert float((found[name] - slope).abs().max()) / scale < tolerance, name


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_on_every_architecture_the_pieces_are_the_whole_and_every_parameter_is_somebodys(kind: str) -> None:
    run = tiny.federation(SMALL, kind, task="masked", sizes=(6, 4), rounds=1)
    client, server = run.pack([0]), run.server.pack()
    batch = make_batch(client.task, run.bench.table, run.clients[0].data.train[None, :5], None, client.device)
    with torch.no_grad():
        pieces = read(client, batch, through(server, *embedded(client, batch))).logits
        assert torch.equal(pieces, server(batch).logits)
    cut, names = run.bench.backbone.cut, list(run.bench.backbone.own)
    assert sorted((*cut.before, *cut.blocks, *cut.behind)) == sorted(names)
    assert all(any(n.startswith(b + ".") for b in run.bench.backbone.blocks) for n in cut.blocks)
    word = next(n for n in names if n.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    assert word in cut.before
    assert len(run.bench.backbone.own[word]) == 2, "it is tied to the decoder"


# rounds -----------------------------------------------------------------------------------------------------------------


class Plain:
    """Whole models and torch.optim: each client's ends, and the server's blocks, or each client's."""

    def __init__(self, run: tiny.Federation, method: FedBERT):
        self.run, self.method = run, method
        start = {n: p.detach().clone() for n, p in whole_model().named_parameters()}
        self.common = start  # what the server holds of all three
        self.own: dict[str, Values] = {}  # ends that stay at home
        self.states: dict[str, Any] = {}

    def adam(self, key: str, values: Values) -> tuple[torch.optim.Optimizer, Values]:
        leaves = {n: torch.nn.Parameter(v.clone()) for n, v in values.items()}
        o = self.method.optim
        made = torch.optim.AdamW(list(leaves.values()), o.lr, o.betas, o.eps, o.weight_decay)
        if key in self.states:
            made.load_state_dict(self.states[key])
        return made, leaves  # type: ignore[return-value]

    def round(self, t: int, cohort: list[int]) -> None:
        ends, bodies, done = {}, {}, {}
        steps = {k: by_hand.steps_of(self.run, k, t) for k in cohort}
        blocks = {n: v for n, v in self.common.items() if part_of(n) == "T"}
        one = None if self.method.average == "all" else self.adam("server", blocks)
        for k in cohort:
            mine = {n: v for n, v in self.common.items() if part_of(n) != "T"} | self.own.get(str(k), {})
            ends[k] = self.adam(f"client {k}", mine)
            bodies[k] = one or self.adam(f"blocks of {k}", blocks)
        together = self.method.order == "parallel"
        turns = [cohort] if together else [[k] for k in cohort]
        for group in turns:
            for j in range(max((len(steps[k]) for k in group), default=0)):
                moving = {id(bodies[k][0]): bodies[k][0] for k in group if j < len(steps[k])}
                for k in (k for k in group if j < len(steps[k])):
                    optimizer, values = ends[k]
                    self.rate(optimizer, t, j, len(steps[k]))
                    optimizer.zero_grad()
                    loss_of(self.run, {**values, **bodies[k][1]}, steps[k][j]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                most = max(len(steps[k]) for k in group) if together and one else len(steps[group[0]])
                if not together:
                    most = sum(map(len, steps.values()))
                for optimizer in moving.values():
                    self.rate(optimizer, t, done.get(id(optimizer), 0), most)
                    done[id(optimizer)] = done.get(id(optimizer), 0) + 1
                    optimizer.step()
                    optimizer.zero_grad()
        self.close(cohort, {k: v for k, (_, v) in ends.items()}, {k: v for k, (_, v) in bodies.items()})
        self.states |= {f"client {k}": ends[k][0].state_dict() for k in cohort}
        if one:
            self.states["server"] = one[0].state_dict()
        else:
            self.states |= {f"blocks of {k}": bodies[k][0].state_dict() for k in cohort}

    def rate(self, optimizer: torch.optim.Optimizer, t: int, done: int, steps: int) -> None:
        o, rounds = self.method.optim, self.run.rounds
        fall = 1 - (t * steps + done) / (rounds * steps) if o.schedule == "linear" else 1.0
        optimizer.param_groups[0]["lr"] = o.lr * fall

    def close(self, cohort: list[int], ends: dict[int, Values], bodies: dict[int, Values]) -> None:
        shared = {"ends": "EH", "all": "EH", "embeddings": "E", "none": ""}[self.method.average]
        for name in self.common:
            part = part_of(name)
            values = [(bodies if part == "T" else ends)[k][name].detach() for k in cohort]
            if part == "T" or part in shared:
                self.common[name] = torch.stack(values).mean(0) if values else self.common[name]
        for k in cohort:
            self.own[str(k)] = {n: v.detach() for n, v in ends[k].items() if part_of(n) not in shared}


def there(record: dict[str, Any] | None, run: tiny.Federation) -> list[int]:
    assert record is not None
    present = set(record["cohort"]) - set(record["lost"])
    return [k for k, c in enumerate(run.clients) if c.id in present and c.n]


@pytest.mark.parametrize(("average", "order"), [*((a, o) for a in AVERAGED[:3] for o in ORDERS), ("all", "parallel")])
def test_rounds_are_those_of_whole_models_with_a_part_of_the_clients_and_some_that_fail(average: Any, order: Any) -> None:
    method = replace(SMALL, average=average, order=order)
    run = tiny.federation(method, rounds=4, participation=0.6, dropout=0.2, seed=3)
    plain = Plain(run, method)
    cohorts = []
    for t in range(4):
        cohorts.append(there(run.simulation.round(t), run))
        plain.round(t, cohorts[-1])
        shared = called(run.server.shared)
        for name, value in shared.items():
            by_hand.close(value, plain.common[name], 1e-7)
        for k, own in plain.own.items():
            run.simulation.setup.store.load(client := run.clients[int(k)])
            kept = called(client.kept)
            assert kept.keys() == own.keys()
            for name, value in own.items():
                by_hand.close(kept[name], value, 1e-7)
    assert any(k not in cohorts[1] and k in cohorts[0] and k in cohorts[t] for k in range(6) for t in (2, 3)), "one comes back"
    assert len({len(by_hand.steps_of(run, k, 0)) for k in cohorts[0]}) > 1, "of unequal numbers of steps"


@pytest.mark.parametrize("optim", [ADAM, replace(ADAM, schedule="linear"), Optim("sgd", lr=0.05, schedule="constant")])
def test_one_client_is_plain_training(optim: Optim) -> None:
    """Of the whole model by one optimizer, that goes on from round to round."""
    method = replace(SMALL, optim=optim)
    run = tiny.federation(method, sizes=(8,), rounds=3)
    values = {n: torch.nn.Parameter(p.detach().clone()) for n, p in whole_model().named_parameters()}
    made: torch.optim.Optimizer = torch.optim.SGD(values.values(), optim.lr)
    if optim.kind == "adamw":
        made = torch.optim.AdamW(values.values(), optim.lr, optim.betas, optim.eps, optim.weight_decay)
    every = [rows for t in range(3) for rows in by_hand.steps_of(run, 0, t)]
    for j, rows in enumerate(every):
        made.param_groups[0]["lr"] = optim.lr * (1 - j / len(every) if optim.schedule == "linear" else 1)
        made.zero_grad()
        loss_of(run, values, rows).backward()  # type: ignore[no-untyped-call]
        made.step()
    run.run()
    for name, value in called(run.server.shared).items():
        by_hand.close(value, values[name].detach(), 1e-7)


def test_the_mean_of_clients_who_are_alike_is_what_each_of_them_has() -> None:
    run = tiny.federation(replace(SMALL, batch=20), sizes=(6, 6), rounds=1)
    run.clients[1].data = run.clients[0].data
    seen = by_hand.record(run)
    run.run()
    first, second = (u.tensors for u in seen[0])
    assert first.keys() == second.keys() == {n for n in run.server.shared if not n.startswith("body/")}
    for name, value in first.items():
        assert isinstance(value, Tensor)
        by_hand.close(value, second[name], 1e-10)  # type: ignore[arg-type]
        by_hand.close(run.server.shared[name], value, 1e-10)  # type: ignore[arg-type]


@pytest.mark.parametrize("average", AVERAGED)
def test_what_is_tied_stays_tied_whatever_is_averaged(average: Any) -> None:
    """The model that is scored is transformers' own with the same values, whose decoder can't be another tensor."""
    run = tiny.federation(replace(SMALL, average=average), sizes=(6, 5), rounds=2).run()
    rows = run.clients[0].data.train
    wanted = {c.id: called(run.server.shared) for c in run.clients}
    for client in run.clients:
        run.simulation.setup.store.load(client)
        wanted[client.id] = wanted[client.id] | called(client.kept)
        run.simulation.setup.store.forget(client)
    scoring, owner = run.simulation.turns.scoring, {c.id: run.server for c in run.clients}  # type: ignore[attr-defined]
    start = dict(whole_model().named_parameters())
    for (client,), pack in scoring.models(owner, run.clients):
        batch = make_batch(pack.task, run.bench.table, rows[None], None, pack.device)
        with torch.no_grad():
            found, plain = pack.loss(pack(batch), batch)[0], loss_of(run, start | wanted[client.id], rows)
        by_hand.close(found, plain)
        assert float((plain.detach() - loss_of(run, start, rows).detach()).abs()) > 1e-3, "something was learnt"


@pytest.mark.parametrize("average", ["none", "ends"])
def test_what_is_exported_has_the_blocks_of_the_server_and_the_ends_of_the_client(average: Any) -> None:
    run = tiny.federation(replace(SMALL, average=average), sizes=(6, 5), rounds=2).run()
    client = run.clients[0] if average == "none" else None
    if client is not None:
        run.simulation.setup.store.load(client)
        assert client.kept
    found = capture(run.method, run.server, run.method.views[0], client).values
    held = run.server.shared | (client.kept if client is not None else {})
    assert {n.split("/")[0] for n in found} == set(PARTS.values())
    assert found.keys() == held.keys()
    for name, value in held.items():
        assert torch.equal(found[name], value.float()), name  # type: ignore[union-attr, arg-type]


# bytes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_step_costs_four_tensors_of_hidden_states_and_a_bit_for_each_token(precision: str) -> None:
    run = tiny.federation(SMALL, rounds=2, precision=precision, participation=0.7, seed=1)
    ledger, item, d = run.simulation.setup.exchange.ledger, 4 if precision == "float32" else 8, 32
    table = run.bench.table
    assert isinstance(table, Masked)
    ends = sum(p.numel() for n, p in whole_model().named_parameters() if part_of(n) != "T")
    for t in range(2):
        cohort = there(run.simulation.round(t), run)
        tokens = masks = steps = 0
        for k in cohort:
            for rows in by_hand.steps_of(run, k, t):
                own = len(rows) * int(table.widths[rows].max())
                tokens, masks, steps = tokens + own, masks + -(-own // 8), steps + 1
        up, down = (ledger.totals(round=t, phase="train", direction=way) for way in ("up", "down"))  # type: ignore[arg-type]
        each = tokens * d * item
        assert (up.parts["activations"], up.parts["gradients"]) == (each + masks, each)
        assert (down.parts["activations"], down.parts["gradients"]) == (each, each)
        assert up.parts["embeddings"] + up.parts["lm_head"] == len(cohort) * ends * item
        asked = len(run.simulation.last_cohort)
        assert (up.messages, down.messages) == (2 * steps + len(cohort), 2 * steps + asked)
        assert "body" not in up.parts.keys() | down.parts.keys()


def test_what_stays_at_home_or_at_the_server_is_not_sent() -> None:
    for average, sent in {"none": set(), "embeddings": {"embeddings"}, "ends": {"embeddings", "lm_head"}}.items():
        run = tiny.federation(replace(SMALL, average=average), sizes=(4, 3), rounds=2).run()  # type: ignore[arg-type]
        for way in ("up", "down"):
            parts = run.simulation.setup.exchange.ledger.totals(phase="train", direction=way).parts  # type: ignore[arg-type]
            assert {p for p, size in parts.items() if size} == {"activations", "gradients"} | sent
        adaptation = run.method.adapt(run.bench.backbone, run.bench.task, run.clients[0])
        assert set(adaptation) == {"embeddings", "lm_head"}
        assert run.server.adaptation["body"][1] == GIVEN


# what goes wrong ------------------------------------------------------------------------------------------------------------


def test_a_client_whose_activations_are_not_finite_is_left_out_of_the_rest_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(SMALL, sizes=(9, 7, 8), rounds=1)
    forward = stepwise.End.forward

    def broken(end: stepwise.End) -> tuple[Tensor, Tensor]:
        hidden, own = forward(end)
        return (hidden * float("nan") if end.client.id == "client-1" and end.step == 1 else hidden), own

    monkeypatch.setattr(stepwise.End, "forward", broken)
    record = run.simulation.round(0)
    assert record is not None
    assert list(record["refused"]) == ["client-1"]
    assert "not finite" in record["refused"]["client-1"]
    assert all(bool(v.isfinite().all()) for v in run.server.shared.values())  # type: ignore[union-attr]
    run.simulation.setup.store.load(run.clients[1])
    assert (run.clients[1].memo, run.clients[1].rounds_seen) == ({}, 0), "it remembers nothing of a turn that was not completed"


def test_a_round_of_clients_without_rows_changes_nothing() -> None:
    run = tiny.federation(SMALL, sizes=(0, 0), rounds=1)
    before = dict(run.server.shared)
    assert run.simulation.round(0) is not None
    assert all(v is before[n] or torch.equal(v, before[n]) for n, v in run.server.shared.items())  # type: ignore[arg-type]


SETTINGS: dict[str, Any] = {
    "method": "fedbert",
    "clients": 2,
    "parameters": {"steps": 1, "batch": 4},
    "recipes": False,
}


def written(folder: Path) -> str:
    """A file of texts that the tiny tokenizers know."""
    starts = np.random.default_rng(0).integers(0, 80, 60)
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(f"w{i + j}" for j in range(6))}) + "\n" for i in starts.tolist()))
    return str(path)


@pytest.mark.parametrize("average", ["ends", "all", "none"])
def test_a_run_killed_in_a_round_and_resumed_equals_one_never_killed(
    average: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS | {
        "data": written(tmp_path),
        "model": tiny.folder("bert", "mlm"),
        "rounds": 3,
        "eval_every": 0,
        "name": "it",
    }
    settings["parameters"] = settings["parameters"] | {"average": average}
    whole = toy_runs.run(tmp_path / "whole", **settings)
    assert "--task masked" in str(retyped.command(whole.summary, {"method": "fedit"})), "what comes with it is told to others"
    for number in (14, 31, 50):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            passed = kill_at(patch, number)
            toy_runs.run(tmp_path / str(number), **settings)
        assert len(passed) == number
        again = weft.resume(tmp_path / str(number) / "it")
        assert digest(again.folder) == digest(whole.folder)
        assert again.summary["evaluations"] == whole.summary["evaluations"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "classification", "data": toy_runs.source(24)}, "fedbert learns to find hidden words of texts"),
        ({"model": tiny.folder("llama", "lm")}, "predicts no hidden tokens"),
        ({"parameters": {"noise": -0.1}}, "noise"),
        ({"parameters": {"average": "all", "order": "sequential"}}, "there is no order"),
        ({"engine": "flower"}, "is played in one process"),
        ({"engine": "ray"}, "is played in one process"),
        ({"rule": "scaffold"}, "takes its steps together with the server"),
        ({"devices": "phones"}, "leave --devices out"),
        ({"download_codec": "quant8"}, "leave --download-codec out"),
        ({"robust": "median", "clients": 5}, "rather than protect a part"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    settings = SETTINGS | {"data": written(tmp_path), "model": tiny.folder("bert", "mlm")}
    with pytest.raises(UserError, match=sentence) as e:
        toy_runs.run(tmp_path, **settings | changes)
    assert "\n" not in str(e.value)


def test_a_coordinator_of_sites_refuses_it_before_any_site_is_waited_for() -> None:
    found = resolve({"method": "fedbert", "classes": ["text"]})
    with pytest.raises(UserError, match="is played in one process"):
        handed.check_sites(found.experiment, found.method)
