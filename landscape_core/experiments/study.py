"""Studies: many runs of one function, each done once, on one machine or on many."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from landscape_core.experiments import records
from landscape_core.experiments.code import code_hash
from landscape_core.experiments.provenance import package_hash
from landscape_core.experiments.records import DamagedRecordError, Record, parameter_hash
from landscape_core.experiments.runs import RESERVED, Outcome, Run, Task, execute, failed
from landscape_core.experiments.store import Store, written
from landscape_core.progress import progress_bar, speaking_through

Outdated = Literal["rerun", "keep"]
PROBE = 1 << 20  # bytes that must fit into the store before anything is computed
WAIT = 0.5  # seconds between looks at a run that another process is doing


class StoreError(OSError):
    """A store that cannot be written to."""


def grid(**values: Any) -> list[dict[str, Any]]:
    """All combinations of parameters, the last one varying fastest.

    A value that is a list, tuple, range or array is a list of values; any other is one. Lists
    of runs add up: ``grid(lr=0.1, seed=range(3)) + grid(lr=1.0, seed=0)``.

    >>> grid(width=[64, 256], seed=range(2), lr=0.1)[:2]
    [{'width': 64, 'seed': 0, 'lr': 0.1}, {'width': 64, 'seed': 1, 'lr': 0.1}]
    """
    several = (list, tuple, range, np.ndarray)
    lists = [list(v) if isinstance(v, several) else [v] for v in values.values()]
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*lists)]


class Study(Store):
    """Runs of one function with different parameters, each done once and kept.

    A run is a pure function of its parameters: numbers, strings, lists or dicts of them. It
    returns a dict of numbers, :class:`Estimate`, arrays, tables and :class:`History`. What it
    returned, where it came from and how it ended is one file of the store, named by the hash of
    the parameters. A run that failed is a record too, and is tried again the next time.

    Inside a run, :func:`train` goes on from its last finished epoch if the run was interrupted.
    Several processes can work on one store, also on several machines that share its folder:
    each run is locked while it is done.

    Parameters
    ----------
    name : str
        Letters, digits, ``-`` and ``_``.
    run : callable
        Defined by ``def``, so that its source can be hashed: a record made by other code, or by
        another version of this package's numerics, counts as outdated.
    store : path
        A folder; records of the study go into ``store / name``.

    Examples
    --------
    >>> def run(x: int, power: int = 2) -> dict:
    ...     return {"y": x**power}
    >>> import tempfile
    >>> study = Study("powers", run, store=tempfile.mkdtemp())
    >>> study.run(grid(x=[2, 3]), progress=False)[["x", "power", "y", "status"]]
       x  power  y status
    0  2      2  4   done
    1  3      2  9   done
    """

    def __init__(self, name: str, run: Run, store: str | Path = "runs") -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"name must be of letters, digits, - and _, got {name!r}")
        if not callable(run):
            raise TypeError(f"run must be a function, got {type(run).__name__}")
        code_hash(run)  # what cannot be hashed is refused now
        _check_signature(run)
        super().__init__(Path(store).absolute() / name)
        self.function = run

    @property
    def code(self) -> str:
        """Hash of the run's code, as it is now: in a notebook its helpers can be redefined."""
        return code_hash(self.function)

    def run(
        self,
        runs: Iterable[Mapping[str, Any]],
        *,
        client: Any = None,
        workers: int | None = None,
        outdated: Outdated = "rerun",
        progress: bool | None = True,
    ) -> pd.DataFrame:
        """Do the runs that are not in the store yet, and return the table of all of them.

        Parameters
        ----------
        runs : iterable of dict
            Parameters of each; see :func:`grid`.
        client : dask.distributed.Client or None
            Where to compute; its workers must see the store's folder under the same path. A
            worker that dies loses only its own run, which goes on elsewhere.
        workers : int or None
            So many processes of this machine, without a client; its threads are divided.
        outdated : {"rerun", "keep"}
            What to do with records made by other code: move them to the folder ``outdated``
            and do the runs again, or take them, marked in the table.
        progress : bool or None
            Whether to show a bar, in which the runs say how far they are, and to say at the end
            which of them failed. None leaves bars to the runs themselves.

        Returns
        -------
        DataFrame
            One row to a run, in the order given, equal ones once; see :meth:`table`.

        Raises
        ------
        ValueError, TypeError
            If a run's parameters do not fit the function.
        StoreError
            If the store cannot be written to; before anything is computed.
        """
        if outdated not in get_args(Outdated):
            raise ValueError(f"outdated must be 'rerun' or 'keep', got {outdated!r}")
        runs = [runs] if isinstance(runs, Mapping) else list(runs)
        if not all(isinstance(each, Mapping) for each in runs):
            raise TypeError(
                "runs must be a list of dicts of parameters, such as grid(...) gives"
            )
        wanted = {parameter_hash(p): p for p in map(self._complete, runs)}
        self._check_store()
        found = self._sort_out(wanted, outdated)
        code = self.code
        tasks = [
            Task(self.function, p, self.folder, code)
            for key, p in wanted.items()
            if key not in found
        ]
        with progress_bar(
            total=len(wanted), initial=len(found), desc=self.name, unit="run",
            progress=bool(progress),
        ) as bar, speaking_through(bar) if progress is not None else nullcontext():  # fmt: skip
            busy, by_key = [], {task.key: task for task in tasks}
            for key, outcome in _outcomes(tasks, client, workers):
                bar.update(outcome != "busy")
                if outcome == "busy":
                    busy.append(by_key[key])
            for task in busy:  # another process is at it: see what becomes of it
                while execute(task)[1] == "busy":
                    time.sleep(WAIT)
                bar.update()
        try:
            table = self._rows([self._read(key) for key in wanted])
        except FileNotFoundError as error:
            raise StoreError(
                f"{error.filename} was moved while {self.name} ran, by a process with other "
                "code: let one of them end, then call again"
            ) from None
        if progress:
            _report_failures(table)
        return table

    def __call__(self, **parameters: Any) -> Record:
        """The record of one run, which is done now if it is not in the store.

        So one run can begin where another one ended: with the network, say, that the study
        `networks` has trained, ``networks(width=64, seed=0).arrays["theta"]``. The code of that
        study is then part of the code of the run.

        Raises
        ------
        RuntimeError, FloatingPointError
            If that run failed or diverged.
        """
        self.run([parameters], progress=None)
        record = self.record(**parameters)
        if record.status != "done":
            kind = FloatingPointError if record.status == "diverged" else RuntimeError
            raise kind(
                f"{self.name} {record.status} for {written(parameters)}: {record.message}"
            )
        return record

    def _complete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters with the function's defaults filled in, or a sentence on what is wrong."""
        signature = inspect.signature(self.function)
        known = signature.parameters
        loose = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for name in parameters:
            if name not in known and not loose:
                close = get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else f", only {', '.join(known)}"
                raise ValueError(f"{self.name} has no parameter {name}{hint}")
        try:
            bound = signature.bind(**parameters)
        except TypeError as error:
            raise ValueError(
                f"{self.name} cannot run with {written(parameters)}: {error}"
            ) from None
        bound.apply_defaults()
        complete: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            many = known[name].kind is inspect.Parameter.VAR_KEYWORD
            _refuse_reserved(value if many else ())
            complete |= value if many else {name: value}
        return {name: records.plain(value, name) for name, value in complete.items()}

    def _check_store(self) -> None:
        """Refuse a store that cannot take the records, before anything is computed."""
        probe = self.folder / f".probe-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "locks").mkdir(exist_ok=True)
            for left in self.folder.glob(".probe-*"):
                if time.time() - left.stat().st_mtime > 60:  # of a process that was killed
                    left.unlink(missing_ok=True)
            with probe.open("wb") as file:
                file.write(bytes(PROBE))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"the store {self.folder} cannot be written to ({error.strerror}): nothing was "
                "computed; free some space, or name another folder"
            ) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def _is_outdated(self, record: Record) -> bool:
        made = record.provenance
        return (made.get("code_hash"), made.get("package_hash")) != (self.code, package_hash())

    def publish(
        self,
        folder: str | Path,
        digits: int = 5,
        leave_out: Sequence[str] = (),
        *,
        add: bool = False,
    ) -> Path:
        """As :meth:`Store.publish`; records made by other code are refused."""
        old = [record for record in self._records() if self._is_outdated(record)]
        if old:
            raise ValueError(
                f"{len(old)} records of {self.name} were made by other code: run them again "
                "before they are published"
            )
        return super().publish(folder, digits, leave_out, add=add)

    def _read(self, key: str) -> Record:
        return records.read(self.folder / f"{key}.npz", arrays=False)

    def _sort_out(self, wanted: Mapping[str, dict[str, Any]], outdated: Outdated) -> set[str]:
        """Keys of the runs that need not be done; damaged and outdated records move aside."""
        found, moved = set(), []
        for key in wanted:
            state, why = self._state(key, outdated)
            if state in ("damaged", "outdated"):
                lock = FileLock(self.folder / "locks" / f"{key}.lock")
                try:
                    with lock.acquire(timeout=0):  # or another process is making it anew
                        state, why = self._state(key, outdated)
                        if state in ("damaged", "outdated"):
                            _move(self.folder / f"{key}.npz", self.folder / state)
                except Timeout:
                    continue
                if why:
                    tqdm.write(f"{why}; the run is done again")
                moved += [key] * (state == "outdated")
            if state == "found":
                found.add(key)
        if moved:
            tqdm.write(
                f"{len(moved)} of {len(wanted)} records of {self.name} were made by other "
                f"code: they are in {self.folder / 'outdated'} now, and the runs are done again"
            )
        return found

    def _state(self, key: str, outdated: Outdated) -> tuple[str, str]:
        """Whether a record is "found", "outdated" or "damaged", and how; "" where none is."""
        try:
            record = records.read(self.folder / f"{key}.npz")
        except FileNotFoundError:
            return "", ""
        except DamagedRecordError as error:
            return "damaged", str(error)
        if record.status == "failed":
            return "", ""
        old = outdated == "rerun" and self._is_outdated(record)
        return ("outdated" if old else "found"), ""


def _check_signature(run: Run) -> None:
    """Refuse parameters that cannot be named in a call, or that tables have no place for."""
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):
        return  # of a builtin: refused for its missing source
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(f"parameters of a run are given by name, got {parameter}")
        _refuse_reserved([name])


def _refuse_reserved(names: Iterable[str]) -> None:
    taken = [name for name in names if name in RESERVED]
    if taken:
        raise ValueError(
            f"parameters must not be named as columns of every table, got {', '.join(taken)}"
        )


def _outcomes(
    tasks: Sequence[Task], client: Any, workers: int | None
) -> Iterator[tuple[str, Outcome]]:
    """Do tasks here, on a client, or on processes of this machine."""
    if client is None and workers is None:
        yield from map(execute, tasks)
        return
    if not tasks:
        return
    from landscape_core.experiments.cluster import on_client, on_processes

    if client is not None:
        yield from on_client(execute, tasks, client, _lost)
    elif workers is not None:
        yield from on_processes(execute, tasks, workers, _lost)


def _lost(task: Task, message: str) -> tuple[str, Outcome]:
    """A run that no worker survived, or whose record could not be written, has failed."""
    return task.key, failed(task, message)


def _move(path: Path, folder: Path) -> None:
    """Put a file aside, under a name that is free."""
    folder.mkdir(exist_ok=True)
    number, target = 0, folder / path.name
    while target.exists():
        number += 1
        target = folder / f"{path.stem}-{number}{path.suffix}"
    path.replace(target)


def _report_failures(table: pd.DataFrame) -> None:
    """Say which runs failed, and how the first of them did."""
    for status in ("failed", "diverged"):
        bad = table[table["status"] == status] if len(table) else table
        if len(bad):
            first = bad.iloc[0]
            tqdm.write(
                f"{len(bad)} of {len(table)} runs {status}; the first, {first['key']}: "
                f"{first['message']}"
            )
