"""Tables of runs: summarized by group, compared, correlated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Number
from typing import Any

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
    if {"n", "note"} & {*keys, *names}:
        raise ValueError("columns must not be named n or note, which the result has itself")
    rows = {}
    for key, group in table.groupby(keys, dropna=False):
        found: dict[str, Any] = {"n": len(group)}
        for name, column in names.items():
            values = group[column].dropna()
            found[name] = Interval(math.nan, math.nan, math.nan, 0, level)
            if len(values):
                mean = mean_interval(values, level, limits_of(column, values))
                found[name] = replace(mean, note="", rows=len(group))
        fewest = min((found[name].n for name in names if found[name].n), default=0)
        rows[key if len(keys) > 1 else key[0]] = found | {"note": note_on(fewest)}
    result = pd.DataFrame.from_dict(rows, orient="index", columns=["n", *names, "note"])
    if not result["note"].any():
        del result["note"]
    if not rows and len(keys) > 1:
        result.index = pd.MultiIndex.from_arrays([[] for _ in keys])
    result.index.names = keys if len(keys) > 1 else [keys[0]]
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
        One row to a group but the base, one column of :class:`Interval` to each of `columns`
        (see :func:`paired_difference`), and `n`, the number of pairs; a column `note` says
        where they are few. Pairs with a missing value are left out of that column.

    Examples
    --------
    >>> runs = pd.DataFrame({"lr": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "loss": [3, 4, 1, 2]})
    >>> print(compare_groups(runs, "lr", 1, ["loss"]).loc[2, "loss"])
    -2 (-2 to -2)
    """
    names = _named(table, columns)
    _columns(table, [by, pair])
    groups = {key: rows.set_index(pair) for key, rows in table.groupby(by, sort=False)}
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
    result = pd.DataFrame.from_dict(found, orient="index", columns=["n", *names, "note"])
    result.index.name = by
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
            pair = table[[x, y]].replace([math.inf, -math.inf], math.nan).dropna()
            found = _correlation_of(pair, x, y, method)
            rows.append({
                "x": x, "y": y, "r": found.value, "low": found.low, "high": found.high,
                "n": found.n, "p": p_value(pair[x], pair[y], method), "note": found.note,
            })  # fmt: skip
    names = ["x", "y", "r", "low", "high", "n", "p", "note"]
    result = pd.DataFrame(rows, columns=names)
    result.insert(7, "p_holm", holm(result["p"]))
    return result


def _correlation_of(pair: pd.DataFrame, x: str, y: str, method: Method) -> Interval:
    try:
        numbers = pair.astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"columns {x!r} and {y!r} must hold numbers") from None
    if len(numbers):
        return correlation(numbers[x], numbers[y], method)
    return Interval(math.nan, math.nan, math.nan, 0, note="no row has both values")


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
        differ, and the largest relative difference, inf where only one of two is finite. Times
        and texts are left out.

    Raises
    ------
    ValueError
        If two rows of a table have one key.
    """
    for each in (table, shipped):
        if each["key"].duplicated().any():
            twice = each["key"][each["key"].duplicated()].iloc[0]
            raise ValueError(f"every row must have a key of its own, got {twice!r} twice")
    rows = {}
    for key in [key for key in table["key"] if key in set(shipped["key"])]:
        a, b = (t.set_index("key").loc[key] for t in (table, shipped))
        names = [n for n in a.index if n in b.index and n not in ("seconds", "outdated")]
        pairs = [(a[n], b[n]) for n in names if isinstance(a[n], Number)]
        off = [_apart(x, y) for x, y in pairs if x != y and not (x != x and y != y)]
        rows[key] = {
            "numbers": len(pairs),
            "different": len(off),
            "largest": max(off, default=0.0),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _apart(x: Any, y: Any) -> float:
    """The relative difference of two numbers that are not equal."""
    if not (math.isfinite(x) and math.isfinite(y)):
        return math.inf
    return float(abs(x - y) / max(abs(x), abs(y)))


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
