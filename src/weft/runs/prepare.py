"""Data, backbone and tokens of a run: read once, shared by the federation, its set-up and its baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weft.backbones import lines
from weft.backbones.backbone import Backbone
from weft.backbones.load import load as load_backbone
from weft.backbones.options import FILL, task_for
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import tabulate
from weft.backbones.spaces import Spaces
from weft.backbones.token_table import Tokens
from weft.backbones.views import Views
from weft.checks import tokenizers
from weft.data import labels, protocols, several
from weft.data.columns import NoColumn, wanted_by
from weft.data.hub_sets import metrics_of
from weft.data.partitioners import partition
from weft.data.rows import BOTH, FederatedData, Rows, Source, fingerprint
from weft.data.sources import limited
from weft.data.sources import load as load_data
from weft.engines.observer import Observer
from weft.engines.setup import Tests
from weft.errors import UserError
from weft.experiment import Experiment, handed
from weft.federation import common_facts
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.privacy.hiding import Privacy
from weft.runs import public_rows
from weft.runs.arriving import arriving, held
from weft.runs.beginning import Beginning
from weft.runs.fitting_rows import anything
from weft.tasks import judging
from weft.tasks.generation import Generation
from weft.tasks.generation_settings import Decoding
from weft.tasks.kinds import (
    CLASSES,
    GENERATION,
    KINDS,
    LANGUAGE,
    MASKED,
    NEEDS_TAGS,
    NEXT_ITEM,
    NUMBERS,
    PREFERENCE,
    QUESTIONS,
    SEVERAL,
    TOKENS,
    make,
    suits,
)


@dataclass(frozen=True)
class Material:
    """What a run works on.

    Attributes:
        bench: backbone, task, tokens. clients: in the order of their ids, as the data give them.
        tests: rows that scores are taken on. data: what is said of the data in ``summary.json``.
        beginning: start values out of an adapter, None = the usual ones.
        public: rows for the server, on the first backbone; None = none.
    """

    bench: Bench
    clients: list[ClientState]
    tests: Tests
    data: dict[str, Any]
    beginning: Beginning | None = None
    public: Bench | None = None

    @property
    def backbone(self) -> Backbone:
        return self.bench.backbone

    @property
    def task(self) -> str:
        """What is predicted, by its name among settings."""
        kind = self.bench.task.kind
        if kind != CLASSES:
            return kind
        return "similarity" if self.backbone.names is not None else (FILL if self.backbone.options.task == FILL else CLASSES)

    def fresh(self) -> Material:
        """The same with an empty prefix cache."""

        def emptied(bench: Bench) -> Bench:
            return replace(bench, prefix=None if bench.prefix is None else PrefixCache(bench.backbone))

        others = {name: emptied(other) for name, other in self.bench.others.items()}
        public = None if self.public is None else emptied(self.public)
        return replace(self, bench=replace(emptied(self.bench), others=others), public=public)

    def under(self, privacy: Privacy) -> Material:
        """The same, where rows and clients are hidden by this."""
        return replace(self, bench=self.bench.under(privacy))

    def identity(self) -> dict[str, Any]:
        """What a checkpoint's numbers rest on: data as dealt, weights, and precision."""
        return {
            "data": self.data["fingerprint"],
            "clients": self.data["clients"],
            "rows": len(self.bench.table),
            "public": None if self.public is None else self.data["public"]["fingerprint"],
            "weights": ",".join(b.backbone.weight_hash for b in (self.bench, *self.bench.others.values())),
            "precision": self.backbone.precision,
        }


def prepare(
    experiment: Experiment, given: Any, observer: Observer, needs: tuple[str, ...] = (), fits: Callable[[str], None] = anything
) -> Material:
    """Load, deal out, tokenise.

    Args:
        given: data as an object, None where they have a name; all but :class:`FederatedData` are dealt out.
        needs: of the method: one that needs a ``head`` gets a linear one on a CLIP too, unless another task was asked for.
        fits: is told what rows hold before a backbone is loaded for them, and may refuse them.
    """
    x = experiment
    dealt = deal(x, given)
    for note in dealt.notes:
        observer.say(note)
    observer.advance("set-up", step="data")
    fits(dealt.test.read_as)
    x = told(x, dealt.test)
    models = x.models
    if len(models) > 1 and (x.blocks or x.roles or x.head):
        raise UserError("blocks, roles and head correct the description of one backbone: give a single --model with them.")
    backbones = [backbone_of(x, name, dealt.classes, needs) for name in models]
    for note in dict.fromkeys(n for b in backbones for n in b.notes):
        observer.say(note)
    observer.advance("set-up", step="backbone")
    if dealt.further and x.engine == "flower":
        raise UserError(
            "sites have their own rows alone to test on: leave --novel and --test-on out, or use --engine simulation."
        )
    if dealt.further and any(b.names is None for b in backbones):
        raise UserError(
            "classes that nobody trains on can only be told by their names: use a CLIP with --task similarity for --novel and "
            "--test-on, or leave them out."
        )
    rows, positions = _layout(dealt)
    own = positions[2 : 2 + 3 * len(dealt.clients)]
    rows, arrivals = arriving(x, rows, held([c.id for c in dealt.clients], own), dealt.classes)
    benches = [replace(bench_of(x, b, dealt.classes, rows), arrivals=arrivals) for b in backbones]
    bench = replace(benches[0], others=dict(zip(models[1:], benches[1:], strict=True)))
    for note in dict.fromkeys(n for b in benches for n in understood(b)):
        observer.say(note)
    public, of_public = public_bench(x, benches[0], dealt.classes, rows, observer)
    observer.advance("set-up", step="tokens")
    test, val, *rest = positions
    further = dict(zip(dealt.further, rest[len(rest) - len(dealt.further) :], strict=True))
    rest = rest[: len(rest) - len(further)]
    new = rest[3 * len(dealt.clients) :]
    clients = [
        ClientState(c.id, len(c.train), dict(c.facts), data=Splits(*own[3 * i : 3 * i + 3])) for i, c in enumerate(dealt.clients)
    ]
    clients.sort(key=lambda c: c.id)
    given_facts = handed.facts_of(x)
    for i, client in enumerate(clients):
        client.facts = given_facts(i) | client.facts
        if rows.tasks is not None:
            client.facts["tasks"] = several.facts(rows.tasks, client.data.train, (client.data.val, client.data.test))
        client.model = models[i % len(models)] if i % len(models) else ""
    common_facts.settle(clients)
    about = {
        "name": dealt.name,
        "fingerprint": dealt.fingerprint or fingerprint(dealt.classes, {"rows": rows}),
        "object": given is not None,
        "classes": list(dealt.classes),
        "pairs": rows.pairs is not None if rows.tasks is None else None,  # tasks of pairs may stand beside others
        "clients": len(clients),
        "partition": dealt.scheme,
        "rows": {"train": sum(c.n for c in clients), "val": len(val), "test": len(test), "new clients": sum(map(len, new))}
        | {name: len(own_rows) for name, own_rows in further.items()},
        "new_clients": len(dealt.unseen),
        "most_frequent": _most_frequent(rows, {"global test": [test], "own test": own[2::3]}),
        "guessing_loss": _guessing(bench, rows),
        "counts": _counts(dealt.classes, rows, clients),
        "public": of_public,
        "notes": list(dealt.notes),
    }
    return Material(
        bench,
        clients,
        Tests(test, val, {c.id: rows for c, rows in zip(dealt.unseen, new, strict=True)}, further),
        about,
        public=public,
    )


def public_bench(
    x: Experiment, bench: Bench, classes: Sequence[str], own: Rows | None, observer: Observer
) -> tuple[Bench | None, dict[str, Any] | None]:
    """The public rows of an experiment beside its bench, in a table of their own; and what is said of them in ``summary.json``.

    Args:
        own: all rows of the run; None = they are at sites, and nobody knows them.

    Raises:
        UserError: there are no such rows, or they are not of the run's kind or classes.
    """
    if x.public is None:
        return None, None
    kind = kind_of(x)
    rows, notes = public_rows.read(x, kind, bench.backbone.reads, classes, own)
    found = bench_of(x.model_copy(update={"views": 0}), bench.backbone, classes, rows)
    for note in (*notes, *legible(found)):
        observer.say(f"public rows: {note}")
    return found, {"name": x.public, "rows": len(rows), "fingerprint": fingerprint(classes, {"public": rows})}


READ_AS = {GENERATION: GENERATION, PREFERENCE: GENERATION, SEVERAL: TOKENS}
"""Tasks for which a backbone is loaded as for another."""

MOST = 100
"""Clients, and classes, up to which each one's rows are counted by class."""


def _counts(classes: Sequence[str], rows: Rows, clients: Sequence[ClientState]) -> dict[str, Any] | None:
    """How many training rows of each class each client has, where rows are of classes and there are not too many of either."""
    if not rows.of_classes or len(clients) > MOST or len(classes) > MOST:
        return None
    found = [np.bincount(rows.labels[c.data.train], minlength=len(classes)).tolist() for c in clients]
    return {"clients": [c.id for c in clients], "classes": list(classes), "rows": found}


def _guessing(bench: Bench, rows: Rows) -> float | None:
    """The mean loss of a model that has learnt nothing, where classes do not tell."""
    if bench.task.kind == PREFERENCE:
        return math.log(2)
    if bench.backbone.vocabulary is not None:
        return math.log(bench.backbone.vocabulary.size)
    if isinstance(allowed := bench.table.allowed, Spaces):
        return float(np.log(allowed.sizes).mean())
    return None if rows.numbers is None else float(rows.numbers.var()) or None


def _most_frequent(rows: Rows, people: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """What accuracy the most frequent class of each one's test rows would have by itself: what a model has to beat.

    Args:
        people: name -> the splits of each, positions of rows.
    """
    if not rows.of_classes:
        return {}
    found = {}
    for name, splits in people.items():
        right = sum(int(np.bincount(rows.labels[split]).max()) for split in splits if len(split))
        if total := sum(map(len, splits)):
            found[name] = right / total
    return found


def deal(x: Experiment, given: Any = None) -> FederatedData:
    """The rows of an experiment, dealt out to its clients.

    Args:
        given: data as an object, such as a frame; :class:`FederatedData` are dealt out already.
    """
    columns: dict[str, Any] = {"image": x.image, "text": x.text, "pair": x.pair, "label": x.label, "key": x.key}
    columns["pairs"] = ",".join(x.pairs) or None
    if isinstance(given, FederatedData | Source):
        if named := [name for name, column in columns.items() if column is not None]:
            raise UserError(f"{given.name} was given as rows, which have no columns: leave {named[0]} out.")
        if x.limit is not None and isinstance(given, FederatedData):
            raise UserError(f"{given.name} was given dealt out, so that a limit of rows comes too late: leave limit out.")
    if isinstance(given, FederatedData):
        labels.same(given, x.classes)
        if x.novel or x.test_on:
            raise UserError(f"{given.name} was given dealt out, so that novel and test_on come too late: leave them out.")
        return given if x.shots is None else protocols.few_shot(given, x.shots, x.seed)
    if isinstance(given, Source):
        source = given if x.limit is None else limited(given, x.limit, x.seed)
    else:
        try:
            source = load_data(
                x.data if given is None else given, seed=x.seed, limit=x.limit, wanted=wanted_by(x.task), core=x.core, **columns
            )
        except NoColumn as e:
            raise UserError(f"{str(e).rstrip('.')}; {NEEDS_TAGS}.") if x.task == TOKENS else e from None
    source = labels.declared(source, x.classes) if x.classes else source
    source = protocols.base_to_novel(source, x.novel) if x.novel else source
    if x.test_on:
        others = [load_data(name, seed=x.seed, limit=x.limit) for name in x.test_on]
        source = protocols.also_tested(source, others)
    dealt = partition(
        source,
        clients=x.clients,
        scheme=x.partition,
        alpha=x.alpha,
        classes_per_client=x.classes_per_client,
        seed=x.seed,
        val_fraction=x.val_fraction,
        test_fraction=x.test_fraction,
        min_rows=x.min_rows,
        new_clients=x.new_clients,
        leave_out=x.leave_out,
        keyless=x.keyless,
    )
    return dealt if x.shots is None else protocols.few_shot(dealt, x.shots, x.seed)


def told(x: Experiment, rows: Rows) -> Experiment:
    """The experiment with the task that its data ask for.

    Raises:
        UserError: words are tagged, and another task was asked for, or the other way round.
    """
    found: dict[str, object] = {TOKENS: rows.tags, NUMBERS: rows.numbers, PREFERENCE: rows.rejected}
    found |= {GENERATION: rows.answers, NEXT_ITEM: rows.items}
    if rows.tasks is not None:
        found = {SEVERAL: rows.tasks}
    if rows.answers is None and rows.read_as == BOTH:
        found = {QUESTIONS: rows.images}
    meant = next((kind for kind, column in found.items() if column is not None), x.task)
    asked = x if x.task != "auto" else x.model_copy(update={"task": meant})
    suits(kind_of(asked), rows)
    return asked


def kind_of(x: Experiment) -> str:
    """The kind of an experiment's task, once that is told by its data or by its file."""
    return x.task if x.task in (TOKENS, NUMBERS, NEXT_ITEM, QUESTIONS, SEVERAL, *LANGUAGE) else CLASSES


def backbone_of(x: Experiment, name: str, classes: Sequence[str], needs: tuple[str, ...]) -> Backbone:
    """One of an experiment's backbones."""
    return load_backbone(
        name,
        classes=classes,
        device=x.device,
        precision=x.precision,
        task=READ_AS.get(x.task) or (task_for(needs) if x.task == "auto" else x.task),
        template=x.template,
        blocks=x.blocks,
        roles=x.roles,
        head=x.head,
        label_words=x.label_words,
        calibrate=x.calibrate,
        trust_remote_code=x.trust_remote_code,
        quantise=x.quantise,
        device_map=x.device_map,
    )


def bench_of(x: Experiment, backbone: Backbone, classes: Sequence[str], rows: Rows) -> Bench:
    """A backbone with its rows.

    Raises:
        UserError: the task is to tag words, and those of the rows are not tagged, or the other way round.
    """
    suits(kind_of(x), rows)
    if x.label_spaces == "all":
        rows = replace(rows, allowed=None)
    prefix = None if x.prefix_cache == "off" else PrefixCache(backbone)
    known = KINDS[kind_of(x)].known  # the metrics of a set are of the task that it is usually for
    usual = [m for m in metrics_of(x.data) if m in known or (m.startswith("f1:") and m[3:] in classes)]
    if kind_of(x) in LANGUAGE or rows.read_as == BOTH:
        prefix = None  # hidden states of all tokens of long rows take more memory than they save time
    if kind_of(x) in (GENERATION, MASKED):
        rows = replace(rows, rejected=None)  # of two answers the better one is learnt
    task = make(classes, kind_of(x), x.metrics or usual, **more_of(x))
    if isinstance(task, Generation):
        judging.check_installed(task.text_metrics)
        judging.check_wanted(task.text_metrics, rows.answers or ())
        if x.metrics and task.text_metrics and not x.samples:
            raise UserError(
                f"{task.text_metrics[0]} is of generated texts, and --samples 0 lets none be written: leave one of the two out."
            )
    views = Views(x.views, x.view_scale, x.view_flip, x.seed) if x.views else None
    table = tabulate(backbone, rows, x.max_length, views)
    if x.sequence_packing:
        lines.check(backbone, table)
    return Bench(backbone, task, table, x.seed, prefix, x.by_length, recompute=x.recompute, sequence_packing=x.sequence_packing)


def more_of(x: Experiment) -> dict[str, Any]:
    """What a language model's task is told beside its metrics."""
    if kind_of(x) == PREFERENCE:
        return {"beta": x.preference_beta}
    return writing(x) if kind_of(x) == GENERATION else {}


def writing(x: Experiment) -> dict[str, Any]:
    """What a task that generates text is told."""
    decoding = Decoding(x.new_tokens, x.beams, x.temperature, x.top_p)
    return {"average": x.answer_loss, "samples": x.samples, "decoding": decoding}


def understood(bench: Bench) -> list[str]:
    """What the backbone's tokenizer could not make of the rows, or of the names of the classes; notes.

    Raises:
        UserError: next to nothing of it is known to the backbone.
    """
    names = bench.backbone.names
    return [*([] if names is None else tokenizers.alike(names.names, names.ids().tolist())), *legible(bench)]


def legible(bench: Bench) -> list[str]:
    """What the backbone's tokenizer could not make of the rows; notes.

    Raises:
        UserError: next to nothing of them is known to the backbone.
    """
    if not isinstance(bench.table, Tokens):
        return []
    tokenizers.legible(bench.backbone.name, bench.table.reading)
    return [*bench.table.notes, *tokenizers.known(bench.table.reading)]


def _layout(dealt: FederatedData) -> tuple[Rows, list[np.ndarray]]:
    """One table of all different rows, those of a client next to each other, and where each split's rows are in it.

    Returns:
        the rows; positions of the test set, the validation set, each client's (train, val, test), each new client's test rows,
        further test sets.
    """
    own = [split for c in dealt.clients for split in (c.train, c.val, c.test)]
    more = [*(c.test for c in dealt.unseen), *dealt.further.values()]
    parts = [*own, *more, dealt.test, dealt.val]  # clients first: the order of the table
    ids = np.concatenate([p.ids for p in parts])
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    cuts = np.cumsum([len(p) for p in parts])[:-1]
    positions = np.split(place[inverse], cuts)
    return Rows.concatenate(parts).take(np.sort(first)), [*positions[-2:], *positions[:-2]]


def copies(clients: list[ClientState]) -> list[ClientState]:
    """Clients without memory, for another federation on the same rows."""
    return [ClientState(c.id, c.n, dict(c.facts), c.model, data=c.data) for c in clients]
