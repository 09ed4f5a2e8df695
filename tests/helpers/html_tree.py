"""A page as a tree of elements, by the standard library's parser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})


@dataclass
class Element:
    """An element with its attributes, and what is in it."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    inside: list[Element | str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Element]:
        """Elements below it, those of some tags or every one."""
        return [e for e in self._below() if not tags or e.tag in tags]

    def one(self, **attributes: str) -> Element:
        """The one element below it with these attributes."""
        (found,) = [e for e in self._below() if attributes.items() <= e.attributes.items()]
        return found

    @property
    def text(self) -> str:
        return " ".join("".join(p if isinstance(p, str) else f" {p.text} " for p in self.inside).split())

    def _below(self) -> Iterator[Element]:
        for part in self.inside:
            if isinstance(part, Element):
                yield part
                yield from part._below()


def parsed(html: str) -> Element:
    """The root of a page.

    Raises:
        AssertionError: an element is closed that is not open, or never closed.
    """
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1, [e.tag for e in parser.open]
    return parser.open[0]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)
