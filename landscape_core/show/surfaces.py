"""Pictures of the loss over a plane: contours, and a surface to turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from landscape_core.geometry.slices import Plane
from landscape_core.show.picture import Picture
from landscape_core.show.style import LANDSCAPE, WIDTH, styled

LOSS = "loss (nats)"
LEVELS = 15
STEPS = ("step along direction 1", "step along direction 2")
GREY = "#808080"  # legible on a white page and on a dark one
MARK = "#d55e00"  # the colour-blind palette's vermilion
ARROW = {"arrowstyle": "-|>", "color": "white", "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
PLATE = {"boxstyle": "round,pad=0.2", "facecolor": "black", "alpha": 0.55, "linewidth": 0}
NAME = {
    "showarrow": False,
    "yshift": 12,
    "bgcolor": "rgba(0,0,0,0.55)",
    "borderpad": 2,
    "font": {"color": "white", "size": 12},
}  # a plate again, on a surface that turns
Marks = Mapping[str, tuple[float, float]]
CENTRE: Marks = {"": (0.0, 0.0)}


@styled
def plot_contours(
    planes: Mapping[str, Plane],
    *,
    marks: Marks | None = None,
    arrows: Marks | None = None,
    tracks: Mapping[str, np.ndarray] | None = None,
    log: bool = True,
    labels: tuple[str, str] = STEPS,
) -> Picture:
    """Contours of the loss over one or several planes, side by side on one colour scale.

    Parameters
    ----------
    planes : mapping of title to Plane
    marks : mapping of label to (x, y), optional
        Points to mark, in the plane's steps; None marks the centre.
    arrows : mapping of label to (x, y), optional
        Arrows from the centre, in the plane's steps.
    tracks : mapping of title to array, shape (p, 2), optional
        For each plane the points of a walk over it, such as those of a training run, in order.
    log : bool
        Whether levels are spaced evenly in the logarithm of the loss.
    labels : (str, str)
        Of the axes.
    """
    low, high, log = loss_range([plane.loss for plane in planes.values()], log)
    figure = Figure(
        figsize=(WIDTH, 0.9 + 2.9 * (2 / max(2, len(planes)))), layout="constrained"
    )
    heights = {(plane.y[0], plane.y[-1]) for plane in planes.values()}
    panels = figure.subplots(1, len(planes), sharey=len(heights) == 1, squeeze=False)[0]
    for axes, (title, plane) in zip(panels, planes.items(), strict=True):
        filled = fill_contours(axes, plane, (low, high), log)
        for label, (x, y) in (marks or ({} if tracks else CENTRE)).items():
            axes.plot(x, y, "o", color="white", markeredgecolor="black", markersize=6)
            axes.annotate(label, (x, y), (4, 4), textcoords="offset points", color="white")
        for label, (x, y) in (arrows or {}).items():
            axes.annotate("", (x, y), (0, 0), arrowprops=ARROW)
            text = axes.annotate(label, (x, y), (5, 5), textcoords="offset points")
            text.set(color="white", fontsize=9, bbox=PLATE)
        if tracks:
            _draw_track(axes, *np.asarray(tracks[title]).T)
        axes.set(title=title, xlabel=labels[0])
    panels[0].set_ylabel(labels[1])
    loss_bar(figure, filled, list(panels), (low, high), log)
    return Picture(figure)


def _draw_track(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    axes.plot(x, y, "-", color="white", linewidth=1.6, zorder=3)
    axes.scatter(x, y, s=22, c="white", edgecolors="black", linewidths=0.8, zorder=4)
    for text, at in (("start", 0), ("end", -1)):
        note = axes.annotate(text, (x[at], y[at]), (5, 5), textcoords="offset points")
        note.set(color="white", fontsize=9, bbox=PLATE, zorder=5)


def fill_contours(
    axes: Axes, plane: Plane, ends: tuple[float, float], log: bool
) -> QuadContourSet:
    """Draw filled contours between two losses, with equal steps on both axes."""
    levels = (np.geomspace if log else np.linspace)(*ends, LEVELS + 1)
    norm: Normalize = LogNorm(*ends) if log else Normalize(*ends)
    loss = np.clip(np.nan_to_num(plane.loss.astype(float), nan=ends[1]), *ends)
    filled = axes.contourf(plane.x, plane.y, loss, levels, cmap=LANDSCAPE, norm=norm)
    axes.contour(plane.x, plane.y, loss, levels, colors="white", linewidths=0.4, alpha=0.7)
    axes.set(aspect="equal")
    axes.grid(False)
    return filled


def loss_bar(
    figure: FigureBase,
    filled: QuadContourSet,
    panels: list[Axes],
    ends: tuple[float, float],
    log: bool,
) -> None:
    """The scale of the colours beside the panels."""
    bar = figure.colorbar(filled, ax=panels, shrink=0.85)
    if log:
        places, names = loss_ticks(np.log10(ends))
        bar.set_ticks([10.0**place for place in places], labels=names)
    else:
        bar.locator = MaxNLocator(6)
    bar.set_label(LOSS)


def loss_range(losses: list[np.ndarray], log: bool) -> tuple[float, float, bool]:
    """Lowest and highest loss to draw, and whether their logarithms can be drawn."""
    finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    if finite.size == 0:
        raise ValueError("there is nothing to draw: no loss on the planes is finite")
    low, high = float(finite.min()), float(finite.max())
    if log and low >= 0 and high > 0:
        low = max(low, high * 1e-6)
        return (low, high, True) if low < high else (low / 2, high * 2, True)
    return (low, high, False) if low < high else (low - 1, high + 1, False)


@styled
def plot_surface(
    plane: Plane,
    *,
    title: str = "",
    marks: Marks | None = None,
    log: bool = True,
    ceiling: float | None = None,
    view: tuple[float, float] = (-46.0, 30.0),
) -> Picture:
    """The loss over a plane as a surface: a page lets the reader turn it.

    Parameters
    ----------
    plane : Plane
    title : str
    marks : mapping of label to (x, y), optional
        Points on the surface to mark, in the plane's steps.
    log : bool
        Whether the height is the logarithm of the loss (base 10), where none is below zero.
    ceiling : float or None
        Cut the surface off above this loss.
    view : (float, float)
        From where it is seen at first: degrees around it from direction 1, and degrees above.
    """
    loss = plane.loss if ceiling is None else np.minimum(plane.loss, ceiling)
    finite = loss[np.isfinite(loss)]
    if finite.size == 0:
        raise ValueError("there is nothing to draw: no loss on the plane is finite")
    log = log and bool(finite.min() >= 0)  # a loss below zero has no logarithm
    loss = np.where(np.isfinite(loss), loss, np.nan)
    height = np.log10(np.maximum(loss, 1e-12)) if log else loss
    points = _marked(plane, height, marks or {})
    return Picture(
        _still(plane, height, log, title, points, view),
        _interactive(plane, height, log, title, points, view),
    )


def _marked(
    plane: Plane, height: np.ndarray, marks: Marks
) -> list[tuple[str, float, float, float, float]]:
    """For each mark a pin that stands out of its pit: name, x, y, its foot and its head."""
    top, bottom = float(np.nanmax(height)), float(np.nanmin(height))
    points = []
    for label, (x, y) in marks.items():
        i, j = np.abs(plane.y - y).argmin(), np.abs(plane.x - x).argmin()
        foot = float(height[i, j])
        points.append((label, x, y, foot, max(top, foot + 0.2 * (top - bottom))))
    return points


def _still(
    plane: Plane,
    height: np.ndarray,
    log: bool,
    title: str,
    points: list[Any],
    view: tuple[float, float],
) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d")
    x, y = np.meshgrid(plane.x, plane.y)
    axes.computed_zorder = False  # what marks the surface is drawn over it
    axes.plot_surface(x, y, height, cmap=LANDSCAPE, rcount=80, ccount=80, linewidth=0)
    for name, px, py, foot, head in points:
        axes.plot([px, px], [py, py], [foot, head], color=MARK, linewidth=1.5, zorder=50)
        text = axes.text(px, py, head, name, fontsize=9, color="white", ha="center")
        text.set(bbox=PLATE, zorder=51)
    axes.set(xlabel="direction 1", ylabel="direction 2", zlabel=LOSS, title=title)
    if log:
        axes.set_zticks(*loss_ticks(height))
    axes.view_init(azim=view[0], elev=view[1])
    return figure


def _interactive(
    plane: Plane,
    height: np.ndarray,
    log: bool,
    title: str,
    points: list[Any],
    view: tuple[float, float],
) -> go.Figure:
    shown = [plane.loss] if plane.accuracy is None else [plane.loss, plane.accuracy]
    accuracy = "" if plane.accuracy is None else "<br>accuracy %{customdata[1]:.1%}"
    surface = go.Surface(
        x=plane.x.astype(np.float32),
        y=plane.y.astype(np.float32),
        z=height.astype(np.float32),
        customdata=np.stack(shown, axis=-1).astype(np.float32),
        hovertemplate="x %{x:.2f}, y %{y:.2f}<br>loss %{customdata[0]:.4g}"
        + accuracy
        + "<extra></extra>",
        colorscale="Viridis",
        colorbar={"title": {"text": LOSS}, "thickness": 12, "len": 0.6, "outlinewidth": 0},
        lighting={"ambient": 0.65, "diffuse": 0.6, "specular": 0.15, "roughness": 0.8},
        contours={"z": {"show": True, "usecolormap": True, "project": {"z": True}}},
    )
    ticks: dict[str, Any] = {}
    if log:
        values, labels = loss_ticks(height)
        ticks = {"tickvals": values, "ticktext": labels}
        surface.colorbar.update(ticks)
    figure = go.Figure(surface)
    for pin in _pins(points):
        figure.add_trace(pin)
    names = [
        {"x": x, "y": y, "z": head, "text": name, **NAME} for name, x, y, _, head in points
    ]
    around, above = np.radians(view)
    eye = 2.1 * np.array([np.cos(around), np.sin(around), np.tan(above)]) * np.cos(above)
    line = {"color": GREY, "gridcolor": "rgba(128,128,128,0.35)", "zerolinecolor": GREY}
    axis = {**line, "showbackground": False}
    figure.update_layout(
        title={"text": title, "x": 0.5},
        scene={
            "xaxis": {**axis, "title": {"text": "direction 1"}},
            "yaxis": {**axis, "title": {"text": "direction 2"}},
            "zaxis": {**axis, **ticks, "title": {"text": LOSS}},
            "camera": {
                "eye": dict(zip("xyz", eye.tolist(), strict=True)),
                "center": {"z": -0.12},
            },
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "annotations": names,
        },
        font={"color": GREY},
        paper_bgcolor="rgba(0,0,0,0)",
        margin={"l": 0, "r": 0, "t": 40 if title else 0, "b": 0},
        height=480,
        template="none",
    )
    return figure


def _pins(points: list[Any]) -> list[go.Scatter3d]:
    """Lines that mark points on a surface."""
    return [
        go.Scatter3d(
            x=[x, x],
            y=[y, y],
            z=[foot, head],
            mode="lines+markers",
            line={"color": MARK, "width": 3},
            marker={"color": MARK, "size": [4, 2]},
            hoverinfo="skip",
            showlegend=False,
        )
        for _, x, y, foot, head in points
    ]


def loss_ticks(height: np.ndarray) -> tuple[list[float], list[str]]:
    """Where round losses stand, and their names, for heights that are their logarithms.

    Powers of ten; within a decade or so 1, 2 and 5 times these, or five at equal distances.
    """
    low, high = float(np.nanmin(height)), float(np.nanmax(height))
    powers = np.arange(np.floor(low), np.ceil(high) + 1)
    for digits in ([1], [1, 2, 5]):
        places = np.sort(np.add.outer(powers, np.log10(digits)).ravel())
        places = places[(places >= low - 1e-9) & (places <= high + 1e-9)]
        if len(places) > 1:
            break
    else:
        places = np.linspace(low, high, 5)
    return places.tolist(), [f"{10.0**place:.3g}" for place in places]
