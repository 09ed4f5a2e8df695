"""The page of one method, from its code and its measured figure: Markdown that is made when the documentation is built.

Needs the backbones that come along (the extra offline): messages are counted on them.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from figure_files import Figure
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.backbones.short_names import usual
from weft.cli.cards import EVIDENCE, FAMILIES
from weft.cli.sizes import RoundBytes, Sizes, alike, made_up, measure
from weft.federation.info import MethodInfo
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.scope import Scope
from weft.methods import registry
from weft.methods.settings import docs_of

CLIENTS, CLASSES = 2, 12
NESTED: dict[type, str] = {
    Optim: "../methods.md#the-local-optimizer",
    Tune: "../adding-a-method.md#a-rule-over-whatever-is-tuned",
}
"""Settings that have settings of their own, and where those are listed."""

# words --------------------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ").replace("``", "`")  # docstrings mark code as reStructuredText does


def rows(*lines: tuple[str, ...]) -> list[str]:
    """A table; the first line is its head."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|" + "---|" * len(lines[0]), *rest]


def paper(info: MethodInfo) -> str:
    link = f", [arXiv {info.arxiv}](https://arxiv.org/abs/{info.arxiv})" if info.arxiv else ""
    return info.paper + link


def described(slug: str) -> tuple[str, str]:
    """The method's own name, and the text about its algorithm, from the docstring of its module."""
    first, _, about = inspect.cleandoc(sys.modules[registry.load(slug).__module__].__doc__ or "").partition("\n")
    # an underscore next to something that is no letter could begin or end an emphasis
    return first.partition(":")[0], re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", about.strip())


# one page -----------------------------------------------------------------------------------------------------------------


def page(slug: str, figure: Figure) -> str:
    """Its Markdown, as methods/SLUG.md of the site."""
    cls = registry.load(slug)
    info = cls.info
    name, about = described(slug)
    title = f"{name}: {info.title}"
    facts = {
        "paper": paper(info),
        "family": f"{info.family}: {FAMILIES[info.family]}",
        "addresses": ", ".join(info.challenges),
        "rests on": EVIDENCE[info.evidence],
        "differs from the paper": info.deviations,
        "leaves the client": info.sends,
        "asked of clients": ", ".join(f"`{a}`" for a in info.asks),
        "told to clients": ", ".join(f"`{t}`" for t in info.tells),
        "sent with updates": ", ".join(f"`{r}`" for r in info.reveals),
        "views": ", ".join(f"`{v}`" for v in info.views),
        "needs": ", ".join(info.needs),
        "public rows": f"its server uses some (`--public`); without, {info.public}" if info.public else "",
        "noise": f"it is made for clients with noise (`--privacy`); without, {info.noise}" if info.noise else "",
        "the server needs": "weighted sums of the updates" if registry.build(info.slug).sums else "each update by itself",
        "the server sees": "activations and gradients of each client by itself" if stepwise(slug) else "",
    }
    measured = {
        "setting": figure.setting,
        "figure, indicative": figure.figure,
        "compared with": figure.compared_with,
        "note": figure.note,
        "measured with": ", ".join(f"{name} {version}" for name, version in figure.versions.items()),
        "measured on": ", ".join(f"{name} {value}" for name, value in figure.hardware.items()),
        "commit": figure.commit,
        "took": f"{figure.seconds:.0f} s" if figure.seconds else "",
    }
    lines = [
        *front_matter(info, title, figure),
        "",
        f"# {title}",
        "",
        f"<!-- made when the documentation is built, from the method's file and docs/figures/{slug}.toml -->",
        "",
        *rows(("", ""), *((n, cell(text)) for n, text in facts.items() if text)),
        "",
        "See also [what differs for every method](../methods.md#what-differs-for-every-method).",
        "",
        "## Algorithm",
        "",
        about,
        "",
        "## What is trained, sent and kept",
        "",
        *parts(slug),
        "",
        "## Settings",
        "",
        f"`weft.methods.{cls.__name__}`, in `src/{'/'.join(cls.__module__.split('.'))}.py`:",
        "",
        *settings(cls),
        "",
        "## Run it",
        "",
        "```",
        figure.command,
        "```",
        "",
        *rows(("", ""), *((n, cell(text)) for n, text in measured.items() if text)),
    ]
    return "\n".join(lines) + "\n"


def front_matter(info: MethodInfo, title: str, figure: Figure) -> list[str]:
    """YAML, whose strings and lists may be written as JSON's."""
    own = ("slug", "paper", "arxiv", "family", "evidence", "deviations", "sends", "views")
    entries = {"title": title} | {n: getattr(info, n) for n in own}
    entries |= {"command": figure.command, "figure": figure.figure}
    return ["---", *(f"{n}: {json.dumps(value, ensure_ascii=False)}" for n, value in entries.items()), "---"]


@functools.cache
def made(model: str, needs: frozenset[str]) -> tuple[Any, Any]:
    """A bench with that backbone, and clients.

    Args:
        needs: of a method, those that tell how a backbone is loaded.
    """
    return made_up(model, CLIENTS, CLASSES, needs)


def loading(slug: str) -> frozenset[str]:
    return frozenset({"head", "label words", "hidden words", "items", "connector"}.intersection(registry.info(slug).needs))


def sizes(slug: str) -> Sizes:
    """Of the method with its own settings, on the backbone that comes along for methods like it."""
    needs = registry.info(slug).needs
    return measure(registry.build(slug), *made(usual(needs), loading(slug)))


def parts(slug: str) -> list[str]:
    """What becomes of each tensor, and the bytes of a rehearsal."""
    found = sizes(slug)
    return [
        f"On `{found.model}`, with the settings below and {found.classes} classes:",
        "",
        *tensors(slug, found.model),
        "",
        "[What a scope means](../adding-a-method.md#the-hooks). A tensor is sent down only after it has changed, because start",
        "values come from a common seed; a tensor that did not move in a round is not sent up.",
        "",
        "Bytes of one client's tensors, without headers or compression, in a rehearsal of",
        f"{found.cohort} clients with one row, hence one class, each:",
        "",
        *payload(found),
        "",
        *(["Activations and gradients travel in each step; these are of one, on one short row.", ""] if stepwise(slug) else []),
        f"For another backbone or more clients: `weft methods {slug} --model {found.model} --clients 8`.",
    ]


def stepwise(slug: str) -> bool:
    """Whether its server computes a part of each step."""
    return "split" in registry.info(slug).needs


def tensors(slug: str, model: str) -> list[str]:
    """One row for each part, or for each of its roles where their scopes differ."""
    bench = made(model, loading(slug))[0]
    table = [("part", "kind", "scope", "comes down", "goes up", "is kept", "places", "numbers")]
    method = registry.build(slug)
    theirs = method.adapt(bench.backbone, bench.task, ClientInfo("somebody")) if stepwise(slug) else None
    for name, (part, scope) in method.adapt(bench.backbone, bench.task, ClientInfo("")).items():
        if theirs is not None and name not in theirs:
            continue  # it is the server's, and no client has it
        sites = part.sites(bench.backbone)
        inits = [pair for site in sites for pair in part.tensors(bench.backbone, site).items()]
        roles = {f"`{name}` {role}": ({role}, of) for role, of in scope.items()} if isinstance(scope, Mapping) else {}
        for called, (some, of) in (roles or {f"`{name}`": ({role for role, _ in inits}, scope)}).items():
            count = sum(init.numel for role, init in inits if role in some and init.kind != "lowrank")
            marks = ("yes" if bit in of else "" for bit in (Scope.DOWN, Scope.UP, Scope.KEEP))
            table.append((called, type(part).__name__, of.word, *marks, str(len(sites)), f"{count:,}" if count else "grows"))
    return rows(*table)


def payload(found: Sizes) -> list[str]:
    """Bytes by part, facts left out: their few bytes depend on what a client knows. Rounds that are alike are one."""
    groups = alike([RoundBytes(r.round, *(_without_facts(side) for side in (r.down, r.up))) for r in found.rounds])
    heads = [f"{'rounds' if '-' in when else 'round'} {when}, {way}" for when, _ in groups for way in ("down", "up")]
    table = [("part", *heads)]
    for name in dict.fromkeys(n for _, r in groups for n in (*r.down, *r.up)):
        table.append((f"`{name}`", *(f"{side.get(name, 0):,}" for _, r in groups for side in (r.down, r.up))))
    return rows(*table)


def _without_facts(side: Mapping[str, int]) -> dict[str, int]:
    return {part: n for part, n in side.items() if n and part != "facts"}


def kind(p: registry.Parameter) -> str:
    """Its type, or the words to choose from."""
    return cell(", ".join(f"`{c}`" for c in p.choices) or p.type)


def settings(cls: type[Method]) -> list[str]:
    """One row per setting; one that has settings of its own is one row, of what it has its own value for."""
    found = [("setting", "type", "default", "")]
    plain = [p for p in registry.parameters(cls) if "." not in p.name]
    found += [(f"`{p.name}`", kind(p), f"`{p.default!r}`", cell(p.doc)) for p in plain]
    for field in fields(cls):
        made: Any = field.default
        if type(made) in NESTED:
            usual_one = type(made)()
            own = {f.name: getattr(made, f.name) for f in fields(made)}
            own = {n: v for n, v in own.items() if n in ("kind", "lr") or v != getattr(usual_one, n)}
            text = ", ".join(f"{n}={v!r}" for n, v in own.items())
            link = f"[{type(made).__name__}]({NESTED[type(made)]})"
            found.append((f"`{field.name}`", link, f"`{text}`", cell(docs_of(cls)[field.name])))
    return rows(*found)
