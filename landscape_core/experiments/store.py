"""Finished runs of one study, to be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import landscape_core
from landscape_core.experiments import records
from landscape_core.experiments.records import DamagedRecordError, Record, parameter_hash

REFERENCE = Path(landscape_core.__file__).parent / "reference"


class Store:
    """A folder of records, one file to a finished run.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def table(self) -> pd.DataFrame:
        """All records of the store, one row each, in the order in which they were begun.

        Columns: the parameters, then the scalars that the run returned, then status, message,
        seconds, key, and whether the record is outdated.
        """
        paths = sorted(self.folder.glob("*.npz"))
        found = []
        for path in paths:
            try:
                found.append(records.read(path, arrays=False))
            except DamagedRecordError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=2)
        return self._rows(sorted(found, key=lambda record: record.provenance["begun"]))

    def record(self, **parameters: Any) -> Record:
        """The record of one run, with its arrays and tables.

        Raises
        ------
        KeyError
            If there is none; the sentence says which parameters there are.
        """
        path = self.folder / f"{parameter_hash(self._complete(parameters))}.npz"
        if not path.exists():
            raise KeyError(f"there is no record of {self.name} for {written(parameters)}")
        return records.read(path)

    def find(self, **some: Any) -> list[Record]:
        """The records whose parameters have these values, whatever the others are.

        In the order in which they were begun, with arrays and tables.
        """
        wanted = records.plain(some, "of the search")
        found = []
        for path in self.folder.glob("*.npz"):
            parameters = records.read(path, arrays=False).parameters
            if all(name in parameters and parameters[name] == v for name, v in wanted.items()):
                found.append(records.read(path))
        return sorted(found, key=lambda record: record.provenance["begun"])

    def arrays(self, **parameters: Any) -> dict[str, np.ndarray]:
        """The arrays of one run, by name."""
        return self.record(**parameters).arrays

    def tables(self, name: str, runs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """One table of several runs, such as their histories, with their parameters."""
        parts = []
        for each in runs:
            record = self.record(**each)
            if name in record.tables:
                table = record.tables[name].copy()
                for parameter, value in _flat(record.parameters).items():
                    own = parameter in table  # the table's column keeps its name
                    table[f"{parameter} (parameter)" if own else parameter] = value
                parts.append(table)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def publish(
        self, folder: str | Path, digits: int = 5, leave_out: Sequence[str] = ()
    ) -> Path:
        """Write all finished records into `folder / name`, small enough to be shipped.

        Arrays of floating-point numbers are rounded to so many significant digits and kept in
        single precision; scalars and tables stay as they are. Arrays and models named in
        `leave_out` stay behind.
        """
        target = Path(folder) / self.name
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("*.npz")):
            record = records.read(path)
            if record.status == "failed":
                continue
            arrays = {
                name: _rounded(array, digits)
                for name, array in record.arrays.items()
                if name.split(".")[0] not in leave_out
            }
            records.write(replace(record, arrays=arrays), target / path.name)
        return target

    def _complete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        complete: dict[str, Any] = records.plain(dict(parameters), "of the run")
        return complete

    def _is_outdated(self, record: Record) -> bool | None:
        return None  # nothing is known here of the code that would be run today

    def _rows(self, found: Sequence[Record]) -> pd.DataFrame:
        rows = [
            {
                **_flat(record.parameters),
                **record.scalars,
                "status": record.status,
                "message": record.message.strip().splitlines()[-1] if record.message else "",
                "seconds": record.provenance.get("seconds"),
                "outdated": self._is_outdated(record),
                "key": record.key,
            }
            for record in found
        ]
        return pd.DataFrame(rows)


def reference(name: str) -> Store:
    """The records of a full-scale run that ship with the package.

    Raises
    ------
    KeyError
        If there are none of that name; the sentence says which there are.
    """
    known = sorted(path.name for path in REFERENCE.glob("*") if path.is_dir())
    if name not in known:
        raise KeyError(
            f"there is no reference run {name!r}, only: {', '.join(known) or 'none'}"
        )
    return Store(REFERENCE / name)


def _rounded(array: np.ndarray, digits: int) -> np.ndarray:
    """To so many significant digits, in single precision; other kinds of arrays as they are."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.where(array == 0, 0.0, np.floor(np.log10(np.abs(array))))
    scale = 10.0 ** (digits - 1 - np.where(np.isfinite(power), power, 0.0))
    return np.asarray(np.round(array * scale) / scale, dtype=np.float32)


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as cells of a table: lists and dicts as text."""
    return {
        name: str(value) if isinstance(value, list | dict) else value
        for name, value in parameters.items()
    }


def written(parameters: Mapping[str, Any]) -> str:
    """Parameters as one would write them in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items()) or "no values"
