"""The noise of stochastic gradients, in units of examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from landscape_core.curvature.probes import Seed, generator
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar
from landscape_core.results import Estimate


@dataclass(frozen=True)
class NoiseScale:
    r"""The simple gradient noise scale and the two numbers it is the ratio of.

    Attributes
    ----------
    covariance_trace : Estimate
        :math:`\mathrm{Tr}\,\Sigma`, the variance of one example's gradient summed over theta.
    gradient_squared : Estimate
        :math:`|g|^2`, the squared length of the mean gradient.
    scale : Estimate
        :math:`B = \mathrm{Tr}\,\Sigma / |g|^2`, in examples, with a delta-method error.
    """

    covariance_trace: Estimate
    gradient_squared: Estimate
    scale: Estimate = field(init=False)
    covariance: float = field(repr=False, default=0.0)

    def __post_init__(self) -> None:
        s, g = self.covariance_trace, self.gradient_squared
        if g.value == 0:  # not a single batch had a gradient
            object.__setattr__(self, "scale", Estimate(math.inf, math.inf, s.samples))
            return
        ratio = s.value / g.value
        variance = s.stderr**2 - 2 * ratio * self.covariance + (ratio * g.stderr) ** 2
        error = math.sqrt(max(variance, 0.0)) / abs(g.value)
        object.__setattr__(self, "scale", Estimate(ratio, error, s.samples))

    @property
    def determined(self) -> bool:
        """Whether the gradient stands out from its own noise by three standard errors.

        Where it does not (close to a minimum), the scale is a ratio to something that may be
        zero; neither the ratio nor its error means much, and only :attr:`at_least` is stated.
        """
        return self.gradient_squared.value > 3 * self.gradient_squared.stderr

    @property
    def at_least(self) -> float:
        """A number that the scale exceeds with a confidence of about 95 %; 0 if unknown.

        The lower end of ``Tr Sigma`` over the upper end of ``|g|^2``, each at 97.5 %. Squares
        of gradients are skewed: from a handful of draws the confidence is nearer to 90 %.
        """
        low = self.covariance_trace.interval()[0]
        high = self.gradient_squared.interval()[1]
        return max(0.0, low / high) if high > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.scale}" if self.determined else f"above {float(f'{self.at_least:.2g}'):,g}"
        )


def gradient_noise_scale(
    objective: Objective,
    small: int = 32,
    big: int = 512,
    *,
    draws: int = 64,
    theta: torch.Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> NoiseScale:
    r"""Estimate the batch size at which noise and signal in the gradient balance.

    A batch of b examples has :math:`E|g_b|^2 = |g|^2 + \mathrm{Tr}\,\Sigma / b`. Two batch
    sizes give two equations, hence unbiased estimates of both unknowns:

    .. math::
        |g|^2 \approx \frac{B|g_B|^2 - b|g_b|^2}{B - b}, \qquad
        \mathrm{Tr}\,\Sigma \approx \frac{|g_b|^2 - |g_B|^2}{1/b - 1/B}.

    Numerator and denominator are averaged over the draws before they are divided. Each big
    batch is made of the small ones of its draw, so no gradient is paid twice. Examples are
    drawn with replacement: both estimates are unbiased for the data as given.

    Parameters
    ----------
    objective : Objective
        With ``batchnorm="eval"`` or ``"refresh"``; batch statistics would couple the examples.
    small, big : int
        Batch sizes; `big` a multiple of `small`, at least twice as large.
    draws : int
        Number of independent big batches, at least 2.
    theta : Tensor, shape (n,), or None
    seed : int or torch.Generator
    progress : bool

    Returns
    -------
    NoiseScale

    Raises
    ------
    ValueError
        If the batch sizes or draws are unusable, or ``batchnorm="batch"``.

    References
    ----------
    S. McCandlish et al., An empirical model of large-batch training, 2018, arXiv:1812.06162.
    """
    if small < 1 or big < 2 * small or big % small:
        raise ValueError(
            f"big must be a multiple of small, at least twice it, got {small = }, {big = }"
        )
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    if objective.batchnorm == "batch":
        raise ValueError("the noise scale needs batchnorm='eval' or 'refresh', got 'batch'")
    theta = objective.theta if theta is None else objective.space.check(theta)
    statistics = objective.statistics(theta)
    rng = generator(seed, torch.device("cpu"))
    count, parts = objective.examples, big // small
    squares = []
    for _ in progress_bar(range(draws), desc="noise scale", unit="draw", progress=progress):
        mean = torch.zeros_like(theta)
        small_square = torch.zeros((), dtype=torch.float64, device=theta.device)
        for indices in torch.randint(0, count, (parts, small), generator=rng, device="cpu"):
            g = objective.batch_gradient(theta, objective.sample(indices), statistics)
            small_square += g.double().square().sum() / parts
            mean += g / parts
        squares.append(torch.stack([small_square, mean.double().square().sum()]))
    of_small, of_big = torch.stack(squares).cpu().numpy().T
    if not (np.isfinite(of_small).all() and np.isfinite(of_big).all()):
        raise FloatingPointError(
            "every gradient must be finite, got one that is not: theta or the data hold nan "
            "or inf"
        )
    gradient = (big * of_big - small * of_small) / (big - small)
    trace = (of_small - of_big) / (1 / small - 1 / big)
    covariance = float(np.cov(trace, gradient)[0, 1] / draws)
    return NoiseScale(Estimate.of(trace), Estimate.of(gradient), covariance=covariance)
