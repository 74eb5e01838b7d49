"""Measures of the ledger: from records to a number with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import linregress
from scipy.stats import t as student_t

from landscape_core.experiments.records import Record
from landscape_core.experiments.statistics import (
    Interval,
    correlation,
    mean_interval,
    paired_difference,
)
from landscape_core.experiments.store import Store

Where = Mapping[str, Any]


def rows_where(table: pd.DataFrame, where: Where) -> pd.DataFrame:
    """Rows with these values; a list allows any of its members."""
    for name, value in where.items():
        several = value if isinstance(value, list) else [value]
        table = table[table[name].isin(several)]
    return table


def _by_seed(table: pd.DataFrame, where: Where, column: str) -> pd.Series:
    """A column of these rows by seed."""
    rows = rows_where(table, where)
    _all_done(rows["status"], where)
    return _one_each(rows.dropna(subset=column).set_index("seed")[column], where)


def _all_done(status: Iterable[str], where: Where) -> None:
    """Refuse runs that ended early: a mean without them would be one of survivors."""
    ended = sorted({each for each in status if each != "done"})
    if ended:
        raise ValueError(f"all runs of {dict(where)} must be done, got some that {ended[0]}")


def _one_each(values: pd.Series, where: Where) -> pd.Series:
    """In order of their seeds, of which each may occur once."""
    twice = sorted(set(values.index[values.index.duplicated()].tolist()))
    if twice:
        raise ValueError(f"{dict(where)} must name one run to a seed, got several of {twice}")
    return values.sort_index()


def _paired(here: pd.Series, there: pd.Series) -> Interval:
    """The difference over the seeds that both have."""
    both = here.index.intersection(there.index)
    return paired_difference(here[both], there[both])


def _of_each(store: Store, where: Where, number: Callable[[Record], float]) -> pd.Series:
    """A number of each of these runs, by seed."""
    runs = store.find(**where)
    _all_done([run.status for run in runs], where)
    seeds = [run.parameters["seed"] for run in runs]
    return _one_each(pd.Series([number(run) for run in runs], index=seeds), where)


def mean(store: Store, column: str, where: Where) -> Interval:
    """Mean of a column over seeds."""
    return mean_interval(_by_seed(store.table(), where, column))


def final(store: Store, column: str, where: Where) -> Interval:
    """Mean over seeds of a column of the history, at the last epoch of training."""
    return mean_interval(
        _of_each(store, where, lambda run: run.tables["history"][column].iloc[-1])
    )


def highest(store: Store, column: str, where: Where) -> Interval:
    """Mean over seeds of the largest value that a column of the history has at any epoch."""
    return mean_interval(
        _of_each(store, where, lambda run: run.tables["history"][column].max())
    )


def lowest(store: Store, array: str, where: Where) -> Interval:
    """Mean over runs of the smallest element of an array."""
    return mean_interval(_of_each(store, where, lambda run: run.arrays[array].min()))


def difference(
    store: Store, column: str, where: Where, base: Where, minus: str | None = None
) -> Interval:
    """Mean paired difference over seeds, of rows `where` and rows `base`.

    With `minus`, of the column minus that one.
    """
    table = store.table()
    table = table.assign(value=table[column] - (table[minus] if minus else 0.0))
    return _paired(_by_seed(table, where, "value"), _by_seed(table, base, "value"))


def difference_at(store: Store, column: str, epoch: int, where: Where, base: Where) -> Interval:
    """Mean paired difference over seeds of a column of the history after so many epochs."""

    def there(run: Record) -> float:
        history = run.tables["history"]
        return float(history[column][history.epoch == epoch].item())

    return _paired(_of_each(store, where, there), _of_each(store, base, there))


def ratio(store: Store, column: str, where: Where, base: Where) -> Interval:
    """Geometric mean of paired ratios over seeds."""
    table = store.table()
    here, there = (_by_seed(table, side, column) for side in (where, base))
    least = min(here.min(), there.min())
    if not least > 0:
        raise ValueError(f"ratios are of positive numbers, got {least:g}")
    return _exponential(_paired(np.log(here), np.log(there)))


def gain(store: Store, column: str, by: str, where: Where, base: Where) -> Interval:
    """Paired difference over seeds between the best setting and a base.

    The best is chosen by the same seeds, which makes the difference a little too large.
    """
    best = rows_where(store.table(), where).groupby(by)[column].mean().idxmax()
    return difference(store, column, {**where, by: best}, base)


def unrest(store: Store, column: str, where: Where, base: Where, last: int = 10) -> Interval:
    """Ratio over seeds of a column's variance over the last epochs of training."""

    def of(run: Record) -> float:
        return math.log(run.tables["history"][column].tail(last).var())

    return _exponential(_paired(_of_each(store, where, of), _of_each(store, base, of)))


def rank_correlation(
    store: Store, x: str, y: str, where: Where, minus: str | None = None,
    cells: Sequence[str] = (),
) -> Interval:  # fmt: skip
    """Spearman's correlation of two columns over runs; with `minus`, of y minus that one.

    With `cells`, of the means over the runs in which these columns agree: the seeds of one
    network and setting are no independent points beside those of another.
    """
    table = rows_where(store.table(), where)
    table = table.assign(difference=table[y] - (table[minus] if minus else 0.0))
    if cells:
        table = table.groupby(list(cells))[[x, "difference"]].mean()
    return correlation(table[x], table["difference"])


def exponent(store: Store, x: str, y: str, where: Where) -> Interval:
    """The power b of y = a x^b over runs, by least squares of the logarithms."""
    table = rows_where(store.table(), where)
    line = linregress(np.log(table[x].astype(float)), np.log(table[y].astype(float)))
    half = float(student_t.ppf(0.975, len(table) - 2) * line.stderr)
    return Interval(line.slope, line.slope - half, line.slope + half, len(table))


def _exponential(logs: Interval) -> Interval:
    """The interval of a ratio from that of its logarithm."""
    value, low, high = (math.exp(x) for x in (logs.value, logs.low, logs.high))
    return Interval(value, low, high, logs.n, logs.level, logs.note)


MEASURING = (
    mean, final, highest, lowest, difference, difference_at, ratio, gain, unrest,
    rank_correlation, exponent,
)  # fmt: skip
MEASURES: dict[str, Callable[..., Interval]] = {each.__name__: each for each in MEASURING}
