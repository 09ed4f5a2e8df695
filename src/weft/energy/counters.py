"""The counters of energy that this machine has: RAPL in its processor, NVML in its graphics cards.

RAPL is read through codecarbon, which knows where its files are, when they wrap around, and which of them mirror each other, and
NVML through the package that codecarbon requires for it. codecarbon's own tracker is not used: where there is no counter it goes
on with an estimate from a table of processors, it adds an estimate for memory to what it measures, and it writes files.
"""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from weft import distribution
from weft.errors import UserError

RAPL = "/sys/class/powercap/intel-rapl/subsystem"
"""Where Linux has the counters of processors, those of AMD too."""
PACKAGE = "Processor Energy Delta"
"""What codecarbon calls the energy of a whole processor, which its cores and its memory controller are parts of."""
MILLIJOULES = 3.6e9
"""In a kWh."""


class Unreadable(Exception):
    """A counter that was there gives no energy for the time since it was read last."""


class Counter(Protocol):
    """
    Attributes:
        name: as in the source of a number.
    """

    name: str

    def kwh(self) -> float:
        """What was drawn since the last call, the first time since it was made.

        Raises:
            Unreadable: nobody knows.
        """
        ...


class Processor:
    """RAPL: all processors of the machine, whoever uses them."""

    name = "RAPL"

    def __init__(self) -> None:
        from codecarbon.core.cpu import IntelRAPL

        self._rapl: Any = IntelRAPL(rapl_dir=RAPL)
        self._rapl.start()

    def kwh(self) -> float:
        from codecarbon.core.units import Time

        told = self._rapl.get_cpu_details(Time(0.0))  # the time is for watts alone, which nobody asks for here
        found = [value for name, value in told.items() if name.startswith(PACKAGE)]
        if not found or any(file.sample_skipped for file in self._rapl._rapl_files):
            raise Unreadable(self.name)
        return float(sum(found))


class Cards:
    """NVML: the graphics cards that this process may use, whoever uses them besides.

    Raises:
        Unreadable: there is no card that counts, or one that does not.
    """

    name = "NVML"

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        usable = visible()
        try:
            pynvml.nvmlInit()
            every = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            self._cards = [card for card in every if _bare(pynvml.nvmlDeviceGetUUID(card)) in usable]
        except pynvml.NVMLError as e:
            raise Unreadable(self.name) from e
        if len(self._cards) != len(usable):
            raise Unreadable(self.name)
        self._last = self._read()

    def kwh(self) -> float:
        before, self._last = self._last, self._read()
        drawn = [now - then for now, then in zip(self._last, before, strict=True)]
        if min(drawn) < 0:  # the driver was loaded anew
            raise Unreadable(self.name)
        return sum(drawn) / MILLIJOULES

    def _read(self) -> list[int]:
        """Millijoules of each card since its driver was loaded."""
        try:
            return [int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(card)) for card in self._cards]
        except self._nvml.NVMLError as e:
            raise Unreadable(self.name) from e


def visible() -> set[str]:
    """Ids of the graphics cards that PyTorch may use."""
    import torch

    return {_bare(str(torch.cuda.get_device_properties(i).uuid)) for i in range(torch.cuda.device_count())}


def _bare(uuid: str | bytes) -> str:
    """NVML says ``GPU-`` before the id, PyTorch does not."""
    return (uuid.decode() if isinstance(uuid, bytes) else uuid).removeprefix("GPU-")


def of(device: str) -> list[Counter]:
    """The counters of what computes: of the processors and, with CUDA, of the graphics cards. Where those of the processors can't
    be read, a run on cards is measured without them, and its source says so.

    Args:
        device: type of a torch device.

    Raises:
        UserError: what computes has no counter that can be read, or codecarbon is not installed.
    """
    if find_spec("codecarbon") is None:
        raise UserError(
            f'energy = "measure" needs codecarbon: {distribution.install("energy")}, or declare the watts that this machine '
            "draws under load, as in --energy 65."
        )
    os.environ.setdefault("CODECARBON_LOG_LEVEL", "critical")  # while it is imported
    from codecarbon.core import cpu

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    cards: list[Counter] = []
    if device == "cuda":
        try:
            cards = [Cards()]
        except Unreadable:
            raise _missing("its graphics cards have none that this process can read (NVML)") from None
    elif device != "cpu":
        raise _missing(f'there is none of the device "{device}" that could be read')
    if cpu.is_rapl_available(RAPL):
        return [Processor(), *cards]
    if device == "cpu" and _there():
        raise _missing(f"those of its processor are closed to this user (an administrator opens them: chmod a+r {_FILES})")
    if device == "cpu":
        raise _missing("its processor has none here (RAPL), as in most virtual machines and containers")
    return cards


def source(counters: list[Counter]) -> str:
    """``measured: RAPL, NVML``."""
    names = [counter.name for counter in counters]
    return f"measured: {', '.join(names)}" + ("" if Processor.name in names else " without the processor")


_FILES = "/sys/class/powercap/*/energy_uj"


def _there() -> bool:
    """Whether there are counters of the processor, be it that nobody but root may read them."""
    return any(next(Path(RAPL).glob(pattern), None) for pattern in ("intel-rapl*/energy_uj", "intel-rapl*/intel-rapl*/energy_uj"))


def _missing(what: str) -> UserError:
    return UserError(
        f'energy = "measure" reads counters of this machine, and {what}: declare the watts that it draws under load, as in '
        "--energy 65."
    )
