"""From the first round of a run to its finished summary, or what is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import experiment as settings
from weft.backbones.short_names import KNOWN, encoders
from weft.callbacks.calling import Calling
from weft.data.hub_sets import catalogue
from weft.devices import Budget, sized
from weft.energy import UNMETERED, Metering
from weft.engines.observer import Observer
from weft.engines.stepwise import simulated
from weft.errors import Elsewhere, Interrupted, UserError
from weft.experiment import Experiment, Resolved, as_played
from weft.experiment.hidden import chain_of
from weft.privacy.hiding import Privacy
from weft.rules import plain
from weft.runs import baselines, lifetime, stopping, summary, swarm_of
from weft.runs import directory as directories
from weft.runs.checkpoint import Checkpoint, digest
from weft.runs.directory import RunDirectory
from weft.runs.prepare import Material, copies
from weft.runs.result import scores
from weft.runs.stage import FinishedStage, MakeTurns, Player, Sentences, Stage, sent
from weft.storage import files, remedy

if TYPE_CHECKING:
    from torch import Tensor

    from weft.callbacks.callback import Callback
    from weft.federation.method import Method

NO_PAGE = "WEFT_REPORT"
"""Of the environment: ``0`` writes no page of any run."""
PROBE_PACK = 8  # a probe's packs need next to no memory, and a number of its own keeps a replay's the same


def go_on(
    directory: RunDirectory,
    resolved: Resolved,
    material: Material,
    about: dict[str, Any],
    observer: Observer,
    repeat: int = 1,
    engine: MakeTurns = simulated,
    callbacks: Sequence[Callback] = (),
    metering: Metering = UNMETERED,
) -> None:
    """Everything from the first round to the finished summary, or what is left of it."""
    told = Calling(observer, callbacks, directory.root, about)
    try:
        _go_on(directory, resolved, material, about, told, repeat, engine, metering)
        told.run_finished(about)
    finally:
        told.close()
        metering.close()


def _go_on(
    directory: RunDirectory,
    resolved: Resolved,
    material: Material,
    about: dict[str, Any],
    observer: Observer,
    repeat: int,
    engine: MakeTurns,
    metering: Metering,
) -> None:
    x = resolved.experiment
    began, before = time.perf_counter(), about["seconds"]
    if repeat > 1:
        about["repeat"] = {"runs": repeat, "identical": None}
        directories.write_summary(directory, about)
    main, setup = play(directory, x, resolved.played, material, observer, engine=engine, metering=metering)
    if main.stopped is not None:
        about["stopped"] = main.stopped
        observer.say(f"stopped after round {main.stopped['round'] + 1}: {main.stopped['why']}.")
    about |= scores(main.lines, setup.lines if setup else []) | {"pack": main.pack, "bytes": summary.total_bytes(main, setup)}
    if x.peers is not None:
        about["swarm"], sentence = swarm_of.told(x, main, material.bench)
        observer.say(sentence)
    about["lifetime"] = lifetime.of(about)
    if len(main.servers) == 1:
        if x.keep == "best" and main.best is None:
            observer.say("no round was scored on validation rows: the model of the last one is kept.")
        about["adapter"] = export_adapter(main, directory, x, material, observer, about["lifetime"])
        about["adapter"]["round"] = main.lines[-1]["round"] if main.best is None else main.best
    about["baselines"] = {}
    for name in x.baselines:
        about["baselines"][name] = _baseline(name, directory, resolved, material, main.pack, setup, observer, metering)
    different: list[str] = []
    for number in range(1, repeat):
        different += _repeat(directory, x, resolved.played, material.fresh(), main.pack, number, observer)
        about["repeat"] = {"runs": repeat, "identical": not different}
    about["finished"] = True
    about["seconds"] |= {"loading": before["loading"], "all": before["loading"] + time.perf_counter() - began}
    directories.write_summary(directory, about)
    if x.report:
        draw(lambda: _page(directory), observer, f"; weft report {directory.root} tries again")
    if different:
        raise UserError(
            f"the repeat gave other numbers ({', '.join(different[:5])}{' …' if len(different) > 5 else ''}): the run is saved, "
            "but sums on this device are not exact in their order; --device cpu repeats bit for bit."
        )


def play(
    directory: RunDirectory,
    x: Experiment,
    method: Method,
    material: Material,
    observer: Observer,
    aside: str | None = None,
    engine: MakeTurns = simulated,
    metering: Metering = UNMETERED,
) -> tuple[FinishedStage, FinishedStage | None]:
    """The federation of an experiment, after the one that trains its head if there is to be one.

    Args:
        engine: plays the rounds. aside: name of the one stage that all progress is told under, for a run beside the main one.
        metering: notes the energy of its rounds.
    """
    # what a run is compared with is not sent, and hides nothing
    material = material.under(Privacy() if x.baseline is not None else chain_of(x))
    method = baselines.stand_in(x) or baselines.with_all_steps(method, x.baseline, len(material.clients))
    clients = copies(material.clients)
    facts = sized(method.profile)
    for position, client in enumerate(clients):
        client.facts = facts(position, client.facts)
    groups = baselines.federations(clients, x.baseline)
    travels = baselines.travels(x)
    given = {} if material.beginning is None or baselines.stand_in(x) is not None else material.beginning.tensors
    starts: list[dict[str, Tensor]] = [dict(given) for _ in groups]
    setup: FinishedStage | None = None
    warmed = baselines.warmed(method, x, material.bench, clients) if baselines.probing(x) else set()
    if baselines.probing(x) and not warmed:
        observer.say(
            f"{method.info.slug} has no head that could start from a probe: it starts at random, and no probe is trained."
        )
    if warmed:
        stage = Stage(
            aside or "set-up",
            "setup",
            PROBE_PACK,
            baselines.probe(x),
            baselines.federations(copies(material.clients), x.baseline),
            [{} for _ in groups],
            baselines.turns(x.probe_rounds, x),
            eval_every=0,
            travels=travels,
            aside=True,
        )
        setup = Player(stage, directory.setup, x, material, observer, engine, metering).play()
        starts = [start | baselines.head_of(server, warmed) for start, server in zip(starts, setup.servers, strict=True)]
    if aside is None:
        observer.end("set-up")
    rounds = baselines.planned(x)
    stage = Stage(
        aside or "rounds",
        "train",
        x.pack if x.baseline != "probe" else PROBE_PACK,
        method,
        groups,
        starts,
        rounds,
        x.eval_every if aside is None else 0,
        travels,
        aside is not None,
        as_played.step_of(x),
        best=x.keep == "best" and x.baseline is None and aside is None,
        patience=stopping.of(x) if aside is None else None,
        asynchrony=as_played.asynchrony_of(x),
        budget=Budget(x.energy_budget, x.carbon_budget) if aside is None else Budget(),
        periods=x.periods,
    )
    player = Player(stage, directory.root, x, material, observer, engine, metering)
    if aside is None:
        if player.engine.turns.here:
            observer.say(summary.memory(player.engine))
        if travels:
            observer.say(summary.uploads(player.engine))
        pinned = pinned_to(x, material) | {"pack": player.engine.turns.capacity.k if not x.debug else x.pack}
        files.write(directory.experiment, settings.to_toml(x, pinned).encode())
        observer.begin("rounds", rounds)
    played = player.play()
    if aside is None:
        observer.end("rounds")
    return played, setup


def export_adapter(
    main: FinishedStage,
    directory: RunDirectory,
    x: Experiment,
    material: Material,
    observer: Observer,
    spent: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the adapter beside the run, re-loaded and compared by :mod:`weft.export`, and give it its name only then.

    Args:
        spent: of :func:`weft.runs.lifetime.of`.
    """
    from weft.export import export
    from weft.export.about import About

    unfinished = directory.adapter.with_name("adapter" + files.TEMPORARY)
    for old in (unfinished, directory.adapter):
        shutil.rmtree(old, ignore_errors=True)
    files.make_folder(unfinished)
    try:
        about = {"run": directory.root.name, "settings": x.flat(), "pairs": material.data["pairs"]}
        about |= {"start": None if material.beginning is None else material.beginning.about, "lifetime": spent}
        report = export(plain(main.method), main.servers[0], unfinished, about)
    except UserError as e:  # a method that no file can stand for still has its numbers
        shutil.rmtree(unfinished, ignore_errors=True)
        observer.say(f"no adapter was written: {e}")
        return {"refused": str(e)}
    files.rename(unfinished, directory.adapter)
    if (unlearnt := About.read(directory.adapter).unlearnt) is not None:
        observer.say(f"adapter: {unlearnt}")
    return asdict(report)


def draw(page: Callable[[], object], observer: Observer, again: str = "") -> None:
    """Write a page, unless the environment wants none; whatever goes wrong is a sentence, since all else is saved already.

    Args:
        again: how to try again, as the end of that sentence.
    """
    if os.environ.get(NO_PAGE) == "0":
        return
    try:
        page()
    except Exception as e:
        why = str(e).strip().split("\n")[0][:200] or type(e).__name__
        observer.say(f"no page was written ({why}){again}.")


def _page(directory: RunDirectory) -> None:
    from weft.playing.run import Run
    from weft.report import page

    page.write(directory.root / page.NAME, [Run(directory)])


def _baseline(
    name: settings.Baseline,
    directory: RunDirectory,
    resolved: Resolved,
    material: Material,
    pack: int,
    setup: FinishedStage | None,
    observer: Observer,
    metering: Metering,
) -> dict[str, Any]:
    """A comparison: a run of its own in a folder of its own, or the head's own training if that was just it."""
    x = resolved.experiment
    if name == "probe" and setup is not None and x.baseline is None:
        return scores(setup.lines) | {"bytes": sent(setup.ledger)}
    nested = x.model_copy(update={"baseline": name, "baselines": [], "pack": pack})
    stage = f"baseline {name}"
    before = baselines.turns(x.probe_rounds, nested) if baselines.probing(nested) else 0
    observer.begin(stage, baselines.planned(nested) + before)
    inside = directory.baseline(name)
    files.make_folder(inside.root)
    files.write(inside.experiment, settings.to_toml(nested, pinned_to(x, material)).encode())
    method = as_played.played(nested, resolved.method)
    played, its_setup = play(inside, nested, method, material, observer, stage, metering=metering)
    observer.end(stage)
    return scores(played.lines, its_setup.lines if its_setup else []) | {"bytes": summary.total_bytes(played, its_setup)}


def _repeat(
    directory: RunDirectory, x: Experiment, method: Method, material: Material, pack: int, number: int, observer: Observer
) -> list[str]:
    """Run once more, in a temporary folder; returns what differs."""
    with tempfile.TemporaryDirectory(prefix="weft-repeat-") as folder:
        again = RunDirectory(Path(folder))
        stage = f"repeat {number}"
        observer.begin(stage, steps(x) - 3 + baselines.planned(x))
        play(again, x.model_copy(update={"pack": pack}), method, material, Renamed(observer, stage))
        observer.end(stage)
        pairs = [(digest(directory.root), digest(again.root))]
        if directory.setup.is_dir():
            pairs.append((digest(directory.setup), digest(again.setup)))
    different = [n for first, second in pairs for n in first | second if first.get(n) != second.get(n)]
    if not different:
        observer.say(f"{stage}: the same numbers, bit for bit.")
    return different


def steps(x: Experiment) -> int:
    """Of set-up: data, backbone, tokens, and the rounds of a probe."""
    return 3 + (baselines.turns(x.probe_rounds, x) if baselines.probing(x) else 0)


def pinned_to(x: Experiment, material: Material) -> dict[str, Any]:
    """What ``auto`` turned out to be, and where local files are, seen from anywhere."""
    backbone = material.backbone
    found = {"device": str(backbone.device), "precision": str(backbone.dtype).removeprefix("torch.")}
    found["model"] = ",".join("+".join(map(_place, encoders(model))) for model in x.models)
    if x.start is not None:
        found["start"] = str(Path(x.start).expanduser().resolve())
    tables = {name: getattr(x, name) for name in ("devices", "availability", "grids", "peers")}
    found |= {n: _place(file) for n, file in tables.items() if file is not None and file.endswith((".toml", ".csv"))}
    known = {entry.name for entry in catalogue()}
    for setting, name in (("data", None if material.data["object"] else x.data), ("public", x.public)):
        if name is not None and name not in known and (local := Path(name).expanduser()).exists():
            found[setting] = str(local.resolve())
    return found


def _place(model: str) -> str:
    """Where a local folder or file is, seen from anywhere; any other name stands for itself."""
    local = Path(model).expanduser()
    return str(local.resolve()) if model not in KNOWN and local.exists() else model


@contextmanager
def stoppable(directory: RunDirectory) -> Iterator[None]:
    """Turn Ctrl-C, and the signal that asks a process to end, into a sentence that says how to go on."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt as e:
        begun = directory.experiment.is_file()
        what = f"every finished round is saved; {remedy.go_on(directory.root)}" if begun else "nothing had begun yet"
        raise Interrupted(f"Stopped: {what}.", getattr(e, "signal", signal.SIGINT)) from e


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what is under way as Ctrl-C does, unless the process does something of its own at it."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def asked(number: int, frame: object) -> None:
        raise Interrupted("Stopped.", signal.Signals(number))

    if mine:
        signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def undone(directory: RunDirectory) -> Iterator[None]:
    """Remove the folder of a run that ends before it is one, or is refused before a round of it was saved.

    What is refused would be refused again: there is nothing to go on with. What the disk or another machine did may be over soon.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as e:
        refused = isinstance(e, UserError) and not isinstance(e, Elsewhere) and not isinstance(e.__cause__, OSError)
        if (refused and not Checkpoint(directory.root / "checkpoint").there) or not directory.experiment.exists():
            shutil.rmtree(directory.root, ignore_errors=True)
        raise


class Silent(Observer):
    """Passes progress on, and keeps sentences that were said before to itself."""

    def __init__(self, observer: Observer):
        self.advance = observer.advance  # type: ignore[method-assign]


class Renamed(Sentences):
    """Tells progress of rounds and set-up under one other name, and nothing else."""

    def __init__(self, observer: Observer, stage: str):
        self.observer, self.stage = observer, stage

    def say(self, text: str) -> None:
        pass

    def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
        if stage in ("rounds", "set-up"):
            self.observer.advance(self.stage, by)
