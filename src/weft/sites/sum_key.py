"""The key of encrypted sums: one secret of all sites, which the coordinator has not."""

from __future__ import annotations

from pathlib import Path

from weft.privacy.mechanism import CKKS
from weft.privacy.sums.needs import needs_packages
from weft.sites.key_files import SUM_KEY, absent, own_folder, write_new


def new(folder: Path) -> Path:
    """Make one.

    Raises:
        UserError: a package is missing, a key is there already, or others may enter the folder.
    """
    needs_packages(CKKS())
    from weft.privacy.ckks.cipher import new_key

    path = folder / SUM_KEY
    absent([path], "sites that have it need the same; move it away to make another for all of them")
    own_folder(folder)
    write_new(path, new_key(), private=True)
    return path
