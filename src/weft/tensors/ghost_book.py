"""What is known of each row's gradient by weights that many rows use at once, without making it.

The gradient of a row by a matrix is a sum of outer products over the places where the row meets it, G = Σ_t l_t r_tᵀ: of what
goes into a linear layer and the slope of what comes out. So

    ||G||² = Σ_{t,t'} (l_t · l_t') (r_t · r_t')        and        Σ_i f_i G_i = Σ_{i,t} f_i l_{i,t} r_{i,t}ᵀ

need no G: the "ghost norm" of X. Li, F. Tramèr, P. Liang, T. Hashimoto, "Large Language Models Can Be Strong Differentially
Private Learners", ICLR 2022, arXiv 2110.05679, and the "book-keeping" of Z. Bu, Y.-X. Wang, S. Zha, G. Karypis, "Differentially
Private Optimization on Large Model at Small Cost", ICML 2023, arXiv 2210.00038, which chooses by matrix whether G is made after
all. A matrix that is used several times, as tied ones are, has all its uses in one sum. Vectors, and what else is no matrix, are
copied for each row, and have gradients by autograd.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

PERIOD = 16
"""Of the powers of two by which rows are told apart: 2¹⁵ times a slope is still a number in half precision."""


Way = tuple[tuple[str, tuple[bool, ...]], ...]
"""The weights that a pass uses, in order, with the axes of what they are used on: whether a row has more than one piece, and more
than one place. Where there is one place alone, rows before places are the same as places before rows.
"""


class Unknown(Exception):
    """A weight is used in a way for which no ghost norm is known, or rows can't be told apart where it is used."""


class Use:
    """A matrix met rows here, places [n, m]: the gradient of row i is Σ_t of the outer products of ``given`` and ``slope``.

    Attributes:
        given: [n, m, a], or the rows of the matrix that were looked up, integers [n, m]. slope: [n, m, b] of a sum of the rows'
            losses, by what came out; None = it has none. first: the slope is the left factor.

    Args:
        lay: what came out as [n, m, b]. skipped: [n, m, 1] bool, looked up without a gradient.
    """

    def __init__(self, book: Book, given: Tensor, first: bool, lay: Callable[[Tensor], Tensor], skipped: Tensor | None = None):
        self.book, self.given, self.first, self.lay, self.skipped = book, given.detach(), first, lay, skipped
        self.slope: Tensor | None = None

    def take(self, slope: Tensor) -> None:
        """By autograd: the slope of what came out, as it was laid out there."""
        found = self.lay(slope.detach())
        if self.skipped is not None:
            found = found.masked_fill(self.skipped, 0.0)
        if self.book.checking:
            self.book.compare(self.slope, found)
        else:
            self.slope = found.contiguous()

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Left and right one."""
        assert self.slope is not None
        return (self.slope, self.given) if self.first else (self.given, self.slope)


class Book:
    """What is noted of one pass of n rows, the first axis of all that depends on them.

    Attributes:
        shapes: by name, of the weights. weights: [n] powers of two. checking: slopes are those of losses that are weighed by
        them.
    """

    def __init__(self, n: int, device: torch.device, dtype: torch.dtype):
        self.n, self.dtype = n, dtype
        self.weights = torch.tensor([2.0 ** (i % PERIOD) for i in range(n)], device=device, dtype=dtype)
        self.checking = False
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.copies: dict[str, Tensor] = {}
        self._way: list[tuple[str, tuple[bool, ...]]] = []
        self.shapes: dict[str, torch.Size] = {}
        self._anchor = torch.zeros((), device=device, dtype=dtype, requires_grad=True)
        self._apart = torch.ones(n, dtype=torch.bool, device=device)

    # while rows pass ------------------------------------------------------------------------------------------------------

    def rows(self, x: Tensor) -> Tensor:
        """[n·c, …, d] as [n, m, d].

        Raises:
            Unknown: they are not the rows'.
        """
        if not len(x) or len(x) % self.n:
            raise Unknown
        return x.reshape(self.n, -1, x.shape[-1])

    def note(
        self, name: str, given: Tensor, first: bool, out: Tensor, skipped: Tensor | None = None, maps: bool = False
    ) -> Tensor:
        """What comes out, with an ear to its slope.

        Args:
            maps: features lie before the places in it.
        """
        if not torch.is_grad_enabled():  # what is made without a graph may stand in a graph for all that
            raise Unknown
        if not out.requires_grad:  # nothing below is trained, and no slope would come so far
            out = out + self._anchor.to(out)
        use = Use(self, given, first, self._maps if maps else self.rows, skipped)
        out.register_hook(use.take)
        self.uses[name].append(use)
        self._gone(name, out.shape)
        return out

    def _gone(self, name: str, shape: Sequence[int]) -> None:
        self._way.append((name, tuple(size > 1 for size in (shape[0] // self.n, *shape[1:]))))

    def _maps(self, x: Tensor) -> Tensor:
        """[n·c, d, h, w] as [n, m, d]."""
        return self.rows(x.flatten(2).mT)

    def copy(self, name: str, value: Tensor, shape: torch.Size | Sequence[int]) -> Tensor:
        """A weight that every row has for itself, to be broadcast to what depends on rows and has this shape.

        Raises:
            Unknown: it is a matrix, or there are no rows.
        """
        if is_matrix(value.shape) or len(shape) <= value.dim() or not shape[0] or shape[0] % self.n:
            raise Unknown
        self._gone(name, shape)
        copy = self.each(name, value).repeat_interleave(shape[0] // self.n, 0)
        return copy.view(shape[0], *[1] * (len(shape) - 1 - value.dim()), *value.shape)

    def each(self, name: str, value: Tensor) -> Tensor:
        """[n, …] the weight of each row, one leaf for all uses."""
        if not torch.is_grad_enabled():
            raise Unknown
        if name not in self.copies:
            self.copies[name] = value.expand(self.n, *value.shape).clone().requires_grad_(True)
        if self.copies[name].shape[1:] != value.shape:
            raise Unknown
        return self.copies[name]

    # afterwards -----------------------------------------------------------------------------------------------------------

    def differentiate(self, losses: Tensor, leaves: Mapping[str, Tensor], seen: set[Way]) -> dict[str, Tensor]:
        """Gradients [n, …] of each row's own loss by leaves [n, …] and by the copies; slopes of all uses are noted.

        That what lies at row i of a slope comes of the loss of row i alone is checked: a second time the losses are weighed by
        powers of two, which neither round nor are the same for rows near each other, and every slope has to be weighed like
        its row. It is no check of values: these are what autograd says. Once is enough for a way through the model, the order
        of uses of its weights: what depends on rows there has as many of them as there are, whatever their number, and what
        does not fails at another number, or here where that is the same by chance.

        Args:
            losses: [n]. seen: ways that were checked, to which this one is added.

        Raises:
            Unknown: slopes of different rows are mixed.
        """
        by = {**leaves, **self.copies}
        way = tuple(self._way)
        first = self._slopes(losses.sum(), by, again=self.n > 1 and way not in seen)
        if self.n > 1 and way not in seen:
            self.checking = True
            for name, again in self._slopes((losses * self.weights.to(losses)).sum(), by).items():
                self.compare(first[name], again)
            if not bool(self._apart.all()):
                raise Unknown
            seen.add(way)
        return {n: torch.zeros_like(by[n]) if g is None else g for n, g in first.items()}

    def _slopes(self, whole: Tensor, by: Mapping[str, Tensor], again: bool = False) -> dict[str, Tensor | None]:
        if not whole.requires_grad:
            return dict.fromkeys(by)
        found = torch.autograd.grad(whole, [self._anchor, *by.values()], allow_unused=True, retain_graph=again)
        return dict(zip(by, found[1:], strict=True))

    def compare(self, slope: Tensor | None, again: Tensor | None) -> None:
        """A slope [n, …] with the one that is weighed by rows."""
        if slope is None or again is None:
            self._apart &= slope is again
            return
        wanted = slope * self.weights.to(slope).view(-1, *[1] * (slope.dim() - 1))
        tolerance = math.sqrt(torch.finfo(slope.dtype).eps)
        gap, size = ((v.flatten(1).to(self.dtype).norm(dim=1)) for v in (again - wanted, wanted))
        self._apart &= gap <= tolerance * size

    @property
    def numbers(self) -> int:
        """How many are held of all rows together."""
        of_uses = (u.given.numel() + (0 if u.slope is None else u.slope.numel()) for some in self.uses.values() for u in some)
        return sum(of_uses) + sum(c.numel() for c in self.copies.values())

    def squares(self) -> Tensor:
        """[n] squared norms of each row's gradient by all matrices together, in double precision."""
        total = torch.zeros(self.n, dtype=torch.float64, device=self.weights.device)
        for name in self.uses:
            total += self._made(name) if self._made_is_less(name) else self._unmade(name)
        return total

    def sums(self, factors: Tensor) -> dict[str, Tensor]:
        """Σ_i f_i G_i by name, of all matrices.

        Args:
            factors: [n].
        """
        factors = factors.to(self.dtype)
        return {name: self._sum(name, slice(None), factors) for name in self.shapes if name not in self.copies}

    def _factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        return [u.factors for u in self.uses.get(name, []) if u.slope is not None]

    def _made_is_less(self, name: str) -> bool:
        """Whether a row meets the matrix [p, q] so often that its gradient is made sooner, one row after the other: in m p q
        products, against 2 m² (p + q), as they are twice the work in double precision.
        """
        factors = self._factors(name)
        if not all(left.is_floating_point() for left, _ in factors):
            return False
        met, (p, q) = sum(left.shape[1] for left, _ in factors), _flat(self.shapes[name])
        return 2 * met * (p + q) > p * q

    def _made(self, name: str) -> Tensor:
        one = torch.ones(1, device=self.weights.device, dtype=self.dtype)
        return torch.stack([self._sum(name, slice(i, i + 1), one).double().square().sum() for i in range(self.n)])

    def _unmade(self, name: str) -> Tensor:
        total, factors = torch.zeros(self.n, dtype=torch.float64, device=self.weights.device), self._factors(name)
        for i, (left, right) in enumerate(factors):
            for j, (left_too, right_too) in enumerate(factors[i:]):
                products = _products(left, left_too) * _products(right, right_too)
                total += (2 if j else 1) * products.sum((1, 2))
        return total.clamp(min=0)

    def _sum(self, name: str, rows: slice, factors: Tensor) -> Tensor:
        """Σ_i f_i G_i of some rows."""
        found = torch.zeros(self.shapes[name], device=factors.device, dtype=self.dtype)
        flat = found.view(_flat(found.shape))
        for left, right in self._factors(name):
            weighed = (right[rows].to(self.dtype) * factors.view(-1, 1, 1)).flatten(0, 1)
            if left.is_floating_point():
                flat.addmm_(left[rows].to(self.dtype).flatten(0, 1).mT, weighed)
            else:
                flat.index_add_(0, left[rows].flatten(), weighed)
        return found


def _flat(shape: Sequence[int]) -> tuple[int, int]:
    """Of a matrix, or of a convolution's [d_out, d_in, h, w]."""
    return shape[0], math.prod(shape[1:])


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether it multiplies, or is looked up: convolutions too."""
    return len(shape) in (2, 4)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """[n, m, m'] of vectors [n, m, d] and [n, m', d], in double precision; integers [n, m] stand for unit vectors."""
    if x.is_floating_point() and y.is_floating_point():
        return x.double() @ y.double().mT
    if not x.is_floating_point() and not y.is_floating_point():
        return (x.unsqueeze(2) == y.unsqueeze(1)).double()
    if x.is_floating_point():
        return x.double().gather(2, y.unsqueeze(1).expand(-1, x.shape[1], -1))
    return _products(y, x).mT
