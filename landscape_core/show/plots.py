"""Figures of the measurements; each takes results by name and returns a Picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from landscape_core.experiments.training import History
from landscape_core.geometry.paths import PathProfile
from landscape_core.geometry.sharpness import FlatnessProfile
from landscape_core.results import Estimate
from landscape_core.show.picture import Picture
from landscape_core.show.style import WIDTH, looks, styled

Z95 = 1.96  # half width of a 95 % normal interval, in standard errors


@styled
def plot_training(histories: Mapping[str, History]) -> Picture:
    """Training loss and test accuracy by epoch, one line to a network."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, look in looks(histories).items():
        table = histories[name].table()
        left.plot(table["epoch"], table["train_loss"], label=name, markevery=0.2, **look)
        right.plot(table["epoch"], table["test_accuracy"], label=name, markevery=0.2, **look)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.legend()
    return Picture(figure)


@styled
def plot_flatness(
    profiles: Mapping[str, FlatnessProfile],
    quadratic: Mapping[str, tuple[Estimate, int]] | None = None,
) -> Picture:
    """Stems of the mean loss rise at each radius, with 95 % intervals over directions.

    Parameters
    ----------
    profiles : mapping of name to FlatnessProfile
    quadratic : mapping of name to (trace of the Hessian, n), optional
        Draws what a quadratic loss would do, ``radius^2 * trace / (2 n)``, with the trace's
        95 % interval as a band.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    names = list(profiles)
    for i, (name, look) in enumerate(looks(names).items()):
        profile = profiles[name]
        # Networks side by side at one radius: a shift of a few percent on the log axis.
        x = profile.radii * 1.05 ** (i - (len(names) - 1) / 2)
        rises = profile.rises
        mean = np.array([rise.value for rise in rises])
        half = np.array([rise.interval()[1] - rise.value for rise in rises])
        axes.vlines(x, 0, mean, color=look["color"], alpha=0.6)
        axes.errorbar(
            x, mean, yerr=half, fmt=look["marker"], color=look["color"], capsize=2.5, label=name
        )
        if quadratic and name in quadratic:
            _quadratic(axes, profile.radii, *quadratic[name], look=look)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="symlog",
        xlabel="radius of the perturbation (l2 norm over all parameters)",
        ylabel="rise of the loss (nats)",
    )
    smallest = min(abs(rise.value) for p in profiles.values() for rise in p.rises)
    axes.set_yscale("symlog", linthresh=max(smallest, 1e-6))
    axes.legend(title="mean and 95 % interval over directions", title_fontsize=9)
    return Picture(figure)


def _quadratic(
    axes: Axes, radii: np.ndarray, trace: Estimate, n: int, look: Mapping[str, str]
) -> None:
    x = np.geomspace(radii.min(), radii.max(), 200)
    low, high = (bound * x**2 / (2 * n) for bound in trace.interval())
    axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(x, trace.value * x**2 / (2 * n), color=look["color"], linewidth=1, linestyle="--")


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
    panels[0].legend(title=f"band: 95 % over {examples}", title_fontsize=9)
    if labelled:
        panels[1].set_ylabel("accuracy")
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in panels:
        axes.set_xlabel("t  (0: first network, 1: second)")
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
