"""``audit.json``: an attack's results replace its former ones and no others, and what is damaged is one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_runs
from weft.errors import UserError
from weft.runs import audit_file
from weft.runs.audit_file import Impossible, Kept, Result

ONE = Result(
    "labels", "3 clients, round 1", "labels guessed", 0.75, 0.5, 1.0, 40, 0.6, True, "A sentence.", {"a": 1}, {}, 1, "0.1"
)
MODEL = replace(ONE, attack="membership", measure="AUC", round=None, settings={"x": 2}, weft=None, low=None, most=None)
WHY = Impossible("it needs more", True)


def names(kept: Kept) -> list[str]:
    return [*kept.results, *kept.impossible]


def test_what_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    assert audit_file.read(tmp_path) == Kept()
    audit_file.keep(tmp_path, "labels", [ONE, replace(ONE, score=None)])
    audit_file.keep(tmp_path, "membership", [MODEL])
    audit_file.keep_impossible(tmp_path, "tokens", WHY)
    kept = audit_file.read(tmp_path)
    assert kept.results == {"labels": [ONE, replace(ONE, score=None)], "membership": [MODEL]}
    assert kept.impossible == {"tokens": WHY}
    assert json.loads((tmp_path / "audit.json").read_text())["format"] == 1


def test_an_attack_replaces_its_own_results_alone(tmp_path: Path) -> None:
    audit_file.keep(tmp_path, "labels", [ONE, ONE])
    audit_file.keep(tmp_path, "membership", [MODEL])
    audit_file.keep(tmp_path, "labels", [replace(ONE, score=0.25)])
    kept = audit_file.read(tmp_path)
    assert [r.score for r in kept.results["labels"]] == [0.25]
    assert kept.results["membership"] == [MODEL]


def test_what_was_found_once_stays_where_it_is_not_possible_any_more(tmp_path: Path) -> None:
    """Whoever removes the updates after an audit does not lose it; what becomes possible is no longer called impossible."""
    audit_file.keep(tmp_path, "labels", [ONE])
    audit_file.keep_impossible(tmp_path, "labels", WHY)
    audit_file.keep_impossible(tmp_path, "property", WHY)
    assert (list(audit_file.read(tmp_path).results), list(audit_file.read(tmp_path).impossible)) == (["labels"], ["property"])
    audit_file.keep(tmp_path, "property", [replace(ONE, attack="property")])
    assert (list(audit_file.read(tmp_path).results), list(audit_file.read(tmp_path).impossible)) == (["labels", "property"], [])


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit_file.keep(tmp_path, "labels", [ONE])
    seen = set()
    for number in range(1, 6):
        with monkeypatch.context() as patch:
            passed = toy_runs.kill_at(patch, number)
            try:
                audit_file.keep(tmp_path, "membership", [MODEL])
            except toy_runs.Killed:
                assert len(passed) == number
        kept = audit_file.read(tmp_path)
        assert kept.results["labels"] == [ONE]
        seen.add("membership" in kept.results)
        if "membership" in kept.results:
            break
    assert seen == {False, True}


def written(folder: Path, **changes: Any) -> None:
    """A file with one result, of which something is different; ``...`` = is not there."""
    audit_file.keep(folder, "labels", [ONE])
    path = folder / "audit.json"
    content = json.loads(path.read_text())
    one = content["results"][0] | changes
    content["results"] = [{n: v for n, v in one.items() if v is not ...}]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("score", "0.7", "score is not what it has to be"),
        ("score", float("nan"), "score is no finite number"),
        ("chance", ..., "without chance"),
        ("n", 1.5, "n is not what it has to be"),
        ("n", True, "n is not what it has to be"),
        ("found", 1, "found is not what it has to be"),
        ("attack", None, "attack is not what it has to be"),
        ("settings", [1], "settings is not what it has to be"),
        ("round", "1", "round is not what it has to be"),
    ],
)
def test_a_result_of_another_shape_is_damage(tmp_path: Path, name: str, value: Any, said: str) -> None:
    written(tmp_path, **{name: value})
    with pytest.raises(UserError) as told:
        audit_file.read(tmp_path)
    sentence = str(told.value)
    assert f"audit.json is damaged ({said})" in sentence
    assert sentence.endswith(f"attack the run once more with weft audit {tmp_path}.")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1}', "\x00\xff", '{"format":1,"results":[3],"impossible":{}}', "[" * 100_000]
)
def test_a_file_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"audit\.json (is damaged|has format None)"):
        audit_file.read(tmp_path)
    before = (tmp_path / "audit.json").read_bytes()
    with pytest.raises(UserError):
        audit_file.keep(tmp_path, "labels", [ONE])
    assert (tmp_path / "audit.json").read_bytes() == before


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="has format 2, and this version of Weft reads format 1"):
        audit_file.read(tmp_path)
