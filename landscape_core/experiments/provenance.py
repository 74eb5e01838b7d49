"""Where a number came from: code, machine, data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import landscape_core

NUMERICS = ("curvature", "geometry", "experiments")  # folders; and the modules beside them


@cache
def package_hash() -> str:
    """Hash of the package's numerics: of everything that a run can compute with."""
    root = Path(landscape_core.__file__).parent
    files = [*root.glob("*.py"), *(f for name in NUMERICS for f in (root / name).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in sorted(files):
        if path != root / "__init__.py":  # names what exists, computes nothing
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def git_commit() -> str:
    """Commit of the checkout that the package is imported from; "" outside of one."""
    here = Path(landscape_core.__file__).parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Versions and the machine, as far as they bear on numbers and times.

    The device is the GPU if this process holds memory there, or has held some since
    :func:`forget_peak`; a GPU that stands idle beside a run has no part in its numbers.
    """
    on_gpu = _peak_on_gpu() > 0
    return {
        "package": version("landscape-core"),
        "package_hash": package_hash(),
        "commit": git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def forget_peak() -> None:
    """Begin to count the memory of the GPU anew, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _peak_on_gpu() -> int:
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_initialized() else 0


def peak_memory() -> int:
    """Largest memory so far, in bytes: of the GPU if it was used, else of this process."""
    if on_gpu := _peak_on_gpu():
        return on_gpu
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process had at its peak
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    return int(psutil.Process().memory_info().rss)
