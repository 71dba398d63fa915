"""The machine that measures: what it is, what is installed on it, and memory that is in use."""

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from hgrn.source import commit

# What every row says of where, with what and when it was measured.
ENVIRONMENT = ("cpu", "cores", "threads", "torch", "numba", "transformers", "commit", "date")


def environment() -> dict[str, str]:
    """Where, with what and when: the cells that every row has."""
    values = (
        _cpu_model(),
        str(_cores()),
        str(torch.get_num_threads()),
        *map(version, ("torch", "numba", "transformers")),
        commit(),
        now(),
    )
    return dict(zip(ENVIRONMENT, values, strict=True))


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    # Python's platform module says only the architecture on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def resident_bytes(field: str) -> int:
    """Resident memory of this process on Linux, in bytes.

    field: "VmRSS" is what is resident now, "VmHWM" the most that ever was.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
