"""Before and after a run: what will be done, what it takes, and what to try next."""

from __future__ import annotations

import shlex
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.text import Text

from weft.cli.cards import citation
from weft.cli.grids import grid
from weft.errors import UserError
from weft.words import count, shown

MOST = 12  # of the values of a list

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from weft.engines.observer import Observer
    from weft.experiment import Resolved
    from weft.federation.method import Method
    from weft.playing.run import Run
    from weft.privacy.hiding import Privacy
    from weft.runs.shelf import Shelf


def header(out: Console, resolved: Resolved, people: str | None = None) -> None:
    """What is run, on what, and every setting that is not its source's own.

    Args:
        people: who takes part, if it is not the clients of a simulation.
    """
    from weft.experiment import as_played

    x, info = resolved.experiment, resolved.method.info
    what = {
        None: "",
        "local": ", each client alone",
        "central": ", all rows in one place",
        "probe": ": linear probe instead",
        "zero-shot": ": the backbone as it is instead",
    }
    options = [] if x.baseline in ("probe", "zero-shot") else as_played.options_of(x).words
    norms = [] if x.batch_norms == "frozen" or x.baseline in ("probe", "zero-shot") else [f"{x.batch_norms} norms"]
    rules = [*options, *norms, *(w for w in (x.rule, x.server_step) if w != "none" and x.baseline is None)]
    out.print(Text.assemble((" + ".join([info.slug, *rules]), "bold cyan"), f"  {info.title}{what[x.baseline]}"))
    out.print(Text(citation(info), style="dim"))
    deal = "" if x.partition == "auto" else f" ({x.partition}{f', α {x.alpha:g}' if x.partition == 'dirichlet' else ''})"
    where = [
        *([f"{x.model} on {x.data}", f"{count(x.clients, 'client')}{deal}"] if people is None else [x.model, people]),
        count(x.rounds, "round"),
        f"seed {x.seed}",
    ]
    out.print(" · ".join(where), markup=False)
    rows = [row for row in changed(resolved) if people is None or row["name"] != "recipes"]
    if rows:
        out.print()
        table = grid("setting", "value", "instead of", "from")
        for row in rows:
            value, usual = shown(row["value"], MOST), shown(row["default"], MOST)
            table.add_row(Text(row["name"], style="cyan"), value, usual, row["origin"])
        out.print(table)
    out.print()


def changed(resolved: Resolved) -> list[dict[str, Any]]:
    """Settings that differ from the method's own (its paper's) or from the defaults of an experiment, with their origin."""
    from weft.experiment import Experiment
    from weft.methods import registry

    usual = Experiment().flat() | {f"method.{p.name}": p.default for p in registry.parameters(type(resolved.method))}
    words = {"recipe": "recipe", "user": "you"}
    return [
        {"name": n, "value": v, "default": usual.get(n), "origin": words.get(resolved.origin[n], resolved.origin[n])}
        for n, v in resolved.experiment.flat().items()
        if v != usual.get(n) and n not in ("method", "model", "data", "name", "runs")
    ]


def rehearse(out: Console, resolved: Resolved, as_json: bool, observer: Observer) -> None:
    """``--dry-run``: load and deal out everything, count what would be trained and sent, and train nothing that counts.

    Raises:
        UserError: whatever the run itself would refuse.
    """
    import dataclasses

    from weft import energy, start
    from weft.cli.sizes import measure, size_tables
    from weft.communication.ledger import format_bytes
    from weft.engines.setup import Settings
    from weft.experiment.hidden import chain_of
    from weft.playing import from_adapter
    from weft.runs import baselines, fitting_rows
    from weft.runs.prepare import prepare

    x = resolved.experiment
    start.check(resolved)
    energy.made(x, observer.say)
    for note in resolved.notes:
        observer.say(note)
    adapter = from_adapter.read(x)
    needs, fits = resolved.method.info.needs, fitting_rows.of(resolved)
    material = prepare(x, None, observer, needs, fits).under(chain_of(x))
    for note in start.check_loaded(resolved, material):
        observer.say(note)
    from_adapter.begun(material, adapter, x, resolved.played, observer)
    method = baselines.stand_in(x) or resolved.played
    settings = Settings(participation=x.participation, pack=x.pack, debug=x.debug)
    sizes = measure(method, material.bench, material.clients, settings, material.public)
    largest = max((sum(r.down.values()) for r in sizes.rounds), default=0)
    if largest > x.max_bytes:
        raise UserError(
            f"a download has {largest:,} bytes without its header, more than the {x.max_bytes:,} that a message may have: give a "
            "larger --max-bytes."
        )
    if not baselines.travels(x):
        sizes = dataclasses.replace(sizes, rounds=[])  # nobody is apart from anybody
    if as_json:
        import json

        plain = {n: {"value": v, "origin": resolved.origin[n]} for n, v in x.flat().items()}
        found = {"settings": plain, "data": material.data, "sizes": dataclasses.asdict(sizes)}
        out.print(json.dumps(found, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
        return
    out.print()
    size_tables(out, sizes)
    rows = material.data["rows"]
    out.print()
    beside = f" {material.data['public']['rows']:,} public ones at the server." if material.public is not None else ""
    out.print(f"Rows: {rows['train']:,} to train on, {rows['val']:,} for validation, {rows['test']:,} to test on.{beside}")
    out.print(
        f"Memory: about {format_bytes(sizes.memory)} with {count(sizes.pack, 'client')} in a pass; "
        f"{format_bytes(sizes.free)} are free. The server and messages take up to {format_bytes(sizes.server)}"
        f"{' of main memory' if sizes.apart else ' of it'}."
    )
    _hidden(out, material.bench.privacy, method.info.sends, [client.n for client in material.clients], method)
    out.print("Nothing was trained or written; without --dry-run the run starts.")


def _hidden(out: Console, privacy: Privacy, sends: str, rows: Sequence[int], method: Method) -> None:
    """The chain, its noise, and what each party can see after it; nothing where there is none."""
    from weft.privacy import parties

    if not privacy:
        return
    out.print()
    for line in parties.told(privacy.links):
        out.print(Text(line), soft_wrap=not out.is_terminal)
    for name, value in noises(privacy, rows, method).items():
        out.print(f"Noise of {name}: {value}.", markup=False)
    table = grid("party", "sees")
    for party, what in parties.seen(privacy.links, sends).items():
        table.add_row(party, what)
    out.print(table)
    out.print()


def noises(privacy: Privacy, rows: Sequence[int], method: Method) -> dict[str, str]:
    """z of each link, in words; of ``dp-sgd`` for as many steps of a turn as a plain loop has."""
    found = {}
    if privacy.rows is not None and any(rows):
        epochs, size = method.epochs, method.batch
        steps = {n: method.steps or max(round(-(-n // size) * epochs), 1) for n in rows if n}
        each = [privacy.row_noise(min(size / n, 1.0), t) for n, t in steps.items()]
        found["dp-sgd"] = f"z = {min(each):.3g} to {max(each):.3g} times the norm {privacy.rows.clip:g}, by a client's rows"
    if privacy.local is not None:
        found["ldp"] = f"z = {privacy.local_noise:.3g} times the norm {privacy.local.clip:g}"
    if privacy.central is not None:
        found[privacy.central.name] = f"z = {privacy.central_noise:.3g} times the norm {privacy.central.clip:g}"
    return found


def outcome(out: Console, done: Run) -> None:
    """The figures, what is wrong with them, and where everything is."""
    from weft.report import samples, terminal
    from weft.report.verdict import findings

    seconds = round(done.summary["seconds"]["all"])
    out.print()
    terminal.closing(out, done.summary, done.rounds)
    samples.show(out, done.folder)
    for found in findings(done.summary, done.rounds):
        out.print()
        out.print(Text(found.sentence, style="yellow"), soft_wrap=not out.is_terminal)
        settings = ", ".join(f"{n} = {shown(v)}" for n, v in found.changes.items())
        if found.advice:
            out.print(Text(f"Try {found.advice}{f' ({settings})' if settings else ''}."), soft_wrap=not out.is_terminal)
    out.print()
    # paths and commands stay whole, to be copied
    out.print(Text(f"Saved in {done.folder} after {seconds // 60} min {seconds % 60} s."), soft_wrap=True)


def farewell(out: Console, done: Run, shelf: Shelf) -> None:
    """What to type next.

    Args:
        shelf: of the run; another method is proposed only where it would start on what is there.
    """
    from weft import start

    if done.adapter is not None:
        from weft.data.rows import BOTH
        from weft.export.about import About

        about = About.read(done.adapter)
        texts = ["some text", "and its second"] if about.pairs else ["some text"]
        rows = {"texts": texts, "images": ["picture.png"], BOTH: ["a question", "picture.png"]}.get(about.base.reads)
        command = ["weft", "predict", str(done.folder), *(rows or ())]
        if about.writes and about.base.reads != BOTH:  # questions about pictures are single ones
            command = ["weft", "chat", str(done.folder)]
        if about.task == "several":  # a text does not say of which
            command = ["weft", "eval", str(done.folder), "--data", str(done.summary["settings"]["data"]["value"])]
        if rows is not None:  # no words tell a sequence of items
            out.print(Text(f"Try it: {shlex.join(command)}"), soft_wrap=True)
    if "served" in done.summary:
        return  # its clients are no data set that another run could have
    pinned = done.summary.get("pinned", {})
    proposed = suggestions(done, lambda one: start.startable(one, shelf, pinned))
    for label, line in zip(("Next: ", "      "), proposed, strict=False):
        out.print(Text.assemble((label, "bold"), line), soft_wrap=True)


def suggestions(done: Run, accepted: Callable[[Resolved], bool]) -> list[str]:
    """Commands that go on from here: what may mend the run, else another method on the same; and the list of methods.

    Args:
        accepted: whether a run would start, and not be refused.
    """
    from weft.cli.retyped import command
    from weft.methods import registry
    from weft.report.verdict import findings

    mends = (command(done.summary, f.changes, accepted) for f in findings(done.summary, done.rounds) if f.changes)
    slug, infos = done.summary["method"]["slug"], registry.infos()
    family = infos[slug].family if slug in infos else ""
    others = sorted((s for s in infos if s != slug), key=lambda s: (s != "flora", infos[s].family != family))
    if done.summary.get("start"):
        others = []  # not every method can begin from the same adapter
    compared = (command(done.summary, {"method": other}, accepted) for other in others)
    return [next((c for c in chain(mends, compared) if c is not None), "weft run --help"), "weft methods"]
