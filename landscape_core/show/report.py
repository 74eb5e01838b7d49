"""One page about the loss landscape around a network of your own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from landscape_core.batchnorm import BatchNormPolicy
from landscape_core.curvature.hessian import Hessian
from landscape_core.curvature.layers import layer_curvature
from landscape_core.curvature.summary import CurvatureSummary, curvature_summary
from landscape_core.geometry.ascent import worst_sharpness
from landscape_core.geometry.directions import random_directions
from landscape_core.geometry.noise import gradient_noise_scale
from landscape_core.geometry.sharpness import (
    flatness_profile,
    random_sharpness,
    relative_curvature,
)
from landscape_core.geometry.slices import plane
from landscape_core.objective import Objective
from landscape_core.parameter_space import ParameterChoice
from landscape_core.progress import progress_bar
from landscape_core.results import Estimate
from landscape_core.show.page import Number, Page
from landscape_core.show.plots import plot_flatness
from landscape_core.show.spectra import plot_density
from landscape_core.show.surfaces import plot_contours


@dataclass(frozen=True)
class Effort:
    """How much work each part of a report is given."""

    top: int  # eigenvalues
    products: int  # for the summary, at most
    steps: int  # Lanczos steps of the density
    probes: int  # random vectors of the density
    layers: int  # probes of each layer; 0 leaves the layers out
    directions: int  # of random sharpness, each both ways
    ascent: int  # steps towards the worst case
    points: int  # along each side of the plane; 0 leaves it out
    draws: int  # big batches of the noise scale

    def gradients(self, big: int, examples: int, layers: int) -> float:
        """About how many gradients over all examples it takes.

        Eigenvalues that lie close together can take more products. A product with the block of
        one layer is counted as half of one with the whole.
        """
        of_layers = layers * (self.layers + 20) / 2 if self.layers else 0
        products = 2.2 * (self.products + 60 + of_layers)
        forwards = 2 * self.directions * (len(RADII) + 1) + self.points**2
        ascents = 1.3 * 2 * (2 * self.ascent + 1)
        return products + forwards / 3 + ascents + self.draws * big / examples


QUICK = Effort(3, 60, 15, 2, 0, 6, 5, 11, 16)
FULL = Effort(10, 400, 40, 4, 32, 24, 20, 25, 48)
RADII = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the length of theta
RADIUS = 0.01  # of the length of theta, for single numbers


def report(
    model: nn.Module,
    criterion: Callable[[Any, Tensor], Tensor],
    data: Iterable[Any],
    *,
    quick: bool = False,
    parameters: ParameterChoice = None,
    batchnorm: BatchNormPolicy = "eval",
    seed: int = 0,
    title: str | None = None,
    progress: bool = True,
) -> Page:
    """Measure curvature, sharpness and gradient noise of a network, and write a page about it.

    The cost is printed before it is spent. In a notebook the page shows itself; ``print`` gives
    text; ``page.save("report.html")`` (or ``.md``, ``.json``) writes it.

    Parameters
    ----------
    model : nn.Module
    criterion : callable
        ``criterion(outputs, targets) -> scalar``, the mean over the examples of a batch.
    data : pair, sequence of pairs, or DataLoader
        As for :class:`Objective`; every number is about the loss of exactly these examples.
    quick : bool
        A tenth of the work: fewer eigenvalues, larger errors, no layers.
    parameters, batchnorm
        As for :class:`Objective`.
    seed : int
    title : str or None
        None is the name of the model's class.
    progress : bool
        Whether to print the cost and show a progress bar.

    Returns
    -------
    Page

    Examples
    --------
    >>> import torch
    >>> import torch.nn.functional as F
    >>> data = torch.randn(40, 3), torch.arange(40) % 2
    >>> page = report(nn.Linear(3, 2), F.cross_entropy, data, quick=True, progress=False)
    >>> [number.quantity for number in page.numbers][:2]
    ['parameters', 'examples']
    """
    objective = Objective(model, criterion, data, parameters=parameters, batchnorm=batchnorm)
    effort = QUICK if quick else FULL
    writer = _Writer(objective, effort, seed)
    name = title or type(model).__name__
    start = time.perf_counter()
    slope = objective.gradient()
    each = time.perf_counter() - start
    count = effort.gradients(writer.big, writer.examples, len(writer.hessian.layers))
    if progress:
        print(
            f"{name}: {objective.n:,} parameters, {writer.examples:,} examples; about "
            f"{count:,.0f} gradients of {each:.2g} s: {_duration(count * each)}"
        )
    page = Page(name)
    parts = [writer.point, writer.curvature, writer.sharpness, writer.noise, writer.picture]
    if effort.layers:
        parts.insert(2, writer.layers)
    with progress_bar(parts, desc="report", unit="part", progress=progress) as bar:
        for part in bar:
            bar.set_postfix_str(part.__name__)
            part(page, slope) if part == writer.point else part(page)
    page.spent = {"seconds": time.perf_counter() - start, "seconds of one gradient": each}
    return page


class _Writer:
    """Measures part by part, and writes each onto the page."""

    def __init__(self, objective: Objective, effort: Effort, seed: int) -> None:
        self.objective, self.effort, self.seed = objective, effort, seed
        self.examples = objective.examples
        self.hessian = Hessian(objective)
        self.length = float(objective.theta.norm())
        self.small = max(1, min(32, self.examples // 8))
        self.big = 8 * self.small
        self.summary: CurvatureSummary | None = None

    def point(self, page: Page, slope: Tensor) -> None:
        """Where the network stands."""
        evaluation = self.objective.evaluate()
        page.add("The point", [
            Number("parameters", self.objective.n),
            Number("examples", self.examples),
            Number("loss", evaluation.loss, note="error: over another sample of examples"),
            *([Number("accuracy", evaluation.accuracy)] if evaluation.accuracy else []),
            Number("norm of the gradient", float(slope.norm())),
            Number("norm of the weights", self.length),
        ])  # fmt: skip

    def curvature(self, page: Page) -> None:
        """The spectrum of the Hessian."""
        effort = self.effort
        summary = self.summary = curvature_summary(
            self.hessian, min(effort.top, max(1, self.objective.n - 1)), steps=effort.steps,
            probes=effort.probes, max_matvecs=effort.products, seed=self.seed,
        )  # fmt: skip
        top, low = summary.top, summary.bottom
        numbers = [
            Number.of_pair("largest eigenvalue", top, 0),
            *(Number.of_pair(f"eigenvalue {i + 1}", top, i) for i in range(1, len(top))),
            Number.of_pair("smallest eigenvalue", low, 0),
            Number("trace", summary.trace),
            Number("trace of the square", summary.trace_of_square),
            Number("effective rank", summary.effective_rank),
        ]
        page.add("Curvature: the Hessian of the loss", numbers)
        page.draw(
            plot_density({"": summary.density}, marks={"": top.values}),
            "Spectral density of the Hessian, logarithmic. Ticks: the largest eigenvalues.",
        )
        page.say(_steepest(summary))
        page.say(_lowest(summary))
        page.say(_rank(summary))

    def layers(self, page: Page) -> None:
        """The diagonal blocks."""
        found = layer_curvature(self.hessian, probes=self.effort.layers, seed=self.seed)
        numbers = []
        for each in found.layers:
            numbers.append(Number.of_pair(f"{each.layer}: largest eigenvalue", each.top, 0))
            numbers.append(Number(f"{each.layer}: trace", each.trace))
        page.add("Curvature, layer by layer", numbers)

    def sharpness(self, page: Page) -> None:
        """How the loss rises around the point."""
        if self.length == 0:
            page.say(
                "Sharpness was not measured: all weights are zero, and radii are in theirs."
            )
            return
        objective, effort = self.objective, self.effort
        radius = RADIUS * self.length
        options: dict[str, Any] = {"seed": self.seed}
        mean = random_sharpness(objective, radius, directions=effort.directions, **options)
        worst = worst_sharpness(objective, radius, steps=effort.ascent, **options)
        ratio = worst_sharpness(
            objective, 0.1, adaptive="element", steps=effort.ascent, **options
        )
        relative = relative_curvature(objective, seed=self.seed)
        page.add("Sharpness: how the loss rises around the point", [
            Number("rise at random, raw", mean.mean, note=str(mean.ball)),
            Number("rise at worst, raw", worst.rise, note=f"{worst.ball}; a lower bound"),
            Number("rise at worst, relative", ratio.rise, note=f"{ratio.ball}; a lower bound"),
            Number.of_pair("largest relative curvature", relative, 0),
        ])  # fmt: skip
        profile = flatness_profile(
            objective, [r * self.length for r in RADII], directions=effort.directions, **options
        )
        page.draw(
            plot_flatness({page.title: profile}),
            "Mean rise of the loss in random directions, against the distance.",
        )
        page.say(
            "Raw rises and eigenvalues change when layers are rescaled, even where the network "
            "computes the same. To compare two networks use the relative numbers."
        )

    def noise(self, page: Page) -> None:
        """The noise of single examples' gradients."""
        if self.objective.batchnorm == "batch" or self.examples < 16:
            page.say("The noise of gradients was not measured: it needs single examples.")
            return
        found = gradient_noise_scale(
            self.objective, self.small, self.big, draws=self.effort.draws, seed=self.seed
        )
        trace = found.covariance_trace
        least = f"{float(f'{found.at_least:.2g}'):,g}"
        scale: Any = found.scale if found.determined else f"above {least}"
        page.add("Noise of the gradients", [
            Number("trace of their covariance", trace),
            Number("noise scale", scale, unit="examples"),
        ])  # fmt: skip
        if found.determined:
            page.say(
                f"In a batch of about {found.scale} examples signal and noise of the "
                "gradient are equally large; larger batches average what is already known."
            )
        else:
            page.say(
                "The gradient does not stand out of its noise here, as is usual close to a "
                f"minimum: the noise scale is only known to lie above {least}."
            )

    def picture(self, page: Page) -> None:
        """A slice of the loss."""
        d1, d2 = random_directions(self.objective, 2, seed=self.seed)
        if not bool(d1.any() and d2.any()):
            return
        found = plane(self.objective, d1, d2, points=self.effort.points)
        page.draw(
            plot_contours({"": found}),
            "The loss over two random directions, each filter scaled to the weights.",
        )
        page.say(
            f"A slice shows two of {self.objective.n:,} directions, and random ones are mostly "
            "flat: what it does not show may be there."
        )
        page.say(
            "None of this says that the network will generalize: links between flatness and "
            "generalization are weak and change sign with the setting (Andriushchenko et al. "
            "2023, arXiv:2302.07011)."
        )


def _steepest(summary: CurvatureSummary) -> str:
    value = summary.lambda_max
    if not value > 0:
        return "The loss is curved upwards in no direction that was found."
    return (
        f"Along the steepest direction a step of length r raises the loss by about "
        f"{value / 2:.3g} r². Plain gradient descent on this loss is stable, in the quadratic "
        f"picture, up to a learning rate of 2 / {value:.3g} = {2 / value:.3g}."
    )


def _lowest(summary: CurvatureSummary) -> str:
    low, error = summary.lambda_min, float(summary.bottom.residuals[0])
    if low < -max(error, 1e-3 * abs(summary.lambda_max)):
        return (
            "There are directions in which the loss bends down (smallest eigenvalue "
            f"{low:.3g}): the point is not a minimum of this loss, as is usual after training."
        )
    if low < 0:
        return (
            "No direction was found in which the loss bends down by more than its error or a "
            f"thousandth of the largest curvature (smallest eigenvalue {low:.3g})."
        )
    return "No direction was found in which the loss bends down."


def _rank(summary: CurvatureSummary) -> str:
    rank: Estimate = summary.effective_rank
    if not np.isfinite(rank.value):
        return "The effective rank is not defined: the Hessian is zero."
    return (
        f"The curvature is that of about {max(1, round(rank.value)):,} equally steep "
        f"directions among {summary.n:,}."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
