"""One finished run, one file: its parameters, numbers, arrays and where they came from.

A record is a zip archive of NumPy arrays (.npz) with one member of JSON. Nothing is pickled, a
checksum guards every member, and the file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from torch import nn

from landscape_core.experiments.history import History
from landscape_core.results import Estimate

Status = Literal["done", "diverged", "failed"]
Parameters = dict[str, Any]
META = "record.json"


@dataclass(frozen=True)
class Record:
    """What one run left behind.

    Attributes
    ----------
    parameters : dict
        Of the run, as plain values.
    status : {"done", "diverged", "failed"}
    scalars : dict of str to number, bool, str or None
        An estimate is two of them: ``name`` and ``name_stderr``.
    arrays : dict of str to array
    tables : dict of str to DataFrame
        Such as the history of a training.
    provenance : dict
        Versions, source hashes, device, data, seconds, peak memory.
    message : str
        Of a run that diverged or failed: what happened, with the traceback.
    """

    parameters: Parameters
    status: Status
    scalars: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    message: str = ""

    @property
    def key(self) -> str:
        """The hash of the parameters, under which the record is filed."""
        return parameter_hash(self.parameters)

    @property
    def machine(self) -> str:
        """Processor and device that made it, such as ``"AMD EPYC (x86_64)"``."""
        made = self.provenance
        device = str(made["device"])
        return f"{made['processor']} ({device})" if made["processor"] else device

    def load_weights(self, model: nn.Module, name: str = "model") -> nn.Module:
        """Put the weights and buffers of a model that the run returned into `model`.

        Parameters
        ----------
        model : nn.Module
            Of the same architecture; it is changed, and returned in evaluation mode.
        name : str
            Under which the run returned it.

        Raises
        ------
        KeyError
            If the record holds no model of that name.
        ValueError
            If a weight has another shape or type.
        """
        prefix = f"{name}."
        saved = {
            k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)
        }
        if not saved:
            raise KeyError(f"the record holds no model {name!r}, only {', '.join(self.arrays)}")
        state = {key: torch.from_numpy(value.copy()) for key, value in saved.items()}
        for key, own in model.state_dict().items():
            if own.ndim == 0 and key in state and state[key].shape == (1,):
                state[key] = state[key][0]  # a file holds no array without axes
            if key in state and (state[key].shape, state[key].dtype) != (own.shape, own.dtype):
                raise ValueError(
                    f"{key} of the model must be {own.dtype} {tuple(own.shape)}, the record "
                    f"holds {state[key].dtype} {tuple(state[key].shape)}"
                )
        model.load_state_dict(state)
        return model.eval()


class DamagedRecordError(ValueError):
    """A record that cannot be read back."""


def plain(value: Any, name: str) -> Any:
    """Bring a parameter to a plain value, or say why it cannot be one.

    >>> plain(np.float64(0.5), "lr"), plain((1, 2), "sizes")
    (0.5, [1, 2])
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"parameter {name} must be finite, got {value}")
        return value
    if isinstance(value, list | tuple | range):
        return [plain(item, name) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"parameter {name} must have names as keys, got {key!r}")
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    kind = type(value).__name__
    raise TypeError(
        f"parameter {name} must be a number, a string, or a list or dict of them, got {kind}"
    )


def parameter_hash(parameters: Mapping[str, Any]) -> str:
    """Hash of a run's parameters: of names, values and types, and not of their order.

    1, 1.0 and True are different parameters; a tuple and a list of the same values are one.

    >>> parameter_hash({"lr": 0.1, "width": 64}) == parameter_hash({"width": 64, "lr": 0.1})
    True
    """
    canonical = json.dumps(
        plain(parameters, "of the run"), sort_keys=True, allow_nan=False, ensure_ascii=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def collect(returned: Any) -> dict[str, Any]:
    """Sort what a run returned into scalars, arrays and tables; fields of a :class:`Record`."""
    _check_names(returned)
    scalars: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    tables: dict[str, pd.DataFrame] = {}
    status, message = "done", ""
    for name, value in returned.items():
        if isinstance(value, History):
            tables[name] = _checked_table(name, value.table())
            if value.config.precision == "auto":
                scalars |= {f"{name}_{what}": each for what, each in value.picked.items()}
            if value.status == "diverged":
                status, message = "diverged", value.message
        elif isinstance(value, Estimate):
            if f"{name}_stderr" in returned:
                raise TypeError(f"result '{name}_stderr' is given twice, once by an estimate")
            scalars |= {name: value.value, f"{name}_stderr": value.stderr}
        elif isinstance(value, nn.Module):
            state = value.state_dict().items()
            arrays |= {f"{name}.{key}": each.detach().cpu().numpy() for key, each in state}
            clash = [each for each in returned if each.startswith(f"{name}.")]
            if clash:
                raise TypeError(f"result {clash[0]!r} is named as a part of the model {name!r}")
        elif isinstance(value, pd.DataFrame):
            tables[name] = _checked_table(name, value)
        else:
            _sort(name, value, scalars, arrays)
    return {
        "status": status, "scalars": scalars, "arrays": arrays, "tables": tables,
        "message": message,
    }  # fmt: skip


def _check_names(returned: Any) -> None:
    if not isinstance(returned, Mapping):
        kind = type(returned).__name__
        raise TypeError(f"a run must return a dict of named results, got {kind}")
    for name in returned:
        if not isinstance(name, str) or "\0" in name:
            raise TypeError(f"results must have strings as names, got {name!r}")


def _sort(name: str, value: Any, scalars: dict[str, Any], arrays: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        scalars[name] = value
        return
    if isinstance(value, list | tuple):
        value = _array(name, value)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"result {name!r} must be a plain array, got a masked one")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcU":
        arrays[name] = value
        return
    raise TypeError(
        f"result {name!r} must be a number, a string, an Estimate, an array, a tensor, "
        f"a table, a model or a History, got {type(value).__name__}"
    )


def _array(name: str, values: list[Any] | tuple[Any, ...]) -> np.ndarray:
    """A list as an array that says the same."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different length
        raise TypeError(f"result {name!r} cannot be an array: {error}") from None
    same = array.tolist() == list(values) or array.ndim != 1 or array.dtype.kind == "f"
    kinds = {isinstance(each, str) for each in values}
    whole = bool(values) and all(isinstance(each, int) for each in values)
    if not same or len(kinds) > 1 or (whole and array.dtype.kind not in "bi"):
        raise TypeError(f"result {name!r} must be a list of one kind of values, got {values!r}")
    return array


def write(record: Record, path: Path) -> None:
    """Write a record so that the file is complete or absent, also after a crash."""
    meta = {
        "parameters": record.parameters,
        "status": record.status,
        "scalars": {name: _number(value) for name, value in record.scalars.items()},
        "tables": {name: _columns(table) for name, table in record.tables.items()},
        "provenance": record.provenance,
        "message": record.message,
    }
    partial = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(META, json.dumps(meta, allow_nan=False))
                for name, array in record.arrays.items():
                    buffer = BytesIO()
                    np.lib.format.write_array(
                        buffer, np.ascontiguousarray(array), allow_pickle=False
                    )
                    archive.writestr(f"{name}.npy", buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, *, arrays: bool = True) -> Record:
    """Read a record back, its checksums compared.

    Raises
    ------
    DamagedRecordError
        If the file is not a whole record; the sentence names it.
    OSError
        If it cannot be read at all: a missing file, or one that may not be opened.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            meta = json.loads(archive.read(META))
            members = [name for name in archive.namelist() if name != META]
            found = {
                name.removesuffix(".npy"): np.lib.format.read_array(
                    BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in members
                if arrays
            }
        return Record(
            meta["parameters"],
            cast(Status, meta["status"]),
            {name: _float(value) for name, value in meta["scalars"].items()},
            found,
            {name: _table(split) for name, split in meta["tables"].items()},
            meta["provenance"],
            meta["message"],
        )
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedRecordError(f"{path} is damaged and cannot be read: {error}") from error
    except Exception as error:  # zlib has an error of its own
        if type(error).__module__ != "zlib":
            raise
        raise DamagedRecordError(f"{path} is damaged and cannot be read: {error}") from error


def _checked_table(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Refuse what a record cannot hold, while the run can still be said to have failed."""
    if not all(isinstance(column, str) for column in table.columns):
        raise TypeError(f"table {name!r} must have strings as names of columns")
    if table.index.nlevels > 1 or table.columns.nlevels > 1 or not table.columns.is_unique:
        raise TypeError(f"table {name!r} must have one level of unique columns and of rows")
    for column in [table.index.to_series(), *(table[each] for each in table)]:
        for value in column.tolist():
            if not (value is None or isinstance(value, bool | int | float | str)):
                kind = type(value).__name__
                raise TypeError(
                    f"table {name!r} must hold numbers and strings, got {kind} in "
                    f"{column.name!r}"
                )
    return table


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """A table as lists of plain values; numbers keep all their digits."""
    return {
        "index": None if table.index.equals(pd.RangeIndex(len(table))) else {
            "name": table.index.name, "values": [_number(v) for v in table.index.tolist()],
        },
        "columns": [[str(c), [_number(v) for v in table[c].tolist()]] for c in table.columns],
        "dtypes": [str(dtype) for dtype in table.dtypes],
    }  # fmt: skip


def _table(saved: dict[str, Any]) -> pd.DataFrame:
    names = [name for name, _ in saved["columns"]]
    data = {name: [_float(v) for v in values] for name, values in saved["columns"]}
    table = pd.DataFrame(data, columns=names)
    for name, dtype in zip(names, saved["dtypes"], strict=True):
        table[name] = table[name].astype(dtype)
    if saved["index"] is not None:
        values = [_float(v) for v in saved["index"]["values"]]
        table.index = pd.Index(values, name=saved["index"]["name"])
    return table


def _number(value: Any) -> Any:
    """JSON knows no nan and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _float(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value
