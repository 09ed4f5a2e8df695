"""``weft audit``: all that a run allows, the others with their reason, one sentence for whatever is asked for and can't be."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy_runs
from command_line import flowing, refused, table, weft
from weft import resume
from weft.audits import attacks
from weft.audits.attacks import ATTACKS
from weft.audits.audited import Asked, Audited
from weft.audits.outcome import Outcome, lowest_share
from weft.errors import UserError
from weft.runs import audit_file
from weft.storage import files


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


def test_what_is_found_stays_in_the_folder_attack_by_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_runs.run(tmp_path, data=str(table(tmp_path / "rows.csv")), recipes=False, name="kept", keep_updates=True)
    folder = tmp_path / "kept"
    capsys.readouterr()
    found = attacks.audit(folder, asked=Asked(steps=7))
    assert found.trouble is None
    kept = audit_file.read(folder)
    assert [r.attack for some in kept.results.values() for r in some] == [one.attack for one in found.outcomes]
    first = kept.results["labels"][0]
    (told,) = [one for one in found.outcomes if one.attack == "labels"]
    assert {n: getattr(first, n) for n in told.record()} == told.record()
    assert (first.round, first.settings, kept.results["membership"][0].round) == (1, {}, None)
    assert kept.results["epsilon"][0].settings == {"delta": 1e-5}
    assert set(kept.impossible) == found.skipped.keys() - {"lira", "canary"}, "nobody has asked for these"
    assert not any(why.unkept for why in kept.impossible.values())
    shown = weft(capsys, "audit", folder, "--attack", "labels", "--round", 2)
    assert f"Kept in {folder / 'audit.json'}; weft report {folder} shows it." in shown.out
    again = audit_file.read(folder)
    assert [r.round for r in again.results["labels"]] == [2]
    assert {n: r for n, r in again.results.items() if n != "labels"} == {n: r for n, r in kept.results.items() if n != "labels"}
    assert again.impossible == kept.impossible
    before = (folder / "audit.json").read_bytes()
    resume(folder, quiet=True)
    assert (folder / "audit.json").read_bytes() == before
    (state,) = json.loads(weft(capsys, "runs", tmp_path, "--json").out)
    assert state["state"] == "finished"
    shutil.rmtree(folder / "updates")
    assert attacks.audit(folder).skipped["labels"] == attacks.NOT_KEPT
    assert [r.round for r in audit_file.read(folder).results["labels"]] == [2], "what was found stays"


def test_what_was_not_kept_is_told_from_what_is_not_possible(tmp_path: Path) -> None:
    toy_runs.run(tmp_path, data=str(table(tmp_path / "rows.csv")), recipes=False, name="plain", quiet=True)
    attacks.audit(tmp_path / "plain", asked=Asked(canary="x"))
    kept = audit_file.read(tmp_path / "plain")
    assert {n for n, why in kept.impossible.items() if why.unkept} == {n for n, one in ATTACKS.items() if one.updates}
    assert {"tokens", "canary"} <= kept.impossible.keys(), "somebody has asked for a canary"
    assert kept.results.keys() == {"membership", "epsilon"}
    sums = toy_runs.run(
        tmp_path, data=str(table(tmp_path / "rows.csv")), recipes=False, name="sums", privacy="secagg", start_head="random"
    )
    attacks.audit(sums.folder)
    (why,) = {why.why for why in audit_file.read(sums.folder).impossible.values() if why.unkept}
    assert why == attacks.SUMMED, "no --keep-updates would help"


def test_a_damaged_file_is_said_before_anything_is_attacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.run(tmp_path, data=str(table(tmp_path / "rows.csv")), recipes=False, name="plain", quiet=True)
    (tmp_path / "plain" / "audit.json").write_text("{")
    monkeypatch.setattr(attacks, "lacks", None)  # which would be asked first
    refused(weft(capsys, "audit", tmp_path / "plain"), "audit.json is damaged", "remove it, and attack the run once more")


def test_where_nothing_can_be_written_an_audit_finds_what_it_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.run(tmp_path, data=str(table(tmp_path / "rows.csv")), recipes=False, name="plain", quiet=True)
    capsys.readouterr()

    def full(path: Path, data: bytes, settle: bool = True) -> None:
        raise UserError(f"can't write {path}: read-only file system.")

    monkeypatch.setattr(files, "write", full)
    got = weft(capsys, "audit", tmp_path / "plain", "--attack", "membership")
    assert got.code == 0
    assert "membership: Rows that were trained on" in got.out
    assert "Not kept in the folder: can't write" in got.out
    said = json.loads(weft(capsys, "audit", tmp_path / "plain", "--attack", "membership", "--json").out)
    assert "read-only" in said["trouble"]


def test_a_setting_is_what_the_outcome_tells_or_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(name: str, **about: float) -> dict[str, Any]:
        run = Audited(None, None, (), np.zeros(0), lines=(), asked=Asked(noise=(0.5, 1.0), rows=8, steps=20, shadows=4))  # type: ignore[arg-type]
        attack = replace(ATTACKS[name], updates=False)
        with monkeypatch.context() as patch:
            patch.setitem(ATTACKS, name, attack)
            return dict(attacks._result(run, Outcome(name, "t", "m", 0.6, 0.5, 10, None, "S.", about)).settings)

    assert of("tokens", noise=0.5, scale=2.0) == {"noise": 0.5, "rows": 8}
    assert of("inversion") == {"steps": 20}
    assert of("lira", shadows=4) == {"shadows": 4}
    assert of("canary", row=17, rank=3) == {"row": 17}
    assert of("membership", members=4) == {}


def test_the_help_names_every_attack(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"[a-z-]+", flowing(weft(capsys, "audit", "--help").out))
    assert [name for name in ATTACKS if name not in shown] == []


def test_a_score_is_found_only_if_its_bound_is_above_chance() -> None:
    def one(low: float | None) -> Outcome:
        return Outcome("a", "t", "m", 0.6, 0.5, 100, low, "S.")

    assert [one(low).found for low in (0.52, 0.48, None)] == [True, False, True]
    assert one(None).record()["found"] is True
    odd = Outcome("a", "t", "m", float("inf"), 0.5, 1, None, "S.", {"bits": float("nan")}).record()
    assert (odd["score"], odd["about"]) == (None, {"bits": None})


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
