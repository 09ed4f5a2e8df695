"""MkDocs makes the pages of methods, their tables and their navigation while it builds the site: see mkdocs.yml, `hooks`."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

import methods_pages


def on_config(config: Any) -> Any:
    """Below "Methods": all of them, by family."""
    (section,) = (entry["Methods"] for entry in config.nav if "Methods" in entry)
    section += methods_pages.nav()
    return config


def on_files(files: Files, config: Any) -> Files:
    """A page for each method."""
    for path, text in methods_pages.pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A row for each method, on the page about all of them."""
    return methods_pages.index(markdown) if page.file.src_uri == methods_pages.INDEX.name else markdown
