"""From settings to a finished run, and on from where a run was stopped, by whatever engine the settings name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import energy
from weft import experiment as settings
from weft.backbones.finding import find
from weft.backbones.hardware import pick_device
from weft.backbones.short_names import encoders
from weft.callbacks import tracker
from weft.communication.codecs import codec
from weft.devices import sized
from weft.engines.observer import Observer
from weft.engines.stepwise import simulated
from weft.errors import UserError
from weft.experiment import Resolved, as_played, hidden
from weft.federation.rounds import begin
from weft.playing import execute, from_adapter
from weft.playing.run import Run
from weft.runs import baselines, beginning, best, continual, devices_of, edited, fitting_rows, stopping, summary
from weft.runs import directory as directories
from weft.runs.directory import RunDirectory
from weft.runs.prepare import Material, copies
from weft.runs.provenance import changed, environment
from weft.runs.shelf import Shelf
from weft.runs.stage import MakeTurns
from weft.runs.suited import sendable, suited
from weft.sites.flower import environment as flower
from weft.storage import files, remedy

if TYPE_CHECKING:
    from weft.callbacks.callback import Callback
    from weft.federation.method import Method


def start(
    resolved: Resolved,
    data: Any = None,
    observer: Observer | None = None,
    repeat: int = 1,
    shelf: Shelf | None = None,
    callbacks: Sequence[Callback] = (),
    jobs: int = 1,
) -> Run:
    """Train a federation, and save it in a folder of its own.

    Args:
        data: rows in memory, which go before the name in the settings. repeat: run so often and compare the numbers bit for bit.
        shelf: of several runs in this process, which then load only what differs.
        callbacks: are told of the run's course, besides the trackers in the settings.
        jobs: runs beside each other on this machine, which share the watts that are declared for it.

    Raises:
        UserError: anything that a person can put right.
        Interrupted: Ctrl-C; what was finished is saved.
    """
    observer, x = observer or Observer(), resolved.experiment
    if repeat > 1 and x.privacy != "none" and not x.insecure_noise:
        raise UserError("repeat compares numbers, which secret noise makes others: give --insecure-noise too, or leave it out.")
    if repeat > 1 and callbacks:
        raise UserError("callbacks may stop a run where its repeat, which they are not told of, goes on: leave repeat out.")
    check(resolved, data is None)
    callbacks = [*callbacks, *tracker.made(x.track)]
    metering = energy.made(x, observer.say, jobs)
    for model in (one for m in x.models for one in encoders(m)):
        find(model, observer.say)
    adapter = from_adapter.read(x)
    directory = directories.create(Path(x.runs).expanduser(), x.name, directories.usual_name(x))
    with execute.stoppable(directory), directories.locked(directory), execute.undone(directory):
        began = time.time()
        for note in resolved.notes:
            observer.say(note)
        observer.begin("set-up", execute.steps(x))
        material = (shelf or Shelf()).prepare(x, data, observer, resolved.method.info.needs, fitting_rows.of(resolved))
        idle = check_loaded(resolved, material)
        for note in idle:
            observer.say(note)
        material = from_adapter.begun(material, adapter, x, resolved.played, observer)
        pinned = execute.pinned_to(x, material)
        about = summary.begun(directory, resolved, material, began) | {"pinned": pinned, "idle": idle}
        if material.beginning is not None:
            about["start"] = material.beginning.write(directory)
        directories.write_summary(directory, about)
        files.write(directory.experiment, settings.to_toml(x, pinned).encode())
        with _engine(resolved, directory, material, observer) as engine:
            about["seconds"]["loading"] = time.time() - began
            execute.go_on(directory, resolved, material, about, observer, repeat, engine, callbacks, metering)
    return Run(directory)


def check(resolved: Resolved, named: bool = True) -> None:
    """What a run, or a rehearsal of it, is refused for before anything is loaded.

    Args:
        named: its data have a name, by which other processes know them.

    Raises:
        UserError: the run can't be.
    """
    x = resolved.experiment
    if x.engine != "simulation":
        if resolved.given or not named or x.baseline is not None:
            raise UserError(
                f"other processes know method and data by name and run no baseline themselves: leave --engine {x.engine} out."
            )
        flower.ready() if x.engine == "flower" else flower.ready_for_ray()
    best.check(x.keep, resolved.method)
    stopping.check(x)
    continual.check(x)
    tracker.made(x.track)
    codec(x.codec)
    pick_device(x.device)
    directories.free(Path(x.runs).expanduser(), x.name)


def check_loaded(resolved: Resolved, material: Material) -> list[str]:
    """What a run, or a rehearsal of it, is refused for once its rows and its backbone are there; sentences about the others.

    Raises:
        UserError: the run can't be.
    """
    x = resolved.experiment
    stopping.check(x, material.data["rows"]["val"])
    hidden.check_loaded(hidden.chain_of(x), resolved.played, [client.n for client in material.clients])
    if (asynchrony := as_played.asynchrony_of(x)) is not None:
        asynchrony.taken(len(material.clients), x.participation)
    for method in baselines.played(x, resolved.played):
        for bench in (material.bench, *material.bench.others.values()):
            suited(method, bench, baselines.servers(x, len(material.clients)), material.clients)
    method, people = baselines.stand_in(x) or resolved.played, copies(material.clients)
    facts = sized(method.profile)
    for position, client in enumerate(people):
        client.facts = facts(position, client.facts)
    if (clock := devices_of.clock(x, people)) is not None:
        devices_of.too_small(method, material.bench, people, clock, lambda _: None)
    infos = [client.info(method.info.asks) for client in people]
    server = begin(method, material.bench, infos, baselines.planned(x), periods=x.periods)
    if clock is not None:
        devices_of.check_choice(x, method.plan(server, 0), len(people))
    continual.check_plan(method, server)
    sendable(server, x.download_codec if baselines.travels(x) else "identity")
    return settings.idle(resolved, {"task": material.task, "partition": material.data["partition"]})


def startable(resolved: Resolved, shelf: Shelf, pinned: Mapping[str, Any]) -> bool:
    """Whether a run would start on what another one of this process has left on its shelf. Nothing is loaded or written.

    Args:
        pinned: what settings of that run turned out to be; one that was resumed has its material by them.
    """
    x, needs = resolved.experiment, resolved.method.info.needs
    here = next((one for one in (x, x.model_copy(update=dict(pinned))) if shelf.holds(one, None, needs)), None)
    if here is None:
        return False
    try:
        check(resolved)
        check_loaded(resolved, shelf.prepare(here, None, Observer(), needs, fitting_rows.of(resolved)))
    except UserError:
        return False
    return True


def _mended(directory: RunDirectory, about: Mapping[str, Any]) -> bool:
    """Make the adapter of a finished run anew from its checkpoint, if it is damaged."""
    from weft.export.again import sound, write_anew

    if "kind" not in about.get("adapter", {}) or any(about[what]["object"] for what in ("method", "data")):
        return False
    if directory.adapter.is_dir() and sound(directory.root) is not None:
        return False
    write_anew(directory)
    return True


def resume(
    folder: str | Path,
    *,
    method: Method | None = None,
    data: Any = None,
    observer: Observer | None = None,
    shelf: Shelf | None = None,
    callbacks: Sequence[Callback] = (),
    jobs: int = 1,
) -> Run:
    """Go on with a run that was stopped; the numbers are those of a run that never was.

    Args:
        folder: of the run. method, data: the objects it was begun with, if it was begun with any.
        shelf: as of :func:`start`.
        callbacks: are told of what is left of the run, besides the trackers in its settings. jobs: as of :func:`start`.

    Raises:
        UserError: no run there, a damaged checkpoint, or data, weights or objects other than before.
        Interrupted: Ctrl-C; what was finished is saved.
    """
    observer = observer or Observer()
    directory = directories.find(folder)
    with execute.stoppable(directory), directories.locked(directory):
        about = directories.read_summary(directory)
        if "served" in about:
            raise UserError(f"{directory.root} is a federation of sites: {remedy.go_on(directory.root)} with it.")
        if about["finished"] and (method is not None or not about["method"]["object"]):
            edited.check(directory, about, _settings(directory, method).experiment)
        if about["finished"]:
            if _mended(directory, about):
                observer.say(f"{directory.root} is finished already; its adapter was damaged, and is made anew.")
            else:
                observer.say(f"{directory.root} is finished already: there is nothing to do.")
            return Run(directory)
        for name, object_, wanted in (("method", method, about["method"]["object"]), ("data", data, about["data"]["object"])):
            if wanted and object_ is None:
                raise UserError(
                    f"this run's {name} was given as an object: give it again, as in weft.resume({str(folder)!r}, {name}=…)."
                )
        resolved = _settings(directory, method)
        if sentence := edited.check(directory, about, resolved.experiment):
            observer.say(sentence)
            directories.write_summary(directory, about)
        origin = {n: s["origin"] for n, s in about["settings"].items()}
        resolved = replace(resolved, origin={n: origin.get(n, o) for n, o in resolved.origin.items()})
        stopping.check(resolved.experiment, about["data"]["rows"]["val"])
        callbacks = [*callbacks, *tracker.made(resolved.experiment.track)]
        metering = energy.made(resolved.experiment, observer.say, jobs)
        observer.begin("set-up", execute.steps(resolved.experiment))
        silent = execute.Silent(observer)
        material = (shelf or Shelf()).prepare(resolved.experiment, data, silent, resolved.method.info.needs)
        material = replace(material, beginning=beginning.again(directory, about))
        if differences := changed(about["environment"], environment(material.backbone.device.type)):
            observer.say(f"begun with something else ({'; '.join(differences)}): the last digits may differ.")
        with _engine(resolved, directory, material, observer) as engine:
            repeat = about.get("repeat", {}).get("runs", 1)
            execute.go_on(directory, resolved, material, about, observer, repeat, engine, callbacks, metering)
    return Run(directory)


def _settings(directory: RunDirectory, method: Method | None) -> Resolved:
    """As the run's own file has them now."""
    return settings.resolve({"runs": str(directory.root.parent)}, settings.read(directory.experiment), method)


@contextmanager
def _engine(resolved: Resolved, directory: RunDirectory, material: Material, observer: Observer) -> Iterator[MakeTurns]:
    """What plays the rounds of the run itself; its baselines and repeats are always simulated."""
    x = resolved.experiment
    if x.engine == "simulation":
        yield simulated
        return
    if x.engine == "ray":
        from weft.sites import ray_simulation

        with ray_simulation.federation(resolved.played, directory, material, observer) as engine:
            yield engine
        return
    from weft.sites import loopback

    with loopback.federation(x, resolved.played, directory, material, observer) as engine:
        yield engine
