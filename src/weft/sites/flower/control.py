"""Our own calls to a SuperLink: sites are made known, runs started and looked after. What Flower's command line would do.

With :mod:`weft.sites.flower.tasks` and :mod:`weft.sites.flower.proof` it is all that is written against Flower's own
interfaces at the coordinator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from weft.errors import UserError
from weft.sites.flower import environment
from weft.sites.flower.gate import ADMIT
from weft.sites.flower.tasks import Runtime

environment.ready()

import httpx  # noqa: E402
from flwr.cli.build import build_fab_from_disk  # noqa: E402
from flwr.common.constant import Status  # noqa: E402
from flwr.common.serde import fab_to_proto  # noqa: E402
from flwr.proto.control_pb2 import (  # noqa: E402
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus  # noqa: E402
from flwr.supercore.control import ControlHttpClient  # noqa: E402
from flwr.supercore.error import FlowerError  # noqa: E402
from flwr.supercore.fab import Fab  # noqa: E402


class Control:
    """A SuperLink, for those who have its secret.

    Every call may raise ``httpx.HTTPError``: there is no SuperLink any more.
    """

    def __init__(self, runtime: Runtime):
        self.client = runtime.connect(ControlHttpClient, component="flwr CLI")
        self.gate = runtime.http(base_url=runtime.url, headers=runtime.header())

    def close(self) -> None:
        self.client.close()
        self.gate.close()

    def admit(self, keys: Collection[bytes]) -> None:
        """Let these keys' calls through the gate, and no others'.

        A SuperLink without a gate does not know this call, and the error says so.
        """
        self.gate.post(ADMIT, json=[k.decode() for k in keys]).raise_for_status()

    def register(self, key: bytes, name: str) -> int:
        """Make a key known; gives the number of its site.

        Raises:
            UserError: it is refused.
        """
        try:
            return int(self.client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)
        except httpx.HTTPStatusError as e:
            raise UserError(f"Flower refuses the key of {name}: {_reason(e)}") from e

    def unregister(self, number: int) -> None:
        self.client.UnregisterNode(UnregisterNodeRequest(node_id=number))

    def nodes(self) -> dict[int, bytes]:
        """Numbers and keys of all that are registered."""
        found = self.client.ListNodes(ListNodesRequest()).nodes_info
        return {n.node_id: n.public_key for n in found if n.status != NodeStatus.UNREGISTERED}

    def start(self, app: Path) -> int:
        """Begin a run of the app in a folder; gives its number.

        Raises:
            UserError: it is refused.
        """
        content = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        try:
            said = self.client.StartRun(StartRunRequest(fab=fab))
        except httpx.HTTPStatusError as e:
            raise UserError(f"Flower refuses to begin a run: {_reason(e)}") from e
        if not said.HasField("run_id"):
            raise UserError("Flower refuses to begin a run, and does not say why.")
        return int(said.run_id)

    def stop(self, run: int) -> None:
        self.client.StopRun(StopRunRequest(run_id=run))

    def runs(self) -> set[int]:
        """The runs that have not ended."""
        found = self.client.ListRuns(ListRunsRequest()).run_dict
        return {number for number, run in found.items() if run.status.status != Status.FINISHED}


def _reason(error: httpx.HTTPStatusError) -> str:
    said = FlowerError.from_json(error.response.text)
    return " ".join((said.message if said else error.response.text).split())[:300]
