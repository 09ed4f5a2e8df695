"""``weft audit``: all that a run allows, the others with their reason, one sentence for whatever is asked for and can't be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import toy_runs
from command_line import flowing, refused, table, weft
from weft.audits.attacks import ATTACKS
from weft.audits.outcome import Outcome, lowest_share
from weft.errors import UserError


def test_a_run_is_attacked_as_far_as_it_allows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data": str(table(tmp_path / "rows.csv")), "recipes": False}
    toy_runs.run(tmp_path, **settings, name="kept", keep_updates=True)
    toy_runs.run(tmp_path, **settings, name="plain")
    capsys.readouterr()
    said = json.loads(weft(capsys, "audit", tmp_path / "kept", "--json").out)
    tried = {one["attack"] for one in said["results"]}
    assert {"labels", "membership", "epsilon"} <= tried
    assert tried | said["skipped"].keys() == ATTACKS.keys()
    assert not tried & said["skipped"].keys()
    assert all(one["sentence"].endswith(".") and one["n"] > 0 for one in said["results"])
    assert "round 1" in next(one["target"] for one in said["results"] if one["attack"] == "labels")
    second = json.loads(weft(capsys, "audit", tmp_path / "kept", "--attack", "labels", "--round", 2, "--json").out)
    assert "round 2" in second["results"][0]["target"]
    assert second["skipped"] == {}
    shown = weft(capsys, "audit", tmp_path / "plain").out
    assert "labels: not tried" in shown
    assert "--keep-updates" in shown
    assert "membership" in shown
    refused(weft(capsys, "audit", tmp_path / "plain", "--attack", "labels"), "attack labels is not possible", "--keep-updates")
    refused(weft(capsys, "audit", tmp_path / "kept", "--attack", "lables"), 'unknown attack "lables"', "labels")
    refused(weft(capsys, "audit", tmp_path / "kept", "--round", 3), "no update of round 3 is kept")
    refused(weft(capsys, "audit", tmp_path / "nowhere"), "does not exist")


def test_the_help_names_every_attack(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"[a-z-]+", flowing(weft(capsys, "audit", "--help").out))
    assert [name for name in ATTACKS if name not in shown] == []


def test_a_score_is_found_only_if_its_bound_is_above_chance() -> None:
    def one(low: float | None) -> Outcome:
        return Outcome("a", "t", "m", 0.6, 0.5, 100, low, "S.")

    assert [one(low).found for low in (0.52, 0.48, None)] == [True, False, True]
    assert one(None).record()["found"] is True
    assert Outcome("a", "t", "m", float("inf"), 0.5, 1, None, "S.").record()["score"] is None


def test_the_bound_of_a_share_is_exact() -> None:
    """Of n hits in n it is level^(1/n); of none it is 0."""
    assert lowest_share(20, 20) == pytest.approx(0.05 ** (1 / 20))
    assert lowest_share(0, 20) == lowest_share(0, 0) == 0.0


def test_sums_leave_no_update_to_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data": str(table(tmp_path / "rows.csv")), "recipes": False, "privacy": "secagg", "codec": "identity"}
    with pytest.raises(UserError, match="keep_updates keeps the updates of single clients, which privacy = secagg hides"):
        toy_runs.run(tmp_path, **settings, name="kept", keep_updates=True)
    toy_runs.run(tmp_path, **settings, name="summed")
    capsys.readouterr()
    for name in [name for name, one in ATTACKS.items() if one.updates]:
        refused(weft(capsys, "audit", tmp_path / "summed", "--attack", name), f"attack {name} is not possible", "single clients")
