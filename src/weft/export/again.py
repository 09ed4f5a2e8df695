"""Export from the folder of a run: a copy of its model, or another model that the run also holds (a client's, another view's)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.devices import sized
from weft.engines.observer import Observer
from weft.engines.setup import Tests
from weft.errors import UserError
from weft.export import merged as merging
from weft.export.about import About, check_hashes
from weft.export.new_folder import new_folder
from weft.export.predictor import Predictor, model_folder
from weft.export.trained import capture
from weft.export.write import ExportReport, about_of, choose_view, export, report_of
from weft.rules import plain
from weft.storage import files

if TYPE_CHECKING:
    from weft.federation.client import ClientState
    from weft.federation.method import Method
    from weft.federation.server import ServerState
    from weft.runs.directory import RunDirectory


def export_run(
    folder: str | Path,
    to: str | Path,
    *,
    client: str | None = None,
    view: str | None = None,
    merged: bool = False,
    precision: str = "auto",
) -> ExportReport:
    """Write a model of a run to the new folder ``to``.

    Args:
        folder: of the run. client: id of the client whose own model is wanted, with what it remembers.
        view: which of the method's views. Without both, the run's finished adapter is copied.
        merged: a whole model that needs no PEFT, see :func:`weft.export.merged.merge`. precision: that it is saved in.

    Raises:
        UserError: no run, no such client or view, parts that can't be merged, or ``to`` is taken.
    """
    if not merged and precision != "auto":
        raise UserError("an adapter is always saved in float32: a precision is that of a merged model (--merged).")
    source = Path(folder).expanduser()
    with new_folder(Path(to).expanduser()) as target:
        return _merged(source, target, client, view, precision) if merged else _adapter(source, target, client, view)


def _adapter(folder: Path, target: Path, client: str | None, view: str | None) -> ExportReport:
    if client is None and view is None and (source := sound(folder)) is not None:
        return _copied(source, target)
    with rebuilt(folder, client) as held:
        return export(held.method, held.server, target, held.info, client=held.client, view=view)


def _merged(folder: Path, target: Path, client: str | None, view: str | None, precision: str) -> ExportReport:
    if client is None and view is None and (source := sound(folder)) is not None:
        return merging.merge(source, target, precision)
    with tempfile.TemporaryDirectory(prefix="weft-adapter-") as between:
        _adapter(folder, Path(between), client, view)
        return merging.merge(Path(between), target, precision)


def sound(folder: Path) -> Path | None:
    """The finished adapter of a run, or an exported model; None where it is damaged, and the run can make it anew.

    Raises:
        UserError: it is damaged for good.
    """
    try:
        found = model_folder(folder)
        check_hashes(found, About.read(found))
    except UserError:
        if not (folder / "experiment.toml").is_file() or not (folder / "checkpoint").is_dir():
            raise
        return None
    return found


def write_anew(directory: RunDirectory) -> None:
    """Make the adapter of a finished run from its checkpoint, in the place of a damaged one.

    Raises:
        UserError: the checkpoint does not hold it.
    """
    unfinished = directory.adapter.with_name("adapter" + files.TEMPORARY)
    shutil.rmtree(unfinished, ignore_errors=True)
    files.make_folder(unfinished)
    with rebuilt(directory.root, None, locked=True) as held:
        export(held.method, held.server, unfinished, held.info)
    shutil.rmtree(directory.adapter, ignore_errors=True)
    files.rename(unfinished, directory.adapter)


def _copied(source: Path, target: Path) -> ExportReport:
    with files.said(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
    about = About.read(target)
    check_hashes(target, about)
    return report_of(about, target)


def personal(folder: str | Path, client: str, view: str | None = None, observer: Observer | None = None) -> Predictor:
    """A client's own model, from the folder of its run, without writing it anywhere.

    Raises:
        UserError: no run, no such client, or a method with one model for all clients.
    """
    place = Path(folder).expanduser()
    if not (place / "experiment.toml").is_file():
        raise UserError(f"{place} is not the folder of a run, which alone holds what its clients remember: leave the client out.")
    with rebuilt(place, client) as held:
        method, server, state = held.method, held.server, held.client
        assert state is not None
        chosen = choose_view(method.info.slug, method.views, view, True)
        bench = server.bench.of(state)
        trained = capture(method, server, chosen, state)
        return Predictor(trained, bench.backbone, about_of(method, bench, chosen, held.info, state), observer)


@dataclass(frozen=True)
class Held:
    """What the folder of a run holds: its method and server as they ended, and one client or all with what they remember.

    Attributes:
        clients: all, if they were asked for. info: of the run, see :func:`weft.export.write.export`.
        tests: rows that it was scored on.
    """

    method: Method
    server: ServerState
    client: ClientState | None
    info: dict[str, Any]
    tests: Tests
    clients: tuple[ClientState, ...] = ()


@contextmanager
def rebuilt(folder: Path, client: str | None = None, locked: bool = False, everybody: bool = False) -> Iterator[Held]:
    """From the run's checkpoint and client store, which nobody writes to meanwhile.

    Args:
        client: id of the one that is wanted. locked: by the caller. everybody: all clients are wanted.

    Raises:
        UserError: no finished run, or no such client.
    """
    from weft import experiment as settings
    from weft.errors import nearest
    from weft.federation.rounds import begin
    from weft.runs import baselines, best
    from weft.runs import directory as directories
    from weft.runs.checkpoint import Checkpoint, restore
    from weft.runs.prepare import copies, prepare
    from weft.runs.stage import noted
    from weft.storage.store import ClientStore

    directory = directories.find(folder)
    with nullcontext() if locked else directories.locked(directory):
        about = directories.read_summary(directory)
        if "served" in about:
            raise UserError(
                "what clients of this run remember lies at their sites; without --client and --view its adapter is exported."
            )
        for what in ("method", "data"):
            if about[what]["object"]:
                raise UserError(f"this run's {what} was given as an object in Python, so weft export can't rebuild its clients.")
        checkpoint = Checkpoint(directory.root / "checkpoint")
        saved = checkpoint.load()
        if saved is None or not saved.finished or len(saved.servers) != 1:
            raise UserError(f"{folder} has no finished federation to export from: finish it with weft resume {folder}.")
        resolved = settings.resolve({"runs": str(directory.root.parent)}, settings.read(directory.experiment))
        x, method = resolved.experiment, plain(resolved.played)
        material = prepare(x.model_copy(update={"public": None}), None, Observer(), method.info.needs)
        (people,) = baselines.federations(copies(material.clients), x.baseline)
        facts = sized(method.profile)
        for position, one in enumerate(people):
            one.facts = facts(position, one.facts)
        infos = [c.info(method.info.asks) for c in people]
        server = begin(method, material.bench, infos, x.rounds, notes=next(noted(directory.root)))
        last = client is not None or everybody  # of which clients' memory is
        kept = None if last else best.read(saved.best, checkpoint.last)
        restore(server, saved.servers[0] if kept is None or kept.kept is None else checkpoint.states(kept.kept)[0])
        server.introduce(people)
        chosen = None
        if client is not None:
            chosen = next((c for c in people if c.id == client), None)
            if chosen is None:
                ids = [c.id for c in people]
                raise UserError(f'this run has no client "{client}": it has {", ".join(ids[:20])}.{nearest(client, ids)}')
        remembering = people if everybody else [chosen] if chosen is not None else []
        if remembering:
            store = ClientStore(directory.root / "clients", saved.clients)
            for one in remembering:
                store.load(one)
        info = {"run": directory.root.name, "settings": x.flat(), "pairs": material.data["pairs"]}
        info |= {name: about.get(name) for name in ("start", "lifetime")}
        yield Held(method, server, chosen, info, material.tests, tuple(people) if everybody else ())
