"""Figures to move: contours and curves that a slider changes together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from landscape_core.geometry.slices import Plane
from landscape_core.show.picture import Picture
from landscape_core.show.sliders import LOG, axis, layout, seen, slider, spread
from landscape_core.show.style import WIDTH, looks, plain_log_ticks, styled
from landscape_core.show.surfaces import (
    LEVELS,
    LOSS,
    STEPS,
    fill_contours,
    loss_bar,
    loss_range,
    loss_ticks,
)

COLOURS = ("#2188c9", "#c9741f", "#2a9d6f", "#b5559b", "#808080")  # on white and on dark pages
DASHES = ("solid", "dash", "dashdot", "dot", "longdash")
Series = Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]


@styled
def plot_contour_steps(
    planes: Mapping[str, Mapping[Any, Plane]],
    name: str,
    *,
    log: bool = True,
    labels: tuple[str, str] = STEPS,
) -> Picture:
    """Contours of several planes side by side, which change together along a slider.

    All are drawn on one colour scale.

    Parameters
    ----------
    planes : mapping of title to mapping of value to Plane
        One panel to a title; every panel has the same values, in the same order.
    name : str
        What the values are; it stands at the slider.
    log : bool
        Whether levels are spaced evenly in the logarithm of the loss.
    labels : (str, str)
        Of the axes.

    Examples
    --------
    >>> import landscape_core as lc, torch
    >>> x, y = torch.randn(20, 2), torch.randn(20, 1)
    >>> objective = lc.Objective(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (x, y))
    >>> d1, d2 = torch.eye(3)[:2]
    >>> planes = {r: lc.plane(objective, d1, d2, span=r, points=5) for r in (0.5, 1.0)}
    >>> plot_contour_steps({"two weights": planes}, "span")
    Picture(still, interactive)
    """
    values = _same_values(planes)
    every = [plane.loss for panel in planes.values() for plane in panel.values()]
    low, high, log = loss_range(every, log)
    return Picture(
        _contour_still(planes, name, values, (low, high), log, labels),
        _contour_slider(planes, name, values, (low, high), log, labels),
    )


def _same_values(panels: Mapping[str, Mapping[Any, Any]]) -> list[Any]:
    """The values that every panel has."""
    lists = [list(panel) for panel in panels.values()]
    if not lists or not lists[0]:
        raise ValueError("there is nothing to draw: name at least one panel with one value")
    if any(values != lists[0] for values in lists):
        raise ValueError(f"all panels must have the same values, got {lists}")
    return lists[0]


def _contour_still(
    planes: Mapping[str, Mapping[Any, Plane]],
    name: str,
    values: list[Any],
    ends: tuple[float, float],
    log: bool,
    labels: tuple[str, str],
) -> Figure:
    chosen = [values[i] for i in spread(len(values))]
    height = 0.9 + len(planes) * WIDTH / (len(chosen) + 0.8)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(planes), len(chosen), squeeze=False, sharey="row")
    for row, (title, panel) in zip(grid, planes.items(), strict=True):
        for axes, value in zip(row, chosen, strict=True):
            filled = fill_contours(axes, panel[value], ends, log)
            axes.set_title(f"{name} {value}", fontsize=9)
        row[0].set_ylabel(title)
    figure.supxlabel(labels[0], fontsize=10)
    figure.supylabel(labels[1], fontsize=10)
    loss_bar(figure, filled, grid.ravel().tolist(), ends, log)
    return figure


def _contour_slider(
    planes: Mapping[str, Mapping[Any, Plane]],
    name: str,
    values: list[Any],
    ends: tuple[float, float],
    log: bool,
    labels: tuple[str, str],
) -> go.Figure:
    figure, groups = go.Figure(), []
    width = 1 / len(planes)
    options: dict[str, Any] = {}
    for column, (title, panel) in enumerate(planes.items()):
        suffix = "" if column == 0 else str(column + 1)
        for i, value in enumerate(values):
            trace = contour_trace(panel[value], ends, log, bar=column == len(planes) - 1)
            trace.update(xaxis=f"x{suffix}", yaxis=f"y{suffix}", visible=i == 0)
            figure.add_trace(trace)
            groups.append(i)
        domain = [column * width, (column + 0.88) * width]
        options[f"xaxis{suffix}"] = axis(
            labels[0], domain=domain, showgrid=False, constrain="domain"
        )
        options[f"yaxis{suffix}"] = axis(
            labels[1] if column == 0 else "", showgrid=False, scaleanchor=f"x{suffix}",
            anchor=f"x{suffix}", constrain="domain", showticklabels=column == 0,
        )  # fmt: skip
        figure.add_annotation(
            text=title, x=0.5, y=1.02, xref=f"x{suffix} domain", yref=f"y{suffix} domain",
            showarrow=False, yanchor="bottom", font={"size": 13},
        )  # fmt: skip
    changes = [[{"visible": seen(groups, i)}] for i in range(len(values))]
    moved = slider(name, [str(value) for value in values], changes, 0)
    figure.update_layout(layout(440, [moved], showlegend=False, **options))
    return figure


def contour_trace(plane: Plane, ends: tuple[float, float], log: bool, bar: bool) -> go.Contour:
    """Filled contours of a plane, between two losses."""
    loss = np.clip(np.nan_to_num(plane.loss, nan=ends[1]), *ends)
    low, high = np.log10(ends) if log else ends
    colorbar: dict[str, Any] = {
        "title": {"text": LOSS},
        "thickness": 12,
        "len": 0.9,
        "outlinewidth": 0,
    }
    if log:
        ticks, texts = loss_ticks(np.array([low, high]))
        colorbar |= {"tickvals": ticks, "ticktext": texts}
    return go.Contour(
        x=plane.x.astype(np.float32),
        y=plane.y.astype(np.float32),
        z=(np.log10(loss) if log else loss).astype(np.float32),
        customdata=plane.loss.astype(np.float32),
        hovertemplate="x %{x:.3g}, y %{y:.3g}<br>loss %{customdata:.4g}<extra></extra>",
        autocontour=False,
        contours={"start": float(low), "end": float(high), "size": float(high - low) / LEVELS},
        line={"color": "rgba(255,255,255,0.5)", "width": 0.5},
        colorscale="Viridis",
        zmin=float(low),
        zmax=float(high),
        showscale=bar,
        colorbar=colorbar,
    )


@styled
def plot_line_steps(
    frames: Mapping[Any, Mapping[str, Series]],
    name: str,
    *,
    xlabel: str,
    log: Collection[str] = (),
) -> Picture:
    """Panels of curves that change together along a slider.

    Parameters
    ----------
    frames : mapping of value to mapping of panel to mapping of series to (x, y)
        Panels are named by what their axis shows, with units. Every value has the same panels
        and series.
    name : str
        What the values are; it stands at the slider.
    xlabel : str
        With units.
    log : collection of str
        The panels with a logarithmic axis.

    Examples
    --------
    >>> frames = {f: {"f(x)": {"power": ([1, 2, 3], [1, 2**f, 3**f])}} for f in (1, 2)}
    >>> plot_line_steps(frames, "exponent", xlabel="x")
    Picture(still, interactive)
    """
    if not frames:
        raise ValueError("there is nothing to draw: name at least one value")
    panels = _same_values({str(value): frame for value, frame in frames.items()})
    series = {
        panel: _same_values({str(v): frames[v][panel] for v in frames}) for panel in panels
    }
    return Picture(
        _line_still(frames, name, series, xlabel, log),
        _line_slider(frames, name, series, xlabel, log),
    )


def _line_still(
    frames: Mapping[Any, Mapping[str, Series]],
    name: str,
    series: dict[str, list[str]],
    xlabel: str,
    log: Collection[str],
) -> Figure:
    values = list(frames)
    chosen = [values[i] for i in spread(len(values))]
    figure = Figure(figsize=(WIDTH, 0.8 + 2.0 * len(series)), layout="constrained")
    grid = figure.subplots(len(series), len(chosen), squeeze=False, sharex=True, sharey="row")
    appearance = looks(dict.fromkeys(each for names in series.values() for each in names))
    for row, (panel, names) in zip(grid, series.items(), strict=True):
        for axes, value in zip(row, chosen, strict=True):
            for each in names:
                x, y = frames[value][panel][each]
                look = appearance[each]
                axes.plot(x, y, label=each, color=look["color"], linestyle=look["linestyle"])
            if panel in log:
                axes.set_yscale("log")
        row[0].set_ylabel(panel)
        if panel in log:
            plain_log_ticks(row[0].yaxis)
    for axes, value in zip(grid[0], chosen, strict=True):
        axes.set_title(f"{name} {value}", fontsize=9)
    figure.supxlabel(xlabel, fontsize=10)
    known: dict[str, Any] = {}
    for axes in grid[:, 0]:
        handles, texts = axes.get_legend_handles_labels()
        known |= dict(zip(texts, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(known))
    return figure


def _line_slider(
    frames: Mapping[Any, Mapping[str, Series]],
    name: str,
    series: dict[str, list[str]],
    xlabel: str,
    log: Collection[str],
) -> go.Figure:
    figure, groups = go.Figure(), []
    order = list(dict.fromkeys(each for names in series.values() for each in names))
    named: set[str] = set()  # a series stands in the legend once
    options: dict[str, Any] = {}
    height = 1 / len(series)
    for row, (panel, names) in enumerate(series.items()):
        suffix = "" if row == 0 else str(row + 1)
        fresh = set(names) - named
        named |= fresh
        for i, frame in enumerate(frames.values()):
            for each in names:
                x, y = (np.asarray(part, dtype=np.float32) for part in frame[panel][each])
                look = order.index(each)
                line = {"color": COLOURS[look % len(COLOURS)], "dash": DASHES[look % 5]}
                figure.add_trace(
                    go.Scatter(
                        x=x,
                        y=y,
                        name=each,
                        line=line,
                        mode="lines",
                        visible=i == 0,
                        xaxis="x",
                        yaxis=f"y{suffix}",
                        showlegend=each in fresh,
                        hovertemplate="%{x:.4g}: %{y:.4g}<extra>" + each + "</extra>",
                    )
                )
                groups.append(i)
        top = 1 - row * height
        options[f"yaxis{suffix}"] = axis(
            panel, domain=[top - 0.9 * height, top], anchor="x",
            range=_common_range(frames, panel, panel in log),
            **(LOG if panel in log else {}),
        )  # fmt: skip
    last = "y" if len(series) == 1 else f"y{len(series)}"
    options["xaxis"] = axis(xlabel, anchor=last)
    changes = [[{"visible": seen(groups, i)}] for i in range(len(frames))]
    moved = slider(name, [str(value) for value in frames], changes, 0)
    figure.update_layout(layout(180 + 200 * len(series), [moved], **options))
    return figure


def _common_range(
    frames: Mapping[Any, Mapping[str, Series]], panel: str, log: bool
) -> list[float]:
    """From the lowest to the highest value at any position of the slider."""
    every = np.concatenate(
        [
            np.asarray(y, dtype=float)
            for frame in frames.values()
            for _, y in frame[panel].values()
        ]
    )
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    if not every.size:
        raise ValueError(f"there is nothing to draw: no value of {panel!r} can be shown")
    low, high = float(every.min()), float(every.max())
    if log:
        return [float(np.log10(low)) - 0.05, float(np.log10(high)) + 0.05]
    return [low - 0.04 * (high - low), high + 0.04 * (high - low) or 1.0]
