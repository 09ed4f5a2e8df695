"""What a federation of strangers does when its honest sites begin to fail together: back to a state that was good, or stop.

A state is good once most of the sites that trained on it sent an update that counts. The last few good ones stay on the disk
beside the checkpoint. Where most of a round's answers are refused or not finite, or most sites' scores are, the newest good state
comes back in the place of what they failed on; where that fails too, the one before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from weft.engines.engine import Engine
from weft.errors import UserError
from weft.runs.checkpoint import Checkpoint, Kept

STATES = 3
"""Good states that are kept."""
PATIENCE = 5
"""Rounds in a row in which nothing counts, after which a person has to look."""


@dataclass
class Good:
    """A state that may be gone back to.

    Attributes:
        round: the next after it. kept: where it lies. usual: what was known of sizes. clients: who was known.
    """

    round: int
    kept: Kept
    usual: dict[str, list[float]]
    clients: list[list[str]]


class Recovery:
    """Watches the rounds of one stage.

    Args:
        now: the state that the next round begins with. saved: :meth:`as_json` of an earlier process.
    """

    def __init__(self, engine: Engine, checkpoint: Checkpoint, now: Kept, round: int, saved: dict[str, Any] | None = None):
        self.engine, self.checkpoint = engine, checkpoint
        self.good = [Good(**g | {"kept": Kept(**g["kept"])}) for g in (saved or {}).get("good", [])]
        self.barren = int((saved or {}).get("barren", 0))
        self.current = self._state(now, round)
        self._failed = self._idle = False

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint. A process that is started again by a person begins to count anew."""
        return {"good": [asdict(g) for g in self.good], "barren": self.barren if self.barren < PATIENCE else 0}

    def files(self) -> list[str]:
        """Of the good states: these stay."""
        return [g.kept.file for g in self.good]

    # a round ----------------------------------------------------------------------------------------------------------

    def trained(self, record: dict[str, Any]) -> int | None:
        """After the turns of a round: where most answers failed, back to a good state.

        Returns:
            the number of rounds that are then in force, None if nothing was undone.
        """
        counted = 0 if "skipped" in record.get("robust", {}) else len(self.engine.intake.counted)
        failed, away = len(record["refused"]), len(record["lost"])
        self._idle = not failed and counted == 0 and len(record["cohort"]) > away  # there was nothing to send
        self._failed = failed > counted
        if self._failed:
            return self._back()
        if counted:
            self.good = [*self.good, self.current][-STATES:]
        elif not self._idle:
            self._failed = True
        return None

    def scored(self) -> int | None:
        """After an evaluation: where most sites' logits are not finite, back to a good state."""
        if self.engine.blank <= self.engine.scored:
            return None
        self._failed = True
        return self._back()

    def unsendable(self) -> int | None:
        """Where the state gives messages that are none: back to a good one; None if there is none left."""
        self.engine.setup.exchange.close_round()
        return self._back()

    def closed(self, now: Kept, round: int) -> None:
        """After the checkpoint of a round."""
        self.current = self._state(now, round)

    def count(self) -> None:
        """Before the checkpoint of a round."""
        self.barren = self.barren + 1 if self._failed else self.barren if self._idle else 0

    def check(self) -> None:
        """
        Raises:
            UserError: nothing has counted for too long.
        """
        if self.barren >= PATIENCE:
            raise UserError(
                f"no round has counted for {PATIENCE} rounds in a row: the sites' updates are not finite, are refused or do not "
                "come, as the lines above say. The run is saved with its last good state; leave out whoever sends such updates, "
                "or begin another run with a smaller lr, before the same command goes on with this one."
            )

    # states -------------------------------------------------------------------------------------------------------------

    def _state(self, kept: Kept, round: int) -> Good:
        usual = self.engine.intake.usual
        people = [[c.id for c in server.clients] for server, _ in self.engine.setup.federations]
        return Good(round, kept, {} if usual is None else {k: list(v) for k, v in usual.seen.items()}, people)

    def _back(self) -> int | None:
        if not self.good:
            return None
        good = self.current = self.good.pop()
        engine = self.engine
        for (server, clients), (tensors, state), known in zip(
            engine.setup.federations, self.checkpoint.states(good.kept), good.clients, strict=True
        ):
            server.roll_back(tensors, state)
            for client in clients:
                if client.id not in known:  # it joined since
                    engine.setup.method.welcome(server, client)
        if engine.intake.usual is not None:
            engine.intake.usual.seen = {k: list(v) for k, v in good.usual.items()}
        where = f"that after round {good.round}" if good.round else "the start values"
        engine.setup.observer.say(f"most sites fail on what they were sent: back to a state on which they did not, {where}.")
        return good.round
