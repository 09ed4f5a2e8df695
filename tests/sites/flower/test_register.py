"""Keys that come into a coordinator's folder, and go from it, while a federation runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from patience import until
from weft.errors import UserError
from weft.sites import keys
from weft.sites.flower import proof, register
from weft.sites.flower.register import Register


class Flower:
    """A SuperLink: it never forgets a key, not even of a site that was unregistered, and refuses to register one twice."""

    def __init__(self) -> None:
        self.ever: dict[bytes, int] = {}
        self.there: dict[int, bytes] = {}
        self.open_for: list[bytes] | None = None
        self.running, self.stopped = {7}, list[int]()
        self.registered = 0

    def admit(self, keys: Collection[bytes]) -> None:
        self.open_for = sorted(keys)

    def register(self, key: bytes, name: str) -> int:
        if key in self.ever:
            raise UserError(f"{name}'s key is known already")
        self.registered += 1
        self.ever[key] = len(self.ever) + 100
        self.there[self.ever[key]] = key
        return self.ever[key]

    def unregister(self, number: int) -> None:
        del self.there[number]

    def nodes(self) -> Mapping[int, bytes]:
        return dict(self.there)

    def stop(self, run: int) -> None:
        self.running.discard(run)
        self.stopped.append(run)

    def runs(self) -> Collection[int]:
        return set(self.running)


PAIRS = ("n", "s", "l", "m", "t", "new")


class Scene:
    def __init__(self, folder: Path, pairs: Path):
        self.folder, self.pairs, self.said = folder, pairs, list[str]()
        self.flower = Flower()
        self.register = Register(self.found, self.said.append)

    def found(self) -> dict[str, Path]:
        paths = sorted(self.folder.iterdir())
        for path in paths:
            if path.suffix != ".pub":
                raise UserError(f"{path.name} is no public key of a site.")
        return {path.stem: path for path in paths}

    def put(self, name: str, pair: str) -> None:
        shutil.copy(self.pairs / f"{pair}.pub", self.folder / f"{name}.pub")

    def key(self, pair: str) -> bytes:
        return proof.of_file(self.pairs / f"{pair}.pub")

    def begin(self) -> int:
        return self.register.begin(self.flower, lambda: 7)

    def let_in(self) -> dict[str, str]:
        """Whose calls pass the gate, and what is believed of their names: by pair of keys."""
        names = {pair: self.register.who(self.flower.ever.get(self.key(pair), 0), self.key(pair)) for pair in PAIRS}
        known = {pair: name for pair, name in names.items() if name is not None}
        assert self.flower.open_for == sorted(self.key(pair) for pair in known)
        return known


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "keys"
    for pair in PAIRS:
        keys.site(folder, pair)
    return folder


@pytest.fixture
def scene(tmp_path: Path, pairs: Path) -> Scene:
    found = Scene(tmp_path, pairs)
    found.put("north", "n")
    found.put("south", "s")
    return found


def test_the_gate_is_opened_when_all_keys_are_told_and_the_run_has_begun(scene: Scene) -> None:
    def start() -> int:
        assert scene.flower.registered == 2
        assert scene.flower.open_for is None
        return 7

    assert scene.register.begin(scene.flower, start) == 7
    assert scene.let_in() == {"n": "north", "s": "south"}
    scene.register.follow()
    assert scene.flower.registered == 2
    assert scene.said == []


def test_a_key_that_comes_is_known_and_one_that_goes_is_not(scene: Scene) -> None:
    scene.begin()
    scene.put("late", "l")
    (scene.folder / "north.pub").unlink()
    scene.register.follow()
    assert scene.let_in() == {"l": "late", "s": "south"}
    assert scene.said == [
        "north's key has gone from the folder, and is known no longer.",
        "late's key is new in the folder, and known from now on.",
    ]


def test_a_key_that_was_taken_away_may_come_back(scene: Scene) -> None:
    scene.begin()
    (scene.folder / "north.pub").unlink()
    scene.register.follow()
    assert scene.let_in() == {"s": "south"}
    scene.put("north", "n")
    scene.register.follow()
    assert scene.let_in() == {"n": "north", "s": "south"}
    assert not scene.register.amiss


def test_a_site_with_a_new_pair_of_keys_is_known_by_that_alone(scene: Scene) -> None:
    scene.begin()
    scene.put("south", "new")
    scene.register.follow()
    assert scene.let_in() == {"n": "north", "new": "south"}


def test_sites_that_have_changed_names_with_each_other_are_told_apart(scene: Scene) -> None:
    scene.begin()
    scene.put("north", "s")
    scene.put("south", "n")
    scene.register.follow()
    assert scene.let_in() == {"n": "south", "s": "north"}


def test_a_site_that_somebody_else_has_registered_is_removed_and_never_asked(scene: Scene) -> None:
    scene.begin()
    number = scene.flower.register(scene.key("t"), "north")
    assert scene.register.who(number, scene.key("t")) is None
    assert scene.register.who(number, scene.key("n")) is None  # Flower would say any key
    scene.register.follow()
    assert number not in scene.flower.there
    assert scene.said == ["somebody else has registered a site of their own: it is removed, and was never asked."]
    assert not scene.register.amiss


def test_a_key_that_somebody_else_registers_first_is_no_way_in_for_them(scene: Scene) -> None:
    """Flower would give the site's number to whoever comes first, and never take it back."""
    scene.begin()
    scene.flower.register(scene.key("l"), "late")
    scene.put("late", "l")
    with pytest.raises(UserError, match="known already"):
        scene.register.follow()
    assert scene.let_in() == {"n": "north", "s": "south"}


@pytest.mark.parametrize("how", ["unregistered", "another key"])
def test_a_registration_that_has_gone_is_noticed_and_another_superlink_puts_it_right(how: str, scene: Scene) -> None:
    scene.begin()
    number = scene.flower.ever[scene.key("n")]
    if how == "unregistered":
        scene.flower.unregister(number)
    else:
        scene.flower.there[number] = scene.key("t")
    scene.register.follow()
    assert scene.register.amiss == "north's registration has gone from it"
    scene.flower = Flower()
    scene.begin()
    assert not scene.register.amiss
    assert scene.let_in() == {"n": "north", "s": "south"}


def test_a_run_that_somebody_stops_is_noticed_and_one_that_somebody_begins_is_stopped(scene: Scene) -> None:
    scene.begin()
    scene.flower.running.add(8)
    scene.register.follow()
    assert scene.flower.stopped == [8]
    assert not scene.register.amiss
    scene.flower.running.clear()
    scene.register.follow()
    assert scene.register.amiss == "its run was stopped from outside"


def test_without_keys_everybody_may_come_and_the_run_is_looked_after(tmp_path: Path) -> None:
    flower, said = Flower(), list[str]()
    found = Register(None, said.append)
    found.begin(flower, lambda: 7)
    flower.there[1] = b"anybody"
    found.follow()
    assert (flower.there, flower.open_for, said) == ({1: b"anybody"}, None, [])
    flower.running.clear()
    found.follow()
    assert found.amiss


def test_what_is_refused_leaves_the_rest_known_and_is_tried_again(scene: Scene) -> None:
    scene.begin()
    scene.flower.ever[scene.key("t")] = 1
    scene.put("a new one", "t")
    scene.put("late", "l")
    with pytest.raises(UserError, match="a new one's key is known already"):
        scene.register.follow()
    scene.put("a new one", "m")
    scene.register.follow()
    assert scene.let_in() == {"l": "late", "m": "a new one", "n": "north", "s": "south"}


def test_a_folder_is_followed_beside_the_run_and_what_is_amiss_in_it_is_said_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "LOOK", 0.01)

    def said(words: str) -> None:
        until(lambda: any(words in s for s in scene.said), 20, lambda: scene.said, pause=0.01)

    scene.begin()
    with scene.register.following():
        (scene.folder / "notes.txt").write_text("who is who")
        said("notes.txt is no public key of a site.")
        time.sleep(0.1)
        (scene.folder / "notes.txt").unlink()
        scene.put("late", "l")
        said("late's key is new")
    assert len([s for s in scene.said if "notes.txt" in s]) == 1
    scene.put("later", "m")
    time.sleep(0.1)
    assert scene.let_in() == {"l": "late", "n": "north", "s": "south"}  # nobody looks any more
