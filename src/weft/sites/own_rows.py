"""A site's own rows: where they are and how they are read is known to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from weft import experiment as settings
from weft.data import labels, splits
from weft.data.columns import Wanted
from weft.data.rows import BOTH, ClientData, Source, fingerprint
from weft.data.scored import from_classes
from weft.data.sources import load
from weft.data.translations import common
from weft.errors import UserError, nearest
from weft.experiment import Experiment
from weft.tasks.kinds import GENERATION, MASKED, NEXT_ITEM, NUMBERS, PREFERENCE, QUESTIONS


@dataclass(frozen=True)
class OwnData:
    """What a site has.

    Attributes:
        data: file, folder, catalogue name or hub id. image, text, pair, label: columns, where the guess is wrong.
        deal: plays a client of a simulated deal, for trying out: an experiment file, and the id of the client in it.
    """

    data: str = ""
    image: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    deal: tuple[Path, str] | None = None

    @cached_property
    def loaded(self) -> Source | tuple[ClientData, tuple[str, ...]]:
        """Read, with the labels it has; or one client of a deal, with its classes.

        Raises:
            UserError: there are no such data.
        """
        if self.deal is None:
            return self._read("any")
        from weft.runs.prepare import deal

        file, name = self.deal
        dealt = deal(settings.resolve({"recipes": False}, settings.read(file)).experiment)
        ids = [c.id for c in dealt.clients]
        if name not in ids:
            shown = ", ".join(ids[:20])
            raise UserError(f'the experiment {file} deals its data to no client "{name}": {shown}.{nearest(name, ids)}')
        return dealt.clients[ids.index(name)], dealt.classes

    def _read(self, wanted: Wanted, core: int = 0) -> Source:
        columns: dict[str, Any] = {"image": self.image, "text": self.text, "pair": self.pair, "label": self.label}
        return load(self.data, **columns, one_class=True, wanted=wanted, core=core)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed, left out or doubtful, for the people of the site.

        Raises:
            UserError: there are no such data.
        """
        return () if isinstance(self.loaded, tuple) else self.loaded.notes

    def client(self, name: str, x: Experiment, say: Callable[[str], None] = lambda _: None) -> ClientData:
        """Training, validation and test rows, with labels as the experiment counts them.

        A set with splits of its own keeps them; what it lacks is taken from its training rows. ``say`` is told what the
        experiment's classes leave out.

        Raises:
            UnknownLabel: a label that the experiment does not declare. UserError: nothing is left to train on.
        """
        if isinstance(self.loaded, tuple):
            one, own = self.loaded
            parts = (one.train, one.val, one.test)
            order = labels.index(own, x.classes, labels.every_label(parts), f'the deal\'s client "{name}"')
            train, val, test = (labels.relabelled(p, order, len(x.classes)) for p in parts)
            return ClientData(name, train, val, test, one.facts)
        source = self.loaded
        if x.task in (GENERATION, MASKED) and source.train.answers is None:  # read before it was known what for
            source = self._read("answers")
        if x.task == NEXT_ITEM and (source.train.items is None or x.core):
            source = self._read("items", x.core)
        if x.task == QUESTIONS and source.train.read_as != BOTH:
            source = self._read("questions")
        if x.task == PREFERENCE and source.train.rejected is None:
            source = self._read("preferences")
        if x.task == NUMBERS and source.train.numbers is None:
            source = from_classes(source)
        known = len(source.notes)
        source = labels.declared(source, x.classes)
        for note in source.notes[known:]:
            say(note)
        fractions = (
            x.val_fraction if source.validation is None else 0.0,
            x.test_fraction if source.test is None else 0.0,
        )
        mark = splits.draw(source.train, source.train.groups(), fractions, x.seed, "data/split")
        train, val, test = (source.train.take(mark == part) for part in (splits.TRAIN, splits.VAL, splits.TEST))
        if not len(train):
            raise UserError(f"{source.name} leaves no row to train on: it has {len(source.train)} in all.")
        return ClientData(
            name,
            train,
            val if source.validation is None else source.validation,
            test if source.test is None else source.test,
            common(source.train.languages or ()),
        )


def print_of(client: ClientData, x: Experiment) -> str:
    """What a site's rows are, as a sha256 that stays there: a run goes on with the rows it was begun with."""
    return fingerprint(x.classes, {"train": client.train, "val": client.val, "test": client.test})
