"""Which experiments a site was asked to agree to: nobody is to find out what labels its rows have by asking again and again.

Whether a set of classes covers the labels is told, by agreeing or refusing. So a site answers for one set of classes, the one
that its own experiment file declares, or else the first that it was asked with; and refuses a number of different experiments at
most. Both are remembered over restarts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weft.experiment import Experiment
from weft.sites.reasons import Disagreed, Reason
from weft.sites.terms import Terms
from weft.storage import files

LIMIT = 16
"""Different experiments that a site refuses before it looks at no other."""
ADVICE = "remove that file only if you trust the coordinator to ask this site anew"


class Asked:
    """The memory of one site's folder.

    Args:
        expected: the site's own experiment file: its classes are a person's choice, whoever asks.
    """

    def __init__(self, folder: Path, expected: Experiment | None):
        self.folder, self.file, self.expected = folder, folder / "asked.json", expected

    def begin(self, terms: Terms) -> None:
        """Note down that these terms are looked at, before anything of the rows can be told from the answer.

        Raises:
            Disagreed: they are of another set of classes, or one experiment too many. UserError: the memory is damaged.
        """
        saved = self._saved()
        classes = list(map(str, terms.common.get("classes") or ()))
        pinned = saved["classes"] if self.expected is None else None
        if pinned is not None and classes != pinned:
            now, first = ", ".join(classes[:20]), ", ".join(pinned[:20])
            raise Disagreed(
                Reason.CLASSES,
                f"the coordinator asks with other classes ({now}) than at first ({first}), and whoever asks with one set "
                "after the other learns which labels the rows have: if you agree to these, give weft join your own experiment "
                f"file that declares them, or remove {self.file}.",
            )
        digest = _digest(terms)
        if digest not in saved["refused"]:
            if len(saved["refused"]) >= LIMIT:
                raise Disagreed(
                    Reason.OFTEN,
                    f"this site has refused {LIMIT} different experiments, so that it looks at no other: ask the coordinator "
                    f"why, and remove {self.file} if you trust it.",
                )
            saved["refused"].append(digest)
        if self.expected is None and classes:
            saved["classes"] = classes
        self._save(saved)

    def agreed(self, terms: Terms) -> None:
        """What was agreed to was not refused."""
        saved = self._saved()
        saved["refused"] = [d for d in saved["refused"] if d != _digest(terms)]
        self._save(saved)

    def _saved(self) -> dict[str, Any]:
        return files.read_sealed(self.file, ADVICE) if self.file.exists() else {"classes": None, "refused": []}

    def _save(self, saved: dict[str, Any]) -> None:
        files.make_folder(self.folder, private=not self.folder.exists())  # one that a person has made stays as it is
        files.write_sealed(self.file, saved)


def _digest(terms: Terms) -> str:
    """Of all that was said but the run's own number, of which there are any number."""
    about = {n: v for n, v in terms.as_json().items() if n != "run"}
    return files.sha256(json.dumps(about, sort_keys=True).encode())
