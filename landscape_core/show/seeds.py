"""Figures of studies: many runs, their mean over seeds and its 95 % interval.

Intervals are drawn from three runs of a group on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from landscape_core.experiments.statistics import correlation, limits_of, mean_interval
from landscape_core.experiments.tables import finite_pairs
from landscape_core.show.picture import Picture
from landscape_core.show.style import WIDTH, looks, plain_log_ticks, styled

Columns = Mapping[str, str]  # what an axis says, with units, to the column it shows
LETTERS = 66  # that fit below a row of panels


@styled
def plot_epochs(
    histories: pd.DataFrame,
    panels: Columns,
    by: str,
    *,
    epoch: str = "epoch",
    log: Collection[str] = (),
) -> Picture:
    """Means over seeds against the epoch, with their 95 % intervals as bands.

    At each epoch of the runs that came so far: one that ends early is in no later mean.

    Parameters
    ----------
    histories : DataFrame
        One row to an epoch of a run, such as :meth:`Store.tables` gives.
    panels : mapping of str to str
        What the axis of a panel says to the column that it shows.
    by : str
        The column that tells groups of runs apart; a group is one line.
    epoch : str
        The column along the horizontal axis.
    log : collection of str
        The panels with a logarithmic axis; means and intervals there are those of the
        logarithms, where all values are positive.

    Examples
    --------
    >>> table = pd.DataFrame({"epoch": [1, 2, 1, 2], "loss": [2.0, 1, 3, 2], "lr": [0.1] * 4})
    >>> plot_epochs(table, {"loss (nats)": "loss"}, by="lr")
    Picture(still)
    """
    figure, grid = _panels(panels, histories, by)
    if histories.empty:
        return _empty(figure, grid, panels)
    names = dict(_groups(histories, by))
    for axes, (label, column) in zip(grid, panels.items(), strict=True):
        for name, look in looks(names).items():
            found = _over_seeds(names[name], epoch, column, label in log).sort_index()
            axes.plot(
                found.index, found["mean"], label=name, color=look["color"],
                linestyle=look["linestyle"],
            )  # fmt: skip
            axes.fill_between(
                found.index, found["low"], found["high"], color=look["color"], alpha=0.2,
                linewidth=0,
            )  # fmt: skip
        axes.set(xlabel=epoch, ylabel=label)
        if label in log:
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
    return _finished(figure, grid[0], by)


@styled
def plot_groups(
    table: pd.DataFrame,
    panels: Columns,
    x: str,
    *,
    by: str | None = None,
    log: Collection[str] = (),
    logx: bool = False,
) -> Picture:
    """Every run as a point, and the mean of each group with its 95 % interval.

    Runs whose value is not finite, such as those that diverged, are counted above the panel.

    Parameters
    ----------
    table : DataFrame
        One row to a run, such as :meth:`Study.run` returns.
    panels : mapping of str to str
        What the axis of a panel says to the column that it shows.
    x : str
        The column along the horizontal axis: numbers, or names of settings.
    by : str or None
        A second column that tells groups apart, by colour and marker.
    log : collection of str
        The panels with a logarithmic axis; means and intervals there are those of the
        logarithms, where all values are positive.
    logx : bool
        Whether numbers along the horizontal axis stand on a logarithmic one.

    Examples
    --------
    >>> table = pd.DataFrame({"width": [64, 64, 256, 256], "trace": [9.0, 8.0, 5.0, 4.0]})
    >>> plot_groups(table, {"trace": "trace"}, x="width", logx=True)
    Picture(still)
    """
    figure, grid = _panels(panels, table, x, *([by] if by else []))
    if table.empty:
        return _empty(figure, grid, panels)
    groups = _groups(table, by) if by else [("", table)]
    places, ticks = _places(table[x], logx)
    lying = max(map(len, ticks)) > 8  # long names stand beside rows
    if lying:
        rows = -(-len(grid) // _columns(panels))
        figure.set_size_inches(WIDTH, 0.6 + rows * (0.6 + 0.28 * len(ticks)))
        places = -places
    for place, (axes, (label, column)) in enumerate(zip(grid, panels.items(), strict=True)):
        for index, (name, look) in enumerate(looks(str(name) for name, _ in groups).items()):
            moved = places + (index - (len(groups) - 1) / 2) * 0.25 / len(groups)
            _group(
                axes, groups[index][1], column, x, moved, {**look, "label": name}, lying,
                label in log,
            )  # fmt: skip
        named, valued = (axes.yaxis, axes.xaxis) if lying else (axes.xaxis, axes.yaxis)
        named.set_ticks(places.to_numpy(), labels=ticks)
        if not lying and _run_together(ticks, places.to_numpy(), LETTERS // _columns(panels)):
            named.set_tick_params(rotation=45)
        named.set_minor_locator(NullLocator())
        named.set_label_text("" if lying else x)
        if lying:
            axes.set_ylim(places.min() - 0.5, 0.5)
        lost = int((~np.isfinite(table[column].astype(float))).sum())
        if lost:
            axes.set_title(f"not finite, not drawn: {lost} of {len(table)}", fontsize=9)
        valued.set_label_text(label)
        if label in log:
            (axes.set_xscale if lying else axes.set_yscale)("log")
            plain_log_ticks(valued)
        if lying and place % _columns(panels):  # named at the left end of the row
            named.set_ticklabels([])
    return _finished(figure, grid[0] if by else None, by or "")


@styled
def plot_scatter(
    table: pd.DataFrame, panels: Columns, y: tuple[str, str], *, by: str | None = None,
    cells: Sequence[str] = (),
) -> Picture:  # fmt: skip
    """One outcome against several measures, a point to a run, with rank correlations.

    The title of a panel holds the rank correlation with its 95 % interval and the number of
    runs. Runs of different settings differ in much else: a correlation over them is no effect.
    And the seeds of one setting are no independent points beside those of another: name the
    columns of a setting as `cells`, and the correlation is that of the means.

    Parameters
    ----------
    table : DataFrame
    panels : mapping of str to str
        What the horizontal axis of a panel says to the column that it shows; logarithmic where
        all values are positive and span more than a factor of ten.
    y : (str, str)
        What the vertical axis says, and its column.
    by : str or None
        The column that tells settings apart, by colour and marker.
    cells : sequence of str
        Runs that agree in these columns count as one in the correlation, by their means.

    Examples
    --------
    >>> table = pd.DataFrame({"trace": [1.0, 2, 3, 4, 6], "gap": [0.1, 0.3, 0.2, 0.4, 0.5]})
    >>> plot_scatter(table, {"trace": "trace"}, y=("gap", "gap"))
    Picture(still)
    """
    figure, grid = _panels(panels, table, y[1], *([by] if by else []), *cells)
    if table.empty:
        return _empty(figure, grid, panels)
    groups = _groups(table, by) if by else [("", table)]
    independent = table
    if cells:
        independent = table.groupby([*cells], dropna=False)[[*panels.values(), y[1]]].mean()
    for axes, (label, column) in zip(grid, panels.items(), strict=True):
        for (name, part), look in zip(
            groups, looks(str(name) for name, _ in groups).values(), strict=True
        ):
            axes.scatter(
                part[column], part[y[1]], s=22, label=str(name), color=look["color"],
                marker=look["marker"], alpha=0.8,
            )  # fmt: skip
        values = table[column].dropna()
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_xscale("log")
            plain_log_ticks(axes.xaxis)
        both = finite_pairs(independent, column, y[1])
        if both.empty:
            axes.set_title("no run has both", fontsize=9)
            axes.set(xlabel=label, ylabel=y[0] if axes is grid[0] else "")
            continue
        found = correlation(both[column], both[y[1]], method="spearman")
        ends = "" if math.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
        count = f"{found.n} means" if cells else f"n = {found.n}"
        axes.set_title(f"{found.value:.2f}{ends}, {count}", fontsize=9)
        axes.set(xlabel=label, ylabel=y[0] if axes is grid[0] else "")
    return _finished(figure, grid[0] if by else None, by or "")


def _panels(panels: Columns, table: pd.DataFrame, *needed: str) -> tuple[Figure, list[Axes]]:
    """A figure with one panel to each column, two to a row where there are more than three."""
    if not panels:
        raise ValueError("there is nothing to draw: name at least one panel")
    for column in [*panels.values(), *needed]:
        if column not in table and len(table.columns):  # without runs there may be none
            raise ValueError(
                f"the table has no column {column!r}, only {', '.join(map(str, table))}"
            )
    columns = _columns(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.7 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[len(panels) :]:
        unused.set_visible(False)
    return figure, grid[: len(panels)]


def _empty(figure: Figure, grid: list[Axes], panels: Columns) -> Picture:
    """What a table without runs gives: a study that was asked for none of a kind goes on."""
    for axes, label in zip(grid, panels, strict=True):
        axes.set(ylabel=label, xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no runs", ha="center", va="center", transform=axes.transAxes)
    return Picture(figure)


def _columns(panels: Columns) -> int:
    """How many panels stand in a row."""
    return len(panels) if len(panels) <= 3 else 2


def _finished(figure: Figure, axes: Axes | None, title: str) -> Picture:
    """With one legend above all panels, where there is more than one group."""
    if axes is not None:
        handles, names = axes.get_legend_handles_labels()
        columns = min(len(names), 5 if max(map(len, names)) < 14 else 3)
        figure.legend(
            handles, names, loc="outside upper center", ncols=columns, title=title,
            title_fontsize=9,
        )  # fmt: skip
    return Picture(figure)


def _over_seeds(part: pd.DataFrame, x: str, column: str, log: bool) -> pd.DataFrame:
    """At each x the mean and its 95 % interval; for positive values of a log axis, of the logs.

    No interval for fewer than three runs: that of two has the width of the page.
    """
    logs = log and bool((part[column].dropna() > 0).all())
    rows = {}
    for at, values in part.groupby(x, sort=False)[column]:
        finite = values[np.isfinite(values)].to_numpy(float)
        if not len(finite):
            rows[at] = (math.nan, math.nan, math.nan)
            continue
        if logs:
            found = mean_interval(np.log(finite))
        else:
            found = mean_interval(finite, limits=limits_of(column, finite))
        ends = (found.low, found.high) if len(finite) > 2 else (found.value, found.value)
        rows[at] = tuple(np.exp([found.value, *ends])) if logs else (found.value, *ends)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def _groups(table: pd.DataFrame, by: str) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each group by its name; those without a value are a group, too."""
    return [
        ("none" if pd.isna(name) else str(name), part)
        for name, part in table.groupby(by, sort=False, dropna=False)
    ]


def _places(values: pd.Series, logx: bool) -> tuple[pd.Series, list[str]]:
    """Where each value of the horizontal axis stands, and its name.

    Equally far apart, in their order; numbers on a logarithmic axis as far as there.
    """
    lacking = int(values.isna().sum())
    if lacking:
        raise ValueError(f"every row needs a value of {values.name!r}, {lacking} have none")
    known: Sequence[Any] = list(dict.fromkeys(values))
    if pd.api.types.is_numeric_dtype(values):
        known = sorted(known)
    at = np.arange(len(known), dtype=float)
    if logx and min(known) <= 0:
        raise ValueError(f"a logarithmic axis needs positive values, got {min(known)}")
    if logx and len(known) > 1:
        logs = np.log(np.asarray(known, dtype=float))
        at = (logs - logs[0]) / np.diff(logs).min()
    names = [f"{each:g}" if isinstance(each, float) else str(each) for each in known]
    return pd.Series(at, index=pd.Index(known)), names


def _run_together(names: Sequence[str], places: np.ndarray, letters: int) -> bool:
    """Whether neighbours overlap below an axis that is as wide as so many letters."""
    unit = letters / (np.ptp(places) + 1)
    halves = [len(name) / 2 + 1 for name in names]
    needed = np.add(halves[1:], halves[:-1])
    return bool((needed > np.diff(places) * unit).any())


def _group(
    axes: Axes,
    part: pd.DataFrame,
    column: str,
    x: str,
    places: pd.Series,
    look: dict[str, str],
    lying: bool,
    log: bool,
) -> None:
    """Points and means of one group, upwards or, where names are long, to the right."""
    colour, name = look["color"], look["label"]
    found = _over_seeds(part, x, column, log)
    at, ends = part[x].map(places), [places[each] + 0.08 for each in found.index]
    axes.scatter(
        part[column] if lying else at, at if lying else part[column], s=14, color=colour,
        alpha=0.4,
    )  # fmt: skip
    errors = [found["mean"] - found["low"], found["high"] - found["mean"]]
    axes.errorbar(
        found["mean"] if lying else ends, ends if lying else found["mean"],
        xerr=errors if lying else None, yerr=None if lying else errors,
        color=colour, marker=look["marker"], linestyle="none", label=name,
    )  # fmt: skip
