"""Files of peers that serve the stages of one model, and how a training on them goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Gt, Le

from weft.devices import small_tables
from weft.devices.profiles import UTILISATION
from weft.devices.swarm import Peer, Swarm, Told, Work, boundary_bytes
from weft.errors import UserError
from weft.typed import Count, Positive, Whole, check

T = TypeVar("T", "Terms", "Kind")
MOST = 1e6
"""Of numbers in a file, which are no smaller than one by it."""
LONGEST = 1e7
"""Seconds that a training on peers is thought to take at most: four months."""
TABLE = "swarm"
"""The table of the file that is no kind of peers."""


@dataclass(frozen=True)
class Terms:
    """How rows are sent, see :class:`weft.devices.swarm.Work`.

    Attributes:
        micro_batch: rows that are sent together.
    """

    micro_batch: Count = 4
    trainers: Count = 1
    ahead: Count = 8
    rebalance: Positive = 300.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Kind:
    """Peers that are alike.

    Attributes:
        stage: at which they begin, from 0. speed: TFLOP/s at their peak, of which ``utilisation`` is reached. bandwidth: Mbit/s.
        count: how many. away: pairs of seconds between which they do not answer, in order.
    """

    stage: Whole
    speed: Positive
    bandwidth: Positive
    utilisation: Annotated[float, Gt(0), Le(1)] = UTILISATION
    count: Count = 1
    away: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        check(self)
        last = 0.0
        for begin, end in self.away:
            if not last <= begin < end <= LONGEST:
                raise UserError(
                    f"away is pairs of seconds in order, each from when until when, up to {LONGEST:.0f}, as in [[600, 900]]."
                )
            last = end


@dataclass(frozen=True)
class Training:
    """What was trained, as the peers see it.

    Attributes:
        steps: of the optimizer. rows: of all steps together. forward, backward: operations of a row in the whole model.
        tokens: of a row. width: of hidden states. weights, trained: bytes of the frozen model and of what is trained.
    """

    steps: int
    rows: int
    forward: float
    backward: float
    tokens: float
    width: int
    weights: float
    trained: float


@dataclass(frozen=True)
class Peers:
    """What a file says, for so many stages."""

    stages: int
    terms: Terms
    kinds: Mapping[str, Kind]

    def played(self, training: Training, block: int, seed: int = 0) -> Told:
        """The training on these peers. A backward task computes its stage once more, from what has entered it.

        Args:
            block: numbers that share a scale in int8 at a boundary; 0 = they cross as they are. seed: of ties.
        """
        terms, stages = self.terms, self.stages
        each = (2 * training.forward + training.backward) / stages
        peers = [
            Peer(f"{name} {i + 1}", k.stage, 1e12 * k.speed * k.utilisation / each, 125_000 * k.bandwidth, k.away)
            for name, k in self.kinds.items()
            for i in range(k.count)
        ]
        batch = math.ceil(training.rows / training.steps / terms.micro_batch)
        work = Work(
            stages,
            training.steps,
            batch,
            training.rows / (training.steps * batch),  # the last one of an epoch may be smaller
            boundary_bytes(1, 1, training.width, block or None) * training.tokens,
            training.weights / stages,
            2 * training.trained / stages,
            terms.trainers,
            terms.ahead,
            terms.rebalance,
        )
        return Swarm(peers, work, seed).play()


def read(text: str, stages: int) -> Peers:
    """A TOML file: ``[swarm]`` with what :class:`Terms` has, and a table with what :class:`Kind` has for each kind of peers.

    Args:
        stages: that the model is cut into.

    Raises:
        UserError: it can't be read, or something in it can't be.
    """
    path = Path(text)
    tables = small_tables.tables(path, "peers")
    terms = _table(path, TABLE, tables.pop(TABLE, {}), Terms)
    kinds = {name: _table(path, name, about, Kind) for name, about in tables.items()}
    for name, kind in kinds.items():
        if kind.stage >= stages:
            raise UserError(f"[{name}] in {path} begins at stage {kind.stage} of {stages}, which are counted from 0.")
    missing = sorted(set(range(stages)) - {kind.stage for kind in kinds.values()})
    if missing:
        raise UserError(f"stage {missing[0]} has no peer in {path}: give it a table with stage, speed and bandwidth.")
    return Peers(stages, terms, kinds)


def _table(path: Path, name: str, about: Any, of: type[T]) -> T:
    known = [f.name for f in fields(of)]
    if not isinstance(about, dict) or (odd := [n for n in about if n not in known]):
        what = odd[0] if isinstance(about, dict) else repr(about)
        raise UserError(f"[{name}] in {path} has {what}, and takes {', '.join(known)} alone.")
    for key in ("speed", "bandwidth", "rebalance", "micro_batch"):
        value = about.get(key, 1.0)
        if isinstance(value, int | float) and value > 0 and not 1 / MOST <= value <= MOST:
            raise UserError(f"[{name}] in {path} has {key} = {value!r}: give it a number from {1 / MOST:g} to {MOST:g}.")
    if "away" in about:
        try:
            about = about | {"away": tuple((float(begin), float(end)) for begin, end in about["away"])}
        except (TypeError, ValueError):
            raise UserError(f"[{name}] in {path} has an away that is no list of pairs of seconds, as in [[600, 900]].") from None
    try:
        return of(**about)
    except UserError as e:
        raise UserError(f"[{name}] in {path}: {str(e).removeprefix(f'{of.__name__}: ')}") from e
    except TypeError:
        raise UserError(f"[{name}] in {path} lacks one of stage, speed and bandwidth: give it all three.") from None
