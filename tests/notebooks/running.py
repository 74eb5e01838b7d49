"""Notebooks run as a user runs them: in a process of their own, by papermill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True)


def papermill(
    source: Path | str, folder: Path, parameters: dict[str, object], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a notebook with these parameters, into `folder / "out.ipynb"`."""
    return run(
        sys.executable, "-m", "papermill", str(source), "out.ipynb",
        "-y", yaml.safe_dump(parameters), cwd=folder, **environment,
    )  # fmt: skip
