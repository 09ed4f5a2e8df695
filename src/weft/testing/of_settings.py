"""Laws of a method under other settings of a run: precision, codec, learning rate, architecture, and nobody with rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.method import Method
from weft.tensors import forms
from weft.tensors.integers import Integers
from weft.tensors.masked import Masked
from weft.testing.compare import assert_same, equal, logits, server_state, state
from weft.testing.federation import federation
from weft.testing.models import ENCODERS, IMAGES, SHAPES, TOWERS, home
from weft.testing.plays import exchanges, shallow, small, steady
from weft.testing.watch import watching

PAIR: dict[str, Any] = {"sizes": (3, 1)}

CODECS = ("identity", "quant8", "topk:share=0.2+quant8", "qsgd:levels=7+entropy")
"""One of each kind, not all there are. What is of zeros arrives as zeros by every codec, so that any of them may be here."""


def check_single_precision(method: Method) -> None:
    """The pack law holds in single precision, up to its rounding, for a pack of everybody."""
    about: dict[str, Any] = {"model": shallow(method, "float32"), "sizes": (4, 2, 1), "rounds": exchanges(method)}
    packed, alone = (federation(small(method), pack=k, **about).run() for k in (3, 1))
    assert_same(logits(packed), logits(alone), 2e-4, f"{method.info.slug} breaks the pack law in single precision; there")


def check_half_precision(method: Method) -> None:
    """On a backbone of half precision everything that is learnt, sent and averaged is of single precision."""
    run = federation(small(method), shallow(method, "bfloat16"), rounds=exchanges(method), **PAIR)
    with watching(run.method) as seen:
        run.run()
    values = [(f"{n} of {u.client.id}", v) for turn in seen.turns.values() for u in turn.updates for n, v in u.tensors.items()]
    exact = tuple(f":{role}" for role in (forms.BITS, forms.PLACES))  # bytes, which nothing is learnt or averaged of
    for name, value in [*values, *((n, v) for n, v in state(run).items() if not n.endswith(exact))]:
        if isinstance(value, Integers):
            continue
        assert isinstance(value, Tensor | Masked)
        if isinstance(value, Tensor) and not value.is_floating_point():  # masks that clients remember, places that are noted
            continue
        assert value.dtype == torch.float32, f"{method.info.slug}: on a bfloat16 backbone {name} is of {value.dtype}."


def check_rate_zero(method: Method, *codecs: str, rounds: int = 1, **about: Any) -> None:
    """At a learning rate of zero nothing moves: predictions stay as they are; exactly, for values that are averaged, but an SVD
    may turn factors.

    Clients that are handed what others have sent predict otherwise although nothing moves. Then all of them send exactly what
    they entered with, and what the run holds stays as it is from one round to the next. A method that takes no steps, by no
    gradient nor by a rule of its own, has no rate; nor have integers, where clients send nothing else: they are chosen or drawn.

    Args:
        rounds: at least; more, until a kind of round comes again. about: of the federation; else it has two clients and a shallow
            model.
    """
    if "no gradients" in method.info.needs and "own steps" not in method.info.needs:
        return
    about = about or {"model": shallow(method), **PAIR}
    values = {f.name: getattr(small(method), f.name) for f in fields(method)}
    changes: dict[str, Any] = {n: v.but(lr=0.0) for n, v in values.items() if isinstance(v, Optim)}
    made, rounds = replace(small(method), **changes), max(rounds, exchanges(method))
    before = logits(federation(made, rounds=rounds, **about))
    for codec in codecs:
        after = logits(federation(made, codec_name=codec, rounds=rounds, **about).run())
        if equal(before, after, 1e-12):
            continue
        run = federation(made, codec_name=codec, rounds=2 * rounds, **about)
        with watching(run.method) as seen:
            held = state(run.run(rounds))
            for t in range(rounds, 2 * rounds):
                run.simulation.round(t)
        if all(isinstance(v, Integers) for turn in seen.turns.values() for u in turn.updates for v in u.tensors.values()):
            return
        sent = {f"{n} of {c} in {t}": v for t, of in seen.sent.items() for c, some in of.items() for n, v in some.items()}
        had = {f"{n} of {c} in {t}": v for t, of in seen.entered.items() for c, some in of.items() for n, v in some.items()}
        what = f"{method.info.slug}: at a learning rate of zero, with {codec}, something moves; there"
        both = sent.keys() & had.keys()  # what they make of their rows is of no part, and has nothing that it was before
        if not equal({n: sent[n] for n in both}, {n: had[n] for n in both}) or not equal(held, state(run)):
            assert_same(before, after, 1e-12, what)


def check_codec(method: Method, codec: str) -> None:
    """Updates that a codec has written train."""
    slug = method.info.slug
    run = federation(small(method), shallow(method), codec_name=codec, **PAIR)
    before = state(run)
    run.run()
    assert run.simulation.setup.exchange.ledger.totals(direction="up").payload > 0, f"{slug}: nothing is billed with {codec}."
    assert not equal(before, state(run)), f"{slug}: nothing is learnt with {codec}."
    odd = [n for n, v in logits(run).items() if not bool(torch.isfinite(v).all())]
    assert not odd, f"{slug}: with {codec} the logits of {odd[0]} are not finite."


def check_codecs(method: Method) -> None:
    """With codecs of every kind a run trains, and at a learning rate of zero nothing moves."""
    check_rate_zero(method, *CODECS)
    for text in CODECS[1:]:  # all other runs are played with the first
        check_codec(method, text)


def check_nobody(method: Method) -> None:
    """A round of clients without rows changes nothing, and divides by nothing."""
    rounds = exchanges(method)
    assert rounds, f"{method.info.slug}: there is no first round."
    run = federation(small(method), shallow(method), sizes=(0, 0), rounds=rounds)
    before = {n: v for n, v in server_state(run).items() if n.startswith("shared:")}
    for t in range(rounds):
        played = run.simulation.round(t)
        assert played is not None, f"{method.info.slug}: of {rounds} rounds there is no round {t}."
        assert played["refused"] == {}, f"{method.info.slug}: clients without rows send what is refused: {played['refused']}."
    after = {n: v for n, v in server_state(run).items() if n.startswith("shared:")}
    assert_same(before, after, 0.0, f"{method.info.slug}: a round of clients without rows changes something; there")


def others(method: Method) -> list[str]:
    """Architectures that a method may be tried on beside its home, in an order that depends on its slug."""
    needs, at_home = method.info.needs, home(method)
    kinds: Iterable[str] = SHAPES
    if "two towers" in needs:
        kinds = TOWERS
    elif "images" in needs:
        kinds = IMAGES
    elif "label words" in needs:
        kinds = ENCODERS
    elif {"items", "connector"}.intersection(needs):
        kinds = ()
    elif "texts" in needs:
        kinds = [k for k in SHAPES if k not in IMAGES]
    found = sorted(k for k in kinds if k != at_home)
    turn = crc32(method.info.slug.encode()) % max(len(found), 1)
    return found[turn:] + found[:turn]


def check_on(method: Method, model: str, codec: str = "identity") -> bool:
    """The pack law on one architecture, for two clients of unequal numbers of steps; whether the method takes that at all."""
    about: dict[str, Any] = {"model": model, "sizes": (4, 1), "rounds": exchanges(method), "codec_name": codec}
    try:
        packed = logits(federation(steady(method), pack=2, **about).run())
    except UserError:  # refused, with a sentence
        return False
    alone = federation(steady(method), pack=1, **about).run()
    tolerance = (
        2e-4 if codec == "identity" else 1e-3
    )  # some compute in single precision; a code may fall to either side of a level
    assert_same(packed, logits(alone), tolerance, f"{method.info.slug} breaks the pack law on {model}; there")
    return True


def check_elsewhere(method: Method) -> None:
    """The pack law holds on another architecture, which differs from method to method."""
    kinds = others(method)
    if kinds:
        assert any(check_on(method, model) for model in kinds), (
            f"{method.info.slug} is refused on every architecture but its home."
        )
