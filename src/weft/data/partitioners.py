"""Dealing a source out to clients: IID, Dirichlet, pathological (k classes each) or by natural key."""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.checks import given_rows as checks
from weft.data import splits
from weft.data._telemetry import flower_partitioners
from weft.data.leave_out import NO_KEY
from weft.data.leave_out import leave_out as left_out
from weft.data.rows import BOTH, ClientData, FederatedData, Rows, Source
from weft.data.translations import common
from weft.errors import UserError, nearest
from weft.tensors.keyed import key as stream_key
from weft.tensors.keyed import numpy_generator
from weft.words import count

SCHEMES = ("auto", "iid", "dirichlet", "pathological", "natural")
KEYLESS = ("leave-out", "apart")
SEEDS_TRIED = 50  # for a pathological deal that leaves no class out


def partition(
    source: Source,
    *,
    clients: int = 8,
    scheme: str = "auto",
    alpha: float = 0.5,
    classes_per_client: int = 2,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    min_rows: int = 1,
    new_clients: int = 0,
    leave_out: str | Sequence[str] = (),
    keyless: str = "leave-out",
) -> FederatedData:
    """Deal the rows of ``source`` out to clients, each with its own training, validation and test rows.

    scheme: ``iid``; ``dirichlet``, where each class is spread over the clients by a draw from
        Dirichlet(``alpha``) (Hsu et al., 2019, arXiv:1909.06335); ``pathological``, where each client holds
        ``classes_per_client`` classes (McMahan et al., 2017, arXiv:1602.05629); ``natural``, where whole
        natural keys go to one client, balanced by rows; ``auto`` = natural where the source has keys, else
        dirichlet.
    val_fraction, test_fraction: of a client's rows, stratified by natural key and label.
    min_rows: the fewest rows a client may be dealt; 0 allows clients without any.
    new_clients: that many further clients get their share and are then held out: their rows are tested on,
        never trained on. Natural keys that the source itself holds out come on top.
    leave_out: a natural key or several, all of whose rows become new clients, one for each: leave-one-domain-out.
    keyless: what the natural deal does with training rows that have no key: ``leave-out``, or ``apart``: they are dealt whole,
        like the rows of one more key. Other deals use them like any other row.

    The global test set is the source's own test split; without one it is the union of the clients' test rows,
    and so for validation. With an own split that has the natural keys, a client's test or validation rows are
    those of its keys. A deal that leaves rows out says how many in ``notes``. Raises UserError where the deal is
    impossible.
    """
    source = left_out(source, [leave_out] if isinstance(leave_out, str) else leave_out)
    if keyless not in KEYLESS:
        raise UserError(
            f'rows without a key can\'t be dealt "{keyless}": choose {" or ".join(KEYLESS)}.{nearest(keyless, KEYLESS)}'
        )
    asked, keyed = scheme, source if keyless == "apart" or scheme not in ("auto", "natural") else _keyed(source)
    scheme = _checked(keyed, clients, scheme, alpha, classes_per_client, min_rows, new_clients)
    if scheme == "natural":
        source = keyed
    rows = source.train
    dealt = _deal(source, clients + new_clients, scheme, alpha, classes_per_client, seed, min_rows)
    if (fewest := min(map(len, dealt))) < min_rows:
        raise UserError(
            f"the {scheme} deal gives some client {fewest} rows, fewer than the {min_rows} asked for: "
            f"ask for fewer clients or a smaller --min-rows."
        )
    few = []
    number, asked_for = len(set(rows.keys or ()) - {""}), clients + new_clients
    if asked == "auto" and scheme == "dirichlet" and rows.keys is not None:
        few = [
            f"{source.name} has {number} values of {source.key_name}, too few for {asked_for} clients to have whole "
            f"ones, so it is dealt dirichlet({alpha:g}); --clients {max(number - new_clients, 1)} deals them whole."
        ]
    told_apart = rows.tasks is not None or rows.languages is not None  # by what methods learn of clients
    if told_apart and scheme == "natural" and number > asked_for:
        few = [
            f"{source.name} has {number} values of {source.key_name}, dealt to {asked_for} clients, some of whom have several; "
            f"--clients {number - new_clients} keeps them apart."
        ]
    keys = [_keys(rows, index) if scheme == "natural" else [] for index in dealt]
    own_tests, own_vals = (_by_key(split, keys[:clients]) for split in (source.test, source.validation))
    fractions = (val_fraction if own_vals is None else 0.0, test_fraction if own_tests is None else 0.0)
    groups = rows.groups() if any(fractions) else np.arange(len(rows))
    mark = splits.draw(rows, groups, fractions, seed, "data/split")
    members = []
    for i, index in enumerate(dealt[:clients]):
        train, val = (rows.take(index[mark[index] == part]) for part in (splits.TRAIN, splits.VAL))
        val = val if own_vals is None else own_vals[i]
        test = rows.take(index[mark[index] == splits.TEST]) if own_tests is None else own_tests[i]
        members.append(ClientData(_name("c", i, clients), train, val, test, _facts(keys[i], source, rows.take(index))))
    held_out = [(rows.take(index), keys[clients + i]) for i, index in enumerate(dealt[clients:])]
    held_out += [(source.unseen[key], [key]) for key in sorted(source.unseen)]
    none = rows.take(np.array([]))
    test = _own_or_all(source.test, [client.test for client in members])
    said = [
        *checks.repeats(groups, rows.labels, source.name, CONTENT[rows.read_as]),
        *(
            checks.of_one_class(rows.keys, rows.labels, source.classes, source.name, source.key_name or "key")
            if rows.of_classes
            else ()
        ),
        *_shared(source, [client.train for client in members], held_out),
        *checks.tested(len(test), source.name),
        *checks.tasks_tested(rows.tasks or (), test.tasks or (), source.name),
    ]
    return FederatedData(
        name=source.name,
        classes=source.classes,
        clients=members,
        test=test,
        val=_own_or_all(source.validation, [client.val for client in members]),
        unseen=[
            ClientData(_name("new", i, len(held_out)), none, none, own, _facts(key, source, own))
            for i, (own, key) in enumerate(held_out)
        ],
        fingerprint=source.fingerprint,
        notes=(*source.notes, *few, *_losses(source, dealt, scheme), *said),
        further=source.further,
        scheme=scheme,
    )


CONTENT = {"images": "picture", "texts": "text", "items": "sequence", BOTH: "question and picture"}
"""What two rows have in common that are equal, by what they hold."""


def _name(prefix: str, i: int, total: int) -> str:
    """An id whose alphabetical order is the order of dealing: updates are reduced in the order of ids."""
    return f"{prefix}{i:0{len(str(total - 1))}d}"


def _own_or_all(own: Rows | None, clients: list[Rows]) -> Rows:
    return Rows.concatenate(clients) if own is None else own


def _keyed(source: Source) -> Source:
    """The source without training rows that have no natural key, which is said."""
    keys = source.train.keys
    if keys is None or not (without := sum(not key for key in keys)) or without == len(keys):
        return source
    note = (
        f"{source.name}: a natural deal leaves the {without} training rows without a {source.key_name} out; --keyless apart "
        "deals them like one more."
    )
    return replace(source, train=source.train.take(np.array([key != "" for key in keys])), notes=(*source.notes, note))


def _facts(keys: list[str], source: Source, own: Rows) -> dict[str, Any]:
    """What is known of a client by the natural keys of its rows and by their languages."""
    keys = [key or f"no {source.key_name}" for key in keys]
    found: dict[str, Any] = {"domain": keys[0]} if len(keys) == 1 else {"domains": keys} if keys else {}
    return found | common(own.languages or ())


def _keys(rows: Rows, index: np.ndarray) -> list[str]:
    return [] if rows.keys is None else sorted({rows.keys[i] for i in index.tolist()})


def _shared(source: Source, trained_on: list[Rows], held_out: list[tuple[Rows, list[str]]]) -> list[str]:
    """What is said of test rows that also stand in training; drawn ones never do."""
    new = Rows.concatenate([own for own, _ in held_out]) if held_out else None
    others = {"test": source.test, "validation": source.validation, "new clients'": new, **source.further}
    present = {split: own for split, own in others.items() if own is not None and len(own)}
    if not present:
        return []
    trained = {rows.content(i) for rows in trained_on for i in range(len(rows))}
    return [
        n for split, own in present.items() for n in checks.shared(map(own.content, range(len(own))), trained, source.name, split)
    ]


def _by_key(split: Rows | None, keys: list[list[str]]) -> list[Rows] | None:
    """Each client's rows of a split of the source's own, or None unless every client has some."""
    if split is None or split.keys is None:
        return None
    owner = {key: i for i, own in enumerate(keys) for key in own}
    owners = np.array([owner.get(key, -1) for key in split.keys])
    if len(np.unique(owners[owners >= 0])) < len(keys):
        return None
    return [split.take(owners == i) for i in range(len(keys))]


def _losses(source: Source, dealt: list[np.ndarray], scheme: str) -> list[str]:
    """A sentence about the rows that no client was dealt, if any."""
    total = len(source.train)
    left_out = np.setdiff1d(np.arange(total), np.concatenate(dealt))
    if not len(left_out):
        return []
    classes = ", ".join(source.classes[label] for label in np.unique(source.train.labels[left_out]))
    return [
        f"The {scheme} deal leaves out {len(left_out)} of {total} rows: no client was given their classes "
        f"({classes}); more clients or more classes per client use them all."
    ]


def _checked(
    source: Source,
    clients: int,
    scheme: str,
    alpha: float,
    classes_per_client: int,
    min_rows: int,
    new_clients: int,
) -> str:
    """The scheme to use, after refusing what no deal can do."""
    if scheme not in SCHEMES:
        raise UserError(f'there is no way to deal data called "{scheme}": choose {", ".join(SCHEMES)}.{nearest(scheme, SCHEMES)}')
    if scheme == "auto":
        scheme = "natural" if len(set(source.train.keys or ())) >= max(clients + new_clients, 1) else "dirichlet"
    if clients < 1 or new_clients < 0 or min_rows < 0:
        raise UserError(
            f"{clients} clients, {new_clients} new clients and at least {min_rows} rows were asked for: "
            f"give at least one client and no negative numbers."
        )
    total = clients + new_clients
    if total * max(min_rows, 1) > len(source.train):
        rows = count(len(source.train), "row")
        raise UserError(
            f"{source.name} has {rows} to deal, too few for {total} clients with at least "
            f"{max(min_rows, 1)} each: ask for fewer clients."
        )
    if scheme == "dirichlet" and not (alpha > 0 and math.isfinite(alpha)):
        raise UserError(f"alpha is {alpha:g}: the Dirichlet deal needs a number above 0 (0.1 is very skewed, 100 is nearly IID).")
    if scheme == "pathological" and not 1 <= classes_per_client <= len(np.unique(source.train.labels)):
        raise UserError(
            f"{classes_per_client} classes per client were asked for, but {source.name} has "
            f"{len(np.unique(source.train.labels))} classes in its training rows: give a number between 1 "
            "and that."
        )
    if scheme == "natural":
        if source.train.keys is None:
            raise UserError(f"{source.name} has no natural client key: {NO_KEY}, or deal it iid, dirichlet or pathological.")
        if total > (number := len(set(source.train.keys))):
            raise UserError(
                f"{source.name} has {number} different values of {source.key_name} to deal whole, too few "
                f"for {total} clients: ask for at most {number}, or deal it iid, dirichlet or pathological."
            )
    return scheme


def _deal(
    source: Source, parts: int, scheme: str, alpha: float, classes_per_client: int, seed: int, min_rows: int
) -> list[np.ndarray]:
    """The positions in ``source.train`` of each of ``parts`` clients, in ascending order."""
    labels = source.train.labels
    flower = flower_partitioners()
    draw = stream_key(seed, "data/deal", scheme) % 2**32
    everything = np.arange(len(labels))
    if scheme == "iid":
        # Flower takes contiguous shards and counts on shuffled rows.
        mixed = numpy_generator(seed, "data/deal", scheme).permutation(everything)
        return _run(flower.IidPartitioner(parts), {"row": mixed})
    if scheme == "natural":
        # Flower groups a fixed number of keys, whatever their sizes: groups made here are its keys.
        group = _grouped(np.asarray(source.train.keys, dtype=str), parts, seed)
        return _run(
            flower.GroupedNaturalIdPartitioner("client", group_size=1, sort_unique_ids=True),
            {"row": everything, "client": group},
        )
    columns = {"row": everything, "label": labels}
    if scheme == "dirichlet":
        try:
            return _run(
                flower.DirichletPartitioner(parts, "label", alpha, min_partition_size=min_rows, shuffle=False, seed=draw),
                columns,
            )
        except ValueError as error:
            raise UserError(
                f"a Dirichlet deal with alpha {alpha:g} leaves some of {parts} clients with fewer than "
                f"{min_rows} of the {len(labels)} rows, in each of 11 draws: raise --alpha, ask for fewer "
                f"--clients, or allow small clients (--min-rows 0)."
            ) from error
    try:
        return _run(_pathological(labels, parts, classes_per_client, draw), columns)
    except ValueError as error:
        present, size = np.unique(labels, return_counts=True)
        rarest = source.classes[present[size.argmin()]]
        raise UserError(
            f"{source.name} has too few rows of some class (of {rarest} only {size.min()}) to give "
            f"{parts} clients {classes_per_client} classes each: ask for fewer clients or classes, or deal "
            f"it by dirichlet."
        ) from error


def _pathological(labels: np.ndarray, parts: int, classes_per_client: int, draw: int) -> Any:
    """Flower's pathological partitioner, with that seed of a few which leaves out the fewest rows.

    Which client gets which classes depends on the seed and on what classes there are, not on their rows, so
    that seeds are tried on a small table with ``parts`` rows of each class.
    """
    classes, size = np.unique(labels, return_counts=True)

    def partitioner(seed: int) -> Any:
        return flower_partitioners().PathologicalPartitioner(
            parts, "label", classes_per_client, "first-deterministic", shuffle=False, seed=seed
        )

    best, most = draw, -1
    for seed in range(draw, draw + SEEDS_TRIED):
        small = np.repeat(classes, parts)
        used = np.unique(small[np.concatenate(_run(partitioner(seed), {"row": np.arange(len(small)), "label": small}))])
        kept = int(size[np.isin(classes, used)].sum())
        if kept > most:
            best, most = seed, kept
        if len(used) >= min(len(classes), parts * classes_per_client):
            break
    return partitioner(best)


def _run(partitioner: Any, columns: dict[str, np.ndarray]) -> list[np.ndarray]:
    import datasets

    # The arrow format spares Flower an iteration in Python over every row.
    partitioner.dataset = datasets.Dataset.from_dict(columns).with_format("arrow")
    with warnings.catch_warnings():
        # What Flower warns of, lost classes and repeated draws, is counted and said in our words.
        warnings.simplefilter("ignore")
        parts = [partitioner.load_partition(i) for i in range(partitioner.num_partitions)]
    return [np.sort(part["row"].to_numpy()) for part in parts]


def _grouped(keys: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Deal whole keys to ``parts`` groups of like size, none empty: a group for each row (int64 [n]).

    Keys go from large to small to whichever group has the fewest rows. Among keys of like size (within a
    factor of two) the order is drawn, so that seeds give different deals.
    """
    names, inverse, size = np.unique(keys, return_inverse=True, return_counts=True)
    rng = numpy_generator(seed, "data/deal", "natural")
    order = np.lexsort((rng.random(len(names)), -np.floor(np.log2(size))))
    group = np.empty(len(names), dtype=np.int64)
    loads = [(0, i) for i in range(parts)]  # a heap of (rows, group)
    for name in order.tolist():
        load, i = loads[0]
        group[name] = i
        heapq.heapreplace(loads, (load + int(size[name]), i))
    # Numbered at random: the last groups, which may be held out, would be the small ones.
    return rng.permutation(parts)[group[inverse]]
