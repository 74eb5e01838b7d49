"""One run: done once, by one process, whatever happens to it."""

from __future__ import annotations

import copy
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from landscape_core.experiments import records
from landscape_core.experiments.context import RunContext, current_run, running
from landscape_core.experiments.provenance import (
    environment,
    forget_peak,
    package_hash,
    peak_memory,
)
from landscape_core.experiments.records import DamagedRecordError, Record, parameter_hash
from landscape_core.experiments.seeding import seeded

Run = Callable[..., Mapping[str, Any]]
Outcome = Literal["made", "found", "busy"]
RESERVED = ("status", "message", "seconds", "outdated", "key")  # columns of every table


@dataclass(frozen=True)
class Task:
    """All that a process needs to do one run."""

    run: Run
    parameters: dict[str, Any]
    folder: Path
    code: str
    threads: int | None = None  # None: as many as the process has

    @property
    def key(self) -> str:
        """The hash of the parameters."""
        return parameter_hash(self.parameters)

    @property
    def path(self) -> Path:
        """Where the record goes."""
        return self.folder / f"{self.key}.npz"


def execute(task: Task) -> tuple[str, Outcome]:
    """Do one run, unless its record is there or another process is doing it."""
    current = current_run()
    if current is not None and (task.folder, task.key) in current.inside:
        raise RuntimeError("a run must not ask its own study for its own result")
    lock = FileLock(task.folder / "locks" / f"{task.key}.lock")
    seen = task.path.stat().st_mtime_ns if task.path.exists() else None
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return task.key, "busy"
    try:
        now = task.path.stat().st_mtime_ns if task.path.exists() else None
        if now is not None and (now != seen or _is_good(task)):
            return task.key, "found"  # finished while this process was on its way
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        for left in task.folder.glob(f".{task.key}.*"):  # by a process killed while writing
            left.unlink(missing_ok=True)
        record = _done(task)
        try:
            records.write(record, task.path)
        except (TypeError, ValueError):  # what no file can hold
            record = replace(
                record, status="failed", message=traceback.format_exc(), scalars={}, arrays={},
                tables={},
            )  # fmt: skip
            records.write(record, task.path)
        if record.status != "failed":  # its training need not be done again
            for left in (task.folder / "checkpoints").glob(f"{task.key}*"):  # older code's too
                shutil.rmtree(left, ignore_errors=True)
        # Safe while the lock is held: whoever locks the file after this sees the record.
        Path(lock.lock_file).unlink(missing_ok=True)
        return task.key, "made"
    finally:
        lock.release()


def _is_good(task: Task) -> bool:
    try:
        return records.read(task.path, arrays=False).status != "failed"
    except DamagedRecordError:
        return False


def _checkpoints(task: Task) -> Path:
    return task.folder / "checkpoints" / f"{task.key}-{task.code}-{package_hash()}"


def _done(task: Task) -> Record:
    """Call the function, and make a record of what became of it."""
    around = current_run()
    inside = {(task.folder, task.key)} | (around.inside if around else frozenset())
    context = RunContext(_checkpoints(task), inside=frozenset(inside))
    forget_peak()
    start, begun = time.perf_counter(), time.time()
    try:
        # What a run draws without a seed depends on the run alone, not on those before it.
        with running(context), seeded(int(task.key[:12], 16)):
            # A copy: what the function does to its arguments is not part of its parameters.
            fields = records.collect(task.run(**copy.deepcopy(task.parameters)))
            _refuse_clashes(task.parameters, fields["scalars"])
    except FloatingPointError as error:
        fields = {"status": "diverged", "message": str(error)}
    except (Exception, SystemExit):
        fields = {"status": "failed", "message": traceback.format_exc()}
    provenance = environment() | {
        "code_hash": task.code,
        "data": context.data,
        "begun": begun,
        "seconds": time.perf_counter() - start,
        "peak_memory": peak_memory(),
    }
    return Record(task.parameters, provenance=provenance, **fields)


def failed(task: Task, message: str) -> Outcome:
    """File a run as failed that could not say so itself, unless another process does it."""
    lock = FileLock(task.folder / "locks" / f"{task.key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return "busy"
    try:
        if task.path.exists() and _is_good(task):
            return "found"
        made = environment() | {"code_hash": task.code, "begun": time.time(), "seconds": None}
        record = Record(task.parameters, "failed", provenance=made, message=message)
        records.write(record, task.path)
        Path(lock.lock_file).unlink(missing_ok=True)
        return "made"
    finally:
        lock.release()


def _refuse_clashes(parameters: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
    """Refuse results that would take the place of a parameter in a table."""
    taken = [name for name in scalars if name in parameters or name in RESERVED]
    if taken:
        raise TypeError(
            f"results must not be named as parameters or as {', '.join(RESERVED)}, "
            f"got {', '.join(taken)}"
        )
