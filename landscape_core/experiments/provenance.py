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
    """Versions and the machine, as far as they bear on numbers and times."""
    on_gpu = torch.cuda.is_available()
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


def peak_memory() -> int:
    """Largest memory so far, in bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process had at its peak
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    return int(psutil.Process().memory_info().rss)
