"""Sizes of methods that come from devices: by hand, monotone, and as dealt where nobody names devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy_runs
from weft.devices import sized
from weft.experiment import handed, resolve
from weft.methods import registry

KINDS = {"small": (1, 2), "slow": (0.5, 8), "big": (2, 8)}  # speed, memory
DEVICES = "".join(f"[{name}]\nspeed = {speed}\nmemory = {memory}\nbandwidth = 8\n" for name, (speed, memory) in KINDS.items())
STRENGTHS = {"small": 0.25, "slow": 0.25, "big": 1.0}


def rates(position: int) -> dict[str, Any]:
    return {"rate": (1.0, 0.5, 0.25, 0.125)[position % 4]}


def test_sizes_by_hand() -> None:
    at = sized(rates)
    assert [at(0, {"strength": s})["rate"] for s in (1, 0.99, 0.5, 0.3, 0.25, 0.2, 0.01)] == [
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
        0.125,
    ]
    assert at(2, {}) == {"rate": 0.25}
    assert at(2, {"strength": 1.0, "rate": 0.5}) == {"strength": 1.0, "rate": 0.5}


def test_pairs_of_sizes_have_to_fit_both() -> None:
    pairs = ((8, 8), (30, 30), (30, 200), (200, 200))
    at = sized(lambda position: dict(zip(("rank", "ffn_rank"), pairs[position % 4], strict=True)))
    found = [tuple(at(0, {"strength": s})[n] for n in ("rank", "ffn_rank")) for s in (1.0, 0.9, 0.15, 0.149, 0.0)]
    assert found == [(200, 200), (30, 30), (30, 30), (8, 8), (8, 8)]


def test_what_is_no_number_is_dealt_by_position() -> None:
    at = sized(lambda position: {"kind": "ab"[position % 2]})
    assert at(1, {"strength": 0.1}) == {"kind": "b", "strength": 0.1}
    assert sized(lambda _: {})(0, {"strength": 0.1}) == {"strength": 0.1}


def test_the_strength_of_a_device_by_hand(tmp_path: Path) -> None:
    """Memory over 8 and speed over 2, whichever is less."""
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    x = resolve({"devices": str(file)}).experiment
    facts, device = handed.facts_of(x), handed.devices_of(x)
    found = {device(i).name: facts(i)["strength"] for i in range(12)}
    assert found == STRENGTHS
    assert "strength" not in handed.facts_of(resolve({}).experiment)(0)


@pytest.mark.parametrize("slug", ["fjord", "heterofl", "depthfl", "hetlora", "fedra", "flexlora"])
def test_stronger_devices_have_no_less(slug: str) -> None:
    method = registry.build(slug, {})
    at = sized(method.profile)
    names = list(method.profile(0))
    assert names
    assert set(names) <= set(method.info.asks)
    each = [at(0, {"strength": s / 100}) for s in range(1, 101)]
    for name in names:
        values = [facts[name] for facts in each]
        assert values == sorted(values)
        assert values[0] < values[-1]
        assert values[-1] == max(method.profile(i)[name] for i in range(100))
        assert set(values) <= {method.profile(i)[name] for i in range(100)}


def test_clients_of_a_run_have_the_sizes_of_their_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    file = tmp_path / "devices.toml"
    file.write_text(DEVICES)
    about: dict[str, Any] = {"method": "heterofl", "baselines": [], "report": False, "rounds": 1, "clients": 6}
    about["parameters"] = {"rank": 8, "rates": (1.0, 0.25), "steps": 1, "sites": "q"}

    def sent(**more: Any) -> float:
        run = toy_runs.run(tmp_path, data=toy_runs.source(120), name=str(len(more)), **about, **more)
        return float(run.rounds[0]["bytes"]["train"]["up"]["parts"]["lora"])

    device = handed.devices_of(resolve({"devices": str(file)}).experiment)
    wanted = [{"small": 2, "slow": 2, "big": 8}[device(i).name] for i in range(6)]
    usual = [(8, 2)[i % 2] for i in range(6)]
    assert sum(wanted) != sum(usual)
    assert sent(devices=str(file)) / sent() == pytest.approx(sum(wanted) / sum(usual))
