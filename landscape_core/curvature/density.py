"""The spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import torch
from scipy import special
from torch import Tensor

from landscape_core.backends import without_autocast
from landscape_core.curvature.lanczos import KrylovBasis, grow_together
from landscape_core.curvature.operators import SMALL, SymmetricOperator, check_operator
from landscape_core.curvature.probes import Seed, generator, probe
from landscape_core.results import Eigenpairs, Estimate


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Where the n eigenvalues of an operator lie, as weighted points.

    Every probe gives its own quadrature; their scatter is the random part of the error of
    whatever is computed. What is not smooth (counts, the cdf) also has a bias that falls with
    the number of steps.

    Attributes
    ----------
    nodes : Tensor, shape (probes, steps), float64
    weights : Tensor, shape (probes, steps), float64
        Of each node; the weights of a probe add up to 1.
    known : Tensor, shape (k,), float64
        Eigenvalues known beforehand, each of mass 1/n; the nodes stand for the other n - k.
    n : int
    matvecs : int
    leaked : float
        What unconverged known pairs leave out of Tr A^2: twice their squared residuals.
    """

    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    known: Tensor = field(repr=False)
    n: int
    matvecs: int
    leaked: float = field(repr=False, default=0.0)

    @property
    def probes(self) -> int:
        """How many probes there are."""
        return len(self.nodes)

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest node or known eigenvalue."""
        every = torch.cat([self.nodes[self.weights > 0], self.known])
        return float(every.min()), float(every.max())

    def mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """Mean of `function` over the eigenvalues, Tr f(A) / n."""
        samples = self._samples(function).squeeze(-1)
        estimate = Estimate.of(samples)
        return Estimate(estimate.value, estimate.stderr, self.probes, self.matvecs)

    def moment(self, power: int) -> Estimate:
        """Mean of ``value ** power`` over the eigenvalues, unbiased below twice the steps.

        From the third power on it is biased by known eigenpairs that have not converged. Where
        one eigenvalue dominates, intervals from few probes cover less than they say.
        """
        found = self.mean(lambda x: x**power)
        if power != 2:
            return found
        value = found.value + self.leaked / self.n
        return Estimate(value, found.stderr, self.probes, self.matvecs)

    def count(self, low: float, high: float) -> Estimate:
        """How many eigenvalues lie between `low` and `high`.

        The error is that of the probes; inside a dense part of the spectrum each probe places
        its nodes only so finely, which no scatter shows: more steps do.
        """
        part = self.mean(lambda x: ((x >= low) & (x <= high)).double())
        return Estimate(self.n * part.value, self.n * part.stderr, self.probes, self.matvecs)

    def cdf(self, x: Tensor | np.ndarray) -> np.ndarray:
        """Fraction of the eigenvalues at or below each `x`."""
        points = torch.as_tensor(x, device="cpu").double()
        below = self._samples(lambda nodes: (nodes <= points.reshape(-1, 1, 1)).double())
        return below.mean(0).reshape(points.shape).numpy()

    def smooth(self, x: Tensor | np.ndarray, width: float | None = None) -> np.ndarray:
        """Density at each `x`, every point spread to a Gaussian of standard deviation `width`.

        None is a hundredth of the support: the density of c A is then that of A at x / c,
        divided by c.
        """
        return self._kernels(x, width).mean(0)

    def band(
        self, x: Tensor | np.ndarray, width: float | None = None, level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise interval of :meth:`smooth` over the probes, by Student's t.

        It tells the error from too few probes, not the blur of the kernel.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        values = self._kernels(x, width)
        if self.probes < 2:
            return np.zeros_like(values[0]), np.full_like(values[0], np.inf)
        stderr = values.std(0, ddof=1) / self.probes**0.5
        half = float(special.stdtrit(self.probes - 1, 0.5 + level / 2)) * stderr
        middle = values.mean(0)
        return np.clip(middle - half, 0, None), middle + half

    def histogram(
        self, bins: int = 50, limits: tuple[float, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected number of eigenvalues in each of `bins` equal bins, and the bins' edges."""
        values, masses = self.points()
        low, high = limits or self.support
        if not high - low > 1e-6 * max(abs(low), abs(high)):  # one value: bins around it
            low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
        counts, edges = np.histogram(values, bins, (low, high), weights=masses)
        return counts * self.n, edges

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """All nodes and known eigenvalues, and the mass of each; the masses add up to 1."""
        share = (self.n - len(self.known)) / self.n
        values = torch.cat([self.known, self.nodes.flatten()])
        known = torch.full_like(self.known, 1 / self.n)
        masses = torch.cat([known, share / self.probes * self.weights.flatten()])
        return values.numpy(), masses.numpy()

    def wasserstein(self, other: SpectralDensity | Tensor) -> float:
        """Wasserstein-1 distance to another density, or to that of exact eigenvalues."""
        from scipy.stats import wasserstein_distance  # half a second, and rarely needed

        if isinstance(other, SpectralDensity):
            values, masses = other.points()
        else:
            values, masses = other.double().cpu().numpy(), None
        mine, weights = self.points()
        return float(wasserstein_distance(mine, values, weights.clip(0), masses))

    def _samples(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean of `function` by each probe, shape (probes, ...)."""
        share = (self.n - len(self.known)) / self.n
        found = (function(self.nodes) * self.weights).sum(-1)  # (..., probes)
        exact = function(self.known.reshape(1, -1)).sum(-1) / self.n  # (..., 1)
        samples = share * found + exact
        return samples.movedim(-1, 0) if samples.ndim > 1 else samples.unsqueeze(-1)

    def _kernels(self, x: Tensor | np.ndarray, width: float | None) -> np.ndarray:
        low, high = self.support
        if width is None:
            width = (high - low) / 100 or max(abs(high), 1e-300) / 100
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        points = torch.as_tensor(x, device="cpu").double()
        scale = 1 / (width * (2 * torch.pi) ** 0.5)

        def kernel(values: Tensor) -> Tensor:
            distance = (points.reshape(-1, 1, 1) - values) / width
            return scale * torch.exp(-0.5 * distance.square())

        return self._samples(kernel).reshape(self.probes, *points.shape).numpy()


@without_autocast
def spectral_density(
    operator: SymmetricOperator,
    steps: int = 80,
    probes: int = 8,
    *,
    deflate: Eigenpairs | None = None,
    seed: Seed = 0,
) -> SpectralDensity:
    r"""Estimate the density of the eigenvalues by stochastic Lanczos quadrature.

    From a random unit vector u, `steps` steps of Lanczos give the Gauss quadrature of
    :math:`u^\top f(A) u`: the eigenvalues of T are its nodes, the squared first entries of the
    eigenvectors its weights. Its mean over u is :math:`\frac{1}{n} \mathrm{Tr} f(A)`.

    Parameters
    ----------
    operator : SymmetricOperator
    steps : int
        Nodes of each probe: they fix how finely the spectrum is resolved.
    probes : int
        Random vectors: they fix the noise. ``steps * probes`` products in all.
    deflate : Eigenpairs or None
        Eigenpairs of this operator that are known already: they enter as they are, and the
        probes are left with the rest, which needs fewer steps and scatters less. What couples
        unconverged pairs to the rest enters the second moment alone.
    seed : int or torch.Generator

    Returns
    -------
    SpectralDensity

    References
    ----------
    S. Ubaru, J. Chen and Y. Saad 2017, doi:10.1137/16M1104974. T. Chen, T. Trogdon and S. Ubaru
    2021, arXiv:2105.06595. G. Golub and G. Meurant 2010, doi:10.1515/9781400833887.

    Examples
    --------
    >>> from landscape_core.curvature.operators import Matrix
    >>> A = Matrix(torch.diag(torch.linspace(0, 1, 50)))
    >>> density = spectral_density(A, steps=20, probes=4)
    >>> abs(float(density.moment(1)) - 0.5) < 0.1
    True
    """
    check_operator(operator)
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1, got {steps}")
    if not isinstance(probes, Integral) or probes < 1:
        raise ValueError(f"probes must be a whole number >= 1, got {probes}")
    rng = generator(seed, operator.device)
    bases = quadratures(operator, steps, probes, deflate, rng)
    return density_of(bases, deflate, operator.n)


def quadratures(
    operator: SymmetricOperator,
    steps: int,
    probes: int,
    deflate: Eigenpairs | None,
    rng: torch.Generator,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Nodes, weights and the first two moments of `probes` random unit vectors.

    The moments are u'Au and |Au|^2, for u uniform on the unit sphere of what is not deflated.
    """
    deflated = operator if deflate is None else operator.deflate(deflate)
    free = operator.n - (len(deflate) if deflate is not None else 0)
    if free == 0:
        zeros = torch.zeros(1, dtype=torch.float64, device="cpu")
        return [(zeros, zeros, zeros.repeat(2))] * probes
    steps = min(steps, free)

    def basis() -> KrylovBasis:
        start = probe(operator.n, operator.dtype, rng, "gaussian")
        if deflate is not None:
            start = operator.deflate(deflate).project(start.unsqueeze(1)).squeeze(1)
        return KrylovBasis(deflated, min(steps, operator.n), rng, start)

    together = operator.n <= SMALL
    found = []
    for group in [probes] if together else [1] * probes:
        bases = [basis() for _ in range(group)]
        for _ in range(steps):
            grow_together(bases)
        found += [_quadrature(each) for each in bases]
    return found


def _quadrature(basis: KrylovBasis) -> tuple[Tensor, Tensor, Tensor]:
    values, rotation, _, _ = basis.ritz()
    weights = rotation[0].square()
    moments = torch.stack([weights @ values, weights @ values.square()])
    if basis.size == 1:  # one step knows |Au|^2 from the remainder
        moments[1] += float(basis.coupling) ** 2
    return values, weights, moments


def density_of(
    found: list[tuple[Tensor, Tensor, Tensor]], deflate: Eigenpairs | None, n: int
) -> SpectralDensity:
    """Put the quadratures of several probes together."""
    known = torch.zeros(0, device="cpu") if deflate is None else deflate.values
    nodes = torch.stack([values for values, _, _ in found])
    weights = torch.stack([weights for _, weights, _ in found])
    matvecs = nodes.numel() if n > len(known) else 0
    leaked = 0.0 if deflate is None else 2 * float(deflate.residuals.double().square().sum())
    return SpectralDensity(nodes, weights, known.double().cpu(), n, matvecs, leaked)
