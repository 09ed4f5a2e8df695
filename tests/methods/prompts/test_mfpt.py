"""MFPT against its card: P-tuning on transformers' own model with PyTorch's modules, by hand, and the mean of the encoders."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import by_hand
import tiny
from bytes_of import HEAD, Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.federation.scope import Scope
from weft.methods import MFPT, FedAvg

M, H = 3, 5
SITE = "prompt/bert.embeddings.word_embeddings"
SMALL = MFPT(tokens=M, hidden=H, batch=4, optim=MFPT().optim.but(lr=0.02, eps=1e-6))
Values = dict[str, Tensor]


class Prompted(nn.Module):
    """A classifier of transformers with a head of its own and P-tuning's encoder, [CLS] first."""

    def __init__(self, run: tiny.Federation, values: Values):
        super().__init__()
        self.model = copy.deepcopy(run.bench.backbone.model).requires_grad_(False)
        self.words = nn.Parameter(values[f"{SITE}/words"].clone())
        layers = [nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, D)]
        self.encoder = nn.Sequential(*layers).double()
        self.encoder.load_state_dict(
            {f"{2 * i}.{kind}": values[f"{SITE}/{kind}{i + 1}"] for i in range(3) for kind in ("weight", "bias")}
        )
        self.model.classifier.load_state_dict({role: values[f"head/classifier/{role}"] for role in ("weight", "bias")})
        self.model.classifier.requires_grad_(True)

    def forward(self, inputs: Values) -> Tensor:
        own = self.model.get_input_embeddings()(inputs["input_ids"])
        words = self.encoder(self.words).expand(len(own), -1, -1)
        put = torch.cat([own[:, :1], words, own[:, 1:]], 1)
        mask = torch.cat([torch.ones(len(own), M, dtype=torch.int64), inputs["attention_mask"]], 1)
        found: Tensor = self.model(inputs_embeds=put, attention_mask=mask).logits
        return found

    def values(self) -> Values:
        found = {f"{SITE}/words": self.words.detach().clone()}
        for i in range(3):
            for kind in ("weight", "bias"):
                found[f"{SITE}/{kind}{i + 1}"] = getattr(self.encoder[2 * i], kind).detach().clone()
        return found | {f"head/classifier/{n}": p.detach().clone() for n, p in self.model.classifier.named_parameters()}


def tuned(run: tiny.Federation, values: Values, steps: list[np.ndarray]) -> Values:
    made = Prompted(run, values)
    optim = run.method.optim
    moving = [p for p in made.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=optim.lr, eps=optim.eps, weight_decay=optim.weight_decay)
    for rows in steps:
        optimizer.zero_grad()
        F.cross_entropy(made(run.bench.table.collate(rows)), by_hand.labels(run, rows)).backward()
        optimizer.step()
    return made.values()


def close(found: Values, wanted: Values, tolerance: float = 1e-6) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        by_hand.close(found[name], value, tolerance)


def test_three_rounds_of_half_the_clients_one_of_them_absent_are_those_done_by_hand() -> None:
    run = tiny.federation(SMALL, rounds=3, participation=0.7, seed=5)
    values = by_hand.start_of(run)
    taking_part = []
    for t in range(3):
        seen = by_hand.record(run)
        steps = {c.id: by_hand.steps_of(run, k, t) for k, c in enumerate(run.clients) if c.n}
        run.simulation.round(t)
        taking_part.append({u.client.id for u in seen[0]})
        trained = {u.client.id: tuned(run, values, steps[u.client.id]) for u in seen[0]}
        sizes = {u.client.id: u.client.n for u in seen[0]}
        for u in seen[0]:
            close(dict(u.tensors), trained[u.client.id])  # type: ignore[arg-type]
        total = sum(sizes.values())
        values = {n: sum((sizes[c] / total * v[n] for c, v in trained.items()), torch.zeros(())) for n in values}  # type: ignore[misc]
        close(by_hand.shared(run), values)
    assert any(who != {c.id for c in run.clients if c.n} for who in taking_part), "nobody was absent"
    rows = np.arange(len(run.bench.table))
    wanted = Prompted(run, values)(run.bench.table.collate(rows)).float()
    by_hand.close(run.global_logits(), wanted.detach(), 1e-4)


def test_one_client_is_p_tuning_with_the_same_batches() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=2)
    values = by_hand.start_of(run)
    for t in range(2):
        values = tuned(run, values, by_hand.steps_of(run, 0, t))
        run.simulation.round(t)
        close(by_hand.shared(run), values)


def test_the_encoders_are_averaged_and_not_the_words_that_they_make() -> None:
    run = tiny.federation(SMALL)
    updates = by_hand.invented(run, [9.0, 5.0, 1.0])
    run.method.aggregate(run.server, updates)
    found = by_hand.shared(run)
    wanted = {n: sum((u.weight / 15 * u.tensors[n] for u in updates), torch.zeros(())) for n in found}  # type: ignore[operator, misc]
    close(found, wanted, 1e-12)

    def made(values: Values) -> Tensor:
        encoder = Prompted(run, values)
        return encoder.encoder(encoder.words).detach()

    of_each = sum((u.weight / 15 * made(dict(u.tensors)) for u in updates), torch.zeros(()))  # type: ignore[arg-type]
    assert (made(found) - of_each).abs().max() > 1e-3


def test_the_mean_can_be_uniform() -> None:
    run = tiny.federation(replace(SMALL, weighting="uniform"), rounds=1)
    seen = by_hand.record(run)
    run.run()
    wanted = {n: torch.stack([u.tensors[n] for u in seen[0]]).mean(0) for n in seen[0][0].tensors}  # type: ignore[misc]
    close(by_hand.shared(run), wanted, 1e-12)
    assert len({u.client.n for u in seen[0]}) > 2


def test_clients_with_the_same_rows_get_what_each_of_them_sends() -> None:
    run = tiny.federation(SMALL, sizes=(5, 5), rounds=1)
    run.clients[1].data = run.clients[0].data
    for c in run.clients:
        c.data = replace(c.data, train=run.clients[0].data.train[:1])  # of several rows the order of batches is a client's own
        c.n = 1
    seen = by_hand.record(run)
    run.run()
    first, second = (dict(u.tensors) for u in seen[0])
    close(first, second, 1e-12)  # type: ignore[arg-type]
    close(by_hand.shared(run), first, 1e-12)  # type: ignore[arg-type]


def test_only_encoder_and_head_move_and_travel() -> None:
    run = tiny.federation(SMALL, rounds=2)
    before = frozen_fingerprint(run.bench.backbone)
    seen = by_hand.record(run)
    run.run()
    assert frozen_fingerprint(run.bench.backbone) == before
    assert {n.split("/")[0] for updates in seen for u in updates for n in u.tensors} == {"prompt", "head"}
    assert not any(by_hand.kept(run).values())


def test_without_words_it_is_the_head_alone() -> None:
    """Bit for bit federated averaging of the head, with the same optimizer."""
    mine = tiny.federation(replace(SMALL, tokens=0), rounds=2).run()
    plain = FedAvg(batch=4, epochs=1.0, optim=SMALL.optim)
    theirs = tiny.federation(replace(plain, tune=replace(plain.tune, kind="head")), rounds=2).run()
    found, wanted = by_hand.shared(mine), by_hand.shared(theirs)
    assert set(found) == {"head/classifier/weight", "head/classifier/bias"}
    assert all(torch.equal(found[n], wanted[n]) for n in found)


@pytest.mark.parametrize("scope", [Scope.UP, Scope.DOWN])
def test_a_client_sends_and_gets_encoder_and_head(scope: Scope) -> None:
    found = by_hand.elements(MFPT(), tiny.backbone("bert"), scope)
    assert found["prompt"] == 20 * D + (D * 128 + 128) + (128 * 128 + 128) + (128 * D + D)
    assert by_hand.elements(replace(SMALL, encoder="none"), tiny.backbone("bert"), scope)["prompt"] == M * D


def test_the_share_of_xlm_roberta_is_the_cards() -> None:
    """0.822 M of 278 M: encoder and head of RoBERTa's form, of width 768 and three classes."""
    d, h, m, c = 768, 128, 20, 3
    encoder = m * d + (d * h + h) + (h * h + h) + (h * d + d)
    assert encoder + (d * d + d) + (d * c + c) == pytest.approx(0.822e6, rel=1e-2)
    of_tiny = by_hand.elements(MFPT(), tiny.backbone("xlm-roberta"), Scope.UP)
    assert of_tiny["head"] == D * D + D + D * 3 + 3


def test_defaults_are_those_of_the_card() -> None:
    method = MFPT()
    assert (method.tokens, method.encoder, method.hidden, method.where) == (20, "mlp", 128, "auto")
    assert (method.weighting, method.epochs, method.batch) == ("examples", 1.0, 32)
    assert method.optim == Optim("adamw", lr=1e-3, schedule="constant")
    assert (method.info.views, method.sums) == (("global",), True)


# what other tests ask of this method --------------------------------------------------------------------------------------


def encoder_and_head(turn: Turn) -> Sizes:
    return {"prompt": [M * D, H * D, H, H * H, H, D * H, D], "head": HEAD}


def words_and_head(turn: Turn) -> Sizes:
    return {"prompt": [M * D], "head": HEAD}


BYTES = Case({"tokens": M, "hidden": H}, encoder_and_head, encoder_and_head)
BYTES_VARIANTS = {"words themselves": Case({"tokens": M, "encoder": "none"}, words_and_head, words_and_head)}
