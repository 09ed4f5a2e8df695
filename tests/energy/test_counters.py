"""What counters say is what was put into them, and a machine without counters is told so: nothing is estimated."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import codecarbon.core.cpu
import pytest

from counting_machine import RANGE, Machine
from weft.energy import counters
from weft.energy.counters import Cards, Processor, Unreadable
from weft.errors import UserError

KWH = 3.6e6  # joules
CLOSE = 1e-6  # codecarbon's kWh have six digits


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


# the processor ------------------------------------------------------------------------------------------------------------


def test_all_packages_are_counted_once_and_not_their_cores_or_memory_besides(machine: Machine) -> None:
    (counter,) = counters.of("cpu")
    assert counter.name == "RAPL"
    machine.add("intel-rapl:0", 700)
    machine.add("intel-rapl:1", 20)
    machine.add("intel-rapl:0/intel-rapl:0:0", 600)
    machine.add("intel-rapl:0/intel-rapl:0:1", 50)
    assert counter.kwh() == pytest.approx(720 / KWH, rel=CLOSE)
    assert counter.kwh() == 0
    machine.add("intel-rapl:1", 3)
    assert counter.kwh() == pytest.approx(3 / KWH, rel=1e-4)


def test_a_counter_that_began_again_has_gone_on(machine: Machine) -> None:
    machine.file("intel-rapl:1").write_text(f"{RANGE - 40_000_000}\n")
    counter = Processor()
    machine.add("intel-rapl:1", 100)
    assert int(machine.file("intel-rapl:1").read_text()) == 60_000_000
    assert counter.kwh() == pytest.approx(100 / KWH, rel=1e-4)


def test_a_counter_that_is_gone_is_an_error_and_not_nothing(machine: Machine) -> None:
    counter = Processor()
    kept = machine.file("intel-rapl:1").read_text()
    machine.add("intel-rapl:0", 700)
    machine.file("intel-rapl:1").unlink()
    with pytest.raises(Unreadable, match="RAPL"):
        counter.kwh()
    machine.file("intel-rapl:1").write_text(kept)
    with pytest.raises(Unreadable):  # from when on would it count?
        counter.kwh()
    machine.add("intel-rapl:1", 5)
    assert counter.kwh() == pytest.approx(5 / KWH, rel=1e-4)


def test_a_machine_without_counters_is_refused_and_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "RAPL", str(tmp_path / "none"))
    with pytest.raises(UserError) as refusal:
        counters.of("cpu")
    assert str(refusal.value) == (
        'energy = "measure" reads counters of this machine, and its processor has none here (RAPL), as in most virtual machines '
        "and containers: declare the watts that it draws under load, as in --energy 65."
    )


def test_counters_that_are_closed_to_this_user_are_said_to_be(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecarbon.core.cpu.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"closed to this user \(an administrator opens them: chmod a\+r .*--energy 65\.$"):
        counters.of("cpu")


def test_cores_alone_are_no_processor(machine: Machine) -> None:
    for package in ("intel-rapl:0", "intel-rapl:1"):
        (machine.file(package).parent / "name").write_text("core\n")
    with pytest.raises(Unreadable):
        Processor().kwh()


def test_a_device_that_has_no_counters_is_refused(machine: Machine) -> None:
    with pytest.raises(UserError, match='none of the device "mps" that could be read: declare'):
        counters.of("mps")


def test_without_codecarbon_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^energy = "measure" needs codecarbon: in a checkout .*\[energy\].*--energy 65\.$'):
        counters.of("cpu")


def test_nothing_is_printed_logged_or_asked_of_a_network(
    machine: Machine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    def no(*_: Any) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", no)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    (counter,) = counters.of("cpu")
    machine.file("intel-rapl:1").unlink()
    with pytest.raises(Unreadable):
        counter.kwh()
    assert sorted(tmp_path.rglob("*")) == [p for p in before if p != machine.file("intel-rapl:1")]
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("codecarbon").isEnabledFor(logging.ERROR)


# graphics cards -----------------------------------------------------------------------------------------------------------


class Nvml(ModuleType):
    """``pynvml`` of a machine with three cards, of which PyTorch may use two."""

    class NVMLError(Exception):
        pass

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__("pynvml")
        self.joules: dict[str, float | None] = {"GPU-a": 1e6, "GPU-b": 0.5, "GPU-c": 7.0}
        monkeypatch.setitem(sys.modules, "pynvml", self)
        monkeypatch.setattr(counters, "visible", lambda: {"a", "c"})

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.joules)

    def nvmlDeviceGetHandleByIndex(self, i: int) -> str:
        return list(self.joules)[i]

    def nvmlDeviceGetUUID(self, card: str) -> bytes:
        return card.encode()

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:
        if (joules := self.joules[card]) is None:
            raise self.NVMLError("not supported")
        return round(joules * 1000)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    return Nvml(monkeypatch)


def test_the_cards_that_are_used_are_counted_beside_the_processor(nvml: Nvml, machine: Machine) -> None:
    processor, cards = found = counters.of("cuda")
    assert counters.source(found) == "measured: RAPL, NVML"
    nvml.joules = {"GPU-a": 1e6 + 900, "GPU-b": 5000, "GPU-c": 107}
    machine.add("intel-rapl:0", 36)
    assert cards.kwh() == pytest.approx(1000 / KWH)
    assert processor.kwh() == pytest.approx(36 / KWH, rel=1e-4)
    assert cards.kwh() == 0


def test_cards_are_measured_without_a_processor_that_can_not_be_which_is_said(
    nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "RAPL", str(tmp_path / "none"))
    found = counters.of("cuda")
    assert [counter.name for counter in found] == ["NVML"]
    assert counters.source(found) == "measured: NVML without the processor"


@pytest.mark.parametrize("odd", ["no counter", "not there", "no driver"])
def test_a_card_without_a_counter_is_refused(odd: str, nvml: Nvml, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    if odd == "no counter":
        nvml.joules["GPU-c"] = None
    elif odd == "not there":
        del nvml.joules["GPU-c"]
    else:

        def fails() -> None:
            raise nvml.NVMLError("no driver")

        monkeypatch.setattr(nvml, "nvmlInit", fails)
    with pytest.raises(
        UserError, match=r"graphics cards have none that this process can read \(NVML\): declare .*--energy 65\.$"
    ):
        counters.of("cuda")


def test_a_card_whose_counter_falls_back_is_an_error(nvml: Nvml) -> None:
    cards = Cards()
    nvml.joules["GPU-c"] = 1.0
    with pytest.raises(Unreadable, match="NVML"):
        cards.kwh()
    nvml.joules["GPU-c"] = 2.0
    assert cards.kwh() == pytest.approx(1 / KWH)
