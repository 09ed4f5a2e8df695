"""Write what the code says about its methods into docs/methods.md and the table of README.md.

python scripts/methods_table.py           write both
python scripts/methods_table.py --check   write nothing; exit 1 if one of them is out of date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from weft.adaptation.optim import Optim
from weft.cli.cards import EVIDENCE, FAMILIES
from weft.federation.info import MethodInfo
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.methods import registry
from weft.methods.sources import sources
from weft.tasks.classification import Classification

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- methods: written by scripts/methods_table.py -->", "<!-- end of methods -->"
INTRO = """# Methods

<!-- written by scripts/methods_table.py: change the methods' files instead -->

What each method trains, sends and keeps, with its paper. The same, with element counts and bytes for a backbone of
yours: `weft methods NAME --model minilm`. What the scopes of a part mean:
[adding a method](adding-a-method.md#the-hooks).

*Rests on* says how sure we are: on the paper, on its code (read, not copied), or reconstructed from descriptions.
Where code and paper contradict each other, the paper's intent is the default.
"""

OPTIMIZER = """## The local optimizer

Of every method. Each client has its own step count, schedule and clipping. A method's own values stand in its table;
`--set method.lr=1e-3` is short for `--set method.optim.lr=1e-3`.
"""


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def paper(info: MethodInfo) -> str:
    link = f", [arXiv {info.arxiv}](https://arxiv.org/abs/{info.arxiv})" if info.arxiv else ""
    return info.paper + link


def ours() -> dict[str, MethodInfo]:
    """Cards of the methods in this package; what other packages add on this machine is not for the page."""
    return {slug: source.info for slug, source in sources().items() if source.package == "weft"}


def readme_table() -> str:
    """One row per method."""
    rows = ["| method | what it does | leaves the client | paper |", "|---|---|---|---|"]
    for slug, info in ours().items():
        link = f"[`{slug}`](docs/methods.md#{slug})"
        rows.append("| " + " | ".join((link, cell(info.title), cell(info.sends), paper(info))) + " |")
    return "\n".join(rows)


def page() -> str:
    """docs/methods.md."""
    backbone = toy()
    pieces = [INTRO]
    for family, what in FAMILIES.items():
        members = [slug for slug, info in ours().items() if info.family == family]
        if members:
            pieces.append(f"## {family.capitalize()}: {what}\n")
            pieces += [section(slug, backbone) for slug in members]
    pieces += [OPTIMIZER, optimizer()]
    return "\n".join(pieces)


def section(slug: str, backbone: Any) -> str:
    cls = registry.load(slug)
    info = cls.info
    _, _, about = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "").partition("\n")
    facts = {
        "paper": paper(info),
        "addresses": ", ".join(info.challenges),
        "rests on": EVIDENCE[info.evidence],
        "leaves the client": info.sends,
        "asked of clients": ", ".join(f"`{a}`" for a in info.asks),
        "told to clients": ", ".join(f"`{t}`" for t in info.tells),
        "views": ", ".join(f"`{v}`" for v in info.views),
        "needs": ", ".join(info.needs),
        "the server needs": "the weighted mean of the updates" if info.additive else "each update by itself",
    }
    lines = [f"### {slug}", "", f"**{info.title}.** {about.strip()}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {cell(text)} |" for name, text in facts.items() if text]
    lines += ["", "| part | kind | scope |", "|---|---|---|"]
    for name, (part, scope) in registry.build(slug).adapt(backbone, Classification(("a", "b")), ClientInfo("")).items():
        words = ", ".join(f"{r} {s.word}" for r, s in scope.items()) if isinstance(scope, Mapping) else scope.word
        lines.append(f"| `{name}` | {type(part).__name__} | {words} |")
    file = "/".join(cls.__module__.split("."))
    lines += ["", f"`weft.methods.{cls.__name__}`, in `src/{file}.py`:", "", *settings(cls), ""]
    return "\n".join(lines)


def settings(cls: type[Method]) -> list[str]:
    """One row per setting; an optimizer is one row, of what it has its own value for."""
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    plain = [p for p in registry.parameters(cls) if "." not in p.name]
    lines += [f"| `{p.name}` | {cell(p.type)} | `{p.default!r}` | {cell(p.doc)} |" for p in plain]
    for field in fields(cls):
        if isinstance(field.default, Optim):
            usual = Optim()
            own = {f.name: getattr(field.default, f.name) for f in fields(Optim)}
            own = {n: v for n, v in own.items() if n in ("kind", "lr") or v != getattr(usual, n)}
            text = ", ".join(f"{n}={v!r}" for n, v in own.items())
            lines.append(f"| `{field.name}` | [Optim](#the-local-optimizer) | `{text}` | |")
    return lines


def optimizer() -> str:
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for p in registry.parameters(Method):
        outer, _, name = p.name.partition(".")
        if name:
            lines.append(f"| `{outer}.{name}` | {cell(p.type)} | `{p.default!r}` | {cell(p.doc)} |")
    return "\n".join(lines) + "\n"


def toy() -> Any:
    """A backbone of a few thousand random parameters: parts and scopes are the same on a large one."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from weft.backbones.load import describe_model

    config = AutoConfig.for_model(
        "bert", vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = AutoModelForSequenceClassification.from_config(config)
    return describe_model(model, SimpleNamespace(pad_token_id=0), set(), name="toy")


def with_table(readme: str) -> str:
    """README.md with the table between its markers replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{after}"


def wanted() -> dict[Path, str]:
    """Both files as they should be."""
    readme = ROOT / "README.md"
    return {ROOT / "docs" / "methods.md": page(), readme: with_table(readme.read_text(encoding="utf-8"))}


def main() -> int:
    stale = [p for p, text in wanted().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python scripts/methods_table.py")
        return bool(stale)
    for path, text in wanted().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
