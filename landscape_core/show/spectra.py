"""Pictures of spectra, and of how the errors of estimates fall with the work."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from landscape_core.curvature.density import SpectralDensity
from landscape_core.show.picture import Picture
from landscape_core.show.sliders import axis, layout, seen, slider, spread
from landscape_core.show.style import COLOURS, WIDTH, looks, styled
from landscape_core.show.surfaces import MARK

EIGENVALUE = "eigenvalue (nats per squared weight)"
DENSITY = "density (squared weights per nat)"
POINTS = 401  # on the axis of the eigenvalues
BLUE = "#2188c9"  # legible on a white page and on a dark one
FAR = 1e300
BAND = (0.1, 0.9)  # quantiles of repeated runs
BLUR = 100  # the support over the standard deviation of the kernel
Marks = Mapping[str, Tensor]


@styled
def plot_density(
    densities: Mapping[str, SpectralDensity],
    *,
    marks: Marks | None = None,
    level: float = 0.95,
    log: bool = True,
) -> Picture:
    """Spectral densities side by side, each with its interval over the probes.

    Every panel has its own scale: the points of a density are spread to Gaussians whose
    standard deviation is a hundredth of its support.

    Parameters
    ----------
    densities : mapping of title to SpectralDensity
    marks : mapping of title to Tensor, shape (k,), optional
        Eigenvalues known from elsewhere, drawn as ticks.
    level : float
        Of the band, by Student's t over the probes.
    log : bool
        Whether the density is on a logarithmic axis, on which single eigenvalues can be seen.

    Examples
    --------
    >>> import torch
    >>> from landscape_core.curvature.density import spectral_density
    >>> from landscape_core.curvature.operators import Matrix
    >>> A = Matrix(torch.diag(torch.linspace(0, 1, 50)))
    >>> plot_density({"a ramp": spectral_density(A, steps=10, probes=4)})
    Picture(still)
    """
    columns = min(3, len(densities)) if len(densities) != 4 else 2
    rows = -(-len(densities) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, density) in zip(panels, densities.items(), strict=False):
        x, width = _axis(density)
        known = (marks or {}).get(title)
        _draw(axes, density, x, width, level, log, _values(known))
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(4 if columns < 3 else 3))
    for axes in panels[len(densities) :]:
        axes.axis("off")
    _name_once(figure, panels[0], f"band: {level:.0%} over probes")
    return Picture(figure)


@styled
def plot_density_steps(
    densities: Mapping[int, SpectralDensity], *, marks: Tensor | None = None
) -> Picture:
    """The density as it emerges with the steps of Lanczos: a page has a slider for them.

    Parameters
    ----------
    densities : mapping of number of steps to SpectralDensity
        Of one operator, from the same probes. All are drawn on the axis of the last one.
    marks : Tensor, shape (k,), optional
        Eigenvalues known from elsewhere, drawn as ticks.

    Examples
    --------
    >>> import torch
    >>> from landscape_core.curvature.density import spectral_density
    >>> from landscape_core.curvature.operators import Matrix
    >>> A = Matrix(torch.diag(torch.linspace(0, 1, 50)))
    >>> plot_density_steps({m: spectral_density(A, m, 4) for m in (2, 4, 8)})
    Picture(still, interactive)
    """
    last = densities[max(densities)]
    x, width = _axis(last)
    known = _values(marks)
    numbers = sorted(densities)
    chosen = [numbers[i] for i in spread(len(numbers))]
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    for axes, steps in zip(panels, chosen, strict=False):
        _draw(axes, densities[steps], x, width, 0.95, True, known)
        axes.set_title(f"{steps} step{'s' if steps > 1 else ''}")
    for axes in panels[len(chosen) :]:
        axes.axis("off")
    floor = _floor(last, width)
    panels[0].set_ylim(floor, 3 * max(d.smooth(x, width).max() for d in densities.values()))
    _name_once(figure, panels[0], "band: 95% over probes")
    return Picture(figure, _slider(densities, x, width, known))


@styled
def plot_convergence(
    errors: Mapping[str, tuple[np.ndarray | list[float], np.ndarray | list[list[float]]]],
    *,
    xlabel: str = "products with the Hessian",
    ylabel: str = "relative error",
) -> Picture:
    """Errors against work on logarithmic axes: the median of repeated runs, and a band.

    Parameters
    ----------
    errors : mapping of name to (x, errors)
        x of shape (m,), errors of shape (m, runs). The band holds the runs from the 10 % to
        the 90 % quantile. A run that gave nan is taken as infinitely far off. Where a quantile
        is zero or infinite, nothing is drawn.
    xlabel, ylabel : str
        With units where there are any.

    Examples
    --------
    >>> plot_convergence({"halving": ([1, 2, 3], [[0.5, 0.6], [0.25, 0.3], [0.12, 0.15]])})
    Picture(still)
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, look in looks(errors).items():
        x, runs = np.asarray(errors[name][0]), np.asarray(errors[name][1], dtype=float)
        # A run without a result is as far off as can be, and so is what lies next to it.
        runs = np.where(np.isfinite(runs), runs, FAR)
        parts = np.quantile(runs, [BAND[0], 0.5, BAND[1]], axis=1)
        drawn = np.where((parts > 0) & (parts < FAR / 1e9), parts, np.nan)
        low, middle, high = drawn
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.plot(
            x, middle, label=name, color=look["color"], marker=look["marker"],
            linestyle=look["linestyle"],
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    low, high = axes.get_xlim()
    if high < 100 * low:  # too short for powers of ten: name the points themselves
        points = sorted({float(x) for x, _ in errors.values() for x in np.asarray(x)})
        axes.set_xticks(points, labels=[f"{x:g}" for x in points])
        axes.xaxis.set_minor_locator(NullLocator())
    _name_once(figure, axes, "median; band: 10% to 90% of the runs")
    return Picture(figure)


def _axis(density: SpectralDensity) -> tuple[np.ndarray, float]:
    """Points to draw a density at, and the width of its kernel."""
    low, high = density.support
    span = (high - low) or abs(high) or 1.0
    return np.linspace(low - 0.06 * span, high + 0.06 * span, POINTS), span / BLUR


def _floor(density: SpectralDensity, width: float) -> float:
    """A twentieth of the height of a single eigenvalue: what is lower is nothing."""
    return float(0.05 / (density.n * width * np.sqrt(2 * np.pi)))


def _values(marks: Tensor | None) -> np.ndarray:
    return np.zeros(0) if marks is None else marks.detach().double().cpu().numpy()


def _curves(
    density: SpectralDensity, x: np.ndarray, width: float, level: float, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The density and its band, cut off at `floor`, so that a logarithm exists."""
    middle = density.smooth(x, width)
    low, high = density.band(x, width, level)
    high = np.where(np.isfinite(high), high, middle)  # one probe has no band
    low = low if density.probes > 1 else middle
    return np.maximum(low, floor), np.maximum(middle, floor), np.maximum(high, floor)


def _draw(
    axes: Axes,
    density: SpectralDensity,
    x: np.ndarray,
    width: float,
    level: float,
    log: bool,
    known: np.ndarray,
) -> None:
    floor = _floor(density, width) if log else 0.0
    low, middle, high = _curves(density, x, width, level, floor)
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(x, middle, color=COLOURS[0], label="density")
    if log:
        axes.set_yscale("log")
        axes.set_ylim(floor, 3 * float(middle.max()))
    if len(known):
        base = axes.get_xaxis_transform()
        ticks = np.full_like(known, 0.03)
        axes.plot(
            known, ticks, "|", color=MARK, markersize=9, transform=base, label="eigenvalues"
        )


def _name_once(figure: Figure, axes: Axes, title: str) -> None:
    """One legend above the figure, and one name for the axes that it shares."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if sum(map(len, labels)) < 70 else 2
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, title=title,
        title_fontsize=9,
    )  # fmt: skip
    if not axes.get_xlabel():
        figure.supxlabel(EIGENVALUE, fontsize=10)
        figure.supylabel(DENSITY, fontsize=10)


def _slider(
    densities: Mapping[int, SpectralDensity], x: np.ndarray, width: float, known: np.ndarray
) -> go.Figure:
    """Every number of steps is a pair of traces, and the slider says which pair is seen."""
    floor = _floor(densities[max(densities)], width)
    numbers = sorted(densities)
    figure, top = go.Figure(), 0.0
    for steps in numbers:
        low, middle, high = _curves(densities[steps], x, width, 0.95, floor)
        top = max(top, float(high.max()))
        shown = steps == numbers[-1]
        figure.add_trace(_band_trace(x, low, high, shown))
        figure.add_trace(_line_trace(x, middle, steps, shown))
    if len(known):
        figure.add_trace(_tick_trace(known, floor))
    groups: list[int | None] = [i for i in range(len(numbers)) for _ in range(2)]
    groups += [None] if len(known) else []
    changes = [[{"visible": seen(groups, i)}] for i in range(len(numbers))]
    moved = slider("Lanczos steps", list(map(str, numbers)), changes, len(numbers) - 1)
    powers = [float(np.log10(floor)), float(np.log10(2 * top))]
    figure.update_layout(
        layout(480, [moved]),
        xaxis=axis(EIGENVALUE, range=[float(x[0]), float(x[-1])]),
        yaxis=axis(DENSITY, type="log", range=powers, dtick=1, exponentformat="power"),
    )
    return figure


def _band_trace(x: np.ndarray, low: np.ndarray, high: np.ndarray, shown: bool) -> go.Scatter:
    red, green, blue = (int(BLUE[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]).astype(np.float32),
        y=np.concatenate([high, low[::-1]]).astype(np.float32),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.35)",
        line={"width": 0},
        hoverinfo="skip",
        name="95% over probes",
        visible=shown,
    )


def _line_trace(x: np.ndarray, y: np.ndarray, steps: int, shown: bool) -> go.Scatter:
    return go.Scatter(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        line={"color": BLUE, "width": 2},
        name=f"density, {steps} step{'s' if steps > 1 else ''}",
        hovertemplate="eigenvalue %{x:.3g}<br>density %{y:.3g}<extra></extra>",
        visible=shown,
    )


def _tick_trace(known: np.ndarray, floor: float) -> go.Scatter:
    return go.Scatter(
        x=known,
        y=np.full_like(known, 1.5 * floor),
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 11, "color": MARK, "line": {"width": 2}},
        name="eigenvalues",
        hovertemplate="eigenvalue %{x:.4g}<extra></extra>",
    )
