"""The round that rows held out for validation like best, where a run keeps that one's model instead of the last's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from weft.errors import UserError
from weft.federation.info import common
from weft.federation.method import Method
from weft.runs.checkpoint import Kept
from weft.runs.result import best_by_validation
from weft.tasks.task import goodness


@dataclass(frozen=True)
class Best:
    """A round and its servers.

    Attributes:
        round: its index. metric, value: of the first view on the validation rows.
        kept: where its servers lie; None = they are those of the checkpoint in which it stands.
    """

    round: int
    metric: str
    value: float
    kept: Kept | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def at(self, kept: Kept) -> Best:
        """The same, whose servers lie there if they lay with a checkpoint."""
        return self if self.kept is not None else replace(self, kept=kept)


def read(saved: dict[str, Any] | None, now: Kept | None) -> Best | None:
    """Undo :meth:`Best.as_json`.

    Args:
        now: the servers of the checkpoint in which it stands.
    """
    if saved is None:
        return None
    found = Best(**saved | {"kept": None if saved["kept"] is None else Kept(**saved["kept"])})
    return found if now is None else found.at(now)


def better(line: dict[str, Any], than: Best | None) -> Best | None:
    """The round of a line, if it is scored on validation rows and no earlier one is as good.

    By another metric nothing is compared, and the later one holds: where a language model wrote no text, its score is another.
    """
    top = best_by_validation([line])
    if top is None:
        return than
    found = Best(top["round"], top["metric"], top["validation"])
    if (
        than is not None
        and than.metric == found.metric
        and goodness(found.metric, found.value) <= goodness(than.metric, than.value)
    ):
        return than
    return found


def check(keep: str, method: Method) -> None:
    """
    Raises:
        UserError: a model is more than a round's server.
    """
    if keep == "best" and not common(method.views[0]):
        raise UserError(
            f"{method.info.slug} gives every client a model of its own, of which a part is the client's memory after the last "
            'round: leave out keep = "best".'
        )
