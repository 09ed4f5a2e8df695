"""Workers of Flower's simulation engine: processes of Ray, on this machine or on all of a Ray cluster, that answer questions.

Flower's simulation gives each message to whichever worker is idle and keeps the workers for as long as it runs. Its virtual
SuperNodes stand here for places in the queue, not for clients: a few for each worker, however large the federation. Written
against Flower 1.41 and 1.42 and the Ray that they pin.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from weft.sites.flower import environment

environment.ready_for_ray()

import ray  # noqa: E402
from flwr.app import Message  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

from weft.engines.scattered import Workers  # noqa: E402
from weft.errors import UserError  # noqa: E402
from weft.sites.flower.tasks import data_of, record  # noqa: E402

PLACES = 2  # per worker: one question at work, one that waits beside it, so that nobody waits for the next look
POLL = 0.05  # seconds between two looks for answers
FOREVER = 1e8  # seconds: a question never gets too old
COLOURS = re.compile("\x1b\\[[0-9;]*m")
TOLD = re.compile(r"<class '(?:\w+\.)*(\w+)[^>]*'>:<'(.*?)(?:\.(?= )|'>$)")
PATIENCE = 120.0  # seconds until the simulation is there


class Pool:
    """Workers that run.

    Attributes:
        workers: how many there are, and what each has.
    """

    def __init__(self, grid: Grid, workers: Workers, ended: SimpleQueue[BaseException]):
        self.grid, self.workers, self.ended = grid, workers, ended

    def ask(self, questions: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Answers as they come; a question is made when there is a place for it.

        Raises:
            UserError: a worker has ended, or all of the simulation.
        """
        source = iter(questions)
        free, waiting = [n.node_id for n in self.grid.get_nodes()], dict[str, tuple[int, int]]()
        while True:
            while free and (question := next(source, None)) is not None:
                number, data = question
                place = free.pop()
                (sent,) = self.grid.push_messages([Message(record(data), place, "query", ttl=FOREVER)])
                waiting[sent] = number, place
            if not waiting:
                return
            replies = list(self.grid.pull_messages(list(waiting)))
            for reply in replies:
                number, place = waiting.pop(reply.metadata.reply_to_message_id)
                free.append(place)
                answer = data_of(reply)
                if answer is None:
                    raise _lost(reply.error.reason if reply.has_error() else "it said nothing")
                yield number, answer
            if not replies:
                if not self.ended.empty():
                    raise _lost(self.ended.get())
                time.sleep(POLL)


def _lost(why: object) -> UserError:
    """
    Args:
        why: what Flower says: an error, or ``<class 'its.Class'>:<'its text'>`` with Ray's details behind the first sentence.
    """
    said = " ".join(COLOURS.sub("", str(why)).split())
    if told := TOLD.match(said):
        said = f"{told[1]}: {told[2]}"
    return UserError(
        f"a worker of Ray has ended ({said[:300]}): every finished round is saved, and weft resume goes on from there; if memory "
        "ran out, start anew with a lower --pack."
    )


@contextmanager
def pool(answer: Callable[[bytes], bytes], need: int, gpu: bool) -> Iterator[Pool]:
    """Start workers that answer with ``answer``, a function of a module; all end with the block.

    Ray is told by its own means where its cluster is (``ray start``, ``RAY_ADDRESS``); without one it starts on this machine.

    Args:
        need: bytes that a worker needs. gpu: each gets one.

    Raises:
        UserError: Ray does not start, or has no room.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what it has to say comes back as errors
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as e:
            raise UserError(f"Ray does not start: {' '.join(str(e).split())[:300]}") from e
    try:
        each = Workers.fitting([n["Resources"] for n in ray.nodes() if n["Alive"]], need, gpu)
    except BaseException:
        ray.shutdown()
        raise
    grids, ended, stop = SimpleQueue[Grid](), SimpleQueue[BaseException](), threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Any) -> None:
        grids.put(grid)
        stop.wait()

    resources: dict[str, Any] = {"num_cpus": each.threads, "num_gpus": 1.0 if gpu else 0.0}

    def simulate() -> None:
        try:
            run_simulation(
                server, _app(answer), PLACES * each.number, backend_config={"client_resources": resources, "init_args": {}}
            )
        except BaseException as e:
            ended.put(e)
        finally:
            stop.set()

    # a thread of its own, so that Ctrl-C and errors reach whoever plays the rounds
    thread = threading.Thread(target=simulate, name="flower", daemon=True)
    thread.start()
    try:
        grid = _first(grids, ended)
        while len(list(grid.get_node_ids())) < PLACES * each.number:
            if not ended.empty():
                raise _lost(ended.get())
            time.sleep(POLL)
        yield Pool(grid, each, ended)
    except BaseException:
        _kill()
        raise
    finally:
        stop.set()
        thread.join()


def _app(answer: Callable[[bytes], bytes]) -> ClientApp:
    app = ClientApp()

    @app.query()
    def respond(message: Message, _context: Any) -> Message:
        return Message(record(answer(data_of(message) or b"")), reply_to=message)

    return app


def _first(grids: SimpleQueue[Grid], ended: SimpleQueue[BaseException]) -> Grid:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and ended.empty():
        try:
            return grids.get(timeout=POLL)
        except Empty:
            continue
    raise _lost("Flower's simulation does not start" if ended.empty() else ended.get())


def _kill() -> None:
    """End this run's workers in the middle of their packs: Flower would wait for the packs, and forever once Ray has gone."""
    from ray._private import state
    from ray._private.worker import global_worker

    with suppress(Exception):  # Ray itself may be what has ended, and the error under way says so
        for actor in state.actors(job_id=ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))):
            global_worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor)), True)
