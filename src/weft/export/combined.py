"""A weighted sum of PEFT LoRA adapters as one of them: factors are stacked, so that it is exact, or cut to the best rank."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.errors import UserError
from weft.export import peft_adapter
from weft.export.new_folder import check_free, new_folder
from weft.export.peft_adapter import Adapter
from weft.tensors.lowrank import LowRank

USUAL = "merged-adapter"


@dataclass(frozen=True)
class MergeReport:
    """What a merge is.

    Attributes:
        folder: that was written. base: of all adapters, as they name it. adapters: their folders. weights: of each.
        ranks: by module. saved: modules that were saved whole, and averaged.
        error: ‖Σ - cut‖ / ‖Σ‖ over all modules together, Frobenius norms; 0 where nothing was cut.
        worst: the module with the largest error of its own, and that; None where nothing was cut.
        files: written.
    """

    folder: str
    base: str
    adapters: list[str]
    weights: list[float]
    ranks: dict[str, int]
    saved: list[str]
    error: float
    worst: tuple[str, float] | None
    files: list[str]


def merge(
    adapters: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str] = USUAL,
    *,
    weights: Sequence[float] | None = None,
    normalise: bool = False,
    rank: int | None = None,
) -> MergeReport:
    """Write Σ w_i ΔW_i of PEFT LoRA adapters of one base as one adapter, into the new folder ``to``.

    ΔW_i is what PEFT adds to a module for adapter i, and 0 where that has nothing. Without ``rank``, a module's factors are
    A = [A_1; A_2; …] as they are and B = [w_1 s_1 B_1, w_2 s_2 B_2, …], computed in float64 and rounded once to float32: the sum
    is exact but for that rounding, at the sum of all ranks. Modules that were saved whole (heads) become their mean, in the
    proportions of the weights.

    Args:
        adapters: folders that Weft exported, that PEFT saved, or of finished runs; any mix of ranks, patterns and scales.
        weights: one for each, taken as they are; None = equal shares of 1. normalise: divide them by their sum.
        rank: cut each module to so many ranks, to the closest matrix in Frobenius norm.

    Raises:
        UserError: adapters that are missing, damaged, more than LoRA, or don't fit each other; other weights than adapters, or
            some that are not finite; a rank below 1; or ``to`` is taken.
    """
    target = Path(to).expanduser()
    if isinstance(adapters, str | os.PathLike) or not adapters:
        raise UserError("there is nothing to merge: give a list of folders of PEFT adapters.")
    shares = _shares(len(adapters), weights, normalise)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise UserError(f"rank is {rank}, but must be a whole number of at least 1.")
    check_free(target)
    given = [peft_adapter.load(folder) for folder in adapters]
    _check_one_base(given)
    sums = _sums(given, shares)
    saved = _mean(given, shares)
    cut = {name: value if rank is None or value.rank <= rank else value.truncate(rank) for name, value in sums.items()}
    error, worst = _errors(sums, cut)
    stored = {name: value.to(dtype=torch.float32) for name, value in cut.items()}
    tensors = [t for value in stored.values() for t in (value.A, value.B)] + list(saved.values())
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise UserError("the sum has values beyond those of float32: give smaller weights.")
    with new_folder(target) as folder:
        peft_adapter.write(folder, stored, saved, **_config(given))
        names = sorted(p.name for p in folder.iterdir())
    return MergeReport(
        str(target),
        given[0].base,
        [str(one.folder) for one in given],
        shares,
        {name: value.rank for name, value in stored.items()},
        sorted({name.rsplit(".", 1)[0] for name in saved}),
        error,
        worst,
        names,
    )


def _shares(number: int, weights: Sequence[float] | None, normalise: bool) -> list[float]:
    if weights is None:
        return [1 / number] * number
    found = [float(w) for w in weights]
    if len(found) != number:
        raise UserError(f"the number of weights is {len(found)}, and that of adapters {number}: give one weight for each.")
    if not all(map(math.isfinite, found)):
        raise UserError(f"weights are {', '.join(f'{w:g}' for w in found)}, but must be finite numbers.")
    if not normalise:
        return found
    total = math.fsum(found)
    if not total or not all(math.isfinite(w / total) for w in found):
        raise UserError("weights that add up to 0 have no shares of their sum: leave --normalise out, or give others.")
    return [w / total for w in found]


def _check_one_base(given: Sequence[Adapter]) -> None:
    """By the weights where Weft wrote down their hash for both, else by name and revision.

    Raises:
        UserError: two adapters are of different bases.
    """
    first = given[0]
    for one in given[1:]:
        if first.about is not None and one.about is not None:
            same = first.about.base.sha256 == one.about.base.sha256
        else:
            same = first.base == one.base and first.config.get("revision") == one.config.get("revision")
        if not same:
            raise UserError(
                f"{one.folder} is an adapter for {_named(one)}, and {first.folder} for {_named(first)}: a sum needs one base."
            )


def _named(one: Adapter) -> str:
    revision = one.config.get("revision")
    weights = "" if one.about is None else f", weights sha256 {one.about.base.sha256[:12]}"
    return f"{one.base or 'a base without a name'}{f' at {revision}' if revision else ''}{weights}"


def _sums(given: Sequence[Adapter], shares: Sequence[float]) -> dict[str, LowRank]:
    """Σ w ΔW by module, stacked, in float64."""
    terms: dict[str, list[tuple[Adapter, LowRank]]] = {}
    for one, share in zip(given, shares, strict=True):
        for name, value in one.low_rank.items():
            terms.setdefault(name, []).append((one, value.to(dtype=torch.float64) * share))
    for name, some in terms.items():
        (first, value), *others = some
        for one, other in others:
            if other.shape != value.shape:
                raise UserError(
                    f"{name} is {_size(value.shape)} in {first.folder} and {_size(other.shape)} in {one.folder}: they are "
                    "adapters of different bases, which have no sum."
                )
    if not terms:
        raise UserError(f"{given[0].folder} has no LoRA in it: give adapters that have some.")
    return {name: LowRank.cat(value for _, value in some) for name, some in terms.items()}


def _mean(given: Sequence[Adapter], shares: Sequence[float]) -> dict[str, Tensor]:
    """Tensors that were saved whole, averaged in float64.

    Raises:
        UserError: not all adapters have the same of them, or they are of other classes.
    """
    first = given[0]
    for one in given[1:]:
        for name in sorted(first.saved.keys() | one.saved.keys()):
            mine, theirs = first.saved.get(name), one.saved.get(name)
            if mine is None or theirs is None:
                has, lacks = (one, first) if mine is None else (first, one)
                raise UserError(
                    f"{has.folder} has saved {name} whole and {lacks.folder} has not, so that there is no mean of it: merge "
                    "adapters that both have it, or neither."
                )
            if mine.shape != theirs.shape:
                raise UserError(
                    f"{name} is {_size(mine.shape)} in {first.folder} and {_size(theirs.shape)} in {one.folder}, so that there "
                    "is no mean of it: merge adapters whose heads are alike."
                )
        if first.saved and first.about is not None and one.about is not None and first.about.classes != one.about.classes:
            raise UserError(
                f"the head of {one.folder} is for the classes {', '.join(one.about.classes[:20])}, and that of {first.folder} "
                f"for {', '.join(first.about.classes[:20])}, so that there is no mean of them: merge adapters of the same "
                "classes, in the same order."
            )
    total = math.fsum(shares)
    if first.saved and not total:
        raise UserError("weights that add up to 0 leave nothing of the heads, which are averaged: give other weights.")
    return {
        name: sum((one.saved[name].double() * (w / total) for one, w in zip(given, shares, strict=True)), torch.zeros(())).float()
        for name in first.saved
    }


def _errors(sums: Mapping[str, LowRank], cut: Mapping[str, LowRank]) -> tuple[float, tuple[str, float] | None]:
    """Relative error of all modules together, and of the worst one."""
    rests = {name: (value + cut[name] * -1.0).norm() for name, value in sums.items() if cut[name] is not value}
    if not rests:
        return 0.0, None
    norms = {name: value.norm() for name, value in sums.items()}
    total, rest = math.hypot(*norms.values()), math.hypot(*rests.values())
    worst = max(rests, key=lambda name: rests[name] / norms[name] if norms[name] else 0.0)
    return rest / total if total else 0.0, (worst, rests[worst] / norms[worst] if norms[worst] else 0.0)


def _config(given: Sequence[Adapter]) -> dict[str, Any]:
    """What PEFT has to be told beside ranks."""
    configs = [one.config for one in given]
    kinds = {str(c.get("task_type")) for c in configs}
    found = {
        "task_type": configs[0].get("task_type") if len(kinds) == 1 else None,
        "base_model_name_or_path": configs[0].get("base_model_name_or_path"),
        "revision": configs[0].get("revision"),
        "fan_in_fan_out": bool(configs[0].get("fan_in_fan_out")),
        "modules_to_save": sorted({m for c in configs for m in c.get("modules_to_save") or ()}) or None,
    }
    where = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
    told = [{n: sorted(v) if isinstance(v := c.get(n), list) else v for n in where} for c in configs]
    if all(t == told[0] for t in told) and all(one.low_rank.keys() == given[0].low_rank.keys() for one in given):
        return found | told[0]
    return found | {"target_modules": sorted({name for one in given for name in one.low_rank})}


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
