"""An offline set to generate from: what a function, method or class of CPython's standard library does, in one sentence.

What is asked is an instruction with the signature; the answer is the first sentence of the docstring. The natural client is the
top-level module, as of :mod:`weft.data.pydocs`.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from weft.data.rows import Rows, Source
from weft.data.stdlib import AREA_OF, Definition, documented, source
from weft.data.stdlib import library as installed

SHORTEST, LONGEST = 15, 200  # characters of an answer
SIGNATURE = 200  # characters of a signature
ASKED = "Say in one sentence what this {kind} of Python's standard library does (module {module}, {area}):\n\n{signature}"
END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)(?<!\b[A-Z])[.!?](?=[)\"']?(\s|$))[)\"']?")
# What is no sentence about the thing: examples, markup, signatures, lists and tables, notes of its authors.
JUNK = re.compile(
    r">>>|::|->|=>|\||--|==|[_=*~^+]{3}|\s[-=*+]\s|\.\.\.|@|https?:|\$|[{}\\<>]|"
    r"\b(deprecated|alias|obsolete|todo|xxx|fixme)\b",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(
    r"(See|Same|Like|Similar|Identical|If|Equivalent|As|Override[sn]?|Overridden|Implements?|Args|Arguments?|Parameters?|Keyword|"
    r"Optional|Required|Options?|Note|Usage|Example|Syntax|Format|Copyright|Written|Author|Test|Helper|Internal|Private)\b"
)
FIRST = re.compile(r"[A-Z][a-z]*[ ,'-]|An? ")


def docstrings(library: Path | None = None) -> Source:
    """Read the set from ``library``, by default the running Python's standard library folder.

    The result is kept for the life of the process.

    Raises:
        UserError: the library's source is not installed.
    """
    return _read(library or installed())


@lru_cache(maxsize=4)
def _read(library: Path) -> Source:
    rows: dict[str, tuple[str, str, str]] = {}  # what tells an answer from others -> what is asked, the answer, its module
    found: set[str] = set()
    for module, definitions, docstring in documented(library):
        found.add(module)
        if isinstance(definitions[-1], ast.Module):
            continue
        answer = first_sentence(docstring)
        if answer is not None and (alike := "".join(filter(str.isalnum, answer.casefold()))) not in rows:
            rows[alike] = (_asked(module, definitions), answer, module)
    table = Rows(
        texts=[asked for asked, _, _ in rows.values()],
        ids=np.arange(len(rows)),
        keys=[module for _, _, module in rows.values()],
        answers=[answer for _, answer, _ in rows.values()],
    )
    return source("docstrings", "functions, methods and classes", library, table, ("sentence",), found, "sentence")


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring, with a full stop; None where it starts with no plain English sentence."""
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip(), maxsplit=1)[0]
    text = " ".join(paragraph.split())
    end = END.search(text)
    sentence = text[: end.end()] if end else text.rstrip(",;") + "."
    words = sentence.split()
    plain = sum(word.strip("\"'`(),.;").isalpha() for word in words)
    if not SHORTEST <= len(sentence) <= LONGEST or len(words) < 3 or plain < 0.7 * len(words) or sentence.endswith(":."):
        return None
    if (
        JUNK.search(sentence)
        or ELSEWHERE.match(sentence)
        or not FIRST.match(sentence)
        or sentence.count("(") != sentence.count(")")
    ):
        return None
    return sentence


def _asked(module: str, definitions: tuple[Definition, ...]) -> str:
    own, outer = definitions[-1], definitions[-2]
    within = outer.name if isinstance(outer, ast.ClassDef) else None
    kind = "class" if isinstance(own, ast.ClassDef) else "method" if within else "function"
    signature = _signature(own)
    if within and kind == "method":
        signature = f"class {within}:\n    {signature}"
    return ASKED.format(kind=kind, module=module, area=AREA_OF[module], signature=signature)


def _signature(node: Definition) -> str:
    """The first line of a definition, cut where it is long."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
        line = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    elif isinstance(node, ast.Module):
        raise TypeError("a module has no signature")
    else:
        start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
        line = f"{start} {node.name}({ast.unparse(node.args)}){returns}:"
    return line if len(line) <= SIGNATURE else line[: SIGNATURE - 1] + "…"
