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
        return self._rows(self._records())

    def _records(self) -> list[Record]:
        """All that can be read, without arrays, in the order in which they were begun."""
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            try:
                record = records.read(path, arrays=False)
            except DamagedRecordError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=3)
                continue
            if record.key == path.stem:
                found.append(record)
            else:
                warnings.warn(
                    f"{path} holds the record of {record.key}.npz; it is left out",
                    stacklevel=3,
                )
        return sorted(found, key=lambda record: record.provenance["begun"])

    def record(self, **parameters: Any) -> Record:
        """The record of one run, with its arrays and tables.

        Raises
        ------
        KeyError
            If there is none; the sentence says which parameters there are.
        """
        path = self.folder / f"{parameter_hash(self._complete(parameters))}.npz"
        if not path.exists():
            known = ", ".join(str(record.parameters) for record in self._records()[:3])
            raise KeyError(
                f"there is no record of {self.name} for {written(parameters)}; among those "
                f"there are: {known or 'none'}"
            )
        return records.read(path)

    def find(self, **some: Any) -> list[Record]:
        """The records whose parameters have these values; without any, all of them.

        In the order in which they were begun, with arrays and tables.
        """
        known = self._records()
        for name in some:
            if known and not any(name in record.parameters for record in known):
                names = ", ".join(dict.fromkeys(k for r in known for k in r.parameters))
                raise ValueError(f"{self.name} has no parameter {name}, only {names}")
        wanted = {name: parameter_hash({"": value}) for name, value in some.items()}
        return [
            records.read(self.folder / f"{record.key}.npz")
            for record in known
            if all(
                name in record.parameters and parameter_hash({"": record.parameters[name]}) == v
                for name, v in wanted.items()
            )
        ]

    def summary(self) -> str:
        """How many runs there are, how long they took, and on which machines.

        Examples
        --------
        >>> import landscape_core as lc
        >>> print(lc.reference("09_noise_regimes").summary())
        09_noise_regimes: ... runs
          ... h on ..., ... thread..., torch ...
        """
        found = self._records()
        hours: dict[str, float] = {}
        for record in found:
            made = record.provenance
            threads = "1 thread" if made["threads"] == 1 else f"{made['threads']} threads"
            where = f"{record.machine}, {threads}, torch {made['torch']}"
            hours[where] = hours.get(where, 0.0) + (made["seconds"] or 0.0) / 3600
        runs = "1 run" if len(found) == 1 else f"{len(found)} runs"
        spent = [f"  {time:.1f} h on {where}" for where, time in hours.items()]
        return "\n".join([f"{self.name}: {runs}", *spent])

    def arrays(self, **parameters: Any) -> dict[str, np.ndarray]:
        """The arrays of one run, by name."""
        return self.record(**parameters).arrays

    def tables(
        self, name: str, runs: Iterable[Mapping[str, Any]] | None = None
    ) -> pd.DataFrame:
        """One table of several runs, such as their histories, with their parameters.

        Where no runs are named, of all that there are.

        Raises
        ------
        ValueError
            If the records have tables, but none of that name.
        """
        parts, known = [], set()
        for record in self.find() if runs is None else (self.record(**each) for each in runs):
            known |= set(record.tables)
            if name in record.tables:
                table = record.tables[name].copy()
                for parameter, value in _flat(record.parameters).items():
                    own = parameter in table  # the table's column keeps its name
                    table[f"{parameter} (parameter)" if own else parameter] = value
                parts.append(table)
        if known and not parts:
            raise ValueError(
                f"{self.name} has no table {name!r}, only {', '.join(sorted(known))}"
            )
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def publish(
        self,
        folder: str | Path,
        digits: int = 5,
        leave_out: Sequence[str] = (),
        *,
        add: bool = False,
    ) -> Path:
        """Write all finished records into `folder / name`, small enough to be shipped.

        Arrays of floating-point numbers are rounded to so many significant digits and kept in
        single precision; scalars and tables stay as they are. Arrays and models named in
        `leave_out` stay behind. What was published there before is replaced; with `add`, only
        where it is of the same runs, as a study that is done in several places needs.

        Raises
        ------
        ValueError
            If the target is the store itself.
        DamagedRecordError
            If a record cannot be read whole; nothing was written or replaced then.

        Warns
        -----
        UserWarning
            If records that stay there were made by other code than these.
        """
        if isinstance(leave_out, str):
            raise TypeError(f"leave_out must be a list of names, got {leave_out!r}")
        target = Path(folder) / self.name
        if target.resolve() == self.folder.resolve():
            raise ValueError(
                f"records cannot be published into their own store, {self.folder}: their "
                "digits would be lost"
            )
        for path in sorted(self.folder.glob("*.npz")):
            records.read(path)  # before anything is replaced
        kept = [record for record in self._records() if record.status != "failed"]
        target.mkdir(parents=True, exist_ok=True)
        if not add:
            for old in set(target.glob("*.npz")) - {target / f"{r.key}.npz" for r in kept}:
                old.unlink()
        self._warn_of_others(target, kept)
        for each in kept:
            path = self.folder / f"{each.key}.npz"
            record = records.read(path)
            arrays = {
                name: _rounded(array, digits)
                for name, array in record.arrays.items()
                if name.split(".")[0] not in leave_out
            }
            records.write(replace(record, arrays=arrays), target / path.name)
        return target

    def _warn_of_others(self, target: Path, kept: Sequence[Record]) -> None:
        """Say where records that stay were made by other code than those that come."""
        codes = {record.provenance.get("code_hash") for record in kept}
        keys = {record.key for record in kept}
        stay = [each for each in Store(target)._records() if each.key not in keys]
        other = sum(each.provenance.get("code_hash") not in codes for each in stay)
        if kept and other:
            warnings.warn(
                f"{other} of the {len(stay)} records of {self.name} that stay were made by "
                "other code than those that come: make sure that it computes the same",
                stacklevel=3,
            )

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
                "message": (record.message.strip().splitlines() or [""])[-1],
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
    """To so many significant digits, in single precision where that can hold them."""
    if array.dtype.kind != "f":
        return array
    wide = array.astype(np.float64)
    with np.errstate(all="ignore"):
        power = np.floor(np.log10(np.abs(wide)))
        scale = 10.0 ** (digits - 1 - power)
        rounded = np.round(wide * scale) / scale
        rounded = np.where(np.isfinite(rounded) & np.isfinite(scale), rounded, wide)
        narrow = rounded.astype(np.float32)
    kept = np.isfinite(narrow) == np.isfinite(rounded)
    kept &= (np.abs(narrow) >= np.finfo(np.float32).tiny) | (rounded == 0) | np.isnan(rounded)
    return narrow if kept.all() else rounded


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as cells of a table: lists and dicts as text."""
    return {
        name: str(value) if isinstance(value, list | dict) else value
        for name, value in parameters.items()
    }


def written(parameters: Mapping[str, Any]) -> str:
    """Parameters as one would write them in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items()) or "no values"
