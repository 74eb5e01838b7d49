"""Tables of runs: summarized by group, compared, correlated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from landscape_core.experiments.statistics import (
    Interval,
    Method,
    correlation,
    holm,
    limits_of,
    mean_interval,
    note_on,
    p_value,
    paired_difference,
)

Columns = str | Sequence[str] | Mapping[str, str]


def summarize(
    table: pd.DataFrame, by: str | Sequence[str], columns: Columns, level: float = 0.95
) -> pd.DataFrame:
    """Means over the rows of each group, such as seeds, with Student's intervals.

    Parameters
    ----------
    table : DataFrame
        One row to a run.
    by : str or sequence of str
        The columns that tell groups apart.
    columns : sequence of str, or dict of str to str
        What is averaged; a dict says under which name each column goes.
    level : float
        Of confidence.

    Returns
    -------
    DataFrame
        One row to a group, one column of :class:`Interval` to each of `columns`, and `n`; a
        column `note` says where groups are small. Missing values are left out. Intervals of
        columns whose names end in ``accuracy`` stay between 0 and 1.
    """
    keys, names = _columns(table, by), _named(table, columns)
    _refuse_own([*keys, *names])
    rows: dict[Any, dict[str, Any]] = {}
    for key, group in table.groupby(keys, dropna=False):
        found: dict[str, Any] = {"n": len(group)}
        for name, column in names.items():
            values = group[column].dropna()
            found[name] = Interval(math.nan, math.nan, math.nan, 0, level)
            if len(values):
                try:
                    mean = mean_interval(values, level, limits_of(column, values))
                except (TypeError, ValueError) as error:
                    of = ", ".join(f"{k} = {v!r}" for k, v in zip(keys, key, strict=True))
                    raise ValueError(f"{column!r} of {of}: {error}") from error
                found[name] = replace(mean, note="", rows=len(group))
        fewest = min((found[name].n for name in names if found[name].n), default=0)
        rows[key if len(keys) > 1 else key[0]] = found | {"note": note_on(fewest)}
    result = pd.DataFrame([*rows.values()], columns=["n", *names, "note"])
    if not result["note"].any():
        del result["note"]
    if len(keys) == 1:
        result.index = pd.Index([*rows], name=keys[0])
    elif rows:
        result.index = pd.MultiIndex.from_tuples([*rows], names=keys)
    else:
        result.index = pd.MultiIndex.from_arrays([[] for _ in keys], names=keys)
    return result


def compare_groups(
    table: pd.DataFrame,
    by: str,
    base: Any,
    columns: Columns,
    pair: str = "seed",
    level: float = 0.95,
) -> pd.DataFrame:
    """Every group minus one of them, over pairs of rows with the same seed.

    Parameters
    ----------
    table : DataFrame
        One row to a run.
    by : str
        The column that tells groups apart.
    base : object
        Its value in the group that is subtracted.
    columns : sequence of str, or dict of str to str
        What is compared; a dict says under which name each column goes.
    pair : str
        The column that makes pairs; in each group its values must differ.
    level : float

    Returns
    -------
    DataFrame
        One row to a group that has a pair with the base, one column of :class:`Interval` to
        each of `columns` (see :func:`paired_difference`), and `n`, the number of pairs; a
        column `note` says where they are few. Pairs with a missing value are left out of that
        column.

    Examples
    --------
    >>> runs = pd.DataFrame({"lr": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "loss": [3, 4, 1, 2]})
    >>> print(compare_groups(runs, "lr", 1, ["loss"]).loc[2, "loss"])
    -2 (-2 to -2)
    """
    names = _named(table, columns)
    _columns(table, [by, pair])
    _refuse_own([by, *names])
    # Missing values are one group, under one name for all of them.
    groups = {
        None if pd.isna(key) else key: rows.set_index(pair)
        for key, rows in table.groupby(by, sort=False, dropna=False)
    }
    base = None if pd.isna(base) else base
    if base not in groups:
        known = ", ".join(map(str, groups))
        raise ValueError(f"base must be a value of {by}, one of {known}, got {base!r}")
    for key, rows in groups.items():
        if rows.index.has_duplicates:
            raise ValueError(
                f"{pair} must differ within a group, but {by} = {key!r} repeats it"
            )
    found = {}
    for key, rows in groups.items():
        both = rows.index.intersection(groups[base].index)
        if key == base or both.empty:
            continue
        row: dict[str, Any] = {"n": len(both)}
        fewest = len(both)
        for name, column in names.items():
            pairs = pd.DataFrame({"of": rows[column], "base": groups[base][column]}).dropna()
            fewest = min(fewest, len(pairs))
            row[name] = Interval(math.nan, math.nan, math.nan, 0, level)
            if len(pairs):
                difference = paired_difference(pairs["of"], pairs["base"], level)
                row[name] = replace(difference, note="", rows=len(both))
        found[key] = row | {"note": note_on(fewest)}
    index = pd.Index([*found], name=by, dtype=None if found else object)
    result = pd.DataFrame([*found.values()], index, columns=["n", *names, "note"])
    return result if result["note"].any() else result.drop(columns="note")


def correlations(
    table: pd.DataFrame, xs: Sequence[str], ys: Sequence[str], method: Method = "spearman"
) -> pd.DataFrame:
    """Correlations of several columns with several others, corrected for their number.

    Rows in which a value is missing or infinite are left out of the pair concerned. P-values of
    fewer than ten rows come from all permutations.

    Returns
    -------
    DataFrame
        One row to a pair: x, y, r, low, high, n, p, and `p_holm`, which is to be compared with
        0.05 when all pairs are looked at (Holm 1979, jstor.org/stable/4615733).
    """
    rows = []
    xs, ys = _columns(table, xs), _columns(table, ys)
    for x in xs:
        for y in ys:
            if x == y:
                continue
            pair = finite_pairs(table, x, y)
            found = Interval(math.nan, math.nan, math.nan, 0, note="no row has both values")
            if len(pair):
                found = correlation(pair[x], pair[y], method)
            rows.append({
                "x": x, "y": y, "r": found.value, "low": found.low, "high": found.high,
                "n": found.n, "p": p_value(pair[x], pair[y], method), "note": found.note,
            })  # fmt: skip
    names = ["x", "y", "r", "low", "high", "n", "p", "note"]
    result = pd.DataFrame(rows, columns=names)
    # A pair that is there both ways is one pair.
    place: dict[frozenset[str], int] = {}
    of = [
        place.setdefault(frozenset(xy), len(place))
        for xy in zip(result.x, result.y, strict=True)
    ]
    first = [of.index(k) for k in range(len(place))]
    result.insert(7, "p_holm", holm(result["p"].iloc[first])[of])
    return result


def finite_pairs(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The rows in which both columns are finite, as numbers."""
    try:
        pair = table[[x, y]].astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"columns {x!r} and {y!r} must hold numbers") from None
    return pair.replace([math.inf, -math.inf], math.nan).dropna()


def compare_runs(table: pd.DataFrame, shipped: pd.DataFrame) -> pd.DataFrame:
    """Differences between runs and earlier ones of the same parameters.

    Parameters
    ----------
    table, shipped : DataFrame
        As :meth:`Study.run` and :meth:`Store.table` return them.

    Returns
    -------
    DataFrame
        One row to a run that both have, by its key: how many numbers it has, how many of them
        differ, and the largest relative difference, inf where only one of two is finite, or is
        there at all. Times (seconds) and texts are left out; a run that failed in one of them
        alone differs by its status.

    Raises
    ------
    ValueError
        If two rows of a table have one key.
    """
    for each in (table, shipped):
        twice = each["key"][each["key"].duplicated()]
        if len(twice):
            raise ValueError(
                f"every row must have a key of its own, got {twice.iloc[0]!r} twice"
            )
    here, there = (each.set_index("key").to_dict("index") for each in (table, shipped))
    rows = {}
    for key in [key for key in here if key in there]:
        a, b = (_numbers_of(each[key]) for each in (here, there))
        off = [_apart(a.get(name), b.get(name)) for name in {**a, **b}]
        off += [math.inf] * (here[key].get("status") != there[key].get("status"))
        rows[key] = {
            "numbers": len({**a, **b}),
            "different": sum(each > 0 for each in off),
            "largest": max(off, default=0.0),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _numbers_of(row: Mapping[Any, Any]) -> dict[str, float]:
    """What can be compared of a row: no times, no texts, nothing that is missing."""
    return {
        str(name): float(value)
        for name, value in row.items()
        if name != "outdated"
        and "seconds" not in str(name).split("_")
        and isinstance(value, bool | int | float | np.number | np.bool_)
        and not math.isnan(float(value))
    }


def _apart(x: float | None, y: float | None) -> float:
    """The relative difference of two numbers; inf where one is missing."""
    if x == y:
        return 0.0
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        return math.inf
    return abs(x - y) / max(abs(x), abs(y))


def _refuse_own(names: Sequence[str]) -> None:
    """Refuse names that a result has itself."""
    if {"n", "note"} & {*names}:
        raise ValueError("columns must not be named n or note, which the result has itself")


def _columns(table: pd.DataFrame, names: str | Sequence[str]) -> list[str]:
    """Names of columns as a list; one that is not there is named."""
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in table:
            known = ", ".join(map(str, table))
            raise ValueError(f"the table has no column {name!r}, only {known}")
    return wanted


def _named(table: pd.DataFrame, columns: Columns) -> dict[str, str]:
    """Columns by the names that they go under."""
    if isinstance(columns, Mapping):
        return dict(zip(columns, _columns(table, [*columns.values()]), strict=True))
    return {name: name for name in _columns(table, columns)}
