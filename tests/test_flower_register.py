"""Keys that come into a coordinator's folder, and go from it, while a federation runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weft.engines.flower import register
from weft.engines.flower.register import Register
from weft.errors import UserError


class Flower:
    """Its command line: remembers keys, and refuses one that it knows already."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, str]] = {}
        self.count = 0
        self.calls = 0

    def __call__(self, commands: Sequence[list[str]]) -> list[dict[str, Any]]:
        self.calls += 1
        return [self.one(*command) for command in commands]

    def one(self, *words: str) -> dict[str, Any]:
        if words[:2] == ("supernode", "register"):
            _, _, path, connection, option, name = words
            assert (connection, option) == ("weft", "--name")
            key = Path(path).read_text()
            if key in [k for k, _ in self.keys.values()]:
                raise UserError(f"{name}'s key is known already")
            self.count += 1
            self.keys[str(self.count)] = (key, name)
            return {"success": True, "node-id": self.count}
        if words[:2] == ("supernode", "unregister"):
            del self.keys[words[2]]
            return {"success": True, "node-id": words[2]}
        assert words == ("run", "app", "weft")
        return {"success": True, "run-id": 7}

    @property
    def names(self) -> list[str]:
        return sorted(name for _, name in self.keys.values())


class Scene:
    def __init__(self, folder: Path):
        self.folder, self.flower, self.said = folder, Flower(), list[str]()
        self.register = Register(self.flower, "weft", self.found, self.said.append)

    def found(self) -> dict[str, Path]:
        paths = sorted(self.folder.iterdir())
        for path in paths:
            if path.suffix != ".pub":
                raise UserError(f"{path.name} is no public key of a site.")
        return {path.stem: path for path in paths}

    def put(self, name: str, key: str) -> None:
        (self.folder / f"{name}.pub").write_text(key)

    def begin(self) -> dict[str, Any]:
        return self.register.begin(["run", "app", "weft"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    found = Scene(tmp_path)
    found.put("north", "n")
    found.put("south", "s")
    return found


def test_all_keys_are_told_in_one_process_and_the_last_command_answers(scene: Scene) -> None:
    assert scene.begin()["run-id"] == 7
    assert scene.flower.names == ["north", "south"]
    assert scene.flower.calls == 1
    scene.register.follow()
    assert scene.flower.calls == 1  # nothing has changed
    assert scene.said == []


def test_a_key_that_comes_is_known_and_one_that_goes_is_not(scene: Scene) -> None:
    scene.begin()
    scene.put("late", "l")
    (scene.folder / "north.pub").unlink()
    scene.register.follow()
    assert scene.flower.names == ["late", "south"]
    assert scene.said == [
        "north's key has gone from the folder, and is known no longer.",
        "late's key is new in the folder, and known from now on.",
    ]


def test_a_site_with_a_new_pair_of_keys_is_known_by_that_alone(scene: Scene) -> None:
    scene.begin()
    scene.put("south", "new")
    scene.register.follow()
    assert sorted(scene.flower.keys.values()) == [("n", "north"), ("new", "south")]


def test_sites_that_have_changed_names_with_each_other_are_told_apart(scene: Scene) -> None:
    scene.begin()
    scene.put("north", "s")
    scene.put("south", "n")
    scene.register.follow()
    assert sorted(scene.flower.keys.values()) == [("n", "south"), ("s", "north")]


def test_what_is_refused_leaves_the_rest_known_and_is_tried_again(scene: Scene) -> None:
    scene.begin()
    scene.put("a twin", "n")
    scene.put("late", "l")
    with pytest.raises(UserError, match="a twin's key is known already"):
        scene.register.follow()
    scene.put("a twin", "t")
    scene.register.follow()
    assert scene.flower.names == ["a twin", "late", "north", "south"]


def test_a_folder_is_followed_beside_the_run_and_what_is_amiss_in_it_is_said_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "LOOK", 0.01)

    def until(words: str) -> None:
        end = time.monotonic() + 20
        while not any(words in s for s in scene.said):
            assert time.monotonic() < end, scene.said
            time.sleep(0.01)

    scene.begin()
    with scene.register.following():
        (scene.folder / "notes.txt").write_text("who is who")
        until("notes.txt is no public key of a site.")
        time.sleep(0.1)
        (scene.folder / "notes.txt").unlink()
        scene.put("late", "l")
        until("late's key is new")
    assert len([s for s in scene.said if "notes.txt" in s]) == 1
    scene.put("later", "m")
    time.sleep(0.1)
    assert scene.flower.names == ["late", "north", "south"]  # nobody looks any more
