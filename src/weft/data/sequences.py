"""From who took which item when to rows of next items: cores, sequences in the order of time, the last items left out.

Of the sequence s₁ … sₙ of a user the row (s₁ … sₙ₋₁ → sₙ) is for testing, (s₁ … sₙ₋₂ → sₙ₋₁) for validation, and each shorter
one, down to (s₁ → s₂), for training: leave-last-out, as in W.-C. Kang and J. McAuley, "Self-attentive sequential
recommendation", ICDM 2018, arXiv 1808.09781, and in RecBole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from weft.data import item_names
from weft.data.rows import Rows, Source
from weft.data.spelling import in_order
from weft.errors import UserError, printable
from weft.words import count

SHORTEST = 3
"""Items of a sequence: the last one and the one before are left out, and something has to stand before them."""
LONGEST = 200
"""Items of a row, the latest ones: more than any backbone here reads."""
By = Literal["domain", "user"]


class Event(NamedTuple):
    """A user of a domain takes an item at a time."""

    domain: str
    user: str
    item: str
    time: float


def core(events: Sequence[Event], least: int) -> list[Event]:
    """The largest part of the events in which every user, and every item, of a domain has ``least`` of them."""
    found = list(events)
    while True:
        users = Counter((e.domain, e.user) for e in found)
        items = Counter((e.domain, e.item) for e in found)
        kept = [e for e in found if min(users[e.domain, e.user], items[e.domain, e.item]) >= least]
        if len(kept) == len(found):
            return kept
        found = kept


def source(
    name: str,
    events: Iterable[Event],
    titles: Mapping[tuple[str, str], str],
    *,
    least: int = 0,
    by: By = "domain",
    notes: Iterable[str] = (),
) -> Source:
    """The source of next items, but for its fingerprint; its classes are the items, called as :mod:`weft.data.item_names` says.

    Events of one time stay in the order given, and one that is there twice counts once. Users with fewer than 3 items are left
    out.

    Args:
        titles: of the items, by domain and item; those without one are left out. least: see :func:`core`.
        by: the natural key of a row: its domain, or its user there.

    Raises:
        UserError: no sequence is left.
    """
    said, given = list(notes), list(dict.fromkeys(events))
    titled = [e for e in given if (e.domain, e.item) in titles]
    if len(titled) < len(given):
        said.append(f"{name}: {len(given) - len(titled)} of {len(given)} interactions are with items without a title: left out.")
    kept = core(titled, least) if least > 1 else titled
    if len(kept) < len(titled):
        said.append(
            f"{name}: {len(titled) - len(kept)} of {len(titled)} interactions lie outside the {least}-core, and are left out."
        )
    sequences: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in sorted(kept, key=lambda e: e.time):
        sequences[event.domain, event.user].append(event)
    long = {owner: own for owner, own in sorted(sequences.items()) if len(own) >= SHORTEST}
    if len(long) < len(sequences):
        said.append(f"{name}: {count(len(sequences) - len(long), 'user')} of fewer than {SHORTEST} items are left out.")
    if not any(len(own) > SHORTEST for own in long.values()):
        fewer = ", or ask for a smaller --core" if least > 1 else ""
        raise UserError(f"{name} has no user of {SHORTEST + 1} items or more, and so nothing to train on: give more{fewer}.")
    order = {domain: in_order({e.item for own in long.values() for e in own if e.domain == domain}) for domain, _ in long}
    places = {pair: i for i, pair in enumerate((d, item) for d in sorted(order) for item in order[d])}
    splits: dict[str, list[tuple[tuple[int, ...], int, str]]] = {"train": [], "validation": [], "test": []}
    for (domain, user), own in long.items():
        numbers = [places[domain, e.item] for e in own]
        key = domain if by == "domain" else f"{domain}/{user}"
        for j in range(1, len(own)):
            split = {len(own) - 1: "test", len(own) - 2: "validation"}.get(j, "train")
            splits[split].append((tuple(numbers[max(j - LONGEST, 0) : j]), numbers[j], key))
    users = Counter(domain for domain, _ in long)
    sizes = [f"{count(users[domain], 'user')} and {count(len(order[domain]), 'item')} of {domain}" for domain in sorted(order)]
    said.append(f"{name}: {', '.join(sizes)}.")
    return Source(
        name=name,
        classes=tuple(item_names.called(domain, item, titles[domain, item]) for domain, item in places),
        key_name=by,
        label_name="item",
        notes=tuple(map(printable, said)),
        train=_rows(splits["train"]),
        test=_rows(splits["test"]),
        validation=_rows(splits["validation"]),
    )


def _rows(own: Sequence[tuple[tuple[int, ...], int, str]]) -> Rows:
    items, labels, keys = (list(column) for column in zip(*own, strict=True))
    return Rows(items=items, labels=np.array(labels, dtype=np.int64), keys=keys)
