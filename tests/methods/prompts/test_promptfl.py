"""PromptFL against its card: CoOp on every client, put together by hand, and the plain mean of the contexts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from bytes_of import TEXT, Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.backbones.load import load
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import PromptFL

NAME = "context/text_model.embeddings.token_embedding/context"
P, D, CLASSES = 3, 24, 3  # tokens; width of the tiny text tower
SMALL = PromptFL(tokens=P, epochs=2.0, batch=4, optim=PromptFL().optim.but(lr=0.1))


def logits(run: tiny.Federation, context: Tensor, rows: np.ndarray, where: str = "end") -> Tensor:
    """CoOp's logits [n, C] by transformers' CLIP, every class name read by itself."""
    b = run.bench.backbone
    texts = hand.coop(b, run.bench.task.classes, context, where)
    return hand.similarity(b, hand.image_embedding(b, hand.pictures(run, rows)), texts)


def coop(run: tiny.Federation, context: Tensor, steps: list[np.ndarray]) -> Tensor:
    """CoOp on one client: SGD with momentum and decay, a rate that rises over a fifth of the steps and falls as a cosine."""
    context = context.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([context], lr=run.method.optim.lr, momentum=0.9, weight_decay=5e-4)
    n = len(steps)

    def share(i: int) -> float:
        rise = (i + 1) / max(0.2 * n, 1)
        return rise if rise < 1 else 0.5 * (1 + math.cos(math.pi * max(i / n - 0.2, 0) / 0.8))

    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for rows in steps:
        optimizer.zero_grad()
        F.cross_entropy(logits(run, context, rows), by_hand.labels(run, rows)).backward()
        optimizer.step()
        rate.step()
    return context.detach()


@pytest.mark.parametrize("per_class", [False, True])
def test_one_client_is_coop_with_the_same_batches(per_class: bool) -> None:
    run = tiny.federation(replace(SMALL, per_class=per_class), sizes=(9,), rounds=2)
    context = by_hand.start_of(run)[NAME]
    for t in range(2):
        steps = by_hand.steps_of(run, 0, t)
        assert len(steps) == 6
        context = coop(run, context, steps)  # the optimizer and its schedule are made anew in each round
        run.simulation.round(t)
        by_hand.close(by_hand.shared(run)[NAME], context)


def test_the_server_takes_the_plain_mean_of_what_each_client_trained_by_itself() -> None:
    """The released loop appends references to one model and keeps the last client's prompt."""
    run = tiny.federation(SMALL, rounds=1)
    seen = by_hand.record(run)
    start = by_hand.start_of(run)[NAME]
    wanted = {f"client-{k}": coop(run, start, by_hand.steps_of(run, k, 0)) for k, n in enumerate(tiny.SIZES) if n}
    run.run()
    for u in seen[0]:
        sent = u.tensors[NAME]
        assert isinstance(sent, Tensor)
        by_hand.close(sent, wanted[u.client.id])
    assert len(wanted) == len(seen[0]) == 5
    assert len({u.weight for u in seen[0]}) == 5, "sizes differ, weights do not"
    by_hand.close(by_hand.shared(run)[NAME], torch.stack(list(wanted.values())).mean(0))


def test_contexts_can_be_weighted_by_examples() -> None:
    run = tiny.federation(replace(SMALL, weighting="examples"))
    updates = by_hand.invented(run, [9.0, 5.0, 1.0])
    run.method.aggregate(run.server, updates)
    wanted = sum((u.weight / 15 * u.tensors[NAME] for u in updates), torch.zeros(P, D, dtype=torch.float64))  # type: ignore[operator]
    by_hand.close(by_hand.shared(run)[NAME], wanted, 1e-12)


def test_the_mean_of_identical_contexts_is_that_context() -> None:
    run = tiny.federation(SMALL)
    (one,) = by_hand.invented(run, [1.0])
    run.method.aggregate(run.server, [by_hand.update(run, k, one.tensors, w) for k, w in enumerate((9.0, 5.0, 1.0))])
    sent = one.tensors[NAME]
    assert isinstance(sent, Tensor)
    torch.testing.assert_close(by_hand.shared(run)[NAME], sent, rtol=2.3e-16, atol=0.0)


@pytest.mark.parametrize("where", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_server_predicts_with_the_texts_put_together_by_hand(where: str, per_class: bool) -> None:
    run = tiny.federation(replace(SMALL, where=where, per_class=per_class), rounds=1)
    before = by_hand.shared(run)[NAME]
    run.run()
    context = by_hand.shared(run)[NAME]
    assert not torch.allclose(context, before)
    rows = np.arange(len(run.bench.table))
    by_hand.close(run.global_logits(), logits(run, context, rows, where).float(), 1e-5)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_phrase_and_no_training_is_zero_shot_with_that_template(per_class: bool) -> None:
    names = tiny.names(CLASSES)
    b = load(tiny.folder("clip"), classes=names, device="cpu", precision="float64")
    run = tiny.federation(PromptFL(phrase="w1 w2 w5 w1", per_class=per_class), b)
    z = hand.image_embedding(b, hand.pictures(run, np.arange(len(run.bench.table))))
    wanted = hand.similarity(b, z, hand.zero_shot(b, names, "w1 w2 w5 w1 {}."))
    by_hand.close(run.global_logits(), wanted.float(), 1e-5)
    other = hand.similarity(b, z, hand.zero_shot(b, names, "w1 w2 w5 {}."))
    assert (wanted - other).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_frozen_template_of_the_backbone_says_the_same_as_the_phrase(precision: str) -> None:
    b = load(tiny.folder("clip"), classes=tiny.names(CLASSES), device="cpu", precision=precision, template="w1 w2 {}.")
    run = tiny.federation(PromptFL(phrase="w1 w2"), b)
    bench = run.server.pack()
    rows = np.arange(len(run.bench.table))
    (frozen,) = bench.predict(lambda p, batch: p(batch, {}), [rows])
    by_hand.close(run.global_logits(), frozen, 1e-4 if precision == "float32" else 1e-6)


def test_only_the_context_is_trained_and_sent() -> None:
    run = tiny.federation(SMALL, rounds=2)
    seen = by_hand.record(run)
    pack = run.pack([0])
    optimizer = pack.optimizer("*", settings=SMALL.optim)
    assert list(optimizer.params) == [NAME]
    assert not any(p.requires_grad for p in run.bench.backbone.model.parameters())
    run.run()
    for u in (u for updates in seen for u in updates):
        assert set(u.tensors) == {NAME}
        assert not u.facts
    message = run.method.send(run.server, run.clients[0].info(()))
    assert not message.facts
    assert not any(by_hand.kept(run).values())


@pytest.mark.parametrize(("per_class", "elements"), [(False, P * D), (True, CLASSES * P * D)])
def test_a_client_sends_and_gets_p_times_d_numbers_and_as_many_for_each_class_if_asked(per_class: bool, elements: int) -> None:
    method = replace(SMALL, per_class=per_class)
    for scope in (Scope.UP, Scope.DOWN):
        assert by_hand.elements(method, tiny.backbone("clip"), scope) == {"context": elements}


def test_a_client_with_a_single_class_has_a_column_for_every_class_and_a_gradient() -> None:
    run = tiny.federation(SMALL)
    k = 3
    rows = run.clients[k].data.train
    assert len(set(run.bench.table.labels[rows].tolist())) == 1
    pack = run.pack([k])
    optimizer = pack.optimizer("*", settings=SMALL.optim)
    batch = next(iter(pack.batches(size=4)))
    out = run.method.forward(pack, batch)
    assert out.logits.shape == (1, batch.index.shape[1], CLASSES)
    (slope,) = torch.autograd.grad(pack.loss(out, batch).sum(), list(optimizer.params.values()))
    assert slope.abs().min() > 0


def test_a_context_for_each_class_gets_a_gradient_from_examples_of_other_classes_too() -> None:
    run = tiny.federation(replace(SMALL, per_class=True))
    pack = run.pack([3])
    optimizer = pack.optimizer("*", settings=SMALL.optim)
    batch = next(iter(pack.batches(size=4)))
    (slope,) = torch.autograd.grad(pack.loss(run.method.forward(pack, batch), batch).sum(), list(optimizer.params.values()))
    assert slope.abs().amax((0, 2, 3)).min() > 0


def test_what_a_client_makes_of_the_received_context_is_what_the_server_makes_of_it() -> None:
    run = tiny.federation(SMALL, rounds=2).run()
    rows = np.arange(len(run.bench.table))
    pack = run.pack([1, 0, 4], t=2)
    for found in pack.predict(lambda p, b: run.method.forward(p, b, "global"), [rows] * 3):
        by_hand.close(found, run.global_logits(), 1e-6)


def test_a_class_name_too_long_beside_the_context_is_refused_by_name() -> None:
    long = " ".join(["w1"] * 50)
    b = load(tiny.folder("clip"), classes=["w7", long, "w9"], device="cpu", precision="float64")
    run = tiny.federation(PromptFL(), b)
    with pytest.raises(UserError, match=f'class "{long}" makes a text of 69 tokens, but the text tower takes 64: shorten'):
        run.run()


def test_a_backbone_without_a_text_tower_is_refused() -> None:
    with pytest.raises(UserError, match="has no text tower for class names"):
        tiny.federation(SMALL, "vit")


def test_defaults_are_the_codes() -> None:
    method = PromptFL()
    # "p = 16 by default", "N(0, 0.02²)", "one context for all classes", "Default end"
    assert (method.tokens, method.std, method.per_class, method.where, method.phrase) == (16, 0.02, False, "end", "")
    # PEILab-Federated-Learning/PromptFL, federated_main.py: MAX_EPOCH = 5 # local epoch; configs/trainers: BATCH_SIZE 32
    assert (method.weighting, method.epochs, method.steps, method.batch) == ("uniform", 5.0, None, 32)
    # configs and Dassl's defaults: SGD, momentum 0.9, weight decay 5e-4, lr 0.001; the first of five epochs is a warm-up
    assert method.optim == Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="cosine", warmup=1 / 5)
    assert (method.info.views, method.sums) == (("global",), True)


def test_where_the_course_of_the_rate_and_the_last_batch_differ_from_the_code_the_page_says_so() -> None:
    # Dassl/dassl/optim/lr_scheduler.py: a constant epoch, then CosineAnnealingLR over MAX_EPOCH from its own first epoch
    plain = torch.nn.Parameter(torch.zeros(1))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([plain], lr=1.0), 5)
    for _ in range(3):
        fall.optimizer.step()
        fall.step()
    ends = f"ends at {fall.get_last_lr()[0]:.2f} of the rate"
    # Dassl/dassl/data/data_manager.py: drop_last=is_train and len(data_source) >= batch_size
    run = tiny.federation(SMALL, "clip", sizes=(9,), rounds=1)
    assert sum(map(len, by_hand.steps_of(run, 0, 0))) == 9 * SMALL.epochs
    assert 9 % SMALL.batch, "no batch would be smaller than the others"
    assert all(
        said in PromptFL.info.deviations for said in (ends, "smaller batch of an epoch is trained on, which the code drops")
    )


# what other tests ask of this method --------------------------------------------------------------------------------------


def context_bytes(turn: Turn) -> Sizes:
    return {"context": [5 * TEXT]}  # p·d


def bytes_for_each_class(turn: Turn) -> Sizes:
    return {"context": [CLASSES * 5 * TEXT]}


BYTES = Case({"tokens": 5}, context_bytes, context_bytes, head=False)
BYTES_VARIANTS = {
    "a context for each class": Case({"tokens": 5, "per_class": True}, bytes_for_each_class, bytes_for_each_class, head=False)
}


def test_a_phrase_says_how_many_tokens_there_are() -> None:
    assert PromptFL(phrase="a photo of a").tokens == PromptFL().tokens
    with pytest.raises(UserError, match='as many tokens as its phrase "a photo", and tokens is 3: leave one of them out'):
        PromptFL(phrase="a photo", tokens=3)
