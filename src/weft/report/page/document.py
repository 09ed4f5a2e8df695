"""The page as one HTML file: nothing is loaded from anywhere, and whatever comes from data is text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from weft.distribution import version
from weft.report.page import about_runs, numbers
from weft.report.page.curves import columnar
from weft.report.page.figures import chapters
from weft.report.page.learnt import learnt
from weft.report.page.palette import styles
from weft.report.page.plots import STAGES
from weft.report.page.shown import Recorded, Shown, shown
from weft.report.table import Table
from weft.report.verdict import findings
from weft.words import count

FORMATS = ("markdown", "latex", "csv")
MOST = {"common": 6, "single": 3}
"""Sentences on all runs, and on single ones, that are shown unfolded."""


@dataclass(frozen=True)
class Live:
    """What a page says that is served while its run goes on.

    Attributes:
        status: how far the run is. mark: of what the page was made of; the page loads itself anew where another is told.
        finished: there will be no other.
    """

    status: str
    mark: str
    finished: bool


def write(
    path: Path,
    runs: Sequence[Recorded],
    *,
    title: str = "",
    labels: Sequence[str] | None = None,
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write a page of runs.

    Args:
        path: of the file, which is replaced if it exists. runs: finished or not.
        labels: of the runs, such as ``fedit · α 0.1 · seed 0``; what differs only in its ``seed`` is one group. By default
            they are made of method, settings that differ, and seed.
        tables: go first. notes: sentences below the title.

    Raises:
        UserError: the file can't be written.
        WeftError: no runs, or not as many labels.
    """
    from weft.storage import files

    files.write(path, html(shown(runs, labels), title, tables, notes).encode())


def html(
    runs: Sequence[Shown], title: str = "", tables: Sequence[Table] = (), notes: Sequence[str] = (), live: Live | None = None
) -> str:
    """The whole page; with ``live``, one that is served."""
    groups = styles(runs)
    drawn, data = chapters(runs, groups)
    attacked = learnt(runs)
    plots = {
        "specs": {f.id: f.spec | {"description": f"{f.heading}. {f.sentence}"} for chapter in drawn for f in chapter.figures},
        "data": {name: columnar(rows) for name, rows in data.items()},
        "runs": [{"label": one.label, "group": one.group} for one in runs],
    }
    bundle, page = Markup(_script(_vega())), Markup(_script(_file("page.js")))
    top = [t for metric in numbers.metrics(runs) if (t := numbers.headlines(runs, metric)) is not None]
    kept: list[Table] = []

    def numbered(table: Table) -> int:
        """Place of a table among those whose texts can be copied."""
        kept.append(table)
        return len(kept) - 1

    return _rendered(
        "page.html.j2",
        live,
        [bundle, page] if drawn else [page],
        numbered=numbered,
        texts=lambda: [{f: getattr(t, f)() for f in FORMATS} for t in kept],
        title=title or _title(runs),
        subtitle=_subtitle(runs),
        notes=notes,
        # which would say that the run is unfinished
        findings=[] if live and not live.finished else [*_findings(runs), *attacked.troubles],
        most=MOST,
        tables=[*tables, *top, *(t for t in (numbers.baselines(runs),) if t is not None)],
        energy=numbers.energy(runs),
        chapters=drawn,
        learnt=attacked.tables,
        key_of_learnt=attacked.key,
        groups=groups,
        stages=STAGES,
        cards=about_runs.cards(runs),
        settings=about_runs.common_settings(runs),
        provenance=about_runs.provenance(runs),
        commands=about_runs.commands(runs),
        plots=plots,
        bundle=bundle,
        page=page,
    )


def waiting(title: str, sentences: Sequence[str], live: Live) -> str:
    """The page that is served as long as there are no numbers."""
    return _rendered("waiting.html.j2", live, [], title=title, sentences=sentences)


def _rendered(template: str, live: Live | None, scripts: Sequence[Markup], **names: Any) -> str:
    """
    Args:
        scripts: of the page, beside that of a served one.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_file),
    )
    environment.filters["upright"] = lambda name: name[:1].upper() + name[1:]
    follow = Markup(_script(_file("follow.js")))
    return environment.get_template(template).render(
        names,
        style=Markup(_file("page.css")),
        live=live,
        follow=follow,
        policy=_policy([*scripts, follow], "connect-src 'self'; ") if live else _policy(scripts),
        version=version() or "from a checkout",
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed; it takes two seconds to put together, once a process."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub demands what has a default
    return bundle


def _script(text: str) -> str:
    """JavaScript that stays inside its element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Sequence[str], more: str = "") -> str:
    """What a browser lets this page do: run these scripts, and talk to nobody. Vega makes functions of its expressions (eval).

    Args:
        more: that it may do besides.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; {more}script-src 'unsafe-eval' {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _title(runs: Sequence[Shown]) -> str:
    methods = list(dict.fromkeys(one.method for one in runs))
    on = ", ".join(_several(one.summary["data"].get("name") for one in runs))
    return f"{', '.join(methods) if len(methods) < 5 else count(len(methods), 'method')} on {on}"


def _subtitle(runs: Sequence[Shown]) -> str:
    backbones = ", ".join(_several((one.summary.get("backbone") or {}).get("name") for one in runs))
    clients = " or ".join(_several(one.summary["data"].get("clients") for one in runs))
    return f"{count(len(runs), 'run')} · backbone {backbones or 'not known'} · {clients or '?'} clients"


def _several(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(v) for v in values if v is not None))


def _findings(runs: Sequence[Shown]) -> list[str]:
    """What to know before any number is believed."""
    found = []
    for one in runs:
        whose = f"{one.label}: " if len(runs) > 1 else ""
        if not one.summary["finished"]:
            found.append(f"{whose}unfinished, with {count(len(one.rounds), 'round')} so far.")
        elif one.summary.get("evaluations"):
            found += [whose + finding.sentence for finding in findings(one.summary, one.rounds)]
    return found
