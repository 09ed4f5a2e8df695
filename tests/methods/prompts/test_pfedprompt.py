"""pFedPrompt against its card: PromptFL by hand, and a memory of pictures gone through one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import clip_rounds
import images_by_hand as hand
import tiny
from bytes_of import TEXT, Case, Sizes, Turn
from clip_rounds import Values
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.export.trained import capture
from weft.federation.batch import Batch, make_batch
from weft.federation.pack import Pack
from weft.federation.scope import Scope
from weft.methods import PFedPrompt, PromptFL
from weft.methods.prompts.pfedprompt import CLASSES, KEYS

L, C = 3, 3
NAME = f"context/{clip_rounds.CONTEXT}"
SMALL = PFedPrompt(tokens=L, epochs=2.0, batch=4, optim=PFedPrompt().optim.but(lr=0.1))
PLAIN = PromptFL(tokens=L, epochs=2.0, batch=4, weighting="examples", optim=SMALL.optim)


def embedded(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    return F.normalize(hand.image_embedding(run.bench.backbone, hand.pictures(run, rows)), dim=-1)


def attention(run: tiny.Federation, rows: np.ndarray, memory: np.ndarray, without_own: bool) -> Tensor:
    """LFA(I) [n, C], a sum over the memory, picture by picture."""
    method, found = run.method, torch.zeros(len(rows), C, dtype=torch.float64)
    assert isinstance(method, PFedPrompt)
    images, keys = embedded(run, rows), embedded(run, memory) if len(memory) else None
    for i, row in enumerate(rows):
        chosen = [j for j in range(len(memory)) if not (without_own and memory[j] == row)]
        cosines = {j: float(images[i] @ keys[j]) for j in chosen}  # type: ignore[index]
        total = sum(math.exp(method.beta * z) for z in cosines.values())
        for j, z in cosines.items():
            y = int(run.bench.table.labels[memory[j]])
            a = math.exp(-method.beta * (1 - z)) if method.kernel == "exp" else math.exp(method.beta * z) / total
            shots = sum(int(run.bench.table.labels[memory[m]]) == y for m in chosen)
            found[i, y] += a / shots if method.per_shot else a
    return found


def logits(run: tiny.Federation, values: Values, rows: np.ndarray, k: int, training: bool = False) -> Tensor:
    """z + α·LFA(I), or z alone in training, unless the memory is asked for there."""
    method, b = run.method, run.bench.backbone
    assert isinstance(method, PFedPrompt)
    texts = hand.coop(b, run.bench.task.classes, values[NAME])
    z = hand.similarity(b, hand.image_embedding(b, hand.pictures(run, rows)), texts)
    if training and not method.in_training:
        return z
    return z + method.alpha * attention(run, rows, run.clients[k].data.train, training)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"in_training": True, "alpha": 3.0},
        {"in_training": True, "kernel": "softmax", "alpha": 5.0},
        {"in_training": True, "per_shot": True, "beta": 2.0},
    ],
)
def test_four_rounds_by_hand_with_clients_that_are_away(changes: dict[str, Any]) -> None:
    run = tiny.federation(replace(SMALL, **changes), rounds=4)
    common, own = clip_rounds.play(run, lambda run, v, rows, k: logits(run, v, rows, k, True))
    assert not any(own), "nothing of a client's own is left behind"
    rows = np.arange(len(run.bench.table))
    for k, found in enumerate(by_hand.personal_logits(run, "personal", rows).values()):
        by_hand.close(found, logits(run, common, rows, k).float(), 1e-5)
    plain = hand.coop(run.bench.backbone, run.bench.task.classes, common[NAME])
    z = hand.similarity(run.bench.backbone, hand.image_embedding(run.bench.backbone, hand.pictures(run, rows)), plain)
    by_hand.close(run.global_logits(rows), z.float(), 1e-5)


@pytest.mark.parametrize("changes", [{"alpha": 0.0, "in_training": True}, {"alpha": 2.0}])
def test_without_the_memory_in_training_the_prompt_is_promptfls(changes: dict[str, Any]) -> None:
    run, twin = (tiny.federation(m, rounds=3, participation=0.5) for m in (replace(SMALL, **changes), PLAIN))
    for t in range(3):
        run.simulation.round(t)
        twin.simulation.round(t)
        assert torch.equal(by_hand.shared(run)[NAME], by_hand.shared(twin)[NAME])
    rows = np.arange(len(run.bench.table))
    assert torch.equal(run.global_logits(rows), twin.global_logits(rows))
    alike = [torch.equal(z, twin.global_logits(rows)) for z in by_hand.personal_logits(run, "personal", rows).values()]
    assert alike == [not changes["alpha"] or not n for n in tiny.SIZES]


def test_the_memory_in_training_makes_another_prompt() -> None:
    run, twin = (tiny.federation(replace(SMALL, in_training=i), rounds=1).run() for i in (True, False))
    assert (by_hand.shared(run)[NAME] - by_hand.shared(twin)[NAME]).abs().max() > 1e-4


# attention ------------------------------------------------------------------------------------------------------------


def looked_at(method: PFedPrompt, k: int = 0, rows: np.ndarray | None = None) -> tuple[Pack, Batch, Tensor]:
    """A client's pack, a batch of these rows (its training rows, if None), and what its memory says of them, [n, C]."""
    run = tiny.federation(method)
    pack, rows = run.pack([k]), run.clients[k].data.train if rows is None else rows
    batch = make_batch(run.bench.task, run.bench.table, rows[None], None, run.bench.backbone.device)
    return pack, batch, method.attention(pack, batch)[0]


@pytest.mark.parametrize("kernel", ["exp", "softmax"])
@pytest.mark.parametrize("per_shot", [False, True])
def test_the_order_of_the_memory_says_nothing_and_twice_the_memory_twice_as_much_unless_it_is_divided(
    kernel: Any, per_shot: bool
) -> None:
    method = replace(SMALL, kernel=kernel, per_shot=per_shot)
    pack, batch, found = looked_at(method)
    keys, classes = pack.tensors[KEYS], pack.tensors[CLASSES]
    turned = torch.randperm(keys.shape[1], generator=torch.Generator().manual_seed(0))
    pack.tensors[KEYS], pack.tensors[CLASSES] = keys[:, turned], classes[:, turned]
    by_hand.close(method.attention(pack, batch)[0], found, 1e-12)
    pack.tensors[KEYS], pack.tensors[CLASSES] = torch.cat([keys, keys], 1), torch.cat([classes, classes], 1)
    times = (2.0 if kernel == "exp" else 1.0) / (2.0 if per_shot else 1.0)
    by_hand.close(method.attention(pack, batch)[0], times * found, 1e-12)


def test_absent_classes_get_nothing_and_a_client_without_rows_has_no_memory() -> None:
    for k in (3, 4):
        run = tiny.federation(SMALL)
        labels = set(run.bench.table.labels[run.clients[k].data.train].tolist())
        _, _, found = looked_at(SMALL, k, np.arange(8))
        for c in range(C):
            assert bool((found[:, c] > 0).all()) == (c in labels)
            assert bool(found[:, c].any()) == (c in labels)
        assert len(labels) == {3: 1, 4: 0}[k]
        for kernel in ("exp", "softmax"):
            assert bool(looked_at(replace(SMALL, kernel=kernel), k, np.arange(8))[2].isfinite().all())  # type: ignore[arg-type]


def test_a_sharp_kernel_finds_a_stored_picture_and_a_flat_one_counts_classes() -> None:
    run = tiny.federation(SMALL)
    rows = run.clients[0].data.train
    labels = run.bench.table.labels[rows]
    _, _, sharp = looked_at(replace(SMALL, beta=1e6))
    for i, y in enumerate(labels.tolist()):
        assert float(sharp[i, y]) >= 1 - 1e-6
        assert float(sharp[i].sum()) < 1.1, "no other picture is that near"
    _, _, flat = looked_at(replace(SMALL, beta=0.0))
    by_hand.close(flat, torch.from_numpy(np.bincount(labels, minlength=C)).double().expand(9, C), 1e-12)


def test_what_a_softmax_gives_sums_to_one() -> None:
    _, _, found = looked_at(replace(SMALL, kernel="softmax"), 1, np.arange(10))
    by_hand.close(found.sum(-1), torch.ones(10, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("kernel", ["exp", "softmax"])
def test_a_picture_does_not_find_itself_in_training_and_a_client_with_a_single_one_finds_nothing(kernel: Any) -> None:
    method = replace(SMALL, in_training=True, kernel=kernel)
    run = tiny.federation(method)
    pack = run.pack([2, 0])
    batch = next(iter(pack.batches(size=4)))
    z = pack(batch, {"context": 1.0}).logits
    for view in (None, "personal"):
        found = method.forward(pack, batch, view).logits - z
        for j, k in enumerate((2, 0)):
            rows = batch.index[j][batch.index[j] >= 0]
            wanted = attention(run, rows, run.clients[k].data.train, view is None)
            by_hand.close(found[j, : len(rows)], wanted, 1e-10)
            assert bool(wanted.any()) == (view is not None or k == 0)


def test_the_memory_of_a_short_client_is_not_longer_beside_a_long_one() -> None:
    for kernel in ("exp", "softmax"):
        method = replace(SMALL, kernel=kernel, beta=0.5)  # type: ignore[arg-type]
        run = tiny.federation(method)
        rows = np.arange(6)
        together = make_batch(run.bench.task, run.bench.table, np.stack([rows] * 2), [0, 2], run.bench.backbone.device)
        found = method.attention(run.pack([2, 3, 0]), together)
        for j, k in enumerate((2, 0)):
            by_hand.close(found[j], looked_at(method, k, rows)[2], 1e-12)


# what is kept and sent --------------------------------------------------------------------------------------------------


def test_the_context_alone_is_trained_and_sent_and_the_memory_neither_moves_nor_stays() -> None:
    run = tiny.federation(replace(SMALL, in_training=True), rounds=3)
    seen = by_hand.record(run)
    before = run.pack().tensors[KEYS].clone()
    pack = run.pack()
    list(run.method.train(pack))
    assert pack.optimized() == {NAME}
    run.run()
    assert torch.equal(run.pack(t=3).tensors[KEYS], before)
    assert all(set(u.tensors) == {NAME} and not u.facts for updates in seen for u in updates)
    assert set(run.server.shared) == {NAME}
    assert not any(by_hand.kept(run).values())
    for scope in (Scope.UP, Scope.DOWN):
        assert by_hand.elements(PFedPrompt(), tiny.backbone("clip"), scope) == {"context": 16 * TEXT}


def test_pictures_of_the_memory_go_through_the_tower_once_in_a_run() -> None:
    run = tiny.federation(SMALL, rounds=2, prefix=True)
    model = run.bench.backbone.model
    with mock.patch.object(model, "embed_images", wraps=model.embed_images) as images:
        run.run()
        by_hand.personal_logits(run)
    assert sum(len(pixels) for call in images.call_args_list for pixels in (*call.args, *call.kwargs.values())) == len(
        run.bench.table
    )


def test_a_model_of_one_client_has_its_memory_with_it() -> None:
    run = tiny.federation(SMALL, rounds=1).run()
    model = capture(run.method, run.server, "personal", run.clients[1])
    rows = np.arange(12)
    found = model.logits(run.bench.backbone, run.bench.task, run.bench.table, rows)
    wanted = by_hand.personal_logits(run, "personal", rows)["client-1"]
    by_hand.close(found, wanted, 1e-4)
    assert set(capture(run.method, run.server, "global").parts) == {"context"}


def test_a_backbone_without_a_text_tower_is_refused() -> None:
    with pytest.raises(UserError, match="has no text tower for class names"):
        tiny.federation(SMALL, "vit")


def test_defaults() -> None:
    method, plain = PFedPrompt(), PromptFL()
    assert (method.alpha, method.beta, method.kernel, method.per_shot, method.in_training) == (1.0, 5.5, "exp", False, False)
    assert (method.tokens, method.std, method.where, method.epochs, method.batch) == (16, 0.02, "end", 5.0, 32)
    assert method.optim == plain.optim == Optim("sgd", 1e-3, momentum=0.9, weight_decay=5e-4, schedule="cosine", warmup=0.2)
    assert (method.weighting, method.info.evidence) == ("examples", "reconstructed")
    assert (method.info.views, method.sums) == (("personal", "global"), True)


# what other tests ask of this method --------------------------------------------------------------------------------------


def shared_prompt(turn: Turn) -> Sizes:
    return {"context": [5 * TEXT]}  # l·d


BYTES = Case({"tokens": 5}, shared_prompt, shared_prompt, head=False)
BYTES_VARIANTS = {
    "with the memory in training": Case({"tokens": 5, "in_training": True}, shared_prompt, shared_prompt, head=False)
}
