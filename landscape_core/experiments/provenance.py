"""Where a number came from: code, machine, data."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import platform
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import psutil
import torch

import landscape_core
from landscape_core.experiments.records import plain


@runtime_checkable
class Coded(Protocol):
    """What has a hash of code of its own: another study, which a run takes results from."""

    code: str
    folder: Path


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


def code_hash(run: Callable[..., Any]) -> str:
    """Hash of a run's code: its source, and that of the functions it calls from its module.

    Comments and layout are no part of it.

    Values that it closes over are part of it where they are plain; functions of other modules,
    and values of global variables, are not: hand them to the run as parameters.

    Raises
    ------
    TypeError
        If the source cannot be found, or the function depends on what has no plain value.
    """
    holder = getattr(run, "__self__", None)
    if holder is not None:
        raise TypeError(
            f"run must be a plain function, got a method of {type(holder).__name__}: what the "
            "object holds would not be part of the parameters"
        )
    digest = hashlib.sha256()
    for source in sorted(_sources(run, {}).values()):
        digest.update(source.encode())
    return digest.hexdigest()[:16]


def _closed_over(function: Any) -> str:
    """The values that a function closes over, written out."""
    written = []
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        value = cell.cell_contents
        if isinstance(value, types.FunctionType):
            written.append(f"{name}={sorted(_sources(value, {}).values())}")
            continue
        if isinstance(value, types.ModuleType):
            continue
        try:
            written.append(f"{name}={plain(value, name)!r}")
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise TypeError(
                f"run must not depend on {name} from around it, a {kind}: hand it over as a "
                "parameter"
            ) from None
    return "; ".join(written)


def _sources(function: Any, found: dict[str, str]) -> dict[str, str]:
    """Source of a function and of what it uses from its own module, by name."""
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", repr(function))
    if name in found:
        return found
    try:
        found[name] = _meaning(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        if code is None:
            raise TypeError(
                f"run must be a function whose source can be found, got {function!r}"
            ) from None
        found[name] = repr((code.co_code, code.co_consts, code.co_names))
    if name.endswith("<lambda>"):  # several can stand on one line of source
        code = function.__code__
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        found[name] += repr((code.co_code, constants, code.co_names))
    found[name] += _closed_over(function)
    for used in _names(function):
        value = getattr(function, "__globals__", {}).get(used)
        own = getattr(value, "__module__", None) == getattr(function, "__module__", "")
        if own and isinstance(value, types.FunctionType | type):
            _sources(value, found)
        elif isinstance(value, Coded):
            found[used] = value.code
    return found


def _meaning(source: str) -> str:
    """Source without comments and layout, which change no number."""
    try:
        return ast.unparse(ast.parse(source))
    except SyntaxError:  # a lambda in the middle of an expression
        return source


def _names(function: Any) -> set[str]:
    """Global names that a function, or the methods of a class, refer to."""
    if isinstance(function, type):
        methods = [m for m in vars(function).values() if isinstance(m, types.FunctionType)]
        return set().union(*(_names(method) for method in methods))
    code = getattr(function, "__code__", None)
    names: set[str] = set()
    waiting = [code] if code is not None else []
    while waiting:
        inner = waiting.pop()
        names |= set(inner.co_names)
        waiting += [c for c in inner.co_consts if isinstance(c, types.CodeType)]
    return names


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
