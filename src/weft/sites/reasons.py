"""All that a site ever says in words to a coordinator: a closed list, so that no error can carry a cell or a path along.

What went wrong in detail is said at the site alone. A reason has at most two slots, for names of settings that the coordinator
itself has sent, and for the number of this version.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from weft import __version__
from weft.communication.envelope import wrap
from weft.errors import UserError

SHOWN = 5  # names of settings in a sentence


class Reason(StrEnum):
    """Why a site does not do what it is asked."""

    LABEL = "its rows have a label that the experiment does not declare; its log says which."
    CLASSES = "it was asked with another set of classes before, and answers for one set alone; its log says what to do."
    OFTEN = "it has refused too many different experiments, and looks at no other; its log says what to do."
    SETTINGS = "its own experiment file says otherwise{names}: use the same experiment file."
    VERSION = "it runs Weft {version}: install the same version."
    TERMS = "its Weft can't use these settings; its log says why."
    ORDER = "the experiment declares no classes, so that labels have no common order."
    WEIGHTS = "its backbone has other weights: get the same; its log says which."
    COUNTS = "the experiment asks for counts by class, which it gives only with an experiment file of its own that says so."
    NOISE = "the experiment asks for noise that hides nothing, which it has only with an experiment file of its own that says so."
    MESSAGE = "a message is none that it can use; its log says why."
    TROUBLE = "something is amiss with its own data or machine; its log says what."


class Disagreed(UserError):
    """The site and the coordinator do not agree.

    Args:
        reason: that the coordinator is told. words: for the site's own log and eyes. names: of the settings it is about.
    """

    def __init__(self, reason: Reason, words: str, names: Collection[str] = ()):
        super().__init__(words)
        self.reason, self.names = reason, tuple(names)


def refusal(reason: Reason, names: Collection[str] = (), known: Collection[str] = ()) -> bytes:
    """The answer of a site that refuses.

    Args:
        names: of settings that it is about. known: those that the coordinator has sent; no other is told.
    """
    told = [n for n in names if n in known][:SHOWN]
    about = f" about {', '.join(told)}" if told else ""
    return wrap({"refused": Reason(reason).value.format(names=about, version=__version__)})
