"""Stages of a codec, and several of them joined: at most one shift, then one sparsifier, one quantiser, one entropy coder.

A shift moves what differences are taken from, a sparsifier leaves entries out, a quantiser makes small whole numbers of those
that are left, an entropy coder writes frequent numbers in fewer bits. A stage by itself is a chain too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.communication.codecs import arrived
from weft.communication.codecs.arrived import MARK, Entry, Form
from weft.communication.codecs.configured import Configured
from weft.communication.codecs.laid import AsTheyAre, Codes, Layout, Packed
from weft.errors import UserError


class Chain:
    """A codec made of stages.

    Wire tensor ``x`` holds what stands for the entries of x that are sent, ``x::suffix`` what its stages say beside it. Where
    each entry has an element of ``x``, that has the shape of the tensor; else shapes are in ``meta``, in the order of sorted
    names, and with a sparsifier the places in that order of tensors that are whole, and the seed, if it has one.
    """

    differences: ClassVar[bool] = True

    @property
    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    @property
    def sparsifier(self) -> Sparsifier | None:
        return next((s for s in self.stages if isinstance(s, Sparsifier)), None)

    @property
    def quantiser(self) -> Quantiser:
        return next((s for s in self.stages if isinstance(s, Quantiser)), EXACT)

    @property
    def layout(self) -> Layout:
        return next((s for s in self.stages if isinstance(s, Coder)), self.quantiser.layout)

    # what is known of its error ---------------------------------------------------------------------------------------------

    @property
    def unbiased(self) -> bool:
        return all(s.fair for s in self.stages)

    @property
    def linear(self) -> bool:
        return all(s.adds for s in self.stages)

    def omega(self, n: int) -> float:
        if not self.unbiased:
            return math.inf
        first, kept = self._first(n)
        return (1 + first.variance(n)) * (1 + self.quantiser.variance(kept)) - 1

    def delta(self, n: int) -> float:
        if self.unbiased:
            return max(1 - self.omega(n), 0.0)
        first, kept = self._first(n)
        return first.share_of_norm(n) * self.quantiser.share_of_norm(kept)

    def alpha(self, n: int) -> float:
        shift = next((s for s in self.stages if isinstance(s, Shift)), None)
        if shift is None:
            return 0.0
        return shift.moved(self.omega(n)) if self.unbiased else 1.0

    def _first(self, n: int) -> tuple[Stage, int]:
        return (self.sparsifier, self.sparsifier.kept(n)) if self.sparsifier else (EXACT, n)

    # sending ----------------------------------------------------------------------------------------------------------------

    def encode(
        self,
        tensors: dict[str, Tensor],
        generator: torch.Generator | None,
        *,
        common: torch.Generator | None = None,
        whole: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names, sparsifier = sorted(tensors), self.sparsifier  # not in the order given, which must not change what is drawn
        own_shapes = self._form.own_shapes
        values = {name: tensors[name].reshape(-1) for name in names}
        sides: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        meta: dict[str, Any] = {}
        if not own_shapes:
            meta["shapes"] = [list(tensors[name].shape) for name in names]
        if sparsifier:
            meta["whole"] = [i for i, name in enumerate(names) if name in whole]
            seed = sparsifier.seed(generator, common)
            if seed is not None:
                meta["seed"] = seed
            for name, x in values.items():
                n = len(x)
                if name in whole or sparsifier.kept(n) == n:
                    continue
                if not bool(x.isfinite().all()):  # wherever that is: the receiver has to refuse it
                    x = torch.full_like(x, torch.nan)
                places = sparsifier.choose(x, seed, name)
                sides[name] |= sparsifier.written(places, n)
                values[name] = x[places]
        codes = []
        quantisers = self.quantiser.allot(values)
        for name, x in values.items():
            quantiser = quantisers[name]
            if quantiser.rounds_at_random and generator is None:
                raise ValueError(f"{quantiser.name} rounds at random and needs a generator")
            numbers, said = quantiser.quantise(x, generator)
            sides[name] |= said
            codes.append(Codes(numbers, quantiser.alphabet(said), name in whole))
        wire: dict[str, Tensor] = {}
        for name, raw in zip(names, self.layout.pack(codes), strict=True):
            wire[name] = raw.reshape(tensors[name].shape) if own_shapes else raw
            wire |= {f"{name}{MARK}{suffix}": side for suffix, side in sides[name].items()}
        return wire, meta

    # receiving --------------------------------------------------------------------------------------------------------------

    def shapes(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        found = {}
        for entry in arrived.entries(wire, meta, self._form):
            try:
                if entry.kept < entry.n and self.sparsifier:
                    self.sparsifier.check(entry.n, entry.sides)
                self.quantiser.check(entry.kept, entry.sides)
            except ValueError as error:
                raise ValueError(f"tensor {entry.name!r} {error}") from None
            self.layout.check(self._packed(entry))
            found[entry.name] = entry.shape
        return found

    def decode(self, wire: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
        entries = arrived.entries(wire, meta, self._form)
        numbers = self.layout.unpack([self._packed(entry) for entry in entries])
        found = {}
        for entry in entries:
            values = self.quantiser.restore(next(numbers), entry.sides)
            if entry.kept < entry.n and self.sparsifier:
                gain, places = self.sparsifier.gain(entry.n), self.sparsifier.read(entry, meta.get("seed"))
                values = values if gain == 1 else values.to(torch.float64) * gain
                values = torch.zeros(entry.n, dtype=values.dtype).index_copy(0, places, values)
            found[entry.name] = values.reshape(entry.shape)
        return found

    def _packed(self, entry: Entry) -> Packed:
        return Packed(entry.name, entry.raw, entry.kept, self.quantiser.alphabet(entry.sides))

    @property
    def _form(self) -> Form:
        sparsifier, sides = self.sparsifier, self.quantiser.sides
        if sparsifier is None:
            return Form(self.layout.elementwise, sides)
        return Form(False, sides, sparsifier.sides, sparsifier.kept, sparsifier.seeded)


# the stages -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage(Chain, Configured):
    """One step of a chain, and a chain by itself.

    Attributes:
        fair: what arrives is right on average.
        adds: what is sent may be added up before it is decoded, given one common stream.
        source: where it was published.
    """

    fair: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    source: ClassVar[str] = ""

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self,)

    def variance(self, n: int) -> float:
        """ω of n entries, of a stage that is fair."""
        return 0.0

    def share_of_norm(self, n: int) -> float:
        """δ of n entries."""
        return max(1 - self.variance(n), 0.0) if self.fair else 0.0


class Shift(Stage):
    """Moves what differences are taken from, which both ends keep; see :meth:`Codec.alpha`. It writes nothing.

    Attributes:
        asks_fair: it says by how much in a way that asks for a codec behind it that is right on average.
    """

    fair: ClassVar[bool] = True

    @property
    def asks_fair(self) -> bool:
        return False

    @abstractmethod
    def moved(self, omega: float) -> float:
        """The share of what has arrived, of a codec that is right on average with this ω."""


class Sparsifier(Stage):
    """Leaves entries out, of tensors of more than one entry.

    Attributes:
        sides: suffixes of what it writes beside the entries. seeded: a number in the message says where they are.
    """

    sides: ClassVar[tuple[str, ...]] = ()
    seeded: ClassVar[bool] = False

    @abstractmethod
    def kept(self, n: int) -> int:
        """How many of n entries are sent; at least one, if there is one."""

    def gain(self, n: int) -> float:
        """What they are multiplied with on arrival."""
        return 1.0

    def seed(self, generator: torch.Generator | None, common: torch.Generator | None) -> int | None:
        """The number in the message, of a stage that has one."""
        return None

    @abstractmethod
    def choose(self, x: Tensor, seed: int | None, name: str) -> Tensor:
        """The places [kept] of the entries that are sent of x [n], int64 and ascending."""

    def written(self, places: Tensor, n: int) -> dict[str, Tensor]:
        """The places as wire tensors, by suffix."""
        return {}

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ValueError: the sizes and dtypes are not those of places among n; the name of the tensor comes before the text.
        """

    @abstractmethod
    def read(self, entry: Entry, seed: int | None) -> Tensor:
        """The places [kept] again, after :meth:`check`.

        Raises:
            ValueError: they are no places.
        """


class Quantiser(Stage):
    """Makes numbers that take few bits of entries.

    Attributes:
        sides: suffixes of what it writes beside them. layout: how they lie without an entropy coder.
        rounds_at_random: it draws from the message's stream.
    """

    sides: ClassVar[tuple[str, ...]] = ()
    rounds_at_random: ClassVar[bool] = False

    @property
    @abstractmethod
    def layout(self) -> Layout: ...

    def allot(self, values: Mapping[str, Tensor]) -> Mapping[str, Quantiser]:
        """The quantiser of each tensor [n] of a message, in sorted order."""
        return dict.fromkeys(values, self)

    @abstractmethod
    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The numbers [n] that stand for x [n], as :class:`Codes` has them, and what is said beside, by suffix. A value that is
        not finite gives something beside that is not finite either."""

    @abstractmethod
    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        """How many different numbers there could be."""

    def check(self, n: int, sides: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ValueError: what is said beside is not what :meth:`quantise` says of n entries; the name of their tensor comes before
                the text.
        """

    @abstractmethod
    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        """The values [n] that the numbers stand for."""


class Coder(Stage, Layout):
    """Writes the numbers of a quantiser in fewer bits, and loses nothing."""

    fair: ClassVar[bool] = True


class Exact(Quantiser):
    """Values as they are: what stands in the place of a quantiser where there is none."""

    name: ClassVar[str] = "exact"
    fair: ClassVar[bool] = True
    adds: ClassVar[bool] = True

    @property
    def layout(self) -> Layout:
        return AsTheyAre()

    def quantise(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {}

    def alphabet(self, sides: Mapping[str, Tensor]) -> int:
        return 0

    def restore(self, codes: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        return codes


EXACT = Exact()


@dataclass(frozen=True)
class Joined(Chain):
    """Several stages, one after the other.

    Raises:
        UserError: nothing could decode what they write.
    """

    name: ClassVar[str] = "chain"

    parts: tuple[Stage, ...]

    def __post_init__(self) -> None:
        order = (Shift, Sparsifier, Quantiser, Coder)
        kinds = [next(i for i, k in enumerate(order) if isinstance(s, k)) for s in self.parts]
        if kinds != sorted(set(kinds)):
            why = "use at most one shift, one sparsifier, one quantiser and one entropy coder, in this order"
        elif isinstance(self.parts[-1], Shift):
            why = f"{self.parts[-1].name} only says what differences are taken from, so put a codec behind it, as in shift+topk"
        elif isinstance(self.parts[0], Shift) and self.parts[0].asks_fair and not self.unbiased:
            why = f"{self.parts[0].text} is for codecs that are right on average, as in {self.parts[0].text}+randk"
        elif isinstance(self.parts[-1], Coder) and isinstance(self.quantiser.layout, AsTheyAre):
            why = f"{self.parts[-1].name} codes the levels of a quantiser, so put one before it, as in qsgd+{self.parts[-1].name}"
        else:
            return
        raise UserError(f'"{"+".join(s.name for s in self.parts)}" is a codec chain that can\'t be decoded: {why}.')

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.parts

    @property
    def text(self) -> str:
        return "+".join(s.text for s in self.parts)
