"""Export from the folder of a run: a copy of its model, or another model that the run also holds (a client's, another view's)."""

from __future__ import annotations

import shutil
from pathlib import Path

from weft.errors import UserError
from weft.export.about import About, check_hashes
from weft.export.predictor import model_folder
from weft.export.write import ExportReport, export, report_of
from weft.storage import files


def export_run(folder: str | Path, to: str | Path, *, client: str | None = None, view: str | None = None) -> ExportReport:
    """Write a model of a run to the new folder ``to``.

    Args:
        folder: of the run. client: id of the client whose own model is wanted, with what it remembers.
        view: which of the method's views. Without both, the run's finished adapter is copied.

    Raises:
        UserError: no run, no such client or view, or ``to`` is taken.
    """
    target = Path(to).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already: give a new folder.")
    unfinished = target.with_name(target.name + files.TEMPORARY)
    shutil.rmtree(unfinished, ignore_errors=True)
    files.make_folder(unfinished)
    try:
        if client is None and view is None:
            report = _copied(model_folder(Path(folder).expanduser()), unfinished)
        else:
            report = _rebuilt(Path(folder), unfinished, client, view)
        if target.exists():
            target.rmdir()
        files.rename(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return report


def _copied(source: Path, target: Path) -> ExportReport:
    with files.said(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
    about = About.read(target)
    check_hashes(target, about)
    return report_of(about, target)


def _rebuilt(folder: Path, target: Path, client: str | None, view: str | None) -> ExportReport:
    """From the run's checkpoint and client store."""
    from weft import experiment as settings
    from weft.engines.observer import Observer
    from weft.errors import nearest
    from weft.federation.rounds import begin
    from weft.runs import baselines
    from weft.runs import directory as directories
    from weft.runs.checkpoint import Checkpoint, restore
    from weft.runs.prepare import copies, prepare
    from weft.storage.store import ClientStore

    directory = directories.find(folder)
    with directories.locked(directory):
        about = directories.read_summary(directory)
        if "served" in about:
            raise UserError(
                "what clients of this run remember lies at their sites; without --client and --view its adapter is exported."
            )
        for what in ("method", "data"):
            if about[what]["object"]:
                raise UserError(f"this run's {what} was given as an object in Python, so weft export can't rebuild its clients.")
        saved = Checkpoint(directory.root / "checkpoint").load()
        if saved is None or not saved.finished or len(saved.servers) != 1:
            raise UserError(f"{folder} has no finished federation to export from: finish it with weft resume {folder}.")
        resolved = settings.resolve({"runs": str(directory.root.parent)}, settings.read(directory.experiment))
        x, method = resolved.experiment, resolved.method
        material = prepare(x, None, Observer(), method.info.needs)
        (people,) = baselines.federations(copies(material.clients), x.baseline)
        for position, one in enumerate(people):
            one.facts = method.profile(position) | one.facts
        server = begin(method, material.bench, [c.info(method.info.asks) for c in people], x.rounds)
        restore(server, saved.servers[0])
        chosen = None
        if client is not None:
            chosen = next((c for c in people if c.id == client), None)
            if chosen is None:
                ids = [c.id for c in people]
                raise UserError(f'this run has no client "{client}": it has {", ".join(ids[:20])}.{nearest(client, ids)}')
            ClientStore(directory.root / "clients", saved.clients).load(chosen)
        info = {"run": directory.root.name, "settings": x.flat(), "pairs": material.data["pairs"]}
        return export(method, server, target, info, client=chosen, view=view)
