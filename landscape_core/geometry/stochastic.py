"""What minibatch noise is made of: its covariance, and the curvature that it meets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from landscape_core.backends import full_precision, without_autocast
from landscape_core.curvature.differentiable import check_criterion, check_differentiable
from landscape_core.curvature.graphs import explained
from landscape_core.curvature.operators import SymmetricOperator
from landscape_core.curvature.probes import Seed, generator
from landscape_core.geometry.noise import NoiseScale
from landscape_core.objective import Objective
from landscape_core.progress import progress_bar
from landscape_core.results import Estimate


def exact_noise_scale(
    objective: Objective,
    *,
    theta: Tensor | None = None,
    chunk_size: int | None = 64,
    progress: bool = False,
) -> NoiseScale:
    r"""The simple noise scale of the data as given, from the gradient of every example.

    .. math:: \mathrm{Tr}\,\Sigma = \frac{1}{N} \sum_i |g_i|^2 - |g|^2, \qquad
        B = \mathrm{Tr}\,\Sigma / |g|^2

    No sampling and no error; :func:`gradient_noise_scale` estimates the same numbers from
    batches, for less. It costs one gradient per example.

    Parameters
    ----------
    objective : Objective
        With ``batchnorm="eval"`` or ``"refresh"``.
    theta : Tensor, shape (n,), or None
    chunk_size : int or None
        Examples that are differentiated at once.
    progress : bool

    Raises
    ------
    FloatingPointError
        If a gradient is not finite.
    """
    total = torch.zeros(objective.n, dtype=torch.float64, device=objective.space.device)
    squares, count = torch.zeros((), dtype=torch.float64, device=total.device), 0
    origin = total  # soon a gradient close to the mean, so that no digits cancel
    blocks = objective.per_example_gradients(theta, chunk_size)
    for block in progress_bar(blocks, desc="examples", unit="batch", progress=progress):
        origin = block[0].double() if count == 0 else origin
        shifted = block.double() - origin
        total += shifted.sum(0)
        squares += shifted.square().sum()
        count += len(block)
    if not bool(torch.isfinite(squares)):
        raise FloatingPointError(
            "the gradient of every example must be finite, got one that is not: theta or the "
            "data hold nan or inf"
        )
    mean = total / count
    trace = max(0.0, float(squares) / count - float(mean.square().sum()))
    gradient = float((mean + origin).square().sum())
    return NoiseScale(Estimate(trace, 0.0, count), Estimate(gradient, 0.0, count))


@dataclass(frozen=True)
class NoiseAlignment:
    r"""How the covariance of gradients lies against a curvature matrix A.

    Attributes
    ----------
    curvature : Estimate
        :math:`\mathrm{Tr}(A \Sigma) / \mathrm{Tr}\,\Sigma`, the curvature that the noise meets
        on average.
    covariance_trace : Estimate
        :math:`\mathrm{Tr}\,\Sigma`.
    """

    curvature: Estimate
    covariance_trace: Estimate

    def over(self, trace: Estimate, n: int) -> Estimate:
        r"""The same over the mean curvature :math:`\mathrm{Tr} A / n`.

        1 for noise that does not know the curvature; far above 1 where the noise is along the
        steep directions (Zhu et al. 2019, arXiv:1803.00195). ValueError if the trace is 0.
        """
        if trace.value == 0:
            raise ValueError("the mean curvature must not be 0, got a trace of 0")
        ratio = self.curvature.value / (trace.value / n)
        error = abs(ratio) * math.hypot(self.curvature.relative_error, trace.relative_error)
        return Estimate(ratio, error, self.curvature.samples)


@without_autocast
def noise_alignment(
    objective: Objective,
    operator: SymmetricOperator,
    *,
    examples: int = 128,
    theta: Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> NoiseAlignment:
    r"""Estimate the mean curvature along the noise of single gradients.

    Examples are drawn with replacement in pairs: :math:`(g_i - g_j) / \sqrt 2` has the
    covariance :math:`\Sigma` and mean zero, whatever the mean gradient is. Each pair costs two
    gradients of one example and one product.

    Parameters
    ----------
    objective : Objective
        With ``batchnorm="eval"`` or ``"refresh"``.
    operator : SymmetricOperator
        Such as ``Hessian(objective)``.
    examples : int
        Even, at least 4.
    theta : Tensor, shape (n,), or None
    seed : int or torch.Generator
        A generator must be on the CPU.
    progress : bool
    """
    if not isinstance(examples, Integral) or examples < 4 or examples % 2:
        raise ValueError(f"examples must be an even number >= 4, got {examples!r}")
    if operator.n != objective.n:
        raise ValueError(f"the operator must have n = {objective.n}, got n = {operator.n}")
    _check_single(objective)
    theta = objective.theta if theta is None else objective.space.check(theta)
    statistics = objective.statistics(theta)
    rng = generator(seed, torch.device("cpu"))
    rows = torch.randint(0, objective.examples, (examples // 2, 2), generator=rng, device="cpu")
    bent, lengths = [], []
    for pair in progress_bar(rows, desc="noise", unit="pair", progress=progress):
        first, second = (
            objective.batch_gradient(theta, objective.sample(pair[i : i + 1]), statistics)
            for i in (0, 1)
        )
        noise = (first - second) / math.sqrt(2)
        bent.append(float(noise @ (operator @ noise)))
        lengths.append(float(noise.double().square().sum()))
    return NoiseAlignment(ratio_of_means(bent, lengths), Estimate.of(lengths))


def batch_sharpness(
    objective: Objective,
    batch_size: int,
    *,
    draws: int = 64,
    theta: Tensor | None = None,
    seed: Seed = 0,
    progress: bool = False,
) -> Estimate:
    r"""Curvature of the loss of a minibatch along its own gradient.

    .. math:: \frac{E_B[\, g_B^\top H_B\, g_B ]}{E_B[\, |g_B|^2 ]}

    The mean over minibatches B of a step's own curvature. Where stochastic gradient descent
    with step size eta trains at the edge of stochastic stability, this hovers at 2 / eta while
    the largest eigenvalue of the full Hessian stays below (Andreyev and Beneventano 2024,
    arXiv:2412.20553). With all examples in the batch it is the curvature along the gradient.

    Parameters
    ----------
    objective : Objective
    batch_size : int
    draws : int
        Minibatches, drawn without replacement within each; at least 2.
    theta : Tensor, shape (n,), or None
    seed : int or torch.Generator
        A generator must be on the CPU.
    progress : bool

    Returns
    -------
    Estimate
        With a delta-method error over the minibatches.

    Raises
    ------
    ValueError
        If an argument is out of range, or the loss has no second derivative.
    FloatingPointError
        If a gradient or a product is not finite.
    """
    count = objective.examples
    if not isinstance(batch_size, Integral) or not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must lie from 1 to {count}, got {batch_size!r}")
    if not isinstance(draws, Integral) or draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws!r}")
    theta = objective.theta if theta is None else objective.space.check(theta)
    statistics = objective.statistics(theta)
    rng = generator(seed, torch.device("cpu"))
    bent, lengths, sound = [], [], False
    for draw in progress_bar(range(draws), desc="batches", unit="batch", progress=progress):
        rows = torch.randperm(count, generator=rng, device="cpu")[:batch_size]
        inputs, targets = objective.sample(rows)
        leaf = theta.clone().requires_grad_()
        with explained(), torch.enable_grad(), full_precision(theta.device):
            pieces = objective.space.unflatten(leaf)
            outputs = objective.batch_outputs(pieces, inputs, statistics)
            sound = sound or check_criterion(objective.output_loss, outputs, targets)
            loss = objective.output_loss(outputs, targets)
            (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
            if draw == 0:
                check_differentiable([slope], loss, products=False)
            fixed = slope.detach()
            (product,) = torch.autograd.grad(slope, leaf, fixed)
        bent.append(float(fixed.double() @ product.double()))
        lengths.append(float(fixed.double().square().sum()))
    return ratio_of_means(bent, lengths)


def ratio_of_means(above: list[float], below: list[float]) -> Estimate:
    """Mean of `above` over mean of `below`, with the delta-method error of paired samples.

    >>> ratio_of_means([2.0, 4.0], [1.0, 2.0])
    Estimate(value=2.0, stderr=0.0, samples=2, matvecs=0, stopped='')
    """
    top, bottom = np.asarray(above), np.asarray(below)
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise FloatingPointError(
            "every gradient and product must be finite, got one that is not: theta or the data "
            "hold nan or inf"
        )
    if not bottom.mean() > 0:
        return Estimate(math.nan, math.nan, len(top))
    ratio = float(top.mean() / bottom.mean())
    deviations = (top - ratio * bottom) / bottom.mean()
    error = float(deviations.std(ddof=1) / math.sqrt(len(top)))
    return Estimate(ratio, error, len(top))


def _check_single(objective: Objective) -> None:
    if objective.batchnorm == "batch":
        raise ValueError("single examples have no gradient under batchnorm='batch'")
