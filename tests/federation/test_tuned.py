"""A rule over whatever is tuned: every kind of part keeps the laws, and its settings are told like any other."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.norm import Norm
from weft.adaptation.scale import Scale
from weft.adaptation.tune import PARTS
from weft.contract import GIVEN, MethodInfo, Optim, Scope, Tune, Tuned
from weft.errors import UserError
from weft.methods import FedIT, settings
from weft.testing import laws
from weft.testing.federation import federation
from weft.testing.models import backbone


def card(*needs: str) -> MethodInfo:
    return MethodInfo(
        slug="anything", title="The mean of anything", paper="none", arxiv="", family="full", sends="all", needs=needs
    )


class Anything(Tuned):
    info: ClassVar[MethodInfo] = card()


class OfPictures(Tuned):
    info: ClassVar[MethodInfo] = card("images")


class OfNames(Tuned):
    info: ClassVar[MethodInfo] = card("images", "two towers")


KINDS: dict[str, Tuned] = {
    **{
        kind: Anything(tune=Tune(kind, rank=2, reduction=8, tokens=2), optim=Optim("sgd", lr=0.1))
        for kind in ("lora", "bottleneck", "compacter", "prefix", "bias", "norm", "scale", "ssf", "words", "weights")
    },  # type: ignore[arg-type]
    "head": Anything(tune=Tune("head", head=False), optim=Optim("sgd", lr=0.1)),
    "tokens": OfPictures(tune=Tune("tokens", tokens=2), optim=Optim("sgd", lr=0.1)),
    "context": OfNames(tune=Tune("context", tokens=2), optim=Optim("sgd", lr=0.1)),
}


SHAPES: dict[str, Tuned] = {
    "a prefix made by an MLP": Anything(tune=Tune("prefix", tokens=2, hidden=3), optim=Optim("sgd", lr=0.1)),
    "a prefix among pictures": OfPictures(tune=Tune("prefix", tokens=2), optim=Optim("sgd", lr=0.1)),
    "adapters in sublayers": Anything(
        tune=Tune("bottleneck", reduction=8, placement="sublayers", activation="gelu_new", up_std=0.0), optim=Optim("sgd", lr=0.1)
    ),
    "adapters in the feed-forward": OfPictures(tune=Tune("bottleneck", reduction=8, placement="ffn"), optim=Optim("sgd", lr=0.1)),
    "adapters beside the feed-forward": Anything(
        tune=Tune("bottleneck", reduction=8, placement="parallel", scaling="learned"), optim=Optim("sgd", lr=0.1)
    ),
    "adapters beside that of pictures": OfPictures(
        tune=Tune("bottleneck", reduction=8, placement="parallel"), optim=Optim("sgd", lr=0.1)
    ),
    "biases of pictures": OfPictures(tune=Tune("bias"), optim=Optim("sgd", lr=0.1)),
    "norms of pictures": OfPictures(tune=Tune("norm"), optim=Optim("sgd", lr=0.1)),
    "scales and shifts of pictures": OfPictures(tune=Tune("ssf"), optim=Optim("sgd", lr=0.1)),
}
"""What settings make of a kind."""


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_any_kind_of_part_keeps_the_laws(kind: str, law: str) -> None:
    laws.LAWS[law](KINDS[kind])


@pytest.mark.parametrize("law", ["pack", "return", "sums", "sites", "resuming", "loading"])
@pytest.mark.parametrize("which", SHAPES)
def test_so_it_does_whatever_its_settings(which: str, law: str) -> None:
    laws.LAWS[law](SHAPES[which])


@pytest.mark.parametrize("kind", ["distilbert", "electra", "albert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize(
    "tune",
    [
        Tune("prefix", tokens=2, hidden=3),
        Tune("bottleneck", reduction=8, placement="sublayers"),
        Tune("norm"),
        Tune("scale"),
        Tune("ssf"),
    ],
    ids=["prefix", "adapters", "norm", "scale", "ssf"],
)
def test_packs_of_other_architectures_are_their_clients_one_by_one(kind: str, tune: Tune) -> None:
    method = Anything(tune=tune, optim=Optim("sgd", lr=0.1), batch=3)
    one, other = (tiny.federation(method, kind, pack=k, rounds=2).run().server.shared for k in (1, 3))
    assert one.keys() == other.keys()
    assert all(n.split("/")[0] in (tune.kind, "head") for n in one)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-9)


def test_every_kind_is_one_of_these() -> None:
    assert KINDS.keys() == {*PARTS, "head"}


def test_the_mean_of_lora_is_fedit_bit_for_bit() -> None:
    common: dict[str, Any] = {"epochs": 2, "batch": 3, "optim": Optim("sgd", lr=0.5)}
    runs = [
        federation(method).run()
        for method in (FedIT(rank=2, alpha=4.0, **common), Anything(tune=Tune("lora", 2, 4.0, "q"), **common))
    ]
    one, other = ({n: v for n, v in run.server.shared.items() if isinstance(v, Tensor)} for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("tune", "names"),
    [
        (Tune("lora"), {"lora", "head"}),
        (Tune("bottleneck", head=False), {"bottleneck"}),
        (Tune("head", head=False), {"head"}),
        (Tune("bias", biases="norm"), {"bias", "head"}),
        (Tune("weights"), {"weights", "head"}),
    ],
)
def test_a_kind_is_one_part_and_the_head_by_choice(tune: Tune, names: set[str]) -> None:
    run = tiny.federation(Anything(tune=tune))
    adaptation = run.method.adapt(run.bench.backbone, run.bench.task, run.clients[0].info(()))
    assert adaptation.keys() == names


def test_a_backbone_without_a_head_gets_none() -> None:
    adaptation = KINDS["context"].tune.parts(backbone("clip", task="similarity"), tiny.federation(Anything()).bench.task.head)
    assert adaptation.keys() == {"context"}


def test_nothing_but_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"has no head to train: choose another tune.kind"):
        federation(Anything(tune=Tune("head")), "clip", sizes=(2, 2))


def test_the_settings_of_a_kind_reach_its_part_and_no_other() -> None:
    head = tiny.federation(Anything()).bench.task.head
    on = backbone("bert")
    assert Tune("lora", rank=3, alpha=6.0, at="k").parts(on, head)["lora"] == PARTS["lora"](Tune(rank=3, alpha=6.0, at="k"))
    ffn = Tune("bottleneck", reduction=4, placement="ffn", activation="gelu_new", up_std=0.5, scaling=2.0)
    adapters = ffn.parts(on, head)["bottleneck"]
    assert adapters == Bottleneck(4, placement="ffn", activation="gelu_new", up_std=0.5, scaling=2.0)
    sums = vars(Tune("compacter", products=2, reduction=4, placement="ffn", activation="relu").parts(on, head)["compacter"])
    assert sums == {"n": 2, "rank": 1, "reduction": 4, "std": 0.01, "placement": "ffn", "activation": "relu", "scaling": None}
    assert vars(Tune("prefix", tokens=3, hidden=4).parts(on, head)["prefix"]) == {"tokens": 3, "hidden": 4, "std": 1.0}
    assert vars(Tune("bias", biases="norm", add_missing=True).parts(on, head)["bias"]) == {"scope": "norm", "add_missing": True}
    assert Tune("norm").parts(on, head)["norm"] == Norm()
    assert Tune("scale").parts(on, head)["scale"] == Scale()
    assert Tune("ssf", scaled="q").parts(on, head)["ssf"] == Scale("q", shift=True)
    assert vars(Tune("tokens", tokens=3, deep=True).parts(on, head)["tokens"]) == {"tokens": 3, "deep": True}
    assert vars(Tune("context", tokens=5).parts(on, head)["context"])["tokens"] == 5
    assert vars(Tune("weights", weights="blocks").parts(on, head)["weights"]) == {"which": "blocks"}


def test_a_subclass_says_who_shares_its_parts() -> None:
    class Kept(Anything):
        shares: ClassVar[Scope] = GIVEN

    run = tiny.federation(Anything())
    method = Kept()
    scopes = {scope for _, scope in method.adapt(run.bench.backbone, run.bench.task, run.clients[0].info(())).values()}
    assert scopes == {GIVEN}


def test_settings_of_what_is_tuned_are_typed_with_their_table_or_without() -> None:
    made = settings.configure(Anything, {"tune.kind": "bottleneck", "reduction": "4", "lr": "0.01", "tune": {"head": "false"}})
    assert made == Anything(tune=Tune("bottleneck", reduction=4, head=False), optim=Optim(lr=0.01))
    names = {p.name for p in settings.parameters(Anything)}
    assert {"tune.kind", "tune.rank", "tune.at", "optim.lr"} <= names
    assert next(p for p in settings.parameters(Anything) if p.name == "tune.kind").choices == (
        "lora",
        "bottleneck",
        "compacter",
        "prefix",
        "bias",
        "norm",
        "scale",
        "ssf",
        "tokens",
        "context",
        "words",
        "weights",
        "head",
    )
    for given, words in (
        ({"tune.kind": "lore"}, 'Did you mean "lora"'),
        ({"rank": "0"}, "rank"),
        ({"rnk": "2"}, 'Did you mean "rank"'.lower()),
        ({"rank": 2, "tune.rank": 3}, "given twice"),
    ):
        with pytest.raises(UserError) as refused:
            settings.configure(Anything, given)
        assert words in str(refused.value) or words in str(refused.value).lower()
