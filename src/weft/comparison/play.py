"""A grid played: one cell after the other with what they share, or several processes beside each other."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

from weft import energy
from weft.comparison import cell_identity as identity
from weft.comparison import cells as on_disk
from weft.comparison import tuning
from weft.comparison.cell_grid import Cell, Grid
from weft.comparison.cells import Done, Planned
from weft.comparison.compared import Comparison
from weft.comparison.compared_page import CELLS
from weft.comparison.records import record
from weft.engines.observer import Observer
from weft.errors import Interrupted, UserError
from weft.playing import execute
from weft.runs import directory as directories
from weft.runs.directory import RunDirectory
from weft.runs.shelf import Shelf
from weft.storage import files
from weft.words import count

LOST = (
    "a process ended in the middle of it, as one does that runs out of memory: type fewer --jobs, and the same command goes on."
)


def compare(
    grid: Grid, folder: Path, data: Any = None, jobs: int = 1, observer: Observer | None = None, report: bool = True
) -> Comparison:
    """Play what is not finished yet, and write the tables.

    Args:
        folder: of the comparison; cells that lie there and have the same settings, data, weights and code are found.
        data: rows in memory, the same for all cells. jobs: processes beside each other, each with its share of the cores.
        report: a page of all is written too.

    Raises:
        UserError: some settings make no sense for any method; another process is at it.
        Interrupted: Ctrl-C; finished cells are kept, and the same command goes on.
    """
    observer = observer or Observer()
    if jobs > 1 and data is not None:
        raise UserError("other processes know data by name: give a file or leave jobs out.")
    files.make_folder(folder / CELLS)
    with _stoppable(folder), directories.locked(RunDirectory(folder)):
        player = _Player(folder / CELLS, data, jobs, observer)
        every = [player.plan(cell) for cell in grid.cells()]
        on_disk.check(grid, every)
        check_energy(every, jobs, observer)
        done, choices = player.play([p.cell for p in every]), []
        for at, row in itertools.product(grid.places(), grid.methods):
            choice = tuning.search(grid, row, at, player.play)
            if choice is None:
                continue
            choices.append(choice)
            if choice.value is not None:
                done += player.play([grid.cell(row, at, seed, (choice.name, choice.value)) for seed in grid.seeds])
        found = Comparison(folder, grid, _ordered(grid, done), choices)
        found.write()
        if report:
            execute.draw(found.report, observer)
    return found


def check_energy(plans: Sequence[Planned], jobs: int, observer: Observer) -> None:
    """Refuse a grid whose energy nobody could tell, before anything is played.

    Raises:
        UserError: what a cell draws can't be told on this machine, or not beside others.
    """
    asked = {(p.resolved.experiment.energy, p.resolved.experiment.carbon): p.resolved.experiment for p in plans if p.resolved}
    for x in asked.values():
        if x.energy == "measure" and jobs > 1:
            raise UserError(
                f'energy = "measure" reads counters of the whole machine, which count what {jobs} jobs draw for each of them: '
                "type --jobs 1, or declare the watts that all draw together, as in --energy 65."
            )
        energy.made(x, observer.say, jobs).close()


def _ordered(grid: Grid, done: Sequence[Done]) -> list[Done]:
    """By place, method, tuning, seed."""
    places, rows = grid.places(), list(grid.methods)
    return sorted(
        done, key=lambda d: (places.index(dict(d.cell.at)), rows.index(d.cell.row), d.cell.tuned is not None, d.cell.seed)
    )


class _Player:
    """
    Args:
        folder: of the cells.
    """

    def __init__(self, folder: Path, data: Any, jobs: int, observer: Observer):
        self.folder, self.data, self.jobs, self.observer = folder, data, jobs, observer
        self.given: str | None = None
        self.shelf = Shelf()
        self.known: dict[Path, Done] = {}
        self.idle: set[str] = set()

    def plan(self, cell: Cell) -> Planned:
        if self.data is not None and self.given is None:
            self.given = identity.of_rows(cell, self.data)
        return on_disk.planned(cell, self.folder, self.given)

    def play(self, cells: Sequence[Cell]) -> list[Done]:
        """What became of these cells, in their order."""
        plans = [self.plan(cell) for cell in cells]
        left = list({p.place: p for p in plans if p.place not in self.known}.values())  # two rows may be the same cell
        played = self._beside(left) if self.jobs > 1 else self._one_by_one(left)
        began, new = time.perf_counter(), 0
        self.observer.begin("cells", len(left))
        for number, done in enumerate(played, 1):
            self.known[done.place] = done
            new += not done.found
            rest = (time.perf_counter() - began) / max(new, 1) * (len(left) - number)
            self.observer.say(f"[{number}/{len(left)}] {_told(done)}{_left(rest) if new and rest else ''}")
            self._tell_idle(done)
            self.observer.advance("cells")
        self.observer.end("cells")
        return [replace(self.known[p.place], cell=p.cell) for p in plans]

    def _tell_idle(self, done: Done) -> None:
        """Settings without effect on a cell, each once: cells that differ in them alone are alike."""
        for sentence in (done.summary or {}).get("idle", ()):
            if sentence not in self.idle:
                self.idle.add(sentence)
                self.observer.say(sentence)

    def _one_by_one(self, plans: Iterable[Planned]) -> Iterator[Done]:
        for plan in plans:
            yield on_disk.play(plan, self.shelf, self.data)

    def _beside(self, plans: Sequence[Planned]) -> Iterator[Done]:
        """Processes take cells with the same rows together, and share what these need."""
        groups = [list(some) for _, some in itertools.groupby(plans, key=lambda p: (p.cell.at, p.cell.seed))]
        size = -(-sum(map(len, groups)) // self.jobs)
        parts = [g[i : i + size] for g in groups for i in range(0, len(g), size)]
        threads = max((os.cpu_count() or 1) // self.jobs, 1)
        context = multiprocessing.get_context("spawn")
        seats = context.Queue()
        for gpu in gpus(self.jobs):
            seats.put(gpu)
        with ProcessPoolExecutor(self.jobs, context, _begin, (threads, seats)) as pool:
            of = {pool.submit(_worker, [p.cell for p in part], self.folder, self.jobs): part for part in parts}
            try:
                for future in as_completed(of):
                    try:
                        yield from future.result()
                    except BrokenProcessPool:
                        for plan in of[future]:
                            if (summary := on_disk.finished(plan.place)) is not None:
                                yield Done(plan.cell, plan.place, summary)
                            else:
                                yield Done(plan.cell, plan.place, None, LOST)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_SHELF: list[Shelf] = []


def gpus(jobs: int) -> list[str | None]:
    """Which GPU each process sees: they are dealt out evenly, where there are several; None = whatever there is."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    known = [one for one in seen.split(",") if one][: torch.cuda.device_count()]
    return [known[i % len(known)] if len(known) > 1 else None for i in range(jobs)]


def _begin(threads: int, seats: Any) -> None:
    if (gpu := seats.get()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything asks for one

    import torch

    torch.set_num_threads(threads)
    _SHELF.append(Shelf())


def _worker(cells: list[Cell], folder: Path, jobs: int) -> list[Done]:
    """In a process of its own, whose shelf lasts from part to part."""
    return [on_disk.play(on_disk.planned(cell, folder, None), _SHELF[0], jobs=jobs) for cell in cells]


def _told(done: Done) -> str:
    if done.summary is None:
        return f"{done.cell.label}: {done.reason or 'no result'}"
    numbers = record(done)
    score = numbers["common"] if numbers["common"] is not None else numbers["own"]
    told = "" if score is None else f" {numbers['metric']} {score:.3f}"
    return f"{done.cell.label}:{told}{', found finished' if done.found else ''}"


def _left(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"; about {count(minutes, 'minute')} left" if minutes else "; less than a minute left"


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as e:
        sentence = f"Stopped: finished cells are kept in {folder}, and the same command goes on."
        raise Interrupted(sentence, getattr(e, "signal", SIGINT)) from e


def usual_folder(grid: Grid, runs: Path) -> Path:
    """``compare-pydocs-minilm``, of what all cells have in common."""
    plain = directories.plain
    names = [plain(str(grid.common[n])) if n in grid.common else "" for n in ("data", "model")]
    return runs / "-".join(["compare", *(n for n in names if n)])
