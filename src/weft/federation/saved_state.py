"""What a checkpoint holds of a server, and how its state goes back to what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from weft.federation.arrivals import period_at
from weft.federation.round import Round
from weft.storage.notes import Notes
from weft.tensors import forms, growing
from weft.tensors.forms import Value


class SavedState:
    """Attributes: see :class:`weft.federation.server.ServerState`; those that are not here can be made again."""

    shared: dict[str, Value]
    start: dict[str, Tensor]
    memo: dict[str, Any]
    hiding: dict[str, Any]
    stamps: dict[str, int]
    masked: dict[str, int]
    terms: dict[str, growing.Terms]
    counted: dict[str, int]
    said: dict[str, dict[str, Any]]
    synced: dict[str, int]
    notes: Notes
    round: Round
    clock: int
    rounds: int
    periods: int
    _news: dict[tuple[int, int, int, tuple[str, ...]], dict[str, Value]]

    def snapshot(self) -> Callable[[], None]:
        """What puts the values of this moment back: for a round whose result is not finite."""
        about_clients = (self.counted, self.said, self.synced, self.notes.manifest)
        stores: tuple[dict[str, Any], ...] = (self.shared, self.stamps, self.masked, self.memo, self.hiding, *about_clients)
        before, terms = [dict(d) for d in stores], {n: list(t) for n, t in self.terms.items()}

        def undo() -> None:
            for store, old in zip(stores, before, strict=True):
                store.clear()
                store.update(old)
            self.terms = terms
            self._news.clear()

        return undo

    def roll_back(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Hold an earlier state (:meth:`tensors_and_json`) again; nobody is taken to hold more of it than the start values.

        What was never written in it stays so: a method may send nothing for that, and its clients then have the start values.
        """
        clock, known, round = self.clock, self.synced, self.round
        self.restore(tensors, state)
        self.clock, self.synced, self.round = clock + 1, dict.fromkeys(known, 0), round
        self._news.clear()

    def tensors_and_json(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on, as named tensors and plain JSON."""
        values: dict[str, Value] = {}
        memo, hiding = dict[str, Any](), dict[str, Any]()
        for prefix, store in self._stores().items():
            for name, value in store.items():
                if isinstance(value, Value):
                    values[f"{prefix}:{name}"] = value
                else:
                    (hiding if prefix == "hiding" else memo)[name] = value
        tensors, scales = forms.flatten(values)
        state = {
            "stamps": self.stamps,
            "masked": self.masked,
            "terms": self.terms,
            "synced": self.synced,
            "clock": self.clock,
            "memo": memo,
            "scales": scales,
            "round": self.round.index,
            "counted": self.counted,
            "said": dict(self.said),
            "notes": self.notes.manifest,
            **({"hiding": hiding} if hiding else {}),
        }
        return tensors, state

    def _stores(self) -> dict[str, dict[str, Any]]:
        """What holds values, by the first word of their names in a checkpoint."""
        return {"shared": self.shared, "start": self.start, "memo": self.memo, "hiding": self.hiding}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Undo :meth:`tensors_and_json`."""
        stores = self._stores()
        for store in stores.values():
            store.clear()
        for key, value in forms.restore(tensors, state["scales"]).items():
            prefix, name = key.split(":", 1)
            stores[prefix][name] = value
        self.memo |= state["memo"]
        self.hiding |= state.get("hiding", {})
        self.stamps, self.synced, self.clock = dict(state["stamps"]), dict(state["synced"]), int(state["clock"])
        self.masked = {n: int(at) for n, at in state.get("masked", {}).items()}
        self.terms = {n: [(int(a), int(b)) for a, b in t] for n, t in state["terms"].items()}
        self.round = Round(int(state["round"]), period=period_at(int(state["round"]), self.rounds, self.periods))
        self.counted, self.notes.manifest = dict(state.get("counted", {})), dict(state.get("notes", {}))
        self.said = {client: dict(facts) for client, facts in state.get("said", {}).items()}
