"""With what something was made, and where."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime
from importlib.metadata import version

TOOLS = {"torch": "torch", "numpy": "numpy", "scikit-learn": "sklearn"}  # packages, and what Python calls them


def surroundings() -> dict[str, str]:
    """The time, versions of the tools that this process uses, and the machine."""
    return {
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "python": platform.python_version(),
        **{package: version(package) for package, module in TOOLS.items() if module in sys.modules},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{_accelerator()}",
    }


def cores() -> int:
    """Of the processor, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accelerator() -> str:
    """As torch tells; who has not imported it uses none."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    return f", accelerator: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}"
