"""Walking along paths: where they run over a plane, and loss and accuracy on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from torch import Tensor

from landscape_core.geometry.paths import PathProfile
from landscape_core.geometry.slices import Plane
from landscape_core.show.explorers import COLOURS, DASHES, contour_trace
from landscape_core.show.picture import Picture
from landscape_core.show.sliders import LOG, axis, layout, slider
from landscape_core.show.style import WIDTH, looks, plain_log_ticks, styled
from landscape_core.show.surfaces import LOSS, PLATE, fill_contours, loss_range


@styled
def plot_walk(
    plane: Plane,
    paths: Mapping[str, Tensor],
    profiles: Mapping[str, PathProfile],
    *,
    marks: Mapping[str, tuple[float, float]] | None = None,
    log: bool = True,
    labels: tuple[str, str] = ("l2 distance along the line", "l2 distance from the line"),
) -> Picture:
    """Paths over a plane of the loss, and loss and accuracy along them: walk by a slider.

    Parameters
    ----------
    plane : Plane
    paths : mapping of name to Tensor, shape (p, 2)
        Where each path runs over the plane, at the p values of t of its profile.
    profiles : mapping of name to PathProfile
        Of the same names, all at the same t.
    marks : mapping of label to (x, y), optional
    log : bool
        Whether losses are shown on a logarithmic scale.
    labels : (str, str)
        Of the plane's axes.

    Raises
    ------
    ValueError
        If names or numbers of points differ.
    """
    if list(paths) != list(profiles) or not paths:
        raise ValueError(
            f"paths and profiles must have the same names, got {list(paths)}, {list(profiles)}"
        )
    t = next(iter(profiles.values())).t
    for name, profile in profiles.items():
        if tuple(paths[name].shape) != (len(t), 2) or not np.array_equal(profile.t, t):
            raise ValueError(f"path {name!r} must have {len(t)} points in two coordinates")
    where = {name: points.detach().cpu().numpy() for name, points in paths.items()}
    low, high, log = loss_range([plane.loss], log)
    peak = int(np.argmax(next(iter(profiles.values())).loss))
    return Picture(
        _walk_still(plane, where, profiles, peak, (low, high), log, marks or {}, labels),
        _walk_slider(plane, where, profiles, peak, (low, high), log, marks or {}, labels),
    )


def _walk_still(
    plane: Plane,
    where: dict[str, np.ndarray],
    profiles: Mapping[str, PathProfile],
    peak: int,
    ends: tuple[float, float],
    log: bool,
    marks: Mapping[str, tuple[float, float]],
    labels: tuple[str, str],
) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
    left = figure.add_subplot(grid[:, 0])
    panels = [figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])]
    fill_contours(left, plane, ends, log)
    for name, look in looks(where).items():
        line: dict[str, Any] = {"color": look["color"], "linestyle": look["linestyle"]}
        x, y = where[name].T
        left.plot(x, y, color="white", linewidth=3.4)
        left.plot(x, y, **line)
        left.plot(x[peak], y[peak], "o", color=look["color"], markeredgecolor="white")
        profile = profiles[name]
        for axes, values in zip(panels, (profile.loss, profile.accuracy), strict=True):
            if values is not None:
                axes.plot(profile.t, values, label=name, **line)
                axes.plot(profile.t[peak], values[peak], "o", color=look["color"])
    for label, (x, y) in marks.items():
        left.plot(x, y, "o", color="white", markeredgecolor="black", markersize=5)
        text = left.annotate(label, (x, y), (0, 7), textcoords="offset points", ha="center")
        text.set(color="white", fontsize=9, bbox=PLATE)
    left.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
    left.grid(False)
    panels[0].set(ylabel=LOSS, yscale="log" if log else "linear")
    if log:
        plain_log_ticks(panels[0].yaxis)
    panels[1].set(ylabel="accuracy", xlabel="t")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
    return figure


def _walk_slider(
    plane: Plane,
    where: dict[str, np.ndarray],
    profiles: Mapping[str, PathProfile],
    peak: int,
    ends: tuple[float, float],
    log: bool,
    marks: Mapping[str, tuple[float, float]],
    labels: tuple[str, str],
) -> go.Figure:
    figure = go.Figure(contour_trace(plane, ends, log, bar=False))
    steps = next(iter(profiles.values())).t
    lines: list[dict[str, Any]] = []  # one to each curve: data, axes, look
    for i, (name, points) in enumerate(where.items()):
        profile, colour = profiles[name], COLOURS[i % len(COLOURS)]
        look = {"name": name, "color": colour, "dash": DASHES[i % len(DASHES)]}
        lines.append({"x": points[:, 0], "y": points[:, 1], "xaxis": "x", "yaxis": "y", **look})
        for values, suffix in ((profile.loss, "2"), (profile.accuracy, "3")):
            if values is not None:
                lines.append(
                    {"x": steps, "y": values, "xaxis": "x2", "yaxis": f"y{suffix}", **look}
                )
    for each in lines:
        figure.add_trace(_walk_line(each))
    for label, (x, y) in marks.items():
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[y],
                text=[label],
                mode="markers+text",
                textposition="top center",
                textfont={"color": "white", "size": 13},
                showlegend=False,
                hoverinfo="skip",
                marker={"color": "white", "size": 7},
            )
        )
    moving = []
    for each in lines:
        moving.append(len(figure.data))
        figure.add_trace(_walker(each, peak))
    changes = [
        [
            {
                "x": [[float(each["x"][i])] for each in lines],
                "y": [[float(each["y"][i])] for each in lines],
                "text": [[f"{float(each['y'][i]):.3g}"] for each in lines],
            },
            moving,
        ]
        for i in range(len(steps))
    ]
    moved = slider("t", [f"{t:.3g}" for t in steps], changes, peak)
    figure.update_layout(
        layout(470, [moved]),
        xaxis=axis(labels[0], domain=[0, 0.54], showgrid=False, constrain="domain",
                   range=[float(plane.x[0]), float(plane.x[-1])]),
        yaxis=axis(labels[1], scaleanchor="x", showgrid=False, constrain="domain",
                   range=[float(plane.y[0]), float(plane.y[-1])]),
        xaxis2=axis("t", domain=[0.68, 1], anchor="y3",
                    range=[-0.04, 1.04]),
        yaxis2=axis(LOSS, domain=[0.54, 1], anchor="x2", **(LOG if log else {})),
        yaxis3=axis("accuracy", domain=[0, 0.46], anchor="x2", tickformat=".0%"),
    )  # fmt: skip
    return figure


def _walk_line(line: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=np.asarray(line["x"], dtype=np.float32),
        y=np.asarray(line["y"], dtype=np.float32),
        xaxis=line["xaxis"],
        yaxis=line["yaxis"],
        name=line["name"],
        mode="lines",
        line={"color": line["color"], "dash": line["dash"], "width": 3},
        showlegend=line["xaxis"] == "x",
        hovertemplate="%{x:.3g}, %{y:.4g}<extra>" + line["name"] + "</extra>",
    )


def _walker(line: dict[str, Any], i: int) -> go.Scatter:
    """The point of a curve at the slider's t, with its value beside it in the graphs."""
    graph = line["xaxis"] != "x"
    return go.Scatter(
        x=[float(line["x"][i])],
        y=[float(line["y"][i])],
        text=[f"{float(line['y'][i]):.3g}"],
        xaxis=line["xaxis"],
        yaxis=line["yaxis"],
        mode="markers+text" if graph else "markers",
        textposition="top center",
        textfont={"color": line["color"]},
        marker={"size": 11, "color": line["color"], "line": {"color": "white", "width": 2}},
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
    )
