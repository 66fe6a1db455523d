"""What the machine says of itself while something is measured: who else is at work, and what energy goes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from distill.surroundings import cores

POWER = Path("/sys/class/powercap")
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # what a processor does when it is not idle
WIDE = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # arithmetic on many numbers at once
OF_INT8 = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # products of 8-bit numbers, several at once
LOADED = 0.05  # share of the processors that others may take before times are in doubt


class Others:
    """How much of the processors other programs took since this began."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = [os.getpid(), *pids]
        self.since, self.busy, self.own = time.monotonic(), _busy(), self._own()

    def cores(self) -> float:
        """On average; a process that has ended counts as another's from its end on."""
        seconds = time.monotonic() - self.since
        own = sum(now - self.own[pid] for pid, now in self._own().items())
        return max(0.0, (_busy() - self.busy - own) / max(seconds, 1e-9))

    def _own(self) -> dict[int, float]:
        found = {}
        for pid in self.pids:
            with suppress(psutil.Error):
                spent = psutil.Process(pid).cpu_times()
                found[pid] = float(spent.user + spent.system)
        return found


def _busy() -> float:
    spent = psutil.cpu_times()
    return float(sum(getattr(spent, kind, 0.0) for kind in BUSY))


class Meter:
    """The processors' own count of joules (RAPL), where the machine lets it be read."""

    def __init__(self, root: Path = POWER) -> None:
        """Whole packages: their parts are in them."""
        found = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
        self.packages = [package for package in found if package.name.count(":") == 1 and _readable(package)]

    def read(self) -> list[int]:
        """Microjoules of every package, from somewhere on."""
        return [_number(package / "energy_uj") for package in self.packages]

    def joules(self, before: list[int]) -> float | None:
        """Since this reading; None if nothing tells."""
        if not self.packages:
            return None
        spent = 0
        for package, first, last in zip(self.packages, before, self.read(), strict=True):
            # A counter that came to its end began anew.
            spent += last - first + (_number(package / "max_energy_range_uj") if last < first else 0)
        return spent / 1e6


def _readable(package: Path) -> bool:
    try:
        return _number(package / "energy_uj") >= 0
    except (OSError, ValueError):
        return False


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def machine() -> dict[str, str | int | float | list[str]]:
    """Processor, how many of them, memory."""
    return {
        "processor": next(_cpuinfo("model name"), platform.processor() or platform.machine()),
        "processors": cores(),
        "instructions": instructions(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def instructions() -> list[str]:
    """Those for arithmetic that this processor has; empty if it does not tell."""
    told = " ".join([*_cpuinfo("flags"), *_cpuinfo("Features")]).split()  # x86, ARM
    return [name for name in (*WIDE, *OF_INT8) if name in told]


def _cpuinfo(key: str) -> Iterator[str]:
    """What Linux says of the first processor."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        for line in first.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                yield value.strip()
