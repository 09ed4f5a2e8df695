"""Files of peers, and what a training takes on them, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.devices.peers import Training, read
from weft.errors import UserError

FILE = """
[swarm]
micro_batch = 2

[slow]
stage = 0
speed = 1
bandwidth = 8

[fast]
stage = 1
speed = 2
bandwidth = 8
utilisation = 0.6
count = 2
away = [[10, 20], [30, 40.5]]
"""
TRAINING = Training(steps=2, rows=8, forward=1e11, backward=1e11, tokens=10, width=64, weights=1e6, trained=1e3)


def file(folder: Path, text: str = FILE) -> str:
    path = folder / "peers.toml"
    path.write_text(text)
    return str(path)


def test_a_training_on_three_peers_by_hand(tmp_path: Path) -> None:
    """A stage takes 1.5e11 operations of a row, with its second forward pass: half a second of the slow one at 0.3 TFLOP/s."""
    peers = read(file(tmp_path), 2)
    assert peers.kinds["fast"].away == ((10, 20), (30, 40.5))
    told = peers.played(TRAINING, 64)
    assert (told.samples, told.done) == (8, 4)
    assert told.sent == pytest.approx(8 * 2 * 10 * 64 * 1.0625)
    assert told.seconds > 8 * 0.5 + 2 * 1e3 / 1e6  # the slow stage alone, and both exchanges of gradients
    assert told.seconds < 8 * (0.5 + 0.125) + 1
    assert set(told.tasks) <= {("slow 1", 0), ("fast 1", 1), ("fast 2", 1)}
    whole = peers.played(TRAINING, 0)
    assert whole.sent == pytest.approx(told.sent * 4 / 1.0625)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("speed = 1\n", "speed = -1\n", r"^\[slow\] in .*peers\.toml: .*speed"),
        ("speed = 1\n", "", r"^\[slow\] in .* lacks one of stage, speed and bandwidth"),
        ("speed = 1\n", "speed = 1\ncolour = 3\n", r"^\[slow\] in .* has colour, and takes stage, speed"),
        ("stage = 1\n", "stage = 2\n", r"^\[fast\] in .* begins at stage 2 of 2, which are counted from 0\.$"),
        ("stage = 1\n", "stage = 0\n", r"^stage 1 has no peer in .*: give it a table"),
        ("[30, 40.5]", "[15, 40.5]", r"^\[fast\] in .*: away is pairs of seconds in order"),
        (
            "[30, 40.5]",
            "[30, 1e18]",
            r"^\[fast\] in .*: away is pairs of seconds in order, .* up to 10000000",
        ),
        ("speed = 1\n", "speed = 1e-300\n", r"^\[slow\] in .* has speed = 1e-300: give it a number from 1e-06 to 1e\+06"),
        ("[30, 40.5]", "30", r"^\[fast\] in .* has an away that is no list of pairs of seconds"),
        ("micro_batch = 2", "micro_batch = 0", r"^\[swarm\] in .*peers\.toml: it needs micro_batch"),
        ("[swarm]", "[swarm", r"^the file of peers .* is no TOML"),
    ],
)
def test_files_that_cannot_be_are_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in FILE
    with pytest.raises(UserError, match=sentence):
        read(file(tmp_path, FILE.replace(old, new)), 2)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the file of peers .*none\.toml can't be read: No such file or directory\.$"):
        read(str(tmp_path / "none.toml"), 2)
