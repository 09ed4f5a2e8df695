"""Starts of LoRA: PEFT's own, and rounds from them in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import lora_by_hand
import tiny
from lora_by_hand import Step
from weft.adaptation import from_weights
from weft.adaptation.from_weights import FromWeights
from weft.adaptation.lora import LoRA
from weft.adaptation.lora_options import LoRAOptions
from weft.adaptation.optim import Optim
from weft.adaptation.orthogonal import Orthogonal
from weft.adaptation.placed import place
from weft.errors import UserError
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.moves import common
from weft.methods import FedDPA, FedIT, FedSALoRA
from weft.rules import with_options
from weft.tasks.classification import Classification
from weft.tensors.init import Init
from weft.testing import laws
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote

CUTS = ("pissa", "olora")
STARTS = ("orthogonal", *CUTS)
SIZES = (7, 4, 5)
RANK, ALPHA = 4, 12.0
SITES = {"bert": "q,ffn.out", "llama": "v,ffn.gate", "gpt2": "q"}


def options(start: str, **more: Any) -> LoRAOptions:
    return LoRAOptions(start=start, **more)  # type: ignore[arg-type]


def method(start: str, sites: str = "q,ffn.out", **more: Any) -> Method:
    optim = Optim("adamw", lr=3e-2, eps=1e-6)
    return with_options(FedIT(rank=RANK, alpha=ALPHA, batch=3, epochs=2.0, sites=sites, optim=optim), options(start, **more))


def drawn(run: tiny.Federation) -> dict[str, dict[str, Tensor]]:
    """Site -> role -> start value."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in by_hand.start_of(run).items():
        part, site, role = name.split("/")
        if part == "lora":
            found.setdefault(site, {})[role] = value
    return found


def weight(run: tiny.Federation, site: str) -> Tensor:
    """W0 [d_out, d_in] in float64."""
    module: Any = run.bench.backbone.module(site)
    found: Tensor = module.weight.detach().double()
    return found.mT if type(module).__name__ == "Conv1D" else found


# PEFT's own -------------------------------------------------------------------------------------------------------------


def peft_model(start: str, run: tiny.Federation, kind: str, rslora: bool = False) -> Any:
    """PEFT's model at its own start, in single precision, in which it computes it."""
    from peft import LoraConfig, get_peft_model

    scale: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": rslora, "fan_in_fan_out": kind == "gpt2"}
    names = sorted(s.name for s in run.server.sites("lora"))
    torch.manual_seed(3)
    config = LoraConfig(target_modules=names, init_lora_weights=start, lora_dropout=0.0, **scale)  # type: ignore[arg-type]
    return get_peft_model(tiny.fresh(kind, precision="float32").model, config).eval()


@pytest.mark.parametrize("rslora", [False, True], ids=["usual", "rslora"])
@pytest.mark.parametrize(("start", "kind"), [("pissa", "bert"), ("pissa", "gpt2"), ("olora", "bert"), ("olora", "llama")])
def test_cuts_are_those_of_peft_up_to_sign(start: str, kind: str, rslora: bool) -> None:
    """PEFT's SVD is in single precision: neighbours of nearly one size mix by more than rounding."""
    run = tiny.federation(method(start, SITES[kind], scaling="rslora" if rslora else "usual"), kind, sizes=SIZES)
    model = peft_model(start, run, kind, rslora)
    assert drawn(run)
    for site, ours in drawn(run).items():
        layer = model.get_submodule(f"base_model.model.{site}")
        a, b = (layer.get_parameter(f"lora_{role}.default.weight").detach().double() for role in "AB")
        by_hand.close(ours["B"] @ ours["A"], b @ a, 2e-5)
        signs = (ours["A"] * a).sum(1).sign()
        by_hand.close(ours["A"], a * signs[:, None], 5e-5)
        by_hand.close(ours["B"], b * signs, 5e-5)
        base = layer.base_layer.weight.detach().double()  # what PEFT leaves of the weights, which stay whole here
        scale = ALPHA / (RANK**0.5 if rslora else RANK)
        by_hand.close(weight(run, site) - scale * ours["B"] @ ours["A"], base.mT if kind == "gpt2" else base, 2e-5)


@pytest.mark.parametrize("start", CUTS)
def test_cuts_are_those_of_the_papers_in_double_precision(start: str) -> None:
    run = tiny.federation(method(start), sizes=SIZES)
    for site, ours in drawn(run).items():
        w0 = weight(run, site)
        if start == "pissa":
            u, s, vh = torch.linalg.svd(w0, full_matrices=False)
            wanted = (u[:, :RANK] * s[:RANK]) @ vh[:RANK] / (ALPHA / RANK)
        else:
            q, r = torch.linalg.qr(w0)
            wanted = q[:, :RANK] @ r[:RANK]
            assert bool((ours["A"].diagonal() > 0).all())
            by_hand.close(ours["B"].mT @ ours["B"], torch.eye(RANK, dtype=torch.float64), 1e-6)
        by_hand.close(ours["B"] @ ours["A"], wanted, 1e-6)  # start values travel in single precision


def test_orthogonal_factors_are_built_like_peft_s() -> None:
    """Of half the rank each, with a product of 0; PEFT's are as large."""
    run = tiny.federation(method("orthogonal", "all"), sizes=SIZES)
    model = peft_model("orthogonal", run, "bert")
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"ours": [], "theirs": []}
    for site, ours in drawn(run).items():
        layer = model.get_submodule(f"base_model.model.{site}")
        a, b = (layer.get_parameter(f"lora_{role}.default.weight").detach().double() for role in "AB")
        pairs["ours"].append((ours["A"], ours["B"]))
        pairs["theirs"].append((a, b))
    sizes = {}
    for who, some in pairs.items():
        for a, b in some:
            assert (b @ a).abs().max() < 1e-7
            for factor in (a, b):
                assert int(torch.linalg.matrix_rank(factor, rtol=1e-4)) == RANK // 2
        sizes[who] = [float(torch.cat([f[i].flatten() for f in some]).std()) for i in range(2)]
    assert sizes["ours"] == pytest.approx(sizes["theirs"], rel=0.15)
    first, second = (a for a, _ in pairs["ours"][:2])
    assert not torch.equal(first, second)
    whose = [a @ a.mT / a.shape[1] for a in (first, second)]
    assert not torch.allclose(whose[0], whose[1], atol=1e-3)  # each layer has a Q of its own


def test_orthogonal_factors_are_drawn_by_name() -> None:
    a, b = Init((4, 9), "odd", 0.1), Init((7, 4), "even", 0.1)
    own = a.draw(3, "lora/x/A")
    assert torch.equal(own, a.draw(3, "lora/x/A"))
    for other in (a.draw(4, "lora/x/A"), a.draw(3, "lora/y/A"), a.draw(3, "lora/x/A", 1, "client-0")):
        assert not torch.allclose(other, own)
    afresh = b.draw(3, "lora/x/B", 1, "client-0") @ a.draw(3, "lora/x/A", 1, "client-0")  # in each round, for each client
    assert afresh.abs().max() < 1e-7
    assert (b.draw(3, "lora/x/B") @ a.draw(3, "lora/y/A")).abs().max() > 1e-4


# the model --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("start", STARTS)
def test_a_model_begins_as_the_frozen_one(start: str, precision: str, kind: str) -> None:
    run = tiny.federation(method(start, SITES[kind]), kind, sizes=SIZES, precision=precision)
    pack = run.pack()
    batch = next(iter(pack.batches(1.0, None, 3)))
    now, frozen = pack(batch).logits, pack(batch, use={}).logits
    assert all(bool(v.any()) for n, v in pack.tensors.items() if n.startswith("lora/"))
    if start == "orthogonal":  # whose product is 0 to the rounding of start values
        torch.testing.assert_close(now, frozen, rtol=0.0, atol=1e-6)
    else:
        assert torch.equal(now, frozen)


def term(run: tiny.Federation, start: str, share: float) -> Any:
    """s (B A - B0 A0) x from whole matrices, of which the second never sees what is dropped."""
    begun = drawn(run)

    def add(step: Step, site: str, module: torch.nn.Module, x: Tensor, out: Tensor, w: Mapping[str, Tensor]) -> Tensor:
        read = step.dropped(site, x, share) if share else x
        found = ALPHA / RANK * read @ (w["B"] @ w["A"]).mT
        if start == "orthogonal":
            return found
        return found - ALPHA / RANK * x @ (begun[site]["B"] @ begun[site]["A"]).mT

    return add


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("start", STARTS)
def test_rounds_are_plain_loops_over_the_whole_matrices(start: str, share: float) -> None:
    run = tiny.federation(method(start, dropout=share), sizes=SIZES, participation=0.67, rounds=2)
    lora_by_hand.hold(run, term(run, start, share))


@pytest.mark.parametrize("start", STARTS)
def test_packs_and_sites_do_what_one_client_alone_does(start: str) -> None:
    runs = [tiny.federation(method(start), sizes=SIZES, rounds=2, pack=pack).run() for pack in (1, 2, 3)]
    for run in runs[1:]:
        assert_same(state(runs[0]), state(run), 1e-10)
    away, _ = remote(method(start), sizes=SIZES, rounds=2)
    away.run()
    assert_same(by_hand.shared(runs[0]), by_hand.shared(away), 1e-10)


@pytest.mark.parametrize("law", ["resuming", "scores", "codecs"])
@pytest.mark.parametrize("start", STARTS)
def test_what_stays_at_clients_begins_there_too(start: str, law: str) -> None:
    """B and its start are a client's own, and A the server's."""
    laws.check(with_options(FedSALoRA(rank=2), options(start)), law)


@pytest.mark.parametrize("start", CUTS)
def test_slices_of_several_sizes_stay_beside_their_own_start(start: str) -> None:
    """One pack, ranks 4 and 2 of the same LoRA: each client's model begins as the frozen one."""
    b = tiny.backbone("bert")
    whole = FromWeights(RANK, ALPHA, "q", begins=start)  # type: ignore[arg-type]
    parts = [whole, whole.leading(0.5)]
    site = b.sites("q")[0]
    small = parts[1].tensors(b, site)
    for role, init in whole.tensors(b, site).items():
        full, cut = init.draw(0, "x"), small[role].draw(0, "x")
        assert torch.equal(cut, full[:2] if role == "A" else full[:, :2])
    (placed, *_) = place(b, [{"lora": p} for p in parts], torch.device("cpu"), torch.float64)
    g = torch.Generator().manual_seed(2)
    w = {n: torch.randn(2, *placed.fixed[f"{n}.start"].shape[1:], generator=g, dtype=torch.float64) for n in "AB"}
    w["A"][1, 2:], w["B"][1, :, 2:] = 0, 0  # as packs pad
    x = torch.randn(2, 5, site.d_in, generator=g, dtype=torch.float64)
    found = whole.apply(b.module(site.name), {**w, **placed.fixed}, x, x)
    for k, part in enumerate(parts):
        a0, b0 = (t.double() for t in part.start(b, site))
        assert len(a0) == (4, 2)[k]
        wanted = ALPHA / RANK * x[k] @ (w["B"][k] @ w["A"][k] - b0 @ a0).mT
        by_hand.close(found[k], wanted, 1e-10)


def test_a_cut_is_the_same_on_every_machine_with_the_backbone() -> None:
    """Nothing of a run is in it: not its seed, and no stream of random numbers."""
    first = drawn(tiny.federation(method("pissa"), sizes=SIZES))
    from_weights._CUTS.clear()
    torch.manual_seed(1)
    other = drawn(tiny.federation(method("pissa"), sizes=SIZES, seed=9))
    for site, values in first.items():
        for role, value in values.items():
            assert torch.equal(value, other[site][role])


# what it stands for -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
def test_parts_keep_all_else_of_the_lora(start: str) -> None:
    own = LoRA(4, 6.0, "q", ffn_rank=2, blocks=(0,), growth=2, of=4)
    made = options(start, scaling="rslora", ratio=3.0, dropout=0.2).over(own)
    assert type(made) is (Orthogonal if start == "orthogonal" else FromWeights)
    wanted = replace(own, scaling="rslora", ratio=3.0, dropout=0.2)
    assert {f.name: getattr(made, f.name) for f in fields(own)} == {f.name: getattr(wanted, f.name) for f in fields(own)}
    assert options(start).words == (start,)


@pytest.mark.parametrize("start", STARTS)
def test_the_error_of_a_mean_is_that_of_what_moved(start: str) -> None:
    run = tiny.federation(method(start), sizes=SIZES, rounds=1)
    assert common(run.server.adaptation) == {"lora"}
    begun, scale = drawn(run), ALPHA / RANK
    got = by_hand.record(run)
    record = run.simulation.round(0)
    assert record is not None
    gap = size = 0.0
    n = sum(c.n for c in run.clients)
    for site, own in begun.items():
        before = own["B"] @ own["A"]
        sent = [(u.weight / n, u.tensors[f"lora/{site}/B"], u.tensors[f"lora/{site}/A"]) for u in got[0]]
        wanted = sum((p * scale * (b @ a - before) for p, b, a in sent), torch.zeros(()))  # type: ignore[operator]
        after = by_hand.shared(run)
        applied = scale * (after[f"lora/{site}/B"] @ after[f"lora/{site}/A"] - before)
        gap, size = gap + float((applied - wanted).square().sum()), size + float(wanted.square().sum())
    assert record["aggregation_error"] == pytest.approx((gap / size) ** 0.5, rel=1e-6)
    assert record["aggregation_error"] > 1e-3


@pytest.mark.parametrize("start", STARTS)
def test_feddpa_knows_an_own_lora_that_was_never_trained_wherever_it_began(start: str) -> None:
    """Who has none yet predicts with the common one, not with a share of the pretrained model."""
    own = with_options(FedDPA(rank=RANK, batch=3, epochs=1.0), options(start))
    run = tiny.federation(own, sizes=SIZES, rounds=2)
    assert run.pack().adaptations[0]["mine"][0] == options(start).over(LoRA(RANK, FedDPA().alpha, FedDPA().sites))
    assert own._bare(run.pack()).tolist() == [True] * 3  # type: ignore[attr-defined]
    pack = run.pack()
    name = next(n for n in pack.tensors if n.startswith("mine/") and n.endswith("/B"))
    pack.tensors[name] = pack.tensors[name].clone()
    pack.tensors[name][1, 0, 0] += 1e-6
    assert own._bare(pack).tolist() == [True, False, True]  # type: ignore[attr-defined]


# refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dora", "vera"])
@pytest.mark.parametrize("start", STARTS)
def test_variants_have_starts_of_their_own(start: str, variant: Any) -> None:
    with pytest.raises(UserError, match=rf'^lora\.variant = "{variant}" has a start of its own, so that lora\.start = "{start}"'):
        options(start, variant=variant)


@pytest.mark.parametrize("start", CUTS)
def test_a_rank_that_the_weights_have_not_is_refused(start: str) -> None:
    with pytest.raises(UserError, match=rf'^rank 400 is more than .* lora\.start = "{start}" can\'t cut it from there'):
        tiny.federation(with_options(FedIT(rank=400), options(start)), sizes=SIZES)


def test_an_odd_rank_has_no_halves() -> None:
    with pytest.raises(UserError, match=r'^lora\.start = "orthogonal" halves the rank, which is 3 at .*: choose an even rank'):
        tiny.federation(with_options(FedIT(rank=3), options("orthogonal")), sizes=SIZES)


def test_a_slice_has_no_orthogonal_start() -> None:
    b = tiny.backbone("bert")
    with pytest.raises(UserError, match="a slice of a LoRA can't begin with a product of zero"):
        Orthogonal(RANK, ALPHA, "q").leading(0.5).tensors(b, b.sites("q")[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("start", CUTS)
def test_clients_with_other_weights_are_refused(start: str) -> None:
    two = [tiny.backbone("bert"), tiny.fresh("bert")]
    with pytest.raises(UserError, match=rf'^lora\.start = "{start}" begins at the weights of one backbone'):
        tiny.mixed_federation(method(start), two, sizes=SIZES)


def test_usual_is_the_method_as_it_is() -> None:
    part, _ = FedIT(rank=2).adapt(tiny.backbone("bert"), Classification(("a", "b")), ClientInfo(""))["lora"]
    assert isinstance(part, LoRA)
    assert LoRAOptions().over(part) == part
