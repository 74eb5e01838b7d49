"""An explorer of a study: choose a setting, and see its surface, spectrum and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape_core.curvature.eigen import top_eigenpairs
from landscape_core.curvature.hessian import Hessian
from landscape_core.curvature.trace import trace
from landscape_core.geometry.directions import random_directions
from landscape_core.geometry.slices import Plane, plane
from landscape_core.objective import Objective
from landscape_core.show.explorers import COLOURS, contour_trace
from landscape_core.show.page import Number
from landscape_core.show.picture import Picture
from landscape_core.show.sliders import LOG, axis, layout, seen, slider, spread
from landscape_core.show.style import WIDTH, looks, plain_log_ticks, styled
from landscape_core.show.surfaces import GREY, STEPS, fill_contours, loss_bar, loss_range

CELLS: dict[str, Any] = {
    "align": ["left", "right"],
    "fill": {"color": "rgba(0,0,0,0)"},
    "font": {"color": GREY, "size": 13},
    "height": 25,
    "line": {"color": "rgba(128,128,128,0.4)"},
}


@dataclass(frozen=True)
class Setting:
    """What an explorer shows of one setting of a study.

    Attributes
    ----------
    plane : Plane
        A slice through one network.
    eigenvalues : array, shape (k,)
        Of its Hessian; those that are not positive are left out of the picture.
    numbers : mapping of str to str
        Anything else, written out; all settings of an explorer have the same names.
    """

    plane: Plane
    eigenvalues: np.ndarray = field(repr=False)
    numbers: Mapping[str, str]

    @classmethod
    def of(
        cls,
        objective: Objective,
        test: Objective | None = None,
        *,
        points: int = 15,
        k: int = 8,
        probes: int = 16,
        seed: int = 0,
    ) -> Setting:
        """Measure what an explorer shows, at the weights of an objective.

        A slice along two random filter-normalized directions, the k eigenvalues of largest
        size, and loss, accuracy and curvature as text, each with its error.

        Parameters
        ----------
        objective : Objective
        test : Objective, optional
            The same network on other examples: their loss and accuracy are shown too.
        points, k, probes, seed : int
            Points along each axis of the slice, eigenvalues, probes of the trace; of the
            directions and probes.

        Examples
        --------
        >>> import landscape_core as lc, torch
        >>> x, y = torch.randn(20, 2), torch.randn(20, 1)
        >>> mse = torch.nn.functional.mse_loss
        >>> objective = lc.Objective(torch.nn.Linear(2, 1), mse, (x, y))
        >>> list(lc.Setting.of(objective, points=3, k=2).numbers)
        ['training loss', 'largest eigenvalue', 'trace']
        """
        d1, d2 = random_directions(objective, 2, seed=seed)
        hessian = Hessian(objective)
        pairs = top_eigenpairs(hessian, min(k, hessian.n), seed=seed)
        numbers = {}
        for name, place in (("training", objective), ("test", test)):
            if place is not None:
                found = place.evaluate()
                numbers[f"{name} loss"] = str(found.loss)
                if found.accuracy is not None:
                    numbers[f"{name} accuracy"] = str(found.accuracy)
        largest = Number.of_pair("largest eigenvalue", pairs, int(pairs.values.argmax()))
        numbers[largest.quantity] = f"{largest.written} {largest.note}".rstrip()
        numbers["trace"] = str(trace(hessian, probes, seed=seed))
        surface = plane(objective, d1, d2, points=points)
        return cls(surface, pairs.values.cpu().numpy(), numbers)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return plot_settings({"": self}, "")._repr_mimebundle_()

    @property
    def ranked(self) -> np.ndarray:
        """The positive eigenvalues, largest first."""
        values = np.sort(np.asarray(self.eigenvalues, dtype=float))[::-1]
        return values[values > 0]


@styled
def plot_settings(settings: Mapping[Any, Setting], name: str, *, log: bool = True) -> Picture:
    """Surface, spectrum and numbers of a study's settings, which change along a slider.

    Parameters
    ----------
    settings : mapping of value to Setting
        In the order of the slider. All surfaces share one colour scale, all spectra one axis.
    name : str
        What the values are; it stands at the slider.
    log : bool
        Whether levels of the loss are spaced evenly in its logarithm.

    Examples
    --------
    >>> import landscape_core as lc, torch
    >>> x, y = torch.randn(20, 2), torch.randn(20, 1)
    >>> objective = lc.Objective(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (x, y))
    >>> plane = lc.plane(objective, *torch.eye(3)[:2], points=5)
    >>> lc.plot_settings({8: lc.Setting(plane, [2.0, 1.0], {"trace": "3.0"})}, "width")
    Picture(still, interactive)
    """
    if not settings:
        raise ValueError("there is nothing to draw: name at least one setting")
    names = [list(setting.numbers) for setting in settings.values()]
    if any(each != names[0] for each in names):
        raise ValueError(f"all settings must have the same numbers, got {names}")
    low, high, log = loss_range([each.plane.loss for each in settings.values()], log)
    return Picture(
        _still(settings, name, (low, high), log), _moving(settings, name, (low, high), log)
    )


def _still(
    settings: Mapping[Any, Setting], name: str, ends: tuple[float, float], log: bool
) -> Figure:
    values = list(settings)
    chosen = [values[i] for i in spread(len(values))]
    side = min(3.0, WIDTH / (len(chosen) + 0.8))
    names = list(settings[chosen[0]].numbers)
    heights = (side + 0.6, 2.8, 0.25 * (len(names) + 1))
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(3, 1, squeeze=False, height_ratios=heights)
    above, under, last = parts[:, 0]
    row = above.subplots(1, len(chosen), squeeze=False)[0]
    for axes, value in zip(row, chosen, strict=True):
        filled = fill_contours(axes, settings[value].plane, ends, log)
        axes.set_aspect("auto")
        axes.set_title(str(value), fontsize=9)
    above.supxlabel(STEPS[0], fontsize=10)
    row[0].set_ylabel(STEPS[1])
    loss_bar(above, filled, list(row), ends, log)
    below = under.subplots()
    for value, look in zip(chosen, looks(map(str, chosen)).values(), strict=True):
        ranked = settings[value].ranked
        below.plot(
            range(1, len(ranked) + 1), ranked, label=str(value), color=look["color"],
            linestyle=look["linestyle"], marker=look["marker"],
        )  # fmt: skip
    below.set(xlabel="rank", ylabel="eigenvalue", yscale="log")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_log_ticks(below.yaxis)
    written = [[settings[value].numbers[name] for value in chosen] for name in names]
    if written:
        table = last.subplots()
        table.set_axis_off()
        table.table(
            written, rowLabels=names, colLabels=list(map(str, chosen)), edges="open",
            cellLoc="center", bbox=(0.25, 0, 0.75, 1),
        )  # fmt: skip
    if len(chosen) > 1:
        under.legend(title=name, loc="outside right center")
    return figure


def _moving(
    settings: Mapping[Any, Setting], name: str, ends: tuple[float, float], log: bool
) -> go.Figure:
    figure, groups = go.Figure(), []
    every = np.concatenate([setting.ranked for setting in settings.values()])
    for i, setting in enumerate(settings.values()):
        ranked, numbers = setting.ranked, setting.numbers
        surface = contour_trace(setting.plane, ends, log, bar=True)
        surface.colorbar.update(x=0.44, y=0.7, len=0.6)
        spectrum = go.Scatter(
            x=np.arange(1, len(ranked) + 1), y=ranked, mode="lines+markers",
            line={"color": COLOURS[0]}, showlegend=False, xaxis="x2", yaxis="y2",
            hovertemplate="rank %{x}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
        table = go.Table(
            domain={"x": [0, 1], "y": [0, 0.24]},
            header={"values": ["", ""], "height": 0, "line": {"width": 0}},
            cells={"values": [list(numbers), list(numbers.values())], **CELLS},
        )
        for drawn in (surface, spectrum, table):
            drawn.update(visible=i == 0)
            figure.add_trace(drawn)
            groups.append(i)
    changes = [[{"visible": seen(groups, i)}] for i in range(len(settings))]
    moved = slider(name, [str(value) for value in settings], changes, 0)
    logs = [float(np.log10(every.min())) - 0.1, float(np.log10(every.max())) + 0.1]
    wide, high = [0, 0.42], [0.4, 1]
    axes = {
        "xaxis": axis(STEPS[0], domain=wide, constrain="domain", showgrid=False),
        "yaxis": axis(
            STEPS[1], domain=high, scaleanchor="x", constrain="domain", showgrid=False
        ),
        "xaxis2": axis("rank", domain=[0.64, 1], anchor="y2", dtick=1),
        "yaxis2": axis("eigenvalue", domain=high, anchor="x2", range=logs, **LOG),
    }
    sliders = [moved] if len(settings) > 1 else []
    figure.update_layout(layout(600, sliders, showlegend=False, **axes))
    return figure
