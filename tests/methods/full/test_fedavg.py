"""FedAvg against Algorithm 1 of its paper, on whole models of transformers and with the SGD of PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, Sizes, Turn
from bytes_of import F as WIDE
from weft.adaptation.optim import Optim
from weft.federation import generating
from weft.federation.scope import Scope
from weft.methods import FedAvg
from weft.tasks.generation_settings import Decoding
from weft.testing import laws, of_settings
from weft.testing.federation import Federation

SMALL = FedAvg(batch=4, epochs=2.0)
EXACT = 1e-12
Losses = Callable[[Any, Federation, np.ndarray], Tensor]


def parameter(name: str) -> str:
    """The model's own name of one of our tensors."""
    _, site, role = name.split("/")
    return f"{site}.{role}" if site else role


def whole(run: Federation, values: dict[str, Tensor] | None = None) -> Any:
    """A model of transformers with these values, or with those that the server holds."""
    model = copy.deepcopy(run.bench.backbone.model).requires_grad_(True)
    held = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in (by_hand.shared(run) if values is None else values).items():
            held[parameter(name)].copy_(value)
    return model


def of_classes(model: Any, run: Federation, rows: np.ndarray) -> Tensor:
    return F.cross_entropy(model(**run.bench.table.collate(rows)).logits, by_hand.labels(run, rows))


def of_answers(model: Any, run: Federation, rows: np.ndarray) -> Tensor:
    """The mean over the tokens of all answers."""
    table: Any = run.bench.table
    inputs = table.collate(rows)
    logits = model(**inputs).logits
    labels, mask = table.targets(rows)
    return F.cross_entropy(logits[table.places(rows)], labels[mask])


def client_update(
    run: Federation, w: Any, steps: list[np.ndarray], loss: Losses, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> Any:
    """ClientUpdate(k, w) of Algorithm 1."""
    model = copy.deepcopy(w)
    opt = optimizer(model.parameters())
    for rows in steps:
        opt.zero_grad()
        loss(model, run, rows[rows >= 0]).backward()
        opt.step()
    return model


def play(
    run: Federation, w: Any, t: int, loss: Losses, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> tuple[Any, list[str]]:
    """Round t by the package, and again by hand: the new global model, and who took part."""
    steps = {c.id: by_hand.steps_of(run, k, t) if c.n else [] for k, c in enumerate(run.clients)}
    record = run.simulation.round(t)
    assert record is not None
    assert record["refused"] == {}
    cohort = [c for c in run.clients if c.id in record["cohort"] and c.id not in record["lost"] and c.n]
    models = [dict(client_update(run, w, steps[c.id], loss, optimizer).named_parameters()) for c in cohort]
    n = sum(c.n for c in cohort)
    new = copy.deepcopy(w)
    with torch.no_grad():
        for name, p in new.named_parameters():
            p.copy_(sum(c.n / n * m[name] for c, m in zip(cohort, models, strict=True)))
    return new, [c.id for c in cohort]


def assert_holds(run: Federation, model: Any, tolerance: float = EXACT) -> None:
    """The server holds every parameter of this model, and nothing else."""
    held = dict(model.named_parameters(remove_duplicate=False))
    found = {parameter(n): v for n, v in by_hand.shared(run).items()}
    assert found.keys() == {n for n, _ in model.named_parameters()}
    for name, value in found.items():
        torch.testing.assert_close(value, held[name].detach(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "t5"])
def test_rounds_are_algorithm_1_for_whoever_takes_part(kind: str) -> None:
    """Half of the clients take part in a round, of unequal sizes; one is away and comes back."""
    run = tiny.federation(SMALL, kind, rounds=4, participation=0.5, dropout=0.2, seed=1)
    w, there = whole(run), []
    for t in range(4):
        w, cohort = play(run, w, t, of_classes, sgd)
        there.append(set(cohort))
        assert_holds(run, w)
    sizes = {c.id: c.n for c in run.clients}
    assert any(len({sizes[c] for c in cohort}) > 1 for cohort in there), "all weigh alike"
    assert any(there[0] & there[t] - there[1] for t in (2, 3)), "nobody is away and comes back"
    rows = np.arange(len(run.bench.table))
    wanted = w(**run.bench.table.collate(rows)).logits.detach()
    by_hand.close(run.global_logits(dtype=torch.float64), wanted, 1e-10)


@pytest.mark.parametrize(("kind", "lr"), [("llama", 0.005), ("t5", 0.02)])
def test_language_models_train_and_write_as_the_plain_model_with_those_weights(kind: str, lr: float) -> None:
    run = tiny.federation(replace(SMALL, optim=SMALL.optim.but(lr=lr)), kind, task="generation", rounds=2, participation=0.7)
    w, rows = whole(run), np.array([40, 0, 7, 21, 3])
    before = generating.write(run.server.pack(), run.method.forward, [rows], Decoding(new_tokens=8))[0]
    for t in range(2):
        w, _ = play(run, w, t, of_answers, lambda p: torch.optim.SGD(p, lr=lr))
        assert_holds(run, w, 1e-9)  # their norms, and attention in a T5, compute in single precision
    found = generating.write(run.server.pack(), run.method.forward, [rows], Decoding(new_tokens=8))[0]
    assert found == [alone(w, run, int(i), 8) for i in rows]
    assert len(set(found)) > 1
    assert found != before


@torch.no_grad()
def alone(model: Any, run: Federation, row: int, new: int) -> str:
    """What transformers writes after one prompt, keeping keys and values."""
    table: Any = run.bench.table
    words, inputs = run.bench.backbone.tokenizer, table.prompts(np.array([row]))
    found = model.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    width = 0 if run.bench.backbone.encoder_decoder else inputs["input_ids"].shape[1]
    return words.decode(found[0, width:], skip_special_tokens=True).strip()


def test_one_full_batch_and_one_step_are_one_gradient_step_on_all_rows() -> None:
    """FedSGD: the weighted mean of the clients' steps is the step on the union of their data (section 2 of the paper)."""
    run = tiny.federation(replace(SMALL, steps=1, batch=16), rounds=1)
    w = whole(run)
    rows = np.concatenate([c.data.train for c in run.clients])
    central = client_update(run, w, [rows], of_classes, sgd)
    run.run()
    assert_holds(run, central)


def test_with_adamw_it_is_that_of_pytorch() -> None:
    method = replace(SMALL, optim=Optim("adamw", lr=1e-2, weight_decay=0.1, schedule="constant", eps=1e-6))
    run = tiny.federation(method, rounds=2)
    w = whole(run)
    for t in range(2):
        w, _ = play(run, w, t, of_classes, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, eps=1e-6))
        assert_holds(run, w, by_hand.ADAM)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_every_parameter_of_the_model_is_trained_once(kind: str) -> None:
    run = tiny.federation(SMALL, kind, rounds=1).run()
    model = run.bench.backbone.model
    assert sum(v.numel() for v in by_hand.shared(run).values()) == sum(p.numel() for p in model.parameters())
    moved = {parameter(n) for n, stamp in run.server.stamps.items() if stamp}
    assert moved == {n for n, _ in model.named_parameters()}


def test_a_part_of_the_weights_is_trained_if_that_is_asked_for() -> None:
    run = tiny.federation(replace(SMALL, tune=replace(SMALL.tune, weights="blocks")), rounds=1).run()
    assert {n for n in by_hand.shared(run) if ".layer." not in n} == {"head/classifier/weight", "head/classifier/bias"}
    assert len(by_hand.shared(run)) == 3 * 16 + 2


def test_defaults_are_the_papers() -> None:
    method = FedAvg()
    # "E = 5, B = 10" of its tables; weights n_k / n of Algorithm 1; plain SGD at a rate η
    assert (method.epochs, method.batch, method.weighting, method.steps) == (5.0, 10, "examples", None)
    assert method.optim == Optim("sgd", lr=method.optim.lr, momentum=0.0, weight_decay=0.0, clip=None, schedule="constant")
    assert method.tune.kind == "weights"
    assert method.tune.weights == "all"


def test_on_bert_base_all_numbers_but_the_head_are_weights() -> None:
    sent = by_hand.elements(FedAvg(), by_hand.roberta_base(), Scope.UP)
    assert sent["weights"] + sent["head"] == sum(p.numel() for p in by_hand.roberta_base().model.parameters())
    assert sent["weights"] > 124e6 - 1e6


@pytest.mark.parametrize("kind", ["vit", "llama", "t5", "clip", "gpt2", "deberta-v2"])
def test_other_architectures_keep_the_pack_law(kind: str) -> None:
    assert of_settings.check_on(FedAvg(), kind)


test_laws = laws.over(FedAvg(optim=Optim("adamw", lr=1e-3, schedule="constant")))


# what other tests ask of this method --------------------------------------------------------------------------------------


def all_weights(turn: Turn) -> Sizes:
    linear = [(D, D)] * 4 + [(WIDE, D), (D, WIDE)]  # query, key, value, output; feed-forward
    block = [size for d_out, d_in in linear for size in (d_out * d_in, d_out)] + [D] * 4  # two norms
    tables = [100 * D, 64 * D, 2 * D, D, D]  # words, positions, kinds of segments, and their norm
    pooler = [D * D, D]
    return {"weights": tables + block * LAYERS + pooler, "head": HEAD}


BYTES = Case({}, all_weights, all_weights)
