"""Figures of the measurements; each takes results by name and returns a Picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, PercentFormatter

from landscape_core.experiments.data import Split
from landscape_core.experiments.history import History
from landscape_core.geometry.balls import UNITS
from landscape_core.geometry.paths import PathProfile
from landscape_core.geometry.sharpness import FlatnessProfile
from landscape_core.results import Estimate
from landscape_core.show.picture import Picture
from landscape_core.show.style import WIDTH, looks, plain_log_ticks, styled

SLIVER = 8  # a training so many times shorter than another needs a logarithmic axis

Z95 = 1.96  # half width of a 95 % normal interval, in standard errors


@styled
def plot_images(split: Split, count: int = 12) -> Picture:
    """Show the first images of a split with their labels.

    Parameters
    ----------
    split : Split
    count : int
        How many, at least 1; in one row of at most 12.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    count = min(count, split.examples)
    columns = min(count, 12)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.85 * rows * 12 / columns), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, pixels, label in zip(grid, split.inputs[:count], split.targets, strict=False):
        low, high = pixels.min(), pixels.max().clamp_min(pixels.min() + 1e-6)
        image = ((pixels - low) / (high - low)).permute(1, 2, 0).numpy()  # (H, W, C)
        axes.imshow(image.squeeze(), cmap="gray_r" if image.shape[2] == 1 else None)
        axes.set_title(str(int(label)), fontsize=9)
    return Picture(figure)


@styled
def plot_training(histories: Mapping[str, History]) -> Picture:
    """Training loss and test accuracy by epoch, one line to a network."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, look in looks(histories).items():
        table = histories[name].table()
        left.plot(table["epoch"], table["train_loss"], label=name, markevery=0.2, **look)
        right.plot(table["epoch"], table["test_accuracy"], label=name, markevery=0.2, **look)
    lengths = [len(history.epochs) for history in histories.values()]
    uneven = bool(lengths) and max(lengths) > SLIVER * min(lengths)
    scale = "log" if uneven else "linear"
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log", xscale=scale)
    right.set(xlabel="epoch", ylabel="test accuracy", xscale=scale)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.legend()
    return Picture(figure)


@styled
def plot_flatness(
    profiles: Mapping[str, FlatnessProfile],
    traces: Mapping[str, tuple[Estimate, int]] | None = None,
) -> Picture:
    """Stems of the mean loss rise at each radius, with 95 % intervals over directions.

    Parameters
    ----------
    profiles : mapping of name to FlatnessProfile
    traces : mapping of name to (trace of the Hessian, n), optional
        Adds what a quadratic loss would do, ``radius^2 * trace / (2 n)``, as dashed lines, and
        a second panel with the measured rise over that prediction. Its intervals combine the
        errors of both. For profiles with ``norm="l2"`` and ``adaptive="none"``.

    Raises
    ------
    ValueError
        If the radii of the profiles do not mean the same.
    """
    units = {profile.unit for profile in profiles.values()}
    if len(units) != 1:
        raise ValueError(f"radii on one axis must mean the same, got {sorted(units)}")
    unit = units.pop()
    if traces and unit != UNITS["l2"]:
        raise ValueError(f"traces predict rises for radii in the {UNITS['l2']}, got: {unit}")
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, 2 if traces else 1, squeeze=False)[0]
    ratios: list[float] = []
    for i, (name, look) in enumerate(looks(profiles).items()):
        profile = profiles[name]
        # Networks side by side at one radius: a shift of a few percent on the log axis.
        x = profile.radii * 1.07 ** (i - (len(profiles) - 1) / 2)
        mean = np.array([rise.value for rise in profile.rises])
        stderr = np.array([rise.stderr for rise in profile.rises])
        half = np.array([_half(rise) for rise in profile.rises])
        _stems(panels[0], x, mean, half, name, look)
        if traces and name in traces:
            trace, n = traces[name]
            predicted = profile.radii**2 * trace.value / (2 * n)
            panels[0].plot(x, predicted, color=look["color"], linewidth=1, linestyle="--")
            ratio = mean / predicted
            ratios.extend(ratio)
            # Of the sum of both errors as wide as of the rises alone: these have fewer samples.
            wide = half / np.where(stderr > 0, stderr, 1)
            error = wide * np.hypot(stderr / predicted, ratio * trace.relative_error)
            colour, marker = look["color"], look["marker"]
            panels[1].errorbar(x, ratio, error, color=colour, marker=marker, linewidth=1)
    means = np.array([rise.value for p in profiles.values() for rise in p.rises])
    means = means[np.isfinite(means)]
    if means.size and (means > 0).all():
        panels[0].set_yscale("log")
        panels[0].set_ylim(means.min() / 3, means.max() * 3)
    else:  # some directions go down: both signs on one axis, linear around zero
        largest = float(np.abs(means).max(initial=0.0))
        panels[0].set_yscale("symlog", linthresh=max(1e-12, largest * 1e-4))
        panels[0].axhline(0, color="#555555", linewidth=0.8)
    panels[0].set_ylabel("rise of the loss (nats)")
    if traces:
        panels[1].axhline(1, color="#555555", linewidth=0.8, linestyle="--")
        panels[1].set_ylabel("measured / predicted")
        if all(ratio > 0 for ratio in ratios if math.isfinite(ratio)):  # none goes down
            panels[1].set_yscale("log")
            panels[1].yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            panels[1].yaxis.set_major_formatter("{x:g}")
            panels[1].yaxis.set_minor_formatter(NullFormatter())
    for axes in panels:
        axes.set(xscale="log", xlabel=f"radius ({unit})")
    _legend_above(figure, panels[0], "mean and 95 % interval over directions")
    return Picture(figure)


def _half(rise: Estimate) -> float:
    """Half the width of Student's 95 % interval; nan where one sample has none."""
    high = rise.interval()[1]
    return high - rise.value if math.isfinite(high) else math.nan


def _stems(
    axes: Axes,
    x: np.ndarray,
    mean: np.ndarray,
    half: np.ndarray,
    name: str,
    look: Mapping[str, str],
) -> None:
    colour, marker = look["color"], look["marker"]
    axes.vlines(x, np.minimum(mean, 0), np.maximum(mean, 0), color=colour, alpha=0.6)
    axes.errorbar(x, mean, half, color=colour, marker=marker, linestyle="none", label=name)


def _legend_above(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        title=title,
        title_fontsize=9,
    )


@styled
def plot_paths(profiles: Mapping[str, PathProfile], examples: str = "examples") -> Picture:
    """Loss and accuracy along paths, with 95 % bands over the examples.

    Parameters
    ----------
    profiles : mapping of name to PathProfile
    examples : str
        What the bands are over, for the legend: "test images", say.
    """
    labelled = all(profile.accuracy is not None for profile in profiles.values())
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
    for name, look in looks(profiles).items():
        profile = profiles[name]
        _band(panels[0], profile.t, profile.loss, profile.loss_stderr, name, look)
        if profile.accuracy is not None and profile.accuracy_stderr is not None and labelled:
            _band(panels[1], profile.t, profile.accuracy, profile.accuracy_stderr, name, look)
    panels[0].set_ylabel("loss (nats)")
    _legend_above(figure, panels[0], f"band: 95 % over {examples}")
    if labelled:
        panels[1].set_ylabel("accuracy")
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in panels:
        axes.set_xlabel("t  (0: first network, 1: second)")
    return Picture(figure)


@styled
def plot_lines(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float] | np.ndarray]]],
    *,
    xlabel: str,
    title: str = "",
    logx: bool = False,
    log: Collection[str] = (),
) -> Picture:
    """Curves in one or several panels, with 95 % intervals where errors are given.

    Parameters
    ----------
    panels : mapping of panel to mapping of series to (x, y) or (x, y, standard errors)
        Panels are named by what their axis shows, with units. A series of one name has one
        look in all panels, and stands in the legend once.
    xlabel : str
        With units.
    title : str
        Of the legend: what the errors are over.
    logx : bool
    log : collection of str
        The panels with a logarithmic axis.

    Examples
    --------
    >>> plot_lines({"rise (nats)": {"mean": ([1, 2], [0.1, 0.4], [0.01, 0.02])}}, xlabel="step")
    Picture(still)
    """
    if not panels:
        raise ValueError("there is nothing to draw: name at least one panel")
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    names = dict.fromkeys(name for series in panels.values() for name in series)
    known: dict[str, Any] = {}
    for axes, (panel, series) in zip(grid, panels.items(), strict=True):
        for name, look in looks(names).items():
            if name not in series:
                continue
            x, y, *errors = (np.asarray(part, dtype=float) for part in series[name])
            half = Z95 * errors[0] if errors else None
            known[name] = axes.errorbar(x, y, half, **look)
        axes.set(xlabel=xlabel, ylabel=panel)
        if logx:
            axes.set_xscale("log")
            points = sorted({float(x) for at, *_ in series.values() for x in at})
            if len(points) < 9:  # few enough to name each
                axes.set_xticks(points, labels=[f"{point:g}" for point in points])
                axes.xaxis.set_minor_locator(NullLocator())
        if panel in log:
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
    columns = len(known) if sum(map(len, known)) < 70 else 2
    figure.legend(
        known.values(), known.keys(), loc="outside upper center", ncols=columns,
        title=title or None, title_fontsize=9,
    )  # fmt: skip
    return Picture(figure)


def _band(
    axes: Axes,
    x: np.ndarray,
    mean: np.ndarray,
    stderr: np.ndarray,
    name: str,
    look: Mapping[str, str],
) -> None:
    half = Z95 * stderr
    axes.fill_between(x, mean - half, mean + half, color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(x, mean, label=name, color=look["color"], linestyle=look["linestyle"])
