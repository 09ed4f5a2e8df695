"""Write what the code and docs/figures.toml say about methods: docs/methods/, the table of README.md, the nav of mkdocs.yml.

python scripts/methods_pages.py           write all of it
python scripts/methods_pages.py --check   write nothing; exit 1 if something is out of date

Needs the backbones that come along (the extra offline): messages are counted on them.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weft.adaptation.optim import Optim
from weft.backbones.names import usual
from weft.cli.cards import EVIDENCE, FAMILIES
from weft.cli.sizes import RoundBytes, Sizes, alike, made_up, measure
from weft.federation.info import MethodInfo
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.scope import Scope
from weft.methods import registry
from weft.methods.settings import docs_of
from weft.methods.sources import sources

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
FIGURES = ROOT / "docs" / "figures.toml"
WRITTEN = "methods: written by scripts/methods_pages.py"
TABLE = f"<!-- {WRITTEN} -->", "<!-- end of methods -->"
NAV = f"      # {WRITTEN}", "      # end of methods"
CLIENTS, CLASSES = 2, 12

INTRO = f"""# Methods

<!-- {WRITTEN}: change the methods' files instead -->

One page for each method: what it trains, sends and keeps, where it departs from its paper, its settings, and a figure that
was measured, with the command that measured it. The same on the command line, with sizes for a backbone of yours:
`weft methods NAME --model MODEL`.

*Rests on* says how sure we are: on the paper, on its code (read, not copied), or reconstructed from descriptions. Where code
and paper contradict each other, the paper's intent is the default.
"""

COMMON = """## What differs for every method

- The backbone runs in evaluation mode: its own dropout is off, and so is the dropout that many papers put on their LoRA or
  adapters. Keyed randomness, clean teachers and the cache of frozen layers need it.
- What is trained is a classifier. Methods that were published for following instructions get a head.
- An optimizer and its schedule are made anew for each client in each round, and trained tensors are float32.
- Texts of like length share a batch, so that little of it is padding (9 % instead of 47 % on `pydocs`); papers draw batches at
  random. Two rows of a batch then meet again in the next epoch with probability 0.78 instead of 0.12 (clients of 250 rows,
  batches of 32). `--no-by-length` draws at random, for comparisons with what others do. With fedit it moved the
  accuracy after 4 rounds by +0.007 and -0.017 on two seeds (1,500 rows of `pydocs`, 297 to test on: less than can be told apart;
  `python benchmarks/batches.py --limit 1500 --seeds 2`). Pictures have one length, and are drawn at random in any case.

What differs for one method alone stands on its page. Where there is a recipe for a backbone and a data set, its values (a
learning rate, say) lie over a method's own: a run says which, and `--no-recipes` leaves them out.

## About the figures

Each is of one run with one seed, on a backbone that needs no network, with the recipe for it: *indicative*. It shows that a
method trains as it should, not which one is better. On `minilm` and `pydocs` differences under 2.6 points mean nothing.
"""

OPTIMIZER = """## The local optimizer

Of every method. Each client has its own step count, schedule and clipping. A method's own values stand in its table;
`--set method.lr=1e-3` is short for `--set method.optim.lr=1e-3`.
"""


@dataclass(frozen=True)
class Figure:
    """A measured figure of one method, see docs/figures.toml.

    Attributes:
        setting: backbone, data, clients, rounds, seed. command: that measured it. figure: what came out.
        compared_with: other figures of the same setting. note: what to bear in mind.
    """

    setting: str
    command: str
    figure: str
    compared_with: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("setting", "command", "figure"):
            if not getattr(self, name).strip():
                raise ValueError(f"the {name} of a figure is empty")


def figures(text: str) -> dict[str, Figure]:
    """Slug -> figure, from the text of docs/figures.toml."""
    return {slug: Figure(**entry) for slug, entry in tomllib.loads(text).items()}


# words --------------------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def rows(*lines: tuple[str, ...]) -> list[str]:
    """A table; the first line is its head."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|" + "---|" * len(lines[0]), *rest]


def paper(info: MethodInfo) -> str:
    link = f", [arXiv {info.arxiv}](https://arxiv.org/abs/{info.arxiv})" if info.arxiv else ""
    return info.paper + link


def ours() -> dict[str, MethodInfo]:
    """Cards of the methods in this package; what other packages add on this machine is not for the pages."""
    return {slug: source.info for slug, source in sources().items() if source.package == "weft"}


def described(slug: str) -> tuple[str, str]:
    """The method's own name, and the text about its algorithm, from the docstring of its module."""
    first, _, about = inspect.cleandoc(sys.modules[registry.load(slug).__module__].__doc__ or "").partition("\n")
    # an underscore next to something that is no letter could begin or end an emphasis
    return first.partition(":")[0], re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", about.strip())


# one page -----------------------------------------------------------------------------------------------------------------


def page(slug: str, figure: Figure) -> str:
    """docs/methods/SLUG.md."""
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
        "the server needs": "the weighted mean of the updates" if info.additive else "each update by itself",
    }
    measured = {
        "setting": figure.setting,
        "figure, indicative": figure.figure,
        "compared with": figure.compared_with,
        "note": figure.note,
    }
    lines = [
        *front_matter(info, title, figure),
        "",
        f"# {title}",
        "",
        f"<!-- {WRITTEN}: change the method's file, or docs/figures.toml, instead -->",
        "",
        *rows(("", ""), *((n, cell(text)) for n, text in facts.items() if text)),
        "",
        "See also [what differs for every method](index.md#what-differs-for-every-method).",
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
    own = ("slug", "paper", "arxiv", "family", "evidence", "deviations", "sends", "views", "additive")
    entries = {"title": title} | {n: getattr(info, n) for n in own}
    entries |= {"command": figure.command, "figure": figure.figure}
    return ["---", *(f"{n}: {json.dumps(value, ensure_ascii=False)}" for n, value in entries.items()), "---"]


@functools.cache
def made(model: str, head: bool) -> tuple[Any, Any]:
    """A bench with that backbone, and clients."""
    return made_up(model, CLIENTS, CLASSES, ("head",) if head else ())


def sizes(slug: str) -> Sizes:
    """Of the method with its own settings, on the backbone that comes along for methods like it."""
    needs = registry.info(slug).needs
    return measure(registry.build(slug), *made(usual(needs), "head" in needs))


def parts(slug: str) -> list[str]:
    """What becomes of each tensor, and the bytes of a rehearsal."""
    found = sizes(slug)
    return [
        f"On `{found.model}`, with the settings below and {found.classes} classes:",
        "",
        *tensors(slug, found.model),
        "",
        "[What a scope means](../adding-a-method.md#the-hooks). What comes down does so once it has changed, since start",
        "values are drawn from a common seed; what did not move in a round does not go up.",
        "",
        "Bytes of one client's tensors, without headers or compression, in a rehearsal of",
        f"{found.cohort} clients with one row, hence one class, each:",
        "",
        *payload(found),
        "",
        f"For another backbone or more clients: `weft methods {slug} --model {found.model} --clients 8`.",
    ]


def tensors(slug: str, model: str) -> list[str]:
    """One row for each part, or for each of its roles where their scopes differ."""
    bench = made(model, "head" in registry.info(slug).needs)[0]
    table = [("part", "kind", "scope", "comes down", "goes up", "is kept", "places", "numbers")]
    for name, (part, scope) in registry.build(slug).adapt(bench.backbone, bench.task, ClientInfo("")).items():
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
    """One row per setting; an optimizer is one row, of what it has its own value for."""
    found = [("setting", "type", "default", "")]
    plain = [p for p in registry.parameters(cls) if "." not in p.name]
    found += [(f"`{p.name}`", kind(p), f"`{p.default!r}`", cell(p.doc)) for p in plain]
    for field in fields(cls):
        if isinstance(field.default, Optim):
            default = Optim()
            own = {f.name: getattr(field.default, f.name) for f in fields(Optim)}
            own = {n: v for n, v in own.items() if n in ("kind", "lr") or v != getattr(default, n)}
            text = ", ".join(f"{n}={v!r}" for n, v in own.items())
            found.append(
                (f"`{field.name}`", "[Optim](index.md#the-local-optimizer)", f"`{text}`", cell(docs_of(cls)[field.name]))
            )
    return rows(*found)


# all pages ----------------------------------------------------------------------------------------------------------------


def index(measured: Mapping[str, Figure]) -> str:
    """docs/methods/index.md."""
    pieces = [INTRO]
    for family, what in FAMILIES.items():
        members = [(slug, info) for slug, info in ours().items() if info.family == family]
        if members:
            table = [
                (f"[`{slug}`]({slug}.md)", cell(i.title), cell(i.sends), EVIDENCE[i.evidence], cell(measured[slug].figure))
                for slug, i in members
            ]
            head = ("method", "what it does", "leaves the client", "rests on", "figure")
            pieces += [f"## {family.capitalize()}: {what}\n", *rows(head, *table), ""]
    optimizer = [p for p in registry.parameters(Method) if p.name.startswith("optim.")]
    table = [(f"`{p.name}`", kind(p), f"`{p.default!r}`", cell(p.doc)) for p in optimizer]
    return "\n".join([*pieces, COMMON, OPTIMIZER, *rows(("setting", "type", "default", ""), *table)]) + "\n"


def readme_table() -> str:
    """One row per method."""
    table = [(f"[`{slug}`](docs/methods/{slug}.md)", cell(i.title), cell(i.sends), paper(i)) for slug, i in ours().items()]
    return "\n".join(rows(("method", "what it does", "leaves the client", "paper"), *table))


def between(text: str, marks: tuple[str, str], new: str) -> str:
    """``text`` with what stands between two marks replaced."""
    before, rest = text.split(marks[0])
    _, after = rest.split(marks[1])
    return f"{before}{marks[0]}\n{new}\n{marks[1]}{after}"


def wanted() -> dict[Path, str]:
    """All files as they should be."""
    measured = figures(FIGURES.read_text(encoding="utf-8"))
    if odd := measured.keys() ^ ours().keys():
        raise ValueError(f"docs/figures.toml must have one entry for each method; see {', '.join(sorted(odd))}")
    readme, nav = ROOT / "README.md", ROOT / "mkdocs.yml"
    lines = "\n".join(f"      - {slug}: methods/{slug}.md" for slug in ours())
    found = {
        readme: between(readme.read_text(encoding="utf-8"), TABLE, readme_table()),
        nav: between(nav.read_text(encoding="utf-8"), NAV, lines),
        PAGES / "index.md": index(measured),
    }
    return found | {PAGES / f"{slug}.md": page(slug, measured[slug]) for slug in ours()}


def main() -> int:
    files = wanted()
    stale = [p for p, text in files.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    gone = [p for p in sorted(PAGES.glob("*.md")) if p not in files]
    if "--check" in sys.argv[1:]:
        for path in [*stale, *gone]:
            print(f"{path.relative_to(ROOT)} is out of date: run python scripts/methods_pages.py")
        return bool(stale or gone)
    PAGES.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
    for path in gone:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
