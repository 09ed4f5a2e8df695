"""What a federation computes, done again in plain PyTorch: merged weights, ``torch.optim`` and no client axis.

It shares nothing with the package but the start values, the rows of each step and the frozen model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers import TrainingArguments

import tiny
from weft.adaptation.optim import Optim
from weft.backbones import attending, describe
from weft.backbones.backbone import Backbone
from weft.backbones.model_site import Site
from weft.federation.client import ClientState
from weft.federation.layout import named
from weft.federation.message import ClientInfo, Update, Value
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.federation.scope import Scope
from weft.federation.turn import Turn
from weft.tasks.classification import Classification
from weft.tensors.lowrank import LowRank

Values = Mapping[str, Tensor]


ADAM = 1e-6
"""Tolerance behind AdamW: its divisor can be as small as its ε of 1e-8, which lifts rounding errors of 1e-17 to 1e-9."""


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    """In float64, up to rounding."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# the model ----------------------------------------------------------------------------------------------------------


def merged(run: tiny.Federation, values: Values, scale: float) -> dict[str, Tensor]:
    """Parameters of the whole model: W0 + scale·B A, W0 + delta, and biases and heads put in place."""
    model = run.bench.backbone.model
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        _, site, role = name.split("/")
        weight = f"{site}.weight"
        if role in ("weight", "bias"):
            found[f"{site}.{role}"] = value
        elif role == "delta":
            found[weight] = found.get(weight, model.get_parameter(weight)) + value
        elif role == "B":
            found[weight] = found.get(weight, model.get_parameter(weight)) + scale * value @ values[name[:-1] + "A"]
    return found


def logits(run: tiny.Federation, values: Values, rows: np.ndarray | None = None, scale: float = 1.0) -> Tensor:
    """[n, C] of the Hugging Face model with merged weights, on rows of the table (all, if None)."""
    index = np.arange(len(run.bench.table)) if rows is None else rows
    inputs = run.bench.table.collate(index)
    out: Tensor = functional_call(run.bench.backbone.model, merged(run, values, scale), kwargs=inputs).logits
    return out


@cache
def own_copy(model: torch.nn.Module) -> torch.nn.Module:
    """For what leaves hooks of its own on a model, as transformers does where it is asked for hidden states."""
    return deepcopy(model)


def seen(run: tiny.Federation, values: Values, rows: np.ndarray, scale: float) -> tuple[Tensor, Tensor]:
    """Logits [n, C] of the Hugging Face model with merged weights, and what leaves its last layer at the first tokens, [n, d]."""
    inputs = {**run.bench.table.collate(rows), "output_hidden_states": True}
    out = functional_call(own_copy(run.bench.backbone.model), merged(run, values, scale), kwargs=inputs)
    return out.logits, out.hidden_states[-1][:, 0]


def labels(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(run.bench.table.labels[rows])


def train(
    run: tiny.Federation,
    values: Values,
    steps: Sequence[np.ndarray],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    scale: float = 1.0,
    only: Callable[[str], bool] = lambda name: True,
    linear: bool = False,
    clip: float | None = None,
    predict: Callable[[tiny.Federation, Values, np.ndarray], Tensor] | None = None,
    more: Callable[[Values], Tensor] | None = None,
) -> dict[str, Tensor]:
    """A plain local loop over the rows of each step; with ``linear`` the rate falls to 0 over them; ``clip``: of the norm;
    ``predict``: logits of what is more than merged weights; ``more``: what is added to the loss.
    """
    leaves = {n: v.clone().requires_grad_(only(n)) for n, v in values.items()}
    moving = [v for v in leaves.values() if v.requires_grad]
    opt = optimizer(moving)
    fall = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1 - i / len(steps) if linear else 1.0)
    for rows in steps:
        opt.zero_grad()
        z = logits(run, leaves, rows, scale) if predict is None else predict(run, leaves, rows)
        loss = F.cross_entropy(z, labels(run, rows))
        (loss if more is None else loss + more(leaves)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(moving, clip)
        opt.step()
        fall.step()
    return {n: v.detach() for n, v in leaves.items()}


def trainer(lr: float) -> Optim:
    """What transformers' trainer does where a code that rests on it says no more than a learning rate."""
    of: dict[str, Any] = {f.name: f.default for f in fields(TrainingArguments)}
    assert str(getattr(of["lr_scheduler_type"], "value", of["lr_scheduler_type"])) == "linear"
    assert not of["warmup_steps"]
    betas = (float(of["adam_beta1"]), float(of["adam_beta2"]))
    clip, decay, eps = float(of["max_grad_norm"]), float(of["weight_decay"]), float(of["adam_epsilon"])
    return Optim("adamw", lr=lr, betas=betas, eps=eps, weight_decay=decay, clip=clip, schedule="linear", warmup=0.0)


# the run --------------------------------------------------------------------------------------------------------------


def steps_of(run: tiny.Federation, position: int, t: int) -> list[np.ndarray]:
    """The rows of each step that a client takes in round t."""
    method = run.method
    pack = run.pack([position], t)
    return [b.index[0] for b in pack.batches(method.epochs, method.steps, method.batch)]


def start_of(run: tiny.Federation, position: int = 0, t: int = 0) -> dict[str, Tensor]:
    """Every tensor that a client enters round t with."""
    pack = run.pack([position], t)
    return {n: pack.value(0, n) for n in pack.shapes if n in pack.tensors}


def shared(run: tiny.Federation) -> dict[str, Tensor]:
    """What the server holds, products of growing values written out."""
    return {n: (v.dense() if isinstance(v, LowRank) else v).clone() for n, v in run.server.shared.items()}


def kept(run: tiny.Federation) -> dict[str, dict[str, Tensor]]:
    """Client -> its personal tensors."""
    found = {}
    for client in run.clients:
        run.simulation.setup.store.load(client)
        found[client.id] = {n: v.clone() for n, v in client.kept.items()}
        run.simulation.setup.store.forget(client)
    return found


def personal_logits(run: tiny.Federation, view: str = "personal", rows: np.ndarray | None = None) -> dict[str, Tensor]:
    """Client -> what its own model says about rows of the table (its test rows, if None)."""
    wanted = {c.id: c.data.test if rows is None else rows for c in run.clients}
    return run.personal_logits(view, {c: r for c, r in wanted.items() if len(r)})


def record(run: tiny.Federation) -> list[list[Update]]:
    """From now on the updates that the server of this run reads, one list a round."""
    seen: list[list[Update]] = []
    read = run.simulation.intake.updates

    def keep(*args: object) -> Iterable[Update]:
        got = list(read(*args))  # type: ignore[arg-type]
        seen.append(got)
        return iter(got)

    run.simulation.intake.updates = keep  # type: ignore[method-assign]
    return seen


def turn(run: tiny.Federation, info: ClientInfo, held: Mapping[str, Value] | None = None) -> Turn:
    """A client as the coordinator knows it; ``held`` = what it has after the server's next message, if None."""
    adaptation = adapted(run.method, run.bench, info)
    if held is None:
        held = run.server.held_by(info, adaptation, run.method.send(run.server, info))
    return Turn(ClientState(info.id, info.n, dict(info.facts), info.model), adaptation, held)


def update(run: tiny.Federation, position: int, tensors: Mapping[str, Value], weight: float) -> Update:
    """An update made up by the test."""
    client = run.clients[position].info(run.method.info.asks)
    adaptation = adapted(run.method, run.bench, client)
    return Update(tensors=dict(tensors), client=client, weight=weight, adaptation=adaptation)


def spoil(run: tiny.Federation, position: int) -> None:
    """Give all training rows of one client other labels."""
    table, rows = run.bench.table, run.clients[position].data.train
    wrong = table.labels.copy()
    wrong[rows] = (wrong[rows] + 1) % len(run.bench.task.classes)
    run.bench.table = replace(table, labels=wrong)


def invented(run: tiny.Federation, weights: Sequence[float], scope: Scope = Scope.UP) -> list[Update]:
    """Random updates of everything that clients may send, one for each weight."""
    found = []
    for k, weight in enumerate(weights):
        g = torch.Generator().manual_seed(k + 1)
        blank = update(run, k, {}, weight)
        tensors = {
            n: torch.randn(i.shape, generator=g, dtype=run.bench.dtype)
            for n, i, s in named(blank.adaptation, run.bench.backbone)
            if scope in s
        }
        found.append(update(run, k, tensors, weight))
    return found


def mean_product(updates: Sequence[Update], site: str, scales: Sequence[float]) -> Tensor:
    """Σ p_k s_k B_k A_k as a dense matrix, p_k = weight over the sum of weights."""
    total = math.fsum(u.weight for u in updates)
    found = torch.zeros(())
    for u, s in zip(updates, scales, strict=True):
        a, b = u.tensors[f"lora/{site}/A"], u.tensors[f"lora/{site}/B"]
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        found = found + u.weight / total * s * b @ a
    return found


def sites(run: tiny.Federation, part: str = "lora") -> list[str]:
    return [s.name for s in run.server.sites(part)]


# counting -------------------------------------------------------------------------------------------------------------


def roberta_base(classes: int = 2) -> Backbone:
    """RoBERTa-base with all its shapes and none of its 125 million numbers."""
    from transformers import AutoModelForSequenceClassification, RobertaConfig

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            RobertaConfig(max_position_embeddings=514, type_vocab_size=1, num_labels=classes)
        )
        return shapes("roberta-base", model, {"input_ids": torch.ones(5, 3, dtype=torch.long)})


def vit_base(classes: int = 100) -> Backbone:
    """ViT-B of patches of 16 pixels, likewise."""
    from transformers import AutoModelForImageClassification, ViTConfig

    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(ViTConfig(num_labels=classes))
        found = shapes("vit-base", model, {"pixel_values": torch.zeros(7, 3, 224, 224)})
    patches = "vit.embeddings.patch_embeddings.projection"
    found.bottlenecks = [Site(b, "bottleneck", found.d, found.d, block=i) for i, b in enumerate(found.blocks)]
    return replace(found, reads="images", more_tokens=True, reader=Site(patches, "patches", 3, found.d, block=None, bias=True))


def shapes(name: str, model: Any, inputs: Mapping[str, Tensor]) -> Backbone:
    """A model without numbers, described as far as that can be without running it for what it computes."""
    prefix = model.base_model_prefix
    blocks = describe.find_blocks(model.base_model, prefix, model.config.num_hidden_layers)
    heads = describe.head_sites(model, prefix, set())
    found = Backbone(
        name=name,
        hub_id=None,
        path="",
        weight_hash="",
        model=model,
        tokenizer=None,
        blocks=blocks,
        shared_blocks=False,
        tuple_blocks=False,
        row_arguments=frozenset(),
        linears=describe.linear_sites(model, blocks),
        norms=describe.norm_sites(model, blocks, {h.name for h in heads}),
        heads=heads,
        bottlenecks=[],
        d=model.config.hidden_size,
        pools="first",
        originals={n: p for n, p in model.named_parameters() if n.endswith("bias") and n.startswith(f"{prefix}.")},
        max_length=512,
    )
    found._attentions = attending.sites(model, blocks, inputs)
    return found


def elements(method: Method, backbone: Backbone, scope: Scope, classes: int = 2) -> dict[str, int]:
    """Part -> numbers of its tensors that have these bits of scope."""
    task = Classification(tuple(str(c) for c in range(classes)))
    found: dict[str, int] = {}
    for name, init, s in named(method.adapt(backbone, task, ClientInfo("")), backbone):
        if scope in s:
            part = name.split("/")[0]
            found[part] = found.get(part, 0) + init.numel
    return found


def known(run: tiny.Federation) -> dict[str, Tensor]:
    """Everything that the server has learnt: what it shares, and what it keeps to itself."""
    return shared(run) | {f"memo {n}": v for n, v in run.server.memo.items() if isinstance(v, Tensor)}


def play_and_see_who_stays(run: tiny.Federation, rounds: int) -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """Play rounds in which not everybody is drawn, and assert that what an absent client keeps stays as it was.

    Returns:
        of each that was drawn and had something before: its id, what it kept before, and after.
    """
    absences, drawn = 0, []
    for t in range(rounds):
        before = kept(run)
        record = run.simulation.round(t)
        assert record is not None
        for client, values in kept(run).items():
            if client in record["cohort"]:
                if before[client]:
                    drawn.append((client, before[client], values))
                continue
            assert values.keys() == before[client].keys()
            assert all(torch.equal(v, before[client][n]) for n, v in values.items())
            absences += bool(values)
    assert absences
    return drawn
