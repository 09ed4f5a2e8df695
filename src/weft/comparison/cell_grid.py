"""The grid of a comparison: which cells there are, and the settings of each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin

from weft.errors import UserError, nearest
from weft.experiment import SETTINGS, flatten, read
from weft.words import count, shown

BASELINES = ("local", "central", "probe", "zero-shot")
"""What may stand among the methods: a baseline of the first of them, with that one's settings."""
OF_ONE_RUN = {
    "seed": "--seeds says which, in a file [grid] seeds",
    "method": "--methods says which, in a file [grid] method",
    "baseline": "it stands among the methods",
    "name": "--to says where",
}
"""Settings that differ from cell to cell in a way of their own, and what to say instead."""
SAME: Mapping[str, Any] = {
    "recipes": False,
    "baselines": [],
    "report": False,
    "pack": 8,
    "method.epochs": 1.0,
    "method.steps": None,
    "method.batch": 32,
}
"""What all cells have unless somebody says otherwise: methods' own optimizers, the same work, and packs of which no free memory
decides, so that numbers are the same every time.
"""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        row: its method, or the baseline. at: its place among the other dimensions. seed: of it. settings: by flat name.
        tuned: name and value of the setting that is searched; None = the method's own.
    """

    row: str
    at: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    tuned: tuple[str, Any] | None = None

    @property
    def label(self) -> str:
        """For people."""
        dimensions = [f"{name} {shown(value)}" for name, value in self.at.items()]
        rate = [] if self.tuned is None else [f"{self.tuned[0]} {shown(self.tuned[1])}"]
        return " · ".join([self.row, *dimensions, f"seed {self.seed}", *rate])


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        methods: slugs, baselines and names of ``variants``, in the order of the table; differences are to the first.
        seeds: of every cell. dimensions: setting -> its values. common: settings of all cells.
        own: one of the methods -> settings of its cells. variants: name -> slug of the method that it is, with ``own`` settings.
        tune: a setting of methods and the values among which validation rows choose for each; None = nothing is searched.

    Raises:
        UserError: there is no cell, or names are unknown: all of them in one sentence.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    dimensions: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tune: tuple[str, tuple[Any, ...]] | None = None
    variants: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from weft.methods import registry

        known = [*registry.infos(), *BASELINES]
        if taken := [m for m in self.variants if m in known]:
            raise UserError(f"{', '.join(taken)} is a method's own name: give its variant another one.")
        named = dict.fromkeys((*self.methods, *self.own, *self.variants.values()))
        if odd := [m for m in named if m not in known and m not in self.variants]:
            hints = "".join(nearest(m, known) for m in odd)
            raise UserError(f"there is no method {', '.join(odd)}: weft methods lists them.{hints}")
        if unused := [m for m in self.own if m not in self.methods]:
            raise UserError(
                f"settings are given for {', '.join(unused)}, which the grid does not compare: add it to its methods."
            )
        for name, values in {"methods": self.methods, "seeds": self.seeds, **self.dimensions}.items():
            if not values:
                raise UserError(f"the grid has no cell, since {name} has no value: give it at least one.")
            if twice := [v for i, v in enumerate(values) if v in values[:i]]:
                raise UserError(f"{shown(twice[0])} stands twice among the {name}, and would count twice: leave one out.")
        if all(m in BASELINES for m in self.methods):
            raise UserError("the grid compares baselines alone, and these are baselines of a method: add one.")
        for name in OF_ONE_RUN.keys() & {*self.dimensions, *self.common}:
            raise UserError(f"{name} is no setting of all cells: leave it out, {OF_ONE_RUN[name]}.")
        if clash := sorted(self.dimensions.keys() & self.common.keys()):
            raise UserError(f"{', '.join(clash)} is set for all cells and a dimension of the grid: leave one of the two out.")

    def cells(self) -> list[Cell]:
        """All of them, those with the same rows next to each other, without tuning."""
        return [self.cell(row, at, seed) for at in self.places() for seed in self.seeds for row in self.methods]

    def slug(self, row: str) -> str:
        """The method of a row that is no baseline."""
        return self.variants.get(row, row)

    def places(self) -> list[dict[str, Any]]:
        """Combinations of the dimensions."""
        names = list(self.dimensions)
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*self.dimensions.values())]

    def cell(self, row: str, at: Mapping[str, Any], seed: int, tuned: tuple[str, Any] | None = None) -> Cell:
        """One cell: what is said of a method goes over what is said of all, and that over what is the same anyway."""
        from weft.experiment import full_names
        from weft.methods import registry

        first = next(m for m in self.methods if m not in BASELINES) if row in BASELINES else row
        slug = self.slug(first)
        cls = registry.load(slug)
        fields = {p.name for p in registry.parameters(cls)}
        common = full_names(cls, {**self.common, **at})
        had = {n: v for n, v in {**SAME, **common}.items() if not n.startswith("method.") or n.removeprefix("method.") in fields}
        own = {**self.own.get(first, {}), **self.own.get(row, {})}
        found = had | full_names(cls, own) | {"method": slug, "seed": seed}
        if tuned is not None:
            found |= full_names(cls, {f"method.{tuned[0]}": tuned[1]})
        if row in BASELINES:
            found |= {"baseline": row}
        return Cell(row, dict(at), seed, found, tuned)

    def lacking(self) -> dict[str, list[str]]:
        """Method -> settings of all methods that it has not got.

        Raises:
            UserError: no method has one of them.
        """
        from weft.experiment import full_names
        from weft.methods import registry

        found: dict[str, list[str]] = {}
        asked = [n for n in (*self.common, *self.dimensions) if n.startswith("method.")]
        rows = [m for m in self.methods if m not in BASELINES]
        for row in rows:
            cls = registry.load(self.slug(row))
            fields = {p.name for p in registry.parameters(cls)}
            names = [n for n in full_names(cls, dict.fromkeys(asked)) if n.removeprefix("method.") not in fields]
            if names:
                found[row] = names
        for name in asked:
            if sum(name in names for names in found.values()) == len(rows):
                raise UserError(f"no method of the grid has a setting {name}: weft methods NAME lists what there is.")
        return found


def read_grid(
    path: Path | None,
    typed: Mapping[str, Any],
    methods: Sequence[str] = (),
    seeds: Any = None,
    tune: str | None = None,
    searched: Mapping[str, Any] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> Grid:
    """A grid from a file, under what was typed.

    Args:
        path: of a TOML file: ``[grid]`` with ``method = […]``, ``seeds = 3`` or ``seed = […]`` and settings, of which lists are
            dimensions; ``[methods.NAME]`` with settings of one method, or with ``method = SLUG`` of a variant of it;
            ``[tune]`` with one setting and its values; the rest as in an experiment file.
        typed: settings by flat name, a list for a dimension. seeds: how many, or which. tune: NAME=VALUES.
        searched: as the table ``[tune]``. own: as ``[methods]``.

    Raises:
        UserError: it is no such file, or makes no grid.
    """
    content = dict(read(path)) if path is not None else {}
    table, of_methods, search = (content.pop(n, {}) for n in ("grid", "methods", "tune"))
    for name, value in (("[grid]", table), ("[methods]", of_methods), ("[tune]", search)):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} in {path} is no table: write it as one.")
    table, common, dimensions = dict(table), flatten(content), dict[str, tuple[Any, ...]]()
    listed = table.pop("method", table.pop("methods", []))
    counted = table.pop("seeds", table.pop("seed", None))
    in_file = flatten(table)
    dimensions |= {n: tuple(v) for n, v in in_file.items() if isinstance(v, list)}
    common |= {n: v for n, v in in_file.items() if not isinstance(v, list)}
    for name, value in typed.items():
        dimensions.pop(name, None)
        common.pop(name, None)
        if isinstance(value, list) and (name in SPLIT or name.startswith("method.")):
            dimensions[name] = tuple(value)
        else:
            common[name] = value
    if "alpha" in dimensions and not {"partition"} & {*common, *dimensions}:
        common["partition"] = "dirichlet"  # elsewhere it would make no difference
    chosen = tuple(methods) or tuple([listed] if isinstance(listed, str) else listed)
    if not chosen:
        raise UserError("no method is named: give some, as in --methods fedit,ffa-lora,flora.")
    tables = {name: dict(value) for name, value in {**of_methods, **(own or {})}.items()}
    variants = {name: str(value.pop("method")) for name, value in tables.items() if "method" in value}
    return Grid(
        chosen,
        _seeds(seeds if seeds is not None else counted),
        dimensions,
        common,
        {name: flatten({"method": value}) for name, value in tables.items()},
        _tune(tune, searched or search),
        variants,
    )


def _seeds(given: Any) -> tuple[int, ...]:
    """How many, from 0, or a list of them."""
    listed = given.split(",") if isinstance(given, str) and "," in given else given
    try:
        if isinstance(listed, list | tuple):
            found = tuple(int(str(s)) for s in listed)
        else:
            found = tuple(range(1 if given is None else int(str(given))))
    except ValueError:
        raise UserError(f'seeds is "{given}", but must be a number of them, or a list such as 0,1,2.') from None
    return found


def _tune(typed: str | None, table: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    from weft.experiment import assignment

    if typed is not None:
        name, text = typed.partition("=")[::2]
        values = [assignment(f"v={part}")[1] for part in text.split(",") if part.strip()]
    elif table:
        if len(table) > 1:
            raise UserError(f"[tune] names {count(len(table), 'setting')}, but one is searched at a time: leave one.")
        name, given = next(iter(table.items()))
        values = given if isinstance(given, list) else [given]
    else:
        return None
    name = name.strip().removeprefix("method.")
    if not name or len(values) < 2:
        raise UserError("a search needs a setting of methods and two values or more, as in --tune lr=1e-4,3e-4,1e-3.")
    return name, tuple(values)


def _splits(name: str) -> bool:
    """Whether commas of an option part several values: of numbers, choices and names of data; names of models have commas of
    their own.
    """
    kinds = {get_origin(k) or k for k in SETTINGS[name].kinds}
    return bool(kinds & {int, float, Literal}) or name in ("data", "codec")


SPLIT = frozenset(name for name in SETTINGS if _splits(name))
"""Settings of which an option may name several values."""
