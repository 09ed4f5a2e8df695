"""The coordinator of a real federation: a run whose clients are sites."""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from weft import energy
from weft import experiment as settings
from weft.backbones.backbone import Backbone
from weft.callbacks import tracker
from weft.communication.codecs import codec
from weft.data.bio import type_of
from weft.data.images import Images
from weft.data.rows import BOTH, Rows
from weft.data.sources import NO_CORE
from weft.data.tagged import rows_of
from weft.engines.observer import Observer
from weft.engines.remote import Remote, check_told
from weft.engines.setup import Setup, Tests
from weft.errors import UserError
from weft.experiment import Resolved, handed, hidden
from weft.federation import common_facts
from weft.federation.client import ClientState
from weft.federation.rounds import adapted
from weft.playing import execute, from_adapter
from weft.playing.run import Run
from weft.runs import beginning, best, continual, summary
from weft.runs import directory as directories
from weft.runs.directory import RunDirectory
from weft.runs.prepare import Material, backbone_of, bench_of, kind_of, public_bench
from weft.runs.suited import suited
from weft.sites.roll import Roll, StageTransport, Wire
from weft.sites.terms import Terms
from weft.storage import files
from weft.tasks.kinds import LANGUAGE, NEXT_ITEM, NUMBERS, PREFERENCE, TOKENS, make

RETURN = 60.0  # seconds that a coordinator which was started again waits for the sites that it had
PROBES = 8  # made-up rows on which an exported adapter is compared with the model in memory: the coordinator has no others


def serve(
    resolved: Resolved,
    connect: Callable[[RunDirectory], Any],
    observer: Observer | None = None,
    *,
    deadline: float = 3600.0,
) -> Run:
    """Run a federation with the sites that come; begun again with the same settings, it goes on where it was stopped.

    Args:
        connect: given the run's folder, a context manager that gives a :class:`weft.sites.roll.Wire`.
        deadline: seconds that a site may take for a turn; a round goes on without whoever takes longer.

    Raises:
        UserError: what an experiment for sites can't have, or another experiment under the name of an unfinished run.
    """
    observer = observer or Observer()
    resolved = _named(resolved)
    _check(resolved)
    x = resolved.experiment
    trackers = tracker.made(x.track)
    metering = energy.made(x, observer.say, of=" of the coordinator alone")
    directory, begun = _directory(resolved)
    if begun and directories.read_summary(directory)["finished"]:
        observer.say(f"{directory.root} is finished already: there is nothing to do.")
        return Run(directory)
    fresh = nullcontext() if begun else execute.undone(directory)
    with execute.stoppable(directory), directories.locked(directory), fresh:
        began = time.time()
        for note in resolved.notes:
            observer.say(note)
        observer.begin("set-up", 2)
        adapter = None if begun else from_adapter.read(resolved.experiment)
        material = _material(resolved, observer)
        about = directories.read_summary(directory) if begun else summary.begun(directory, resolved, material, began)
        if begun:
            material = replace(material, beginning=beginning.again(directory, about))
        else:
            material = from_adapter.begun(material, adapter, resolved.experiment, resolved.played, observer)
        if material.beginning is not None:
            about["start"] = material.beginning.write(directory)
        about.setdefault("served", {"run": uuid.uuid4().hex, "sites": []})
        if begun:
            observer.say(f"going on with {directory.root}.")
        _note(directory, about, resolved, material)
        with connect(directory) as wire:
            _federate(wire, directory, resolved, material, about, observer, deadline, trackers, metering)
    return Run(directory)


def _federate(
    wire: Wire,
    directory: RunDirectory,
    resolved: Resolved,
    material: Material,
    about: dict[str, Any],
    observer: Observer,
    deadline: float,
    trackers: list[tracker.Tracker],
    metering: energy.Metering,
) -> None:
    x = resolved.experiment
    terms = Terms.of(about["served"]["run"], x, material.bench, material.beginning)
    given = handed.facts_of(x)
    fits = functools.partial(adapted, resolved.played, material.bench)  # whose facts it can't be would end the run for everybody
    roll = Roll(wire, terms, resolved.played, x.models, deadline, observer, directory.root, given, fits)
    before = {s["id"]: s for s in about["served"]["sites"]}
    for site in before.values():
        roll.common |= common_facts.common(site["facts"])
    if before:  # they may come back at any time, but most do at once
        roll.wait_for(len(before), patience=min(deadline, RETURN))
    else:
        roll.wait_for(x.clients)
    for info in roll.members.values():
        before.setdefault(info.id, asdict(info))
    material.clients[:] = [
        ClientState(s["id"], s["n"], given(i) | dict(s["facts"]), s["model"]) for i, (_, s) in enumerate(sorted(before.items()))
    ]
    common_facts.settle(material.clients)
    about["served"]["sites"] = [asdict(c.info(resolved.method.info.asks)) for c in material.clients]
    roll.common = common_facts.common(about["served"]["sites"][0]["facts"])
    if material.beginning is not None:
        members = [c.info(resolved.method.info.asks) for c in material.clients]
        beginning.check_clients(material.beginning, resolved.played, material.bench, members)
    _note(directory, about, resolved, material)

    def joined(clients: list[ClientState]) -> None:
        """Write down who has come, for a coordinator that is started again."""
        known = {s["id"] for s in about["served"]["sites"]}
        about["served"]["sites"] += [asdict(c.info(resolved.method.info.asks)) for c in clients if c.id not in known]
        directories.write_summary(directory, about)

    def engine(setup: Setup) -> Remote:
        stage = "rounds" if setup.method is resolved.played else "setup"
        return Remote(setup, StageTransport(roll, stage, setup.federations[0][0], setup.exchange, joined))

    execute.go_on(directory, resolved, material, about, observer, engine=engine, callbacks=trackers, metering=metering)
    roll.farewell()


def _note(directory: RunDirectory, about: dict[str, Any], resolved: Resolved, material: Material) -> None:
    """From here on the run is one that can be gone on with."""
    directories.write_summary(directory, about)
    x = resolved.experiment
    files.write(directory.experiment, settings.to_toml(x, execute.pinned_to(x, material)).encode())


def _named(resolved: Resolved) -> Resolved:
    """Of answers there is one kind, which nobody has to declare."""
    x = resolved.experiment
    if x.classes or x.task not in LANGUAGE:
        return resolved
    return replace(resolved, experiment=x.model_copy(update={"classes": ["answer"]}))


def _check(resolved: Resolved) -> None:
    x = resolved.experiment
    best.check(x.keep, resolved.method)
    if x.stop_after is not None:
        raise UserError("stop_after is for simulations: leave it out of an experiment for sites.")
    continual.check(x)
    if x.periods > 1 and x.periods_by == "keys":
        raise UserError("sites know no natural keys but their own, which have no common order: give another --periods-by.")
    codec(x.codec)
    if resolved.given:
        raise UserError("a method that is an object in Python can't be told to sites: give it a slug in a package of its own.")
    if not x.classes:
        raise UserError('a real federation has to declare its label set: write classes = ["…", "…"] in the experiment file.')
    if x.core and x.task != NEXT_ITEM:
        raise UserError(NO_CORE)
    check_told(make(x.classes, kind_of(x), x.metrics), x.class_counts)
    if x.baseline is not None or x.baselines:
        raise UserError("baselines compare runs on the same rows, which a coordinator does not have: leave baseline(s) out.")
    handed.check_sites(x, resolved.method)
    hidden.check_cohort(hidden.chain_of(x), x.clients)
    if x.dropout or x.eval_clients:
        raise UserError("dropout and eval_clients are for simulations: leave them out of an experiment for sites.")


def _directory(resolved: Resolved) -> tuple[RunDirectory, bool]:
    """A new folder, or that of the run of this very experiment."""
    x = resolved.experiment
    runs, usual = Path(x.runs).expanduser(), f"{x.method}-sites-s{x.seed}"
    there = RunDirectory(runs / (x.name or usual))
    if there.summary.is_file() and there.experiment.is_file():
        about = directories.read_summary(there)
        if "served" in about:
            old = {n: s["value"] for n, s in about["settings"].items()}
            new = json.loads(json.dumps(x.flat()))
            defaults = settings.Experiment().flat()  # of settings that there were not when it was begun
            odd = sorted(n for n in new if new[n] != old.get(n, defaults.get(n)) and n not in settings.OUTPUT)
            if not odd:
                return there, True
            if x.name or not about["finished"]:
                state = "a finished" if about["finished"] else "an unfinished"
                raise UserError(
                    f"{there.root} is {state} run with another {', '.join(odd[:5])}: serve it with the same settings, or give "
                    "another --name."
                )
    return directories.create(runs, x.name, usual), False


def _material(resolved: Resolved, observer: Observer) -> Material:
    """Backbones without data."""
    x = resolved.experiment
    backbones = [backbone_of(x, name, x.classes, resolved.method.info.needs) for name in x.models]
    observer.advance("set-up", step="backbone")
    benches = [bench_of(x, b, x.classes, made_up(b, x.classes, kind_of(x))) for b in backbones]
    for bench in benches:
        suited(resolved.played, bench)
    observer.advance("set-up", step="tokens")
    bench = benches[0]
    public, of_public = public_bench(x, bench, x.classes, None, observer)
    bench.others = dict(zip(x.models[1:], benches[1:], strict=True))
    none = np.zeros(0, dtype=np.int64)
    about = {
        "name": "the sites' own",
        "fingerprint": "",
        "object": False,
        "classes": list(x.classes),
        "pairs": None,  # the sites know
        "clients": x.clients,
        "rows": {"train": 0, "val": 0, "test": 0, "new clients": 0},
        "new_clients": 0,
        "public": of_public,
        "notes": [],
    }
    return Material(bench, [], Tests(none, none), about, public=public)


def made_up(backbone: Backbone, classes: list[str], kind: str) -> Rows:
    """A few rows that are nobody's: what an exported adapter is compared on.

    Args:
        kind: of the task.
    """
    ids = np.arange(PROBES)
    labels = ids % len(classes)
    if kind in LANGUAGE:
        worse = ["or none"] * PROBES if kind == PREFERENCE else None
        prompts = ["a few words " * (1 + i) for i in range(PROBES)]
        return Rows(texts=prompts, answers=["and an answer"] * PROBES, rejected=worse, ids=ids)
    if kind == TOKENS:
        words = [tuple(type_of(classes[(i + k) % len(classes)]) or "word" for k in range(1 + i)) for i in range(PROBES)]
        return rows_of(words, [np.zeros(len(row), dtype=np.int64) for row in words], ids)
    if kind == NEXT_ITEM:  # of one domain each
        return Rows(items=[(int(label),) * (1 + i) for i, label in enumerate(labels)], labels=labels, ids=ids)
    texts = [" ".join(classes[(i + k) % len(classes)] for k in range(1 + i)) for i in range(PROBES)]
    draw = np.random.default_rng(0)
    pictures = Images([draw.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in ids])
    content: dict[str, Any] = {"texts": {"texts": texts}, "images": {"images": pictures}}
    content[BOTH] = content["texts"] | content["images"]
    rows = Rows(labels=labels, ids=ids, **content[backbone.reads])
    return replace(rows, numbers=np.zeros(PROBES)) if kind == NUMBERS else rows
