"""A setting that has no effect on a run is told to whoever gave it, once it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy_runs
from toy_runs import Told
from weft import experiment
from weft.experiment import SETTINGS, resolve

FOUND = {"task": "classification", "partition": "natural"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alpha": 0.1}, ["alpha = 0.1 has no effect: it goes with partition = dirichlet, and partition is natural here."]),
        ({"calibrate": True}, ["it goes with task = fill, and task is classification here."]),
        ({"view_scale": 0.5}, ["it goes with views, and views is 0 here."]),
        ({"stop_delta": 0.1}, ["it goes with stop_after, and stop_after is not given."]),
        ({"robust_share": 0.1, "robust": "clip"}, ["median or trimmed or krum or multi-krum, and robust is clip here."]),
        ({"robust_share": 0.1, "robust": "trimmed", "clients": 20}, []),
        ({"stop_delta": 0.1, "stop_after": 3}, []),
        ({"keyless": "apart"}, []),
        ({"alpha": 0.5, "samples": 32}, []),
        ({"baseline": "central", "devices": "phones", "aggregation": "fedbuff"}, ["devices = phones", "aggregation = fedbuff"]),
        (
            {"method": "swarm-parallelism", "devices": "phones", "participation": 0.3},
            ["baseline central is played instead of the federation."],
        ),
        ({"baseline": "probe", "devices": "phones", "rule": "scaffold"}, ["rule = scaffold has no effect: baseline probe"]),
        ({"label_words": "a=b", "beams": 2}, ["label_words", "beams"]),
    ],
)
def test_what_has_no_effect_is_said_with_the_reason(given: dict[str, Any], words: list[str]) -> None:
    said = experiment.idle(resolve(given), FOUND)
    assert len(said) == len(words)
    assert all(word in sentence for word, sentence in zip(words, said, strict=True))
    assert all(s.endswith(".") and "\n" not in s for s in said)


def test_a_region_of_a_device_has_no_effect_without_grids(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    kind = "speed = 1\nmemory = 8\nbandwidth = 10\n"
    file.write_text(f'[sunny]\n{kind}region = "solar"\n[anywhere]\n{kind}')
    given: dict[str, Any] = {"devices": str(file)}
    (said,) = experiment.idle(resolve(given), FOUND)
    assert said == "region = solar of [sunny] has no effect: it goes with grids, and grids is not given."
    assert experiment.idle(resolve(given | {"grids": "solar,coal-wind"}), FOUND) == []
    (of_all,) = experiment.idle(resolve(given | {"baseline": "central"}), FOUND)
    assert "devices = " in of_all


def test_what_a_setting_goes_with_is_a_setting_and_has_such_values() -> None:
    goes = {name: s.when for name, s in SETTINGS.items() if s.when is not None}
    assert goes
    for other, values in goes.values():
        kinds = {str(k) for k in (*SETTINGS[other].kinds, SETTINGS[other].kind)}
        assert all(any(repr(value) in kind for kind in kinds) for value in values), other


def test_a_run_says_it_before_its_first_round(tmp_path: Any) -> None:
    told = Told()
    toy_runs.run(tmp_path, partition="iid", alpha=0.1, rounds=1, observer=told)
    assert [s for s in told.sentences if "alpha = 0.1 has no effect" in s]
    told = Told()
    toy_runs.run(tmp_path, partition="dirichlet", alpha=0.1, rounds=1, observer=told)
    assert not [s for s in told.sentences if "has no effect" in s]
