"""A Flower app, for those who start SuperLink, SuperNodes and ``flwr run`` by themselves.

``weft serve`` and ``weft join`` do not run it: they answer Flower's tasks in their own processes, where the backbone stays
loaded. Here every message costs a process that loads it anew. ``weft serve --write-app FOLDER`` writes the app's folder and says
what to type; a SuperNode's ``--node-config`` is ``site="…"``, a file that ``weft join --write FILE`` writes.

Such a SuperNode also runs whatever code the app of a run brings, where ``weft join`` runs none that arrives.

Flower's processes are then the user's own: ``FLWR_TELEMETRY_ENABLED=0`` and ``FLWR_DISABLE_UPDATE_CHECK=1`` have to be set
where they are started, since Flower has read both before it imports this.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from weft.sites.flower import environment

environment.ready()

from flwr.app import Context, Message  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from weft.errors import UserError  # noqa: E402
from weft.sites.flower.grid import Grid as Sites  # noqa: E402
from weft.sites.flower.tasks import data_of, record  # noqa: E402

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the experiment that the run's configuration names."""
    from weft import experiment as settings
    from weft.report.console import out
    from weft.report.progress import Lines
    from weft.sites.serve import serve

    file = Path(str(context.run_config["experiment"]))
    resolved = settings.resolve({"recipes": False}, settings.read(file))
    deadline = float(context.run_config["deadline"])
    sites = Sites(grid, _known(str(context.run_config.get("sites") or "")))
    serve(resolved, lambda _: nullcontext(sites), Lines(out()), deadline=deadline)


def _known(folder: str) -> Callable[[int, bytes], str | None] | None:
    """Names by the keys in a folder: anybody may have registered others with this SuperLink. None = it has no keys."""
    if not folder:
        return None
    from weft.sites.flower.register import of_folder
    from weft.sites.keys import public_keys

    names = dict[bytes, str]()

    def who(_number: int, key: bytes) -> str | None:
        if key not in names:
            with suppress(UserError, OSError, ValueError):  # something else in the folder: it is looked at again
                names.update(of_folder(public_keys(Path(folder))))
        return names.get(key)

    return who


@client.query()
def answer(message: Message, context: Context) -> Message:
    """Answer one message for the site that the node's configuration names."""
    return Message(record(_answered(message, context)), reply_to=message)


def _answered(message: Message, context: Context) -> bytes:
    """Flower would send the words of an error to the coordinator, paths and all: they are printed here instead."""
    from weft.sites.joining import from_file
    from weft.sites.reasons import Reason, refusal

    try:
        resident = from_file(Path(str(context.node_config["site"])), lambda words: print(words, flush=True))
        return resident.answer(data_of(message) or b"")
    except Exception:
        traceback.print_exc()
        return refusal(Reason.TROUBLE)
