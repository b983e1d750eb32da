"""One line about where and with what a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """Date, processor, cores, accelerator, and the versions of what decides speed."""
    import torch

    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{datetime.datetime.now(tz=datetime.UTC).date()}, {cpu}, {len(os.sched_getaffinity(0))} cores{gpu}, "
        f"{torch.get_num_threads()} threads, {packages}"
    )
