"""FedBiOT against its card: turns, alignment and means by hand, on models whose dropped blocks are really gone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import by_hand
import cohorts
import tiny
from bytes_of import HEAD, SITES, Case, Turn, lora
from exporting import RUN_CLOSE, exported
from weft.backbones.backbone import Backbone
from weft.contract import Optim
from weft.errors import UserError
from weft.export import load
from weft.federation import generating
from weft.federation.batch import Batch, make_batch
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.methods import FedBiOT
from weft.tasks.generation_settings import Decoding
from weft.tasks.kinds import GENERATION
from weft.testing.compare import assert_same
from weft.testing.data import states
from weft.testing.plays import Plays

SCALE, RATE, LAYERS = 3.0, 0.3, 4
KEPT, ADAPTER = (0, 2), (3,)  # of four blocks: the emulator has two of the first three
SMALL = FedBiOT(
    rank=2,
    alpha=6.0,
    sites="q,ffn.in",
    adapter_blocks=1,
    drop=0.4,
    proximal=0.5,
    first_steps=3,
    align_steps=2,
    steps=2,
    batch=3,
    optim=Optim("sgd", lr=RATE, schedule="constant"),
)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4}
ALL = tuple(range(LAYERS))
STACKS = {"bert": "bert.encoder.layer", "llama": "model.layers"}
Values = Mapping[str, Tensor]


def deep(kind: str = "bert") -> Backbone:
    """Of four blocks."""
    if kind == "llama":
        return tiny.backbone(kind, classes=1, checkpoint="lm", task=GENERATION, num_hidden_layers=LAYERS)
    return tiny.backbone(kind, num_hidden_layers=LAYERS)


def federation(method: FedBiOT = SMALL, kind: str = "bert", **more: Any) -> tiny.Federation:
    return tiny.federation(method, deep(kind), **ABOUT | more)


# the reference ------------------------------------------------------------------------------------------------------------


@cache
def thinned(model: nn.Module, stack: str, blocks: tuple[int, ...]) -> Any:
    """A copy of a model that has these blocks alone."""
    found = copy.deepcopy(model)
    held = found.get_submodule(stack)
    path, _, name = stack.rpartition(".")
    setattr(found.get_submodule(path), name, nn.ModuleList([held[i] for i in blocks]))
    found.config.num_hidden_layers = len(blocks)
    for place, block in enumerate(found.get_submodule(stack)):
        if hasattr(block, "self_attn"):  # keys and values are kept by this number
            block.self_attn.layer_idx = place
    return found


def merged(run: tiny.Federation, values: Values, blocks: tuple[int, ...]) -> dict[str, Tensor]:
    """Parameters of the thinned model with LoRA in its weights."""
    stack = STACKS[run.bench.backbone.kind]
    found = {}
    for name, value in by_hand.merged(run, values, SCALE).items():
        if not name.startswith(stack):
            found[name] = value
            continue
        index, rest = name.removeprefix(stack + ".").split(".", 1)
        if int(index) in blocks:
            found[f"{stack}.{blocks.index(int(index))}.{rest}"] = value
    return found


def seen(run: tiny.Federation, values: Values, inputs: Values, blocks: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits, and what leaves each of these blocks."""
    model = thinned(run.bench.backbone.model, STACKS[run.bench.backbone.kind], blocks)
    out = functional_call(model, merged(run, values, blocks), kwargs={**inputs, "output_hidden_states": True})
    return out.logits, out.hidden_states[1:]


def parts(values: Values, *names: str) -> dict[str, Tensor]:
    return {n: v for n, v in values.items() if n.split("/")[0] in names}


def client(run: tiny.Federation, received: Values, steps: Sequence[np.ndarray], proximal: float) -> dict[str, Tensor]:
    """Steps behind the emulator; the norm is that of whole matrices."""
    leaves = {n: v.clone().requires_grad_(not n.startswith("emulator/")) for n, v in received.items()}
    moving = [v for v in leaves.values() if v.requires_grad]
    opt = torch.optim.SGD(moving, RATE)
    names = [n[:-1] for n in parts(received, "lora") if n.endswith("/A")]
    for rows in steps:
        opt.zero_grad()
        logits, _ = seen(run, leaves, run.bench.table.collate(rows), (*KEPT, *ADAPTER))
        apart = sum(
            (SCALE * (leaves[n + "B"] @ leaves[n + "A"] - received[n + "B"] @ received[n + "A"])).square().sum() for n in names
        )
        (F.cross_entropy(logits, by_hand.labels(run, rows)) + proximal * apart).backward()
        opt.step()
    return {n: v.detach() for n, v in leaves.items() if v.requires_grad}


def rows_of(run: tiny.Federation, t: int, steps: int, stream: str) -> list[np.ndarray]:
    """Public rows of each step of the server in round t."""
    run.server.round = Round(t)
    assert isinstance(run.method, FedBiOT)
    pack = run.server.pack(public=True)
    return [b.index[0] for b in pack.batches(steps=steps, size=run.method.batch, stream=stream)]


def gap(run: tiny.Federation, values: Values, rows: np.ndarray, kd: float, layerwise: bool) -> Tensor:
    public = run.server.public
    assert public is not None
    inputs = public.table.collate(rows)
    own = inputs["attention_mask"].bool()
    with torch.no_grad():
        teacher, originals = seen(run, parts(values, "lora", "head"), inputs, ALL)
    student, found = seen(run, values, inputs, (*KEPT, *ADAPTER))
    total = torch.zeros((), dtype=torch.float64)
    for place, block in enumerate(KEPT):
        if layerwise or block == KEPT[-1]:
            s, t = found[place][own], originals[block][own]
            total = total + (((t - s) / t.square().mean().sqrt()) ** 2).mean()
    if run.bench.backbone.vocabulary is not None:
        places = torch.zeros_like(own)
        for r, i in enumerate(rows):
            answer = public.table.answer[public.table.offsets[i] : public.table.offsets[i + 1]]  # type: ignore[union-attr]
            places[r, : len(answer) - 1] = torch.from_numpy(answer[1:])
        student, teacher = student[places], teacher[places]
    p, q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    return total + kd * F.kl_div(q, p, log_target=True, reduction="batchmean")


def aligned(run: tiny.Federation, values: Values, steps: Sequence[np.ndarray], kd: float, layerwise: bool) -> dict[str, Tensor]:
    leaves = {n: v.clone().requires_grad_(n.startswith("emulator/")) for n, v in values.items()}
    opt = torch.optim.SGD([v for v in leaves.values() if v.requires_grad], RATE)
    for rows in steps:
        opt.zero_grad()
        gap(run, leaves, rows, kd, layerwise).backward()
        opt.step()
    return {n: v.detach() for n, v in leaves.items()}


def start_values(run: tiny.Federation) -> dict[str, Tensor]:
    """What is drawn, before the server's first alignment."""
    return by_hand.shared(federation(run.method, public=0))  # type: ignore[arg-type]


VARIANTS = {
    "the default": SMALL,
    "every block, no distillation": replace(SMALL, layerwise=True, kd=0.0),
    "distillation alone counts more": replace(SMALL, kd=3.0, align_steps=3),
    "no proximal term": replace(SMALL, proximal=0.0),
}


@pytest.mark.parametrize("public", [10, 0])
@pytest.mark.parametrize("which", VARIANTS)
def test_four_rounds_by_hand_with_clients_that_are_away(which: str, public: int) -> None:
    method = VARIANTS[which]
    run = federation(method, public=public)
    state = start_values(run)
    how = method.kd, method.layerwise
    if public:
        state = aligned(run, state, rows_of(run, 0, method.first_steps, "first alignment"), *how)
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, state[name])
    for t, present in enumerate(cohorts.ABSENT):
        ends = {k: client(run, state, by_hand.steps_of(run, k, t), method.proximal) for k in present}
        shares = {k: run.clients[k].n / sum(run.clients[i].n for i in present) for k in present}
        cohorts.play(run, t, present)
        state = state | {n: sum(shares[k] * ends[k][n] for k in present) for n in ends[present[0]]}  # type: ignore[misc]
        if public:
            state = aligned(run, state, rows_of(run, t, method.align_steps, "alignment"), *how)
        found = by_hand.shared(run)
        assert found.keys() == state.keys()
        for name, value in found.items():
            by_hand.close(value, state[name])
    moved = [n for n in state if n.endswith("/B") and n.startswith("emulator/")]
    assert moved
    assert all(bool(state[n].any()) == bool(public) for n in moved)
    table = run.bench.table
    inputs = table.collate(np.arange(len(table)))
    for view, blocks, values in (
        ("global", ALL, parts(state, "lora", "head")),
        ("global/emulator", (*KEPT, *ADAPTER), state),
    ):
        by_hand.close(run.global_logits(view=view, dtype=torch.float64), seen(run, values, inputs, blocks)[0])


# what the paper promises ----------------------------------------------------------------------------------------------------


def trained(run: tiny.Federation, seed: int = 3, *names: str) -> tiny.Federation:
    """A server whose values are far from the start."""
    g = torch.Generator().manual_seed(seed)
    for name, value in by_hand.shared(run).items():
        if name.startswith(names or ("lora/", "emulator/")):
            run.server.write(name, value + 0.3 * torch.randn(value.shape, generator=g, dtype=value.dtype))
    return run


def server_batch(run: tiny.Federation, rows: Sequence[int] = range(8)) -> tuple[Pack, Batch]:
    pack = run.server.pack(public=True)
    return pack, make_batch(pack.task, pack.bench.table, np.array([list(rows)]), None, pack.device)


def test_an_emulator_that_lacks_nothing_is_the_model() -> None:
    run = trained(federation(replace(SMALL, drop=0.0), public=10), 3, "lora/")
    for name in [n for n in run.server.shared if n.startswith("emulator/")]:
        run.server.write(name, start_values(run)[name])
    pack, batch = server_batch(run)
    assert float(run.method.gap(pack, batch)) == 0.0  # type: ignore[attr-defined]
    whole, emulator = (run.global_logits(view=v, dtype=torch.float64) for v in run.method.views)
    assert torch.equal(whole, emulator)
    cut = federation(public=10)
    assert not torch.equal(*(cut.global_logits(view=v, dtype=torch.float64) for v in cut.method.views))


def test_alignment_leaves_the_adapter_and_clients_leave_the_emulator() -> None:
    run = federation(public=10)
    before = by_hand.shared(run)
    run.method._align(run.server, 4, "more")  # type: ignore[attr-defined]
    for name, value in by_hand.shared(run).items():
        still = not name.startswith("emulator/")
        assert torch.equal(value, before[name]) == still
    pack = run.pack(t=1)
    entered = {n: v.detach().clone() for n, v in pack.tensors.items()}
    updates = list(run.method.train(pack))
    for name, value in pack.tensors.items():
        assert torch.equal(value, entered[name]) == name.startswith("emulator/")
    stack = STACKS["bert"]
    for update in updates:
        assert update.tensors
        assert all(n.startswith((f"lora/{stack}.3.", "head/")) for n in update.tensors)


def test_the_emulator_goes_down_once_it_is_aligned_and_only_then() -> None:
    per_block = 2 * (32 + 32) + 2 * (32 + 64)  # rank 2, sites of 32 x 32 and of 64 x 32

    def sent(public: int, **more: Any) -> list[float]:
        """Numbers of the emulator's part that a client downloads, by round."""
        run = federation(replace(SMALL, **more), public=public).run(3)
        ledger = run.simulation.setup.exchange.ledger
        totals = [ledger.totals(round=t, phase="train", direction="down").parts.get("emulator", 0) for t in range(3)]
        return [size / 8 / len(run.clients) for size in totals]

    whole = len(KEPT) * per_block
    assert sent(0) == [0, 0, 0]
    assert sent(10) == [whole, whole, whole]
    assert sent(10, first_steps=0) == [0, whole, whole]
    assert sent(10, align_steps=0) == [whole, 0, 0]


@contextmanager
def broken(backbone: Backbone, blocks: Sequence[int]) -> Iterator[None]:
    """Blocks whose weights are nobody's, so that a pass through them gives NaN."""
    kept = {}
    with torch.no_grad():
        for i in blocks:
            for p in backbone.module(backbone.blocks[i]).parameters():
                kept[p] = p.clone()
                p.fill_(float("nan"))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in kept.items():
                p.copy_(value)


def test_a_client_neither_has_nor_runs_anything_of_a_dropped_block() -> None:
    run = federation(public=10).run(1)
    pack = run.pack()
    (dropped,) = set(ALL) - {*KEPT, *ADAPTER}
    assert not [n for n in pack.tensors if f"{STACKS['bert']}.{dropped}." in n]
    own, backbone = run.pack(t=1), run.bench.backbone
    list(run.method.train(own))
    with broken(backbone, [dropped]):
        blind = run.pack(t=1)
        list(run.method.train(blind))
        assert run.global_logits(view="global").isnan().all()
        assert not run.global_logits(view="global/emulator").isnan().any()
    assert all(torch.equal(v, own.tensors[n]) for n, v in blind.tensors.items())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 22, 28, 30])
@pytest.mark.parametrize("drop", [0.0, 0.1, 0.2, 0.3, 0.5, 0.75])
def test_the_emulator_has_the_first_and_the_last_block_and_some_in_between(n: int, drop: float) -> None:
    m = round(n * (1 - drop))
    backbone: Any = SimpleNamespace(blocks=[str(i) for i in range(n + 2)], name="it")
    method = replace(SMALL, adapter_blocks=2, drop=drop)
    if m < 1:
        with pytest.raises(UserError, match="none left"):
            method.emulator(backbone)
        return
    found = method.emulator(backbone)
    assert len(found) == m
    assert all(a < b for a, b in pairwise(found))
    assert found[-1] == n - 1
    assert found[0] == (0 if m > 1 else n - 1)
    if m > 1:
        assert found == tuple(int(i * (n - 1) / (m - 1)) for i in range(m))
    assert method.adapter(backbone) == (n, n + 1)


def test_of_thirty_two_blocks_it_has_twenty_four() -> None:
    backbone: Any = SimpleNamespace(blocks=[str(i) for i in range(32)], name="it")
    assert len(FedBiOT().emulator(backbone)) == 24
    # LLaMA-2-7B: q and v of 4096 x 4096, up 262,144 numbers and down 3,407,872
    per_block = 2 * 8 * (4096 + 4096)
    assert per_block * len(FedBiOT().adapter(backbone)) == 262_144
    assert per_block * (24 + 2) == 3_407_872


def test_the_proximal_term_is_the_norm_of_whole_matrices_and_has_a_gradient() -> None:
    run = trained(federation())
    pack = run.pack()
    received = pack.params("lora")
    g = torch.Generator().manual_seed(1)
    for name, value in received.items():
        leaf = value + 0.2 * torch.randn(value.shape, generator=g, dtype=value.dtype)
        pack.tensors[name] = leaf.requires_grad_(True)
    names = [n[:-1] for n in received if n.endswith("/A")]
    now = pack.params("lora")
    dense = sum(
        (SCALE * (now[n + "B"] @ now[n + "A"] - received[n + "B"] @ received[n + "A"])).square().sum((1, 2)) for n in names
    )
    assert isinstance(dense, Tensor)
    found = run.method.moved(pack, received)  # type: ignore[attr-defined]
    by_hand.close(found, dense)
    wanted = torch.autograd.grad(dense.sum(), list(now.values()))
    for slope, other in zip(torch.autograd.grad(found.sum(), list(now.values())), wanted, strict=True):
        by_hand.close(slope, other)
        assert other.flatten(1).any(1).all()


def test_the_proximal_term_is_exact_where_little_has_moved() -> None:
    run = trained(federation())
    pack = run.pack([0])
    received = {n: v.float() for n, v in pack.params("lora").items()}
    pack.tensors |= {n: v.clone().requires_grad_(True) for n, v in received.items()}
    still = run.method.moved(pack, received)  # type: ignore[attr-defined]
    assert float(still.detach()) == 0.0
    assert not any(g.any() for g in torch.autograd.grad(still.sum(), list(pack.params("lora").values())))
    tiny_step = {n: v.detach() + 1e-5 * torch.sign(v.detach()) for n, v in pack.params("lora").items()}
    pack.tensors |= tiny_step
    found = run.method.moved(pack, received)  # type: ignore[attr-defined]
    exact = 0.0
    for name in [n for n in received if n.endswith("/A")]:
        (b, a), (b0, a0) = ((v[name[:-1] + "B"].double(), v[name].double()) for v in (tiny_step, received))
        exact += float((SCALE * (b @ a - b0 @ a0)).square().sum())
    assert float(found) == pytest.approx(exact, rel=1e-3)


def test_the_larger_epsilon_the_nearer_a_client_stays() -> None:
    moved = []
    for proximal in (0.0, 0.3, 1.0):
        small = Optim("sgd", lr=0.003, schedule="constant")
        run = trained(federation(replace(SMALL, proximal=proximal, optim=small, steps=8)))
        pack = run.pack()
        received = {n: v.clone() for n, v in pack.params("lora").items()}
        list(run.method.train(pack))
        moved.append(float(run.method.moved(pack, received).detach().sum()))  # type: ignore[attr-defined]
    assert moved[0] > 1.1 * moved[1] > 1.2 * moved[2] > 0


def test_alignment_brings_the_emulator_nearer_to_the_model_with_the_present_adapter() -> None:
    run = trained(federation(replace(SMALL, optim=Optim("sgd", lr=0.05, schedule="constant")), public=12), 3, "lora/")
    before = float(run.method.gap(*server_batch(run, range(12))))  # type: ignore[attr-defined]
    run.method._align(run.server, 40, "more")  # type: ignore[attr-defined]
    after = float(run.method.gap(*server_batch(run, range(12))))  # type: ignore[attr-defined]
    assert 0 < after < 0.9 * before


def test_the_gap_is_taken_over_own_tokens_and_rows_and_falls_apart_into_distance_and_divergence() -> None:
    run = trained(federation(public=10))
    state = by_hand.shared(run)
    for layerwise in (False, True):
        for kd in (0.0, 2.0):
            method = replace(SMALL, kd=kd, layerwise=layerwise)
            for rows in ([0, 1, 2], [5]):
                found = method.gap(*server_batch(run, rows))
                by_hand.close(found[0], gap(run, state, np.array(rows), kd, layerwise))
            padded = method.gap(*server_batch(run, [0, 1, 2, -1]))
            by_hand.close(padded, method.gap(*server_batch(run, [0, 1, 2])))


def test_packs_sites_workers_and_a_resumed_run_are_the_same_with_blocks_dropped_and_public_rows() -> None:
    played = Plays(SMALL, public=10)
    played.model = deep()
    packed = played.packed.state
    assert_same(packed, played.alone.state, 1e-9)
    assert_same(packed, played.messages.state, 1e-9)
    assert_same(packed, played.workers.state, 1e-9)
    assert_same({n: v for n, v in packed.items() if n in played.sites.state}, played.sites.state, 1e-9)
    assert_same(packed, played.again.state, 0.0)
    assert_same(packed, played.resumed.state, 0.0)
    assert any(v.any() for n, v in packed.items() if "emulator/" in n and n.endswith("/B"))


# language models ------------------------------------------------------------------------------------------------------------


def language(method: FedBiOT = SMALL, **more: Any) -> tiny.Federation:
    about = {"sizes": (4, 3), "rounds": 2, "decoding": Decoding(new_tokens=6)} | more
    return tiny.federation(method, deep("llama"), task=GENERATION, **about)


def test_a_language_model_is_aligned_and_trained_as_by_hand() -> None:
    method = replace(SMALL, sites="q,v", optim=Optim("sgd", lr=RATE, schedule="constant"))
    run = language(method, public=8)
    drawn = by_hand.shared(language(method))
    state = aligned(run, drawn, rows_of(run, 0, method.first_steps, "first alignment"), method.kd, method.layerwise)
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, state[name])
    table, blocks = run.bench.table, (*KEPT, *ADAPTER)
    pack = run.pack([0])
    list(run.method.train(pack))
    leaves = {n: v.clone().requires_grad_(n.startswith("lora/")) for n, v in state.items()}
    opt = torch.optim.SGD([v for v in leaves.values() if v.requires_grad], RATE)
    for rows in by_hand.steps_of(run, 0, 0):
        inputs, losses = table.collate(rows), []
        logits, _ = seen(run, leaves, inputs, blocks)
        for r, i in enumerate(rows):
            answer = table.answer[table.offsets[i] : table.offsets[i + 1]]  # type: ignore[union-attr]
            at = torch.from_numpy(np.flatnonzero(answer))
            losses.append(F.cross_entropy(logits[r, at - 1], inputs["input_ids"][r, at], reduction="none"))
        apart = sum(
            (SCALE * (leaves[n + "B"] @ leaves[n + "A"] - state[n + "B"] @ state[n + "A"])).square().sum()
            for n in [n[:-1] for n in leaves if n.startswith("lora/") and n.endswith("/A")]
        )
        opt.zero_grad()
        (torch.cat(losses).mean() + method.proximal * apart).backward()
        opt.step()
    for name in [n for n in leaves if n.startswith("lora/")]:
        by_hand.close(pack.value(0, name), leaves[name].detach(), 1e-8)


@pytest.mark.parametrize("drop", [0.4, 0.6])
@pytest.mark.parametrize("view", ["global", "global/emulator"])
def test_it_writes_what_a_model_without_the_dropped_blocks_writes(view: str, drop: float) -> None:
    """With a share of 0.6 the first block is gone, off whose keys and values the library reads how long a text is."""
    run = trained(language(replace(SMALL, drop=drop, sites="q,v")))
    rows = np.array([11, 0, 7, 3, 9])
    found = generating.write(run.server.pack(), lambda p, b: run.method.forward(p, b, view), [rows], Decoding(new_tokens=8))[0]
    emulator = {0.4: KEPT, 0.6: (2,)}[drop]
    blocks, names = (ALL, ("lora",)) if view == "global" else ((*emulator, *ADAPTER), ("lora", "emulator"))
    backbone = run.bench.backbone
    model = copy.deepcopy(thinned(backbone.model, STACKS["llama"], blocks))
    model.load_state_dict(merged(run, parts(by_hand.shared(run), *names), blocks), strict=False)
    wanted = []
    for row in rows:
        prompt = run.bench.table.prompts(np.array([row]))  # type: ignore[union-attr]
        end = backbone.tokenizer.eos_token_id
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=end)
        new = ids[0, prompt["input_ids"].shape[1] :]
        wanted.append(backbone.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert found == wanted
    assert len(set(found)) > 1


def test_rounds_of_a_language_model_are_scored_by_both_views() -> None:
    run = language(replace(SMALL, sites="q,v"), public=8)
    before = by_hand.shared(run)
    run.run()
    scores = run.simulation.evaluate(1)
    assert {e.view for e in scores} == {"global", "global/emulator"}
    assert all(np.isfinite(e.value) for e in scores if e.metric in ("perplexity", "loss"))
    assert all(not torch.equal(v, before[n]) for n, v in by_hand.shared(run).items() if n.endswith("/B"))
    texts = {view: [s["text"] for s in run.simulation.samples if s["view"] == view] for view in run.method.views}
    assert texts["global"]
    assert texts["global"] != texts["global/emulator"]


# exports, settings, sentences -----------------------------------------------------------------------------------------------


def test_both_models_are_exported_as_they_predict(tmp_path: Path) -> None:
    backbone = tiny.backbone("bert", precision="float32", num_hidden_layers=LAYERS)
    method = replace(SMALL, optim=Optim("adamw", lr=0.05))
    run = tiny.federation(method, backbone, precision="float32", public=10, **ABOUT).run()
    texts = states(ABOUT["sizes"])[0].texts
    assert texts is not None
    found = {}
    for view, kind in (("global", "peft"), ("global/emulator", "weft")):
        folder = tmp_path / kind
        folder.mkdir()
        assert exported(run, folder, view=view).kind == kind
        found[view] = load(folder, device="cpu", precision="float32").logits(list(texts))
        torch.testing.assert_close(found[view], run.global_logits(view=view), **RUN_CLOSE)
    assert (found["global"] - found["global/emulator"]).abs().max() > 1e-2


def test_wrong_settings_are_said_in_a_sentence() -> None:
    for more, words in (
        (
            {"adapter_blocks": 4},
            r'an adapter of 4 blocks leaves no block of ".*", which has 4, to the emulator: choose a',
        ),
        ({"adapter_blocks": 5}, r"an adapter of 5 blocks leaves no block"),
        ({"drop": 1.0}, r"an emulator without a share of 1 of 3 blocks has none left: choose a smaller method\.drop\."),
        ({"drop": 0.9}, r"an emulator without a share of 0\.9 of 3 blocks has none left"),
    ):
        with pytest.raises(UserError, match=words):
            federation(replace(SMALL, **more))


def test_a_rehearsal_is_of_one_step_at_the_server_too() -> None:
    short = FedBiOT().rehearsed()
    assert (short.first_steps, short.align_steps, short.steps, short.batch) == (1, 1, 1, 1)
    assert replace(SMALL, first_steps=0, align_steps=0).rehearsed().first_steps == 0


def test_defaults() -> None:
    method = FedBiOT()
    assert (method.rank, method.sites, method.adapter_blocks, method.drop) == (8, "q,v", 2, 0.2)
    assert (method.proximal, method.kd) == (0.1, 0.9)
    assert (method.first_steps, method.align_steps, method.steps, method.batch) == (500, 10, 30, 1)
    assert (method.optim.kind, method.optim.lr, method.layerwise, method.weighting) == ("sgd", 5e-4, False, "examples")


def adapter_and_head(turn: Turn) -> dict[str, list[int]]:
    return {"lora": lora(2, blocks=1), "head": HEAD}


BYTES = Case({"rank": 2, "adapter_blocks": 1, **SITES}, adapter_and_head, adapter_and_head)
TINY = {"adapter_blocks": 1}
