"""An item as the name of a class, ``office/B0012: Blue gel pens``: its domain, what it is called there, and its title.

An item belongs to one domain, even if another domain has one of the same title. All that a backbone is told of items is these
names.
"""

from __future__ import annotations


def called(domain: str, item: str, title: str) -> str:
    """The name of an item; blanks are single, and no part has what parts it from the next one."""
    domain, item, title = (" ".join(part.split()) for part in (domain, item, title))
    return f"{domain.replace('/', '-')}/{item.replace(': ', '-')}: {title}"


def domain_of(name: str) -> str:
    """The domain of an item; "" for a name of another form."""
    head, sign, _ = name.partition(": ")
    domain, slash, _ = head.partition("/")
    return domain if sign and slash else ""


def title_of(name: str) -> str:
    """The title of an item; a name of another form is one itself."""
    return name.partition(": ")[2] if domain_of(name) else name
