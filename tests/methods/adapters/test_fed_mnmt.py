"""Fed-MNMT against its card: adapters and norms of a tiny mBART by hand, and means within clusters of languages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.func import functional_call
from transformers import MBartConfig, MBartForConditionalGeneration

import by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, Sizes, Turn
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.backbones.describe import linear_sites, stacks
from weft.backbones.model_site import Site
from weft.errors import UserError
from weft.methods import FedMNMT
from weft.methods.adapters.fed_mnmt import encodes

DIRECTIONS = ("en-fr", "de-cs", "fr-en", "cs-it", "en-de", "fr-cs")
FACTS = [dict(zip(("source", "target"), pair.split("-"), strict=True)) for pair in DIRECTIONS]
FAMILY = {"en": "germanic", "de": "germanic", "fr": "romance", "it": "romance", "cs": "slavic"}
SMALL = FedMNMT(reduction=8, batch=4, optim=Optim("adamw", lr=3e-2, schedule="constant"))
SIZES = (9, 5, 8, 6, 7, 0)


def federation(method: FedMNMT = SMALL, **settings: Any) -> tiny.Federation:
    settings = {"task": "generation", "facts": FACTS, "sizes": SIZES} | settings
    return tiny.federation(method, "mbart", **settings)


def own(run: tiny.Federation) -> dict[str, dict[str, Tensor]]:
    """Client -> all that it would be tested with."""
    found = {}
    for client in run.clients:
        info = client.info(run.method.info.asks)
        held = run.server.held_by(info, run.server.adaptation, run.method.send_to_test(run.server, info))
        found[client.id] = {n: v.clone() for n, v in held.items() if isinstance(v, Tensor)}
    return found


def of_encoder(name: str) -> bool:
    return name.split("/")[1].startswith("model.encoder")


# by hand ------------------------------------------------------------------------------------------------------------------


def by_mbart(run: tiny.Federation, values: dict[str, Tensor], rows: np.ndarray) -> Tensor:
    """transformers' own loss with adapters as the card writes them, and with these norms."""
    model = copy.deepcopy(run.bench.backbone.model)
    for name, module in model.named_modules():
        if not name.endswith((".out_proj", ".fc2")):
            continue
        v = {role: values[f"adapter/{name}/{role}"] for role in ("down", "down_bias", "up", "up_bias")}

        def adapted(v: dict[str, Tensor], _module: Any, _args: Any, h: Tensor) -> Tensor:
            return h + torch.relu(h @ v["down"].T + v["down_bias"]) @ v["up"].T + v["up_bias"]

        module.register_forward_hook(partial(adapted, v))
    norms = {".".join(n.split("/")[1:]): v for n, v in values.items() if n.startswith("norm/")}
    labels, mask = run.bench.table.targets(rows)  # type: ignore[union-attr]
    inputs = {n: v for n, v in run.bench.table.collate(rows).items() if n != "decoder_input_ids"}
    loss: Tensor = functional_call(model, norms, kwargs=inputs | {"labels": labels.masked_fill(~mask, -100)}).loss
    return loss


def trained(run: tiny.Federation, values: dict[str, Tensor], steps: Sequence[np.ndarray]) -> dict[str, Tensor]:
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=3e-2, weight_decay=0.0)
    for rows in steps:
        optimizer.zero_grad()
        by_mbart(run, leaves, rows).backward()
        optimizer.step()
    return {n: v.detach() for n, v in leaves.items()}


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_rounds_with_a_part_of_the_clients_are_the_cards(weighting: Any) -> None:
    """Three rounds of four of six clients, one of which has no rows."""
    run = federation(replace(SMALL, weighting=weighting), rounds=3, participation=0.67)
    start = by_hand.start_of(run)
    norms = {n: p for n, p in run.bench.backbone.model.named_parameters() if "layer_norm" in n}
    assert {n for n in start if n.startswith("norm/")} == {f"norm/{n.rpartition('.')[0]}/{n.rpartition('.')[2]}" for n in norms}
    assert len(norms) == 24, "not those behind the embeddings"
    held: dict[tuple[str, str], Tensor] = {}  # by cluster and name
    absent = set()
    for t in range(3):
        steps = {c.id: by_hand.steps_of(run, i, t) for i, c in enumerate(run.clients)}
        run.simulation.round(t)
        cohort = run.simulation.last_cohort
        assert len(cohort) == 4
        absent |= {c.id for c in run.clients} - set(cohort)

        def cluster(i: int, name: str) -> tuple[str, str]:
            side = "source" if of_encoder(name) else "target"
            return f"{side} {FAMILY[FACTS[i][side]]}", name

        sent: dict[tuple[str, str], list[tuple[float, Tensor]]] = {}
        for i, client in enumerate(run.clients):
            if client.id in cohort and steps[client.id]:
                entered = {n: held.get(cluster(i, n), v) for n, v in start.items()}
                for n, v in trained(run, entered, steps[client.id]).items():
                    sent.setdefault(cluster(i, n), []).append((SIZES[i] if weighting == "examples" else 1.0, v))
        held |= {key: sum(w * v for w, v in some) / sum(w for w, _ in some) for key, some in sent.items()}  # type: ignore[misc]
        for i, client in enumerate(run.clients):
            for n, v in own(run)[client.id].items():
                by_hand.close(v, held.get(cluster(i, n), start[n]), by_hand.ADAM)
    assert absent, "somebody was away"


# the card's invariants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", ["families", "fed", "random", "gradients"])
def test_members_of_a_cluster_hold_the_same_and_others_do_not(clusters: Any) -> None:
    run = federation(replace(SMALL, clusters=clusters), rounds=2, sizes=(9, 5, 8, 6, 7, 4)).run()
    method, infos = run.method, [c.info(run.method.info.asks) for c in run.clients]
    assert isinstance(method, FedMNMT)
    values = own(run)
    for side in ("source", "target"):
        names = [n for n in values["client-0"] if of_encoder(n) == (side == "source")]
        clustered = {i.id: "all" if clusters == "fed" else method.cluster(run.server, i, side) for i in infos}
        assert len(set(clustered.values())) == (1 if clusters == "fed" else 3)
        for a in values:
            for b in values:
                alike = all(torch.equal(values[a][n], values[b][n]) for n in names)
                assert alike == (clustered[a] == clustered[b]), (side, a, b)


def test_encoder_and_decoder_are_clustered_apart() -> None:
    run = federation(rounds=1).run()
    values = own(run)
    one, other = values["client-0"], values["client-4"]  # en-fr, en-de
    assert all(torch.equal(one[n], other[n]) == of_encoder(n) for n in one)


def test_one_cluster_is_the_uniform_mean_bit_for_bit() -> None:
    run = federation(replace(SMALL, clusters="fed"), rounds=1)
    seen = by_hand.record(run)
    run.run()
    for name, value in by_hand.shared(run).items():
        mean = None
        for k, update in enumerate(seen[0], 1):
            new = update.tensors[name]
            assert isinstance(new, Tensor)
            mean = new.clone() if mean is None else mean.add_(new - mean, alpha=1 / k)
        assert torch.equal(value, mean)  # type: ignore[arg-type]
    same = federation(replace(SMALL, families="en+de+fr+it+cs"), rounds=1).run()
    for mine in own(same).values():
        assert all(torch.equal(v, by_hand.shared(run)[n]) for n, v in mine.items())


def test_clusters_of_one_are_local_training() -> None:
    apart = [{"source": f"x{i}", "target": f"y{i}"} for i in range(6)]
    run = federation(rounds=2, facts=apart).run()
    for i in (0, 3):
        alone = federation(replace(SMALL, clusters="fed"), rounds=2, facts=apart)
        values = by_hand.start_of(alone, i)
        for t in range(2):
            values = trained(alone, values, by_hand.steps_of(alone, i, t))
        for n, v in own(run)[f"client-{i}"].items():
            by_hand.close(v, values[n], by_hand.ADAM)


def test_a_mean_of_what_all_have_changes_nothing() -> None:
    run = federation(rounds=1).run()
    before = own(run)
    infos = {c.id: c for c in run.server.clients}
    again = [by_hand.update(run, i, before[c.id], 1.0) for i, c in enumerate(run.clients)]
    assert set(infos) == set(before)
    run.method.aggregate(run.server, again)
    after = own(run)
    assert all(torch.equal(after[c][n], v) for c, mine in before.items() for n, v in mine.items())


def test_the_backbone_stays_and_every_norm_but_those_of_embeddings_moves() -> None:
    run = federation(rounds=1)
    before, start = frozen_fingerprint(run.bench.backbone), by_hand.start_of(run)
    run.run()
    assert frozen_fingerprint(run.bench.backbone) == before
    moved = own(run)["client-0"]
    assert all(not torch.equal(v, start[n]) for n, v in moved.items())
    assert not any("layernorm_embedding" in n for n in moved)


def test_random_clusters_are_as_many_as_families_and_the_seeds() -> None:
    one, same, other = (federation(replace(SMALL, clusters="random"), seed=seed) for seed in (0, 0, 1))
    lists = [{side: run.server.memo[f"clusters/{side}"] for side in ("source", "target")} for run in (one, same, other)]
    assert lists[0] == lists[1]
    assert lists[0] != lists[2]
    assert lists[0]["source"] != lists[0]["target"], "drawn apart"
    for found in lists[0].values():
        assert sorted(np.bincount(list(found.values()))) == [2, 2, 2]


def test_clusters_by_gradients_are_those_of_mean_gradients_at_the_start() -> None:
    sizes = (9, 5, 8, 6, 7, 4)
    run = federation(replace(SMALL, clusters="gradients"), rounds=2, sizes=sizes)
    values = {n: v.requires_grad_(n.startswith("adapter/")) for n, v in by_hand.start_of(run).items()}
    adapters = [n for n, v in values.items() if v.requires_grad]
    steps = [[b.index[0] for b in run.pack([i]).batches(1.0, None, 4, "gradients")] for i in range(6)]
    seen = by_hand.record(run)
    run.simulation.round(0)
    vectors: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    for own_steps, update in zip(steps, seen[0], strict=True):
        loss = sum(by_mbart(run, values, rows) * len(rows) for rows in own_steps) / sum(map(len, own_steps))
        mean = dict(zip(adapters, torch.autograd.grad(loss, [values[n] for n in adapters]), strict=True))  # type: ignore[arg-type]
        assert set(update.tensors) == {f"gradient/{n}" for n in adapters}
        for n, g in mean.items():
            by_hand.close(update.tensors[f"gradient/{n}"], g)  # type: ignore[arg-type]
        for side, found in vectors.items():
            found.append(torch.cat([g.flatten() for n, g in mean.items() if of_encoder(n) == (side == "source")]).numpy())
    for side, rows in vectors.items():
        wanted = fcluster(linkage(np.stack(rows), "average", metric="cosine"), 3, "maxclust")
        got = list(run.server.memo[f"clusters/{side}"].values())
        assert [[a == b for a in got] for b in got] == [[bool(a == b) for a in wanted] for b in wanted]
    assert all(torch.equal(v, values[n]) for n, v in own(run)["client-0"].items()), "nothing has moved yet"


# sizes --------------------------------------------------------------------------------------------------------------------


def test_what_travels_of_mbart_50_is_the_cards_formula() -> None:
    """At the shape of mbart-large-50, whose weights are not needed for it."""
    with torch.device("meta"):
        model = MBartForConditionalGeneration(MBartConfig(vocab_size=250054))
    found = stacks(model)
    blocks = [path for paths in found.values() for path in paths]
    sites = [s for s in linear_sites(model, blocks, stacks=found) if s.role in ("o", "ffn.out")]
    part = Bottleneck(16, 0.02, "sublayers")
    each = [sum(int(np.prod(i.shape)) for i in part.tensors(None, site).values()) for site in sites]  # type: ignore[arg-type]
    assert set(each) == {132_160}
    assert (len(sites), sum(each)) == (60, 7_929_600)
    norms = {n: p.numel() for n, p in model.named_parameters() if "layer_norm" in n}
    encoder = sum(size for n, size in norms.items() if n.startswith("model.encoder"))
    assert (encoder, sum(norms.values()) - encoder) == (51_200, 75_776)
    sent = sum(each) + sum(norms.values())
    assert sent == 8_056_576
    whole = sum(p.numel() for p in model.parameters())
    assert whole == 610_879_488
    assert 1 - sent / whole > 0.98


def test_the_same_sites_are_found_in_a_tiny_one() -> None:
    run = federation()
    sizes = {n: v.numel() for n, v in by_hand.start_of(run).items()}
    adapters = sum(v for n, v in sizes.items() if n.startswith("adapter/"))
    h = 32 // 8
    assert adapters == (2 * 2 + 2 * 3) * (2 * 32 * h + h + 32)
    assert sum(v for n, v in sizes.items() if n.startswith("norm/")) == (2 * 2 + 1 + 2 * 3 + 1) * 2 * 32
    reads = encodes(run.bench.backbone)
    assert sum(reads(s) for s in run.server.sites("adapter")) == 4
    assert sum(reads(s) for s in run.server.sites("norm")) == 5, "with the encoder's last"


def test_one_stack_is_halved() -> None:
    b = tiny.backbone("llama", classes=1, task="generation", checkpoint="lm")
    reads = encodes(b)
    assert [reads(s) for s in b.sites("o")] == [True, True, False]
    assert not reads(Site("model.norm", "norm", 32, 32, None))


# settings -----------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_codes() -> None:
    method = FedMNMT()
    assert (method.clusters, method.reduction, method.std, method.weighting) == ("families", 16, 0.02, "uniform")
    assert (method.epochs, method.batch) == (1.0, 8 * 16)
    assert method.optim == Optim("adamw", lr=1e-3, weight_decay=0.0, schedule="constant")
    assert not method.sums
    assert replace(method, clusters="fed").sums


def test_families_may_be_the_users() -> None:
    run = federation(replace(SMALL, families="en+fr, cs+it"))
    method = run.method
    assert isinstance(method, FedMNMT)
    found = [method.cluster(run.server, c, "source") for c in run.server.clients]
    assert found == ["en+fr", "germanic", "en+fr", "cs+it", "en+fr", "en+fr"]

    same = replace(SMALL, families="English+fra_Latn,cs_CZ+Italian")
    assert [same.cluster(run.server, c, "source") for c in run.server.clients] == [
        {"en+fr": "English+fra_Latn", "cs+it": "cs_CZ+Italian"}.get(one, one) for one in found
    ], "a code of another kind, or a name, is the same language"


def test_a_family_of_a_language_that_nobody_has_and_no_table_knows_is_a_misspelling() -> None:
    with pytest.raises(UserError, match='the language "fx", and no client has it: use the codes of the data'):
        federation(replace(SMALL, families="en+fx"))
    federation(replace(SMALL, families="en+th"))  # a language that might join
    own = [{"source": "tlh", "target": "en"}, *list(FACTS)[1:]]
    run = federation(replace(SMALL, families="en+tlh"), facts=own)
    assert isinstance(run.method, FedMNMT)
    assert run.method.cluster(run.server, run.server.clients[0], "source") == "en+tlh"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"families": "en+de,fr+English"}, "are no families: write each language once"),
        ({"clusters": "familes"}, 'Did you mean "families"'),
        ({"families": "en+,de"}, "are no families: write each language once"),
        ({"families": "en+de,fr+en"}, "are no families: write each language once"),
        ({"reduction": 0}, "reduction ≥ 1, not 0"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        FedMNMT(**settings)
    assert "\n" not in str(caught.value)


def test_clients_that_tell_no_language_have_no_families() -> None:
    with pytest.raises(UserError, match="none tells its own: give data with pairs of languages"):
        federation(facts=None)
    federation(replace(SMALL, clusters="fed"), facts=None)


# what other tests ask of this method --------------------------------------------------------------------------------------


def everything(turn: Turn) -> Sizes:
    m = D // 8
    return {
        "adapter": [m * D, m, m * D, D] * 2 * LAYERS,
        "norm": [D, D] * 2 * LAYERS,  # but for that of the embeddings
        "head": HEAD,
    }


LANGUAGES = tuple(FACTS)
BYTES = Case({"reduction": 8}, everything, everything, facts=LANGUAGES)
BYTES_VARIANTS = {
    "one cluster": Case({"reduction": 8, "clusters": "fed"}, everything, everything, facts=LANGUAGES),
    "random": Case({"reduction": 8, "clusters": "random"}, everything, everything, facts=LANGUAGES),
}
