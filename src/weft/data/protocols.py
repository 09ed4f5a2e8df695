"""Protocols of few-shot and zero-shot evaluation: k rows of a class, classes and data sets that nobody trains on.

Base-to-novel generalisation and cross-dataset transfer are those of K. Zhou et al., "Conditional Prompt Learning for
Vision-Language Models", CVPR 2022, arXiv 2203.05557. Rows that are never trained on stand in further test sets. Each row is told
apart from the classes of its own side alone (``Rows.allowed``), as if the others were not there: so a model that compares rows
with names of classes trains as if it knew half of them, and is tested on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from weft.data.further import NOVEL
from weft.data.labels import index, relabelled
from weft.data.rows import FederatedData, Rows, Source
from weft.data.rows import fingerprint as digest
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator
from weft.words import count


def base_to_novel(source: Source, share: float) -> Source:
    """The same without training rows of the last classes, in their order, whose rows are a test set of their own.

    Where the source has no test rows, all rows of novel classes are tested on.

    Args:
        share: of the classes that are novel, rounded down.

    Raises:
        UserError: rows are not of classes, or one of the sides has fewer than two.
    """
    if not source.train.of_classes or source.train.allowed is not None:
        raise UserError(f"rows of {source.name} are not each of one class, so that none can be kept back: leave --novel out.")
    classes = len(source.classes)
    novel = int(share * classes + 1e-9)
    if novel < 2 or classes - novel < 2:
        raise UserError(
            f"of the {classes} classes of {source.name} a share of {share:g} leaves {classes - novel} to train on and {novel} "
            "new ones, and both need two: choose another --novel."
        )
    first = classes - novel
    sides = np.arange(classes) < first

    def side(rows: Rows | None, base: bool) -> Rows | None:
        if rows is None:
            return None
        kept = rows.take((rows.labels < first) == base)
        return replace(kept, allowed=np.tile(sides == base, (len(kept), 1)))

    test = side(source.train if source.test is None else source.test, False)
    train = side(source.train, True)
    assert test is not None
    assert train is not None
    if not len(test) or len(np.unique(train.labels)) < 2:
        what = "no row of its new classes" if not len(test) else "fewer than two classes to train on"
        raise UserError(f"with --novel {share:g}, {source.name} has {what}: choose another.")
    unseen = {key: rows for key, own in source.unseen.items() if (rows := side(own, True)) is not None and len(rows)}
    names = ", ".join(source.classes[first:][:10]) + (" …" if novel > 10 else "")
    said = f"{source.name}: {count(novel, 'class', 'classes')} of {classes} are never trained on, and tested on apart ({names})."
    return replace(
        source,
        train=train,
        test=side(source.test, True),
        validation=side(source.validation, True),
        unseen=unseen,
        further={**source.further, NOVEL: test},
        notes=(*source.notes, said),
    )


def also_tested(source: Source, others: Sequence[Source]) -> Source:
    """The same with the test rows of other sets (all rows of one that has none) as further test sets, under their names.

    The classes of all sets together are those of the federation, and a row is told apart among the classes of its own set.

    Raises:
        UserError: a set is named twice, or its rows are of another kind.
    """
    classes = list(source.classes)
    for other in others:
        if not (other.train.of_classes and source.train.of_classes):
            raise UserError(f"{source.name} and {other.name} are not both of classes: leave {other.name} out of --test-on.")
        if other.train.read_as != source.train.read_as:
            raise UserError(
                f"{other.name} holds {other.train.read_as} and {source.name} {source.train.read_as}, which one backbone does not "
                f"both read: leave {other.name} out of --test-on."
            )
        if other.fingerprint and other.fingerprint == source.fingerprint:
            raise UserError(
                f"{other.name} is what is trained on, and its own test rows are tested on already: leave it out of --test-on."
            )
        classes += [name for name in other.classes if name not in classes]

    def among(rows: Rows | None) -> Rows | None:
        return None if rows is None else _among(rows, source.classes, classes)

    def every(parts: Mapping[str, Rows]) -> dict[str, Rows]:
        return {name: _among(rows, source.classes, classes) for name, rows in parts.items()}

    further = every(source.further)
    found = replace(  # at once, since the splits of a source are of the same classes
        source,
        classes=tuple(classes),
        train=_among(source.train, source.classes, classes),
        test=among(source.test),
        validation=among(source.validation),
        unseen=every(source.unseen),
        further=further,
    )
    notes, hashes = list(source.notes), [source.fingerprint]
    begin = 1 + max(int(rows.ids.max()) for rows in _parts(found, further) if len(rows))
    for other in others:
        name = f"test of {other.name}"
        if name in further:
            raise UserError(f"{other.name} is named twice: test on it once.")
        rows = other.train if other.test is None else other.test
        rows = replace(rows, ids=np.arange(begin, begin + len(rows)), keys=None)
        begin += len(rows)
        further[name] = _among(rows, other.classes, classes)
        sizes = f"{count(len(rows), 'row')} of {count(len(other.classes), 'class', 'classes')}"
        notes.append(f"{other.name}: {sizes} are tested on, never trained on.")
        hashes.append(other.fingerprint)
    return replace(found, further=further, notes=tuple(notes), fingerprint=digest(hashes, {}))


def few_shot(dealt: FederatedData, shots: int, seed: int) -> FederatedData:
    """At most so many training rows of each class at each client, drawn at random; test and validation rows stay.

    Raises:
        UserError: rows are not of classes.
    """
    if not all(client.train.of_classes for client in dealt.clients):
        raise UserError(
            f"rows of {dealt.name} are not each of one class, so that there are no shots of a class: leave --shots out."
        )
    clients, few, pairs = [], 0, 0
    for client in dealt.clients:
        draw = numpy_generator(seed, "data/shots", client.id).permutation(len(client.train))
        labels = client.train.labels[draw]
        kept = np.concatenate([draw[labels == label][:shots] for label in np.unique(labels)] or [draw])
        sizes = np.unique(labels, return_counts=True)[1]
        few, pairs = few + int((sizes < shots).sum()), pairs + len(sizes)
        clients.append(replace(client, train=client.train.take(np.sort(kept))))
    of = count(pairs, "class", "classes")
    said = f"{dealt.name}: {few} of {of} at clients have fewer than {shots} rows: all of theirs are used."
    return replace(dealt, clients=clients, notes=(*dealt.notes, *([said] if few else [])))


def _among(rows: Rows, own: Sequence[str], classes: Sequence[str]) -> Rows:
    """Rows of a set, whose labels are of all classes now, of which they may have those of their own set."""
    allowed = rows.allowed if rows.allowed is not None else np.ones((len(rows), len(own)), dtype=bool)
    return relabelled(replace(rows, allowed=allowed), index(own, classes, rows.labels, "a set"), len(classes))


def _parts(source: Source, further: Mapping[str, Rows]) -> list[Rows]:
    own = [rows for rows in (source.train, source.test, source.validation) if rows is not None]
    return [*own, *source.unseen.values(), *further.values()]
