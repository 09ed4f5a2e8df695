"""The name under which Weft is installed, its version, and how to add what an installation lacks.

The distribution is called ``fedweft``, since ``weft`` is somebody else's on the package index: it must stand in no command that
a person may type. As long as ``fedweft`` is not published, an installation comes from a checkout or a wheel, and so do extras.
"""

from __future__ import annotations

NAME = "fedweft"


def version() -> str | None:
    """The installed version, None for a checkout on the path that is not installed."""
    from importlib import metadata  # slow to import, and `import weft` is to be instant

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return None


def install(*extras: str) -> str:
    """What to do to get ``extras``, as the end of a sentence, without its full stop."""
    return f"in a checkout of Weft, type pip install --constraint constraints.txt '.[{','.join(extras)}]'"
