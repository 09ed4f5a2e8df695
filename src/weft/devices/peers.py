"""Files of peers that serve the stages of one model, and how a training on them goes."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Gt, Le

from weft.devices.profiles import UTILISATION
from weft.devices.swarm import Peer, Swarm, Told, Work, boundary_bytes
from weft.errors import UserError
from weft.typed import Count, Positive, Whole, check

T = TypeVar("T", "Terms", "Kind")
TABLE = "swarm"
"""The table of the file that is no kind of peers."""


@dataclass(frozen=True)
class Terms:
    """How the model is cut and trained, see :class:`weft.devices.swarm.Work`.

    Attributes:
        stages: of its blocks, as evenly as can be. micro_batch: rows that are sent together. block: numbers of hidden states and
            gradients that share a scale in int8 at a boundary; 0 = they go as they are.
    """

    stages: Count = 2
    micro_batch: Count = 4
    block: Whole = 64
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
            if not last <= begin < end:
                raise UserError("away is pairs of seconds in order, each from when until when, as in [[600, 900]].")
            last = end


@dataclass(frozen=True)
class Training:
    """What was trained, as the peers see it.

    Attributes:
        steps: of the optimizer. batch: rows of a step. forward, backward: operations of a row in the whole model. tokens: of a row.
        width: of hidden states. weights, trained: bytes of the frozen model and of what is trained.
    """

    steps: int
    batch: int
    forward: float
    backward: float
    tokens: float
    width: int
    weights: float
    trained: float


@dataclass(frozen=True)
class Peers:
    """What a file says."""

    terms: Terms
    kinds: Mapping[str, Kind]

    def played(self, training: Training, seed: int = 0) -> Told:
        """The training on these peers. A backward task computes its stage once more, from what has entered it."""
        terms = self.terms
        each = (2 * training.forward + training.backward) / terms.stages
        peers = [
            Peer(f"{name} {i + 1}", k.stage, 1e12 * k.speed * k.utilisation / each, 125_000 * k.bandwidth, k.away)
            for name, k in self.kinds.items()
            for i in range(k.count)
        ]
        rows = min(terms.micro_batch, training.batch)
        work = Work(
            terms.stages,
            training.steps,
            math.ceil(training.batch / rows),
            rows,
            boundary_bytes(1, 1, training.width, terms.block or None) * training.tokens,
            training.weights / terms.stages,
            2 * training.trained / terms.stages,
            terms.trainers,
            terms.ahead,
            terms.rebalance,
        )
        return Swarm(peers, work, seed).play()


def read(text: str) -> Peers:
    """A TOML file: ``[swarm]`` with what :class:`Terms` has, and a table with what :class:`Kind` has for each kind of peers.

    Raises:
        UserError: it can't be read, or something in it can't be.
    """
    path = Path(text)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"the file of peers {path} can't be read: {e.strerror}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"the file of peers {path} is no TOML: {e}.") from e
    terms = _table(path, TABLE, tables.pop(TABLE, {}), Terms)
    kinds = {name: _table(path, name, about, Kind) for name, about in tables.items()}
    for name, kind in kinds.items():
        if kind.stage >= terms.stages:
            raise UserError(f"[{name}] in {path} begins at stage {kind.stage} of {terms.stages}, which are counted from 0.")
    missing = sorted(set(range(terms.stages)) - {kind.stage for kind in kinds.values()})
    if missing:
        raise UserError(f"stage {missing[0]} has no peer in {path}: give it a table with stage, speed and bandwidth.")
    return Peers(terms, kinds)


def _table(path: Path, name: str, about: Any, of: type[T]) -> T:
    known = [f.name for f in fields(of)]
    if not isinstance(about, dict) or (odd := [n for n in about if n not in known]):
        what = odd[0] if isinstance(about, dict) else repr(about)
        raise UserError(f"[{name}] in {path} has {what}, and takes {', '.join(known)} alone.")
    if "away" in about:
        try:
            about = about | {"away": tuple((float(begin), float(end)) for begin, end in about["away"])}
        except (TypeError, ValueError):
            raise UserError(f"[{name}] in {path} has an away that is no list of pairs of seconds, as in [[600, 900]].") from None
    try:
        return of(**about)
    except UserError as e:
        raise UserError(f"[{name}] in {path}: {e}") from e
    except TypeError:
        raise UserError(f"[{name}] in {path} lacks one of stage, speed and bandwidth: give it all three.") from None
