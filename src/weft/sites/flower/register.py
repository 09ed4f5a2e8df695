"""Who may take part: the keys of the coordinator's folder, as long as it runs, and nobody whom somebody else has let in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import httpx

from weft.errors import UserError
from weft.sites.flower import proof

LOOK = 5.0  # seconds between two looks into the folder, and at what Flower knows


class Flower(Protocol):
    """A SuperLink, as :class:`weft.sites.flower.control.Control` speaks to it."""

    def admit(self, keys: Collection[bytes]) -> None: ...
    def register(self, key: bytes, name: str) -> int: ...
    def unregister(self, number: int) -> None: ...
    def nodes(self) -> Mapping[int, bytes]: ...
    def stop(self, run: int) -> None: ...
    def runs(self) -> Collection[int]: ...


class Register:
    """The sites' keys: in the folder, in a SuperLink, and at its gate.

    What Flower says of a site is not believed: a site is who has a key of the folder, under the number that was given to it here,
    and its name is that of the file. Flower itself never forgets a key, so one that is taken out of the folder keeps its
    number; it is the gate that lets it in no more.

    Args:
        keys: the public keys that should be known now, by the name of their site; None = everybody may come, without a key.
        say: is told of changes, in sentences.

    Attributes:
        amiss: why the SuperLink can't be gone on with, "" as long as it can.
    """

    def __init__(self, keys: Callable[[], Mapping[str, Path]] | None, say: Callable[[str], None]):
        self.keys, self.say = keys, say
        self.known: dict[bytes, str] = {}  # who is let in
        self.numbers: dict[bytes, int] = {}  # of all keys that this SuperLink was told
        self.amiss = ""
        self._flower: Flower | None = None
        self._run = 0
        self._lock = threading.Lock()

    def begin(self, flower: Flower, start: Callable[[], int]) -> int:
        """Make all keys known to a SuperLink that is new, begin a run with ``start``, and only then open the gate.

        Raises:
            UserError: a key or the run is refused.
        """
        with self._lock:
            self._flower, self.numbers, self.amiss = flower, {}, ""
            found = self._now()
            for key, name in found.items():
                self.numbers[key] = flower.register(key, name)
            self._run = start()
            self._admit(found)
            return self._run

    def end(self) -> None:
        """Leave the SuperLink alone from now on."""
        with self._lock:
            self._flower = None

    def who(self, number: int, key: bytes) -> str | None:
        """The name of the site that has this number and key, None if it is nobody's."""
        return self.known.get(key) if self.numbers.get(key) == number else None

    def follow(self) -> None:
        """Make known what has come into the folder, keep out what has gone from it, and see that Flower knows the same.

        Raises:
            UserError: something in the folder is no key, or Flower refuses one; what was done before that stays done.
            httpx.HTTPError: there is no SuperLink any more.
        """
        with self._lock:
            if self._flower is None or self.amiss:
                return
            self._look_after(self._flower)
            self._follow_folder(self._flower, self._now())

    def _follow_folder(self, flower: Flower, now: Mapping[bytes, str]) -> None:
        before = dict(self.known)
        kept = {key: name for key, name in before.items() if now.get(key) == name}
        if kept != before:
            self._admit(kept)
            for name in sorted(set(before.values()) - set(kept.values())):
                self.say(f"{name}'s key has gone from the folder, and is known no longer.")
        for key, name in now.items():
            if key not in self.known:
                if key not in self.numbers:
                    self.numbers[key] = flower.register(key, name)
                self._admit(self.known | {key: name})
                self.say(f"{name}'s key is new in the folder, and known from now on.")

    def _look_after(self, flower: Flower) -> None:
        """Put right what somebody else has done to the SuperLink."""
        running = set(flower.runs())
        for run in running - {self._run}:
            with suppress(httpx.HTTPStatusError):  # it may have ended meanwhile
                flower.stop(run)
            self.say("somebody else has begun a run in this federation's SuperLink: it is stopped.")
        if self._run not in running:
            self.amiss = "its run was stopped from outside"
        if self.keys is None:
            return
        there = flower.nodes()
        for number in there.keys() - set(self.numbers.values()):
            with suppress(httpx.HTTPStatusError):  # of a site that has never come Flower says so, and unregisters it
                flower.unregister(number)
            self.say("somebody else has registered a site of their own: it is removed, and was never asked.")
        for key, name in self.known.items():
            if there.get(self.numbers[key]) != key:
                self.amiss = f"{name}'s registration has gone from it"

    def _admit(self, keys: Mapping[bytes, str]) -> None:
        assert self._flower is not None
        if self.keys is not None:
            self._flower.admit(list(keys))
        self.known = dict(keys)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow, beside whatever else is done, until the block ends."""
        end = threading.Event()
        thread = threading.Thread(target=self._look, args=(end,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _look(self, end: threading.Event) -> None:
        told = ""
        while not end.wait(LOOK):
            try:
                self.follow()
                amiss = ""
            except httpx.HTTPError:  # whoever asks the sites will find out as well, and mends it
                continue
            except (UserError, OSError, ValueError) as e:  # half a file, perhaps: it is looked at again
                amiss = str(e)
            if amiss and amiss != told:
                self.say(amiss)
            told = amiss

    def _now(self) -> dict[bytes, str]:
        return {} if self.keys is None else of_folder(self.keys())


def of_folder(paths: Mapping[str, Path]) -> dict[bytes, str]:
    """The names of sites by their public keys, as Flower writes these."""
    return {proof.of_file(path): name for name, path in paths.items()}
