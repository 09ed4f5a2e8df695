"""Norms and clipped sums of gradients that are not made, against those that are, one row after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.tensors.ghost import Ghost, stand_in
from weft.tensors.ghost_book import Book, Unknown

Weights = dict[str, Tensor]
Model = Callable[[Weights, Tensor], Tensor]
"""Of weights and rows [n, …], a number for each of them: [n]."""

N = 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(3))


def one_by_one(model: Model, weights: Weights, rows: Tensor) -> dict[str, Tensor]:
    """[n, …] by autograd, each row alone."""
    leaves = {n: w.clone().requires_grad_(True) for n, w in weights.items()}
    found: dict[str, list[Tensor]] = {n: [] for n in weights}
    for i in range(len(rows)):
        grads = torch.autograd.grad(model(leaves, rows[i : i + 1]).sum(), list(leaves.values()), allow_unused=True)
        for (n, w), g in zip(weights.items(), grads, strict=True):
            found[n].append(torch.zeros_like(w) if g is None else g)
    return {n: torch.stack(g) for n, g in found.items()}


def ghostly(model: Model, weights: Weights, rows: Tensor, factors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """[n] squared norms, and the weighed sums of gradients by name."""
    book = Book(len(rows), torch.device("cpu"), torch.float64)
    stand_ins: Weights = {n: stand_in(book, n, w[None]).squeeze(0) for n, w in weights.items()}
    grads = book.differentiate(model(stand_ins, rows), {}, set())
    square = book.squares() + sum(g.square().flatten(1).sum(1) for g in grads.values())
    return square, {n: torch.tensordot(factors, g, 1) for n, g in grads.items()} | book.sums(factors)


def assert_same(model: Model, weights: Weights, rows: Tensor) -> None:
    factors = torch.linspace(0.2, 1.0, len(rows), dtype=torch.float64)
    wanted = one_by_one(model, weights, rows)
    square, sums = ghostly(model, weights, rows, factors)
    assert any(bool(g.any()) for g in wanted.values())
    torch.testing.assert_close(square, sum(g.square().flatten(1).sum(1) for g in wanted.values()), rtol=1e-10, atol=0)
    assert sums.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(sums[name], torch.tensordot(factors, value, 1), rtol=1e-10, atol=1e-12)


def number(x: Tensor) -> Tensor:
    """[n] of what a model makes of rows, curved in all of it."""
    return (x.flatten(1).sin() * drawn(*x.flatten(1).shape[1:], seed=9)).sum(1)


def linear(w: Weights, x: Tensor) -> Tensor:
    return number(F.linear(torch.tanh(F.linear(x, w["a"], w["b"])), w["c"]))


def attention(w: Weights, x: Tensor) -> Tensor:
    q, k = F.linear(x, w["q"]), F.linear(x, w["k"])
    return number((q @ k.mT).softmax(-1) @ x)


def conv1d(w: Weights, x: Tensor) -> Tensor:  # as GPT-2 has it: places of all rows in one axis
    return number(torch.addmm(w["b"], x.view(-1, x.shape[-1]), w["a"]).view(*x.shape[:2], -1))


def convolution(w: Weights, x: Tensor) -> Tensor:
    once = F.conv2d(x, w["a"], w["b"], 2, 1)
    return number(F.conv2d(once, w["c"], None, 1, 0, 2))


def norms(w: Weights, x: Tensor) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], w["a"], w["b"], 1e-5)
    return number(w["d"] * F.rms_norm(x, x.shape[-1:], w["c"]) + w["b"])


def places(w: Weights, x: Tensor) -> Tensor:
    """A class token, and an embedding of the places that all rows share: as a parameter, and looked up."""
    x = torch.cat([w["token"].expand(len(x), -1, -1), x], 1)
    x = x + w["places"]
    return number(x + F.embedding(torch.arange(x.shape[1])[None], w["looked"]))


def embedding(w: Weights, x: Tensor) -> Tensor:
    found = F.embedding(x, w["a"], 0)
    found += F.embedding(x // 2, w["b"])  # in place, as BERT does
    return number(found)


def tied(w: Weights, x: Tensor) -> Tensor:
    """A weight is looked up, and multiplies, twice."""
    h = F.linear(F.embedding(x, w["a"]), w["b"])
    return number(F.linear(h, w["a"])) + number(F.linear(h.cos(), w["a"])) + number(F.embedding(x // 3, w["a"]))


def maps_last(w: Weights, x: Tensor) -> Tensor:
    """Places of two axes, features behind them."""
    return number(F.linear(x.movedim(1, -1), w["a"]))


def two_of_a_row(w: Weights, x: Tensor) -> Tensor:
    """Windows: pieces of a row follow each other in the first axis."""
    pieces = x.reshape(-1, x.shape[1] // 2, x.shape[-1])
    return number((F.linear(pieces, w["a"]) + w["b"]).reshape(len(x), -1))


CASES: dict[str, tuple[Model, dict[str, tuple[int, ...]], Tensor]] = {
    "linear": (linear, {"a": (6, 4), "b": (6,), "c": (3, 6)}, drawn(N, 3, 4)),
    "a place a row": (linear, {"a": (60, 40), "b": (60,), "c": (30, 60)}, drawn(N, 40)),
    "attention": (attention, {"q": (6, 4), "k": (6, 4)}, drawn(N, 3, 4)),
    "conv1d": (conv1d, {"a": (40, 60), "b": (60,)}, drawn(N, 3, 40)),
    "convolution": (convolution, {"a": (3, 2, 3, 3), "b": (3,), "c": (4, 3, 2, 2)}, drawn(N, 2, 8, 8)),
    "wide convolution": (convolution, {"a": (30, 20, 3, 3), "b": (30,), "c": (40, 30, 2, 2)}, drawn(N, 20, 5, 5)),
    "norms": (norms, {"a": (4,), "b": (4,), "c": (4,), "d": (4,)}, drawn(N, 3, 4)),
    "places": (places, {"token": (1, 1, 4), "places": (1, 4, 4), "looked": (9, 4)}, drawn(N, 3, 4)),
    "embedding": (embedding, {"a": (7, 4), "b": (7, 4)}, ids(N, 6)),
    "tied": (tied, {"a": (7, 4), "b": (4, 4)}, ids(N, 6)),
    "maps": (maps_last, {"a": (20, 30)}, drawn(N, 30, 2, 3)),
    "windows": (two_of_a_row, {"a": (6, 4), "b": (6,)}, drawn(N, 4, 4)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [1, N])
def test_norms_and_sums_are_those_of_gradients_that_are_made(case: str, n: int) -> None:
    model, shapes, rows = CASES[case]
    assert_same(model, {name: drawn(*shape) * 0.5 for name, shape in shapes.items()}, rows[:n])


def test_both_ways_to_a_norm_are_tried() -> None:
    """Gradients of matrices that a row meets often are made for their norms; of others they are not."""
    for case, made in {
        "a place a row": False,
        "linear": True,
        "conv1d": False,
        "wide convolution": False,
        "tied": False,
    }.items():
        model, shapes, rows = CASES[case]
        book = Book(N, torch.device("cpu"), torch.float64)
        book.differentiate(model({n: stand_in(book, n, drawn(1, *s)).squeeze(0) for n, s in shapes.items()}, rows), {}, set())
        assert {book._made_is_less(n) for n in book.uses if n == "a"} == {made}, case


def test_a_weight_that_plays_no_part_has_none() -> None:
    def model(w: Weights, x: Tensor) -> Tensor:
        F.linear(x, w["unseen"])
        return number(F.linear(x, w["a"]))

    weights = {"a": drawn(30, 40), "unseen": drawn(3, 40), "never": drawn(2, 2)}
    assert_same(model, weights, drawn(N, 40))


# what ends in Unknown ---------------------------------------------------------------------------------------------------


def proximal(w: Weights, x: Tensor) -> Tensor:
    return number(F.linear(x, w["a"])) + (w["a"] - 1).square().sum()


def transposed(w: Weights, x: Tensor) -> Tensor:
    return number(x @ w["a"].T)


def detached(w: Weights, x: Tensor) -> Tensor:
    return number(F.linear(x, w["a"].detach()))


def without_gradient(w: Weights, x: Tensor) -> Tensor:
    with torch.no_grad():
        teacher = F.linear(x, w["a"])
    return number(F.linear(x, w["a"]) - teacher)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.flatten(0, -2).mT @ ctx.saved_tensors[0].flatten(0, -2)


def own_function(w: Weights, x: Tensor) -> Tensor:
    out: Tensor = Own.apply(x, w["a"])
    return number(out)


def places_first(w: Weights, x: Tensor) -> Tensor:
    """Places before rows in the one axis of a product, whose number is one of rows times places all the same."""
    flat = x.transpose(0, 1).reshape(-1, x.shape[-1])
    return number(F.linear(flat, w["a"]).view(x.shape[1], len(x), -1).transpose(0, 1).reshape(len(x), -1))


def as_many_places_as_rows(w: Weights, x: Tensor) -> Tensor:
    """A table over places, the same for all rows, that has as many rows as there are."""
    table = F.linear(torch.eye(N, x.shape[-1], dtype=x.dtype), w["a"])
    return number(x[..., :1] * table)


def biased_places(w: Weights, x: Tensor) -> Tensor:
    table = torch.ones(N, w["b"].shape[0], dtype=x.dtype) + w["b"]
    return number(x[..., :1] * table)


def compared(w: Weights, x: Tensor) -> Tensor:
    out = F.linear(x, w["a"])
    return number(out - out.mean(0))


def of_all(w: Weights, x: Tensor) -> Tensor:
    return number(x @ F.linear(drawn(3, x.shape[-1]), w["a"]).mT)


REFUSED = [proximal, transposed, detached, without_gradient, own_function, places_first, as_many_places_as_rows]


@pytest.mark.parametrize("model", [*REFUSED, biased_places, compared, of_all], ids=lambda m: m.__name__)
def test_what_is_not_known_to_be_right_is_refused(model: Model) -> None:
    with pytest.raises(Unknown):
        ghostly(model, {"a": drawn(4, 4), "b": drawn(4)}, drawn(N, N, 4), torch.ones(N, dtype=torch.float64))


def test_a_way_through_a_model_is_checked_once_and_one_of_single_places_is_another() -> None:
    seen: set[Any] = set()
    counts = []
    for model, rows in ((linear, drawn(N, 3, 4)), (linear, drawn(N, 7, 4)), (linear, drawn(N, 1, 4)), (linear, drawn(N, 4))):
        book = Book(N, torch.device("cpu"), torch.float64)
        shapes = CASES["linear"][1]
        book.differentiate(model({n: stand_in(book, n, drawn(1, *s)).squeeze(0) for n, s in shapes.items()}, rows), {}, seen)
        counts.append((book.checking, len(seen)))
    assert counts == [(True, 1), (False, 1), (True, 2), (True, 3)]
    seen.clear()
    weight = drawn(1, 4, 4)
    book = Book(N, torch.device("cpu"), torch.float64)
    book.differentiate(places_first({"a": stand_in(book, "a", weight).squeeze(0)}, drawn(N, 1, 4)), {}, seen)
    assert len(seen) == 1
    book = Book(N, torch.device("cpu"), torch.float64)
    with pytest.raises(Unknown):
        book.differentiate(places_first({"a": stand_in(book, "a", weight).squeeze(0)}, drawn(N, 3, 4)), {}, seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_not_taken_for_rows_that_are_mixed(dtype: torch.dtype) -> None:
    """Weights of losses are powers of two, so that slopes are the same but for them, bit by bit."""
    rows = drawn(40, 7, 16).to(dtype)
    book = Book(40, torch.device("cpu"), torch.float32)
    w = {n: stand_in(book, n, (0.3 * drawn(1, 16, 16, seed=i)).to(dtype)).squeeze(0) for i, n in enumerate("qkab")}
    x = F.layer_norm(F.linear(rows, w["a"]), (16,))
    h = F.scaled_dot_product_attention(F.linear(x, w["q"]), F.linear(x, w["k"]), x)
    losses = F.cross_entropy(F.linear(h[:, 0], w["b"]).float() * 20, torch.arange(40) % 16, reduction="none")
    book.differentiate(losses, {}, set())
    assert all(u.slope is not None for some in book.uses.values() for u in some)


def test_a_stand_in_tells_its_shape_and_nothing_else() -> None:
    book = Book(2, torch.device("cpu"), torch.float64)
    ghost = stand_in(book, "a", drawn(1, 3, 4))
    assert isinstance(ghost, Ghost)
    assert (ghost.shape, ghost.dtype, len(ghost), ghost.dim()) == ((1, 3, 4), torch.float64, 1, 3)
    for look in (
        lambda: ghost.data,
        lambda: ghost[0],
        lambda: ghost.sum(),
        lambda: ghost.numpy(),
        lambda: ghost.clone(),
        ghost.tolist,
    ):
        with pytest.raises(Unknown):
            look()
