"""What attacks have learnt of runs: of one run a table, of several a matrix of methods and mechanisms for each attack."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weft.errors import UserError
from weft.experiment.declare import declared
from weft.experiment.privacy_settings import Private
from weft.report.page.shown import Shown, groups_but_for
from weft.report.table import DARKEST, Table
from weft.runs import audit_file
from weft.runs.audit_file import Impossible, Kept, Result
from weft.words import count, shown

NONE = "none"
"""The chain of a run whose clients nothing hides."""
KEY = (
    "A score is the mean over runs, ± their standard deviation, × how many; in brackets stands what is scored by chance. Bold: "
    "in most of them it is above chance by more than luck. The darker, the further it is on the way to all that there is to "
    "learn. Empty: not attacked."
)
"""How to read the tables of several runs."""
UNKEPT, IMPOSSIBLE = "nothing kept", "not possible"
"""In the place of a score: no update of a single client was kept, or the attack lacks something else."""

Question = tuple[str, str, int | None, str]
"""Attack, measure, round and settings: results of one question have a mean."""


@dataclass(frozen=True)
class Learnt:
    """What a page says of attacks.

    Attributes:
        tables: of results. key: sentences above them. troubles: what could not be read, in a sentence each.
    """

    tables: Sequence[Table] = ()
    key: Sequence[str] = ()
    troubles: Sequence[str] = ()


def learnt(runs: Sequence[Shown]) -> Learnt:
    """All that is kept of attacks on these runs."""
    kept, troubles = list[Kept](), []
    for one in runs:
        whose = f"{one.label}: " if len(runs) > 1 else ""
        try:
            kept.append(audit_file.read(one.run.folder))
        except UserError as e:
            kept.append(Kept())
            troubles.append(f"{whose}{e}")
    if not any(one.results or one.impossible for one in kept):
        return Learnt(troubles=troubles)
    if len(runs) == 1:
        return Learnt([_table(runs[0], kept[0])], troubles=troubles)
    return Learnt(*_matrices(runs, kept), troubles)


# one run ------------------------------------------------------------------------------------------------------------------


def _table(one: Shown, kept: Kept) -> Table:
    results = [r for some in kept.results.values() for r in some]
    heads = ["attack", "target", "measure", "score", "by chance", "at least", "n", "found", "settings"]
    rows = [
        (
            r.attack,
            r.target,
            r.measure,
            *map(_number, (r.score, r.chance, r.low)),
            f"{r.n:,}",
            _yes(r.found),
            _settings(r.settings),
        )
        for r in results
    ]
    rows += [(name, "", "", "", "", "", "", _lacking(why), "") for name, why in kept.impossible.items()]
    bold = frozenset((i, 3) for i, r in enumerate(results) if r.found)
    notes = [f"{r.attack}: {r.sentence}" for r in results]
    notes += [f"{name}: not tried, since {why.why}." for name, why in kept.impossible.items()]
    notes += ["At least: what the score is but for luck, at 95 %; found: that this is above chance.", *_versions(results)]
    filled = [j for j in range(len(heads)) if j < 8 or any(row[j] for row in rows)]
    return Table(
        f"Attacks on a run with privacy {_chains([one])[0]}",
        tuple(heads[j] for j in filled),
        tuple(tuple(row[j] for j in filled) for row in rows),
        bold,
        tuple(notes),
    )


# several runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """Results of one question on one method behind one chain."""

    results: Sequence[Result]

    @property
    def text(self) -> str:
        scores = [r.score for r in self.results if r.score is not None]
        if not scores:
            return "no number"
        deviation = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        return f"{statistics.fmean(scores):.3f}{deviation} ({_number(_mean(r.chance for r in self.results))}) ×{len(scores)}"

    @property
    def found(self) -> bool:
        return 2 * sum(r.found for r in self.results) > len(self.results)

    @property
    def above(self) -> float:
        """How far above chance; 0 where that may be luck."""
        score, chance = (_mean(getattr(r, name) for r in self.results) for name in ("score", "chance"))
        return max(score - chance, 0.0) if self.found and score is not None and chance is not None else 0.0

    @property
    def whole(self) -> float | None:
        """How far above chance everything would be; None if there is no end."""
        most, chance = (_mean(getattr(r, name) for r in self.results) for name in ("most", "chance"))
        return None if most is None or chance is None else most - chance


def _matrices(runs: Sequence[Shown], kept: Sequence[Kept]) -> tuple[list[Table], list[str]]:
    rows, chains = groups_but_for(runs, tuple(declared(Private))), _chains(runs)
    heads = list(dict.fromkeys([*([NONE] if NONE in chains else []), *_stricter_last(runs, chains)]))
    asked = dict.fromkeys(_question(r) for one in kept for some in one.results.values() for r in some)
    by_attack: dict[str, list[Question]] = {}
    for question in asked:
        by_attack.setdefault(question[0], []).append(question)
    tables = []
    for attack, questions in by_attack.items():
        told = zip(rows, chains, kept, strict=True)
        lacking = {(row, chain): one.impossible[attack] for row, chain, one in told if attack in one.impossible}
        for question in questions:
            cells: dict[tuple[str, str], list[Result]] = {}
            for row, chain, one in zip(rows, chains, kept, strict=True):
                same = [r for r in one.results.get(attack, ()) if _question(r) == question]
                cells.setdefault((row, chain), []).extend(same)
            tables.append(_matrix(question, list(dict.fromkeys(rows)), heads, cells, lacking, len(questions) > 1))
    never = [name for name in dict.fromkeys(n for one in kept for n in one.impossible) if name not in by_attack]
    more = [f"Not possible in any of these runs that were attacked: {', '.join(never)}."] if never else []
    return tables, [*([KEY] if tables else []), *more]


def _matrix(
    question: Question,
    rows: Sequence[str],
    heads: Sequence[str],
    found: dict[tuple[str, str], list[Result]],
    lacking: dict[tuple[str, str], Impossible],
    several: bool,
) -> Table:
    """
    Args:
        several: the attack was played with several settings.
    """
    cells = {at: _Cell(some) for at, some in found.items() if some}
    farthest = max((cell.above for cell in cells.values()), default=0.0)
    texts, bold, shades = [], set(), []
    for i, row in enumerate(rows):
        line = [row]
        for j, head in enumerate(heads, 1):
            cell = cells.get((row, head))
            why = lacking.get((row, head))
            line.append(cell.text if cell is not None else _lacking(why) if why is not None else "")
            if cell is not None and cell.found:
                bold.add((i, j))
                shades.append((i, j, _dark(cell.above, cell.whole if cell.whole is not None else farthest)))
        texts.append(tuple(line))
    attack, measure, at, settings = question
    title = [f"{attack}: {measure}", *([] if at is None else [f"round {at}"]), *filter(None, [_settings(json.loads(settings))])]
    endless = any(cell.whole is None for cell in cells.values())
    notes = [
        *(["There is no score of who has learnt everything: the highest of this table is darkest."] if endless and bold else []),
        *(["Other settings, rounds or measures of this attack have tables of their own."] if several else []),
        *_reasons(rows, heads, cells, lacking),
        *_versions([r for cell in cells.values() for r in cell.results]),
    ]
    return Table(", ".join(title), ("method", *heads), tuple(texts), frozenset(bold), tuple(notes), tuple(shades))


def _reasons(
    rows: Sequence[str],
    heads: Sequence[str],
    cells: dict[tuple[str, str], _Cell],
    lacking: dict[tuple[str, str], Impossible],
) -> list[str]:
    """A sentence for each word in the place of a score."""
    there = [lacking[r, h] for r in rows for h in heads if (r, h) in lacking and (r, h) not in cells]
    return list(dict.fromkeys(f"{_lacking(why).capitalize()}: {why.why}." for why in there))


def _dark(above: float, whole: float) -> int:
    """From 1 to :data:`DARKEST`, by the share of the way that was gone."""
    return min(DARKEST, 1 + math.floor(DARKEST * above / whole)) if whole > 0 else 1


def _question(r: Result) -> Question:
    return r.attack, r.measure, r.round, json.dumps(dict(r.settings), sort_keys=True)


def _chains(runs: Sequence[Shown]) -> list[str]:
    """Of each run its privacy as given, with its budget; δ and noise out of the seed are told where they are not as usual."""
    deltas = {one.setting("delta") for one in runs if one.setting("epsilon") is not None}
    found = []
    for one in runs:
        words = [str(one.setting("privacy") or NONE)]
        if (epsilon := one.setting("epsilon")) is not None:
            words += [f"ε = {epsilon:g}", *([f"δ = {one.setting('delta'):g}"] if len(deltas) > 1 else [])]
        found.append(", ".join([*words, *(["noise from the seed"] if one.setting("insecure_noise") else [])]))
    return found


def _stricter_last(runs: Sequence[Shown], chains: Sequence[str]) -> list[str]:
    """Columns: chains in the order in which they come, each with its largest budget first."""
    order = list(dict.fromkeys(one.setting("privacy") for one in runs))

    def place(i: int) -> tuple[int, float]:
        epsilon = runs[i].setting("epsilon")
        return order.index(runs[i].setting("privacy")), -math.inf if epsilon is None else -epsilon

    return [chains[i] for i in sorted(range(len(runs)), key=place)]


# words --------------------------------------------------------------------------------------------------------------------


def _lacking(why: Impossible) -> str:
    return UNKEPT if why.unkept else IMPOSSIBLE


def _versions(results: Sequence[Result]) -> list[str]:
    """A sentence where attacks of several versions stand side by side."""
    found = list(dict.fromkeys(r.weft or "a checkout" for r in results))
    return [f"Attacked by {count(len(found), 'version')} of Weft: {', '.join(found)}."] if len(found) > 1 else []


def _settings(settings: Any) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in settings.items() if value is not None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _yes(found: bool) -> str:
    return "yes" if found else "no"
