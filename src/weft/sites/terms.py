"""What all sites and the coordinator agree on before the first round, and what each may settle for itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft import __version__
from weft import experiment as settings
from weft.communication.strict import Refused, plain
from weft.errors import UserError
from weft.experiment import Experiment, Resolved
from weft.federation.bench import Bench
from weft.federation.message import ClientInfo
from weft.runs.beginning import Beginning
from weft.sites.reasons import Disagreed, Reason

COMMON = tuple(name for name, declared in settings.SETTINGS.items() if declared.common)
"""Settings of an experiment that hold for everybody. Where the data are, and what computes on them, is a site's own."""
RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Terms:
    """What a coordinator says to a site before anything else.

    Attributes:
        run: 32 hexadecimal digits, of this run alone: what a site remembers of one run is never mixed with another's.
        weft: version. common: settings by name. weights: sha256 of each backbone's weights, by its name.
        start: sha256 of the start values that sites are handed out of an adapter, "" = there are none.
    """

    run: str
    weft: str
    common: dict[str, Any]
    weights: dict[str, str] = field(default_factory=dict)
    start: str = ""

    @classmethod
    def of(cls, run: str, x: Experiment, bench: Bench | None = None, beginning: Beginning | None = None) -> Terms:
        """What an experiment's coordinator says.

        Args:
            run: its id. bench: with all the experiment's backbones, None = with any weights.
            beginning: what it begins from, None = from the usual start values.
        """
        everything = x.model_dump()
        weights = {} if bench is None else {n: bench.of(ClientInfo("", model=n)).backbone.weight_hash for n in x.models}
        return cls(run, __version__, {n: everything[n] for n in COMMON}, weights, "" if beginning is None else beginning.digest)

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Terms:
        """Terms as a stranger said them.

        Raises:
            Refused: they are none. Whether their settings make sense is told by :meth:`resolved`.
        """
        run, weft, common, weights, start = (given.get(n) for n in ("run", "weft", "common", "weights", "start"))
        if not (isinstance(run, str) and RUN.fullmatch(run) and isinstance(weft, str)):
            raise Refused("The coordinator does not say which run and which version this is.")
        if not isinstance(common, dict) or not isinstance(weights, dict) or not all(isinstance(w, str) for w in weights.values()):
            raise Refused("The coordinator does not say what is to be agreed on.")
        if not isinstance(start, str) or not re.fullmatch(r"([0-9a-f]{64})?", start):
            raise Refused("The coordinator does not say what the run begins from.")
        return cls(run, weft, common, weights, start)

    def resolved(self, own: Mapping[str, Any]) -> Resolved:
        """The experiment of this site: what is agreed on, with what it settles for itself.

        Raises:
            Disagreed: another version, or settings that this version does not have.
        """
        if self.weft != __version__:
            there = plain(self.weft, 20)
            raise Disagreed(
                Reason.VERSION, f"the coordinator runs Weft {there}, and this site Weft {__version__}: install the same version."
            )
        strange = sorted(set(self.common) - set(COMMON))
        if strange:
            shown = ", ".join(map(repr, strange[:5]))
            raise Disagreed(Reason.TERMS, f"the coordinator would settle {shown} for this site, which is its own.")
        try:
            return settings.resolve({**settings.flatten(self.common), **own, "recipes": False})
        except UserError as e:
            raise Disagreed(Reason.TERMS, str(e)) from e


def differences(terms: Terms, mine: Experiment) -> dict[str, str]:
    """What a site's own experiment file says otherwise: a clause for each setting, for the site's own eyes."""
    here, there = mine.flat(), terms.resolved({}).experiment.flat()
    names = [n for n in there if n in COMMON or n.startswith("method.")]
    return {
        n: f"{n} is {_shown(there[n])} at the coordinator and {_shown(here.get(n))} here"
        for n in names
        if there[n] != here.get(n)
    }


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
