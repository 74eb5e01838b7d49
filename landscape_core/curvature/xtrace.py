"""XTrace: every random vector serves in the sketch of all others, and as a probe of its own.

E. Epperly, J. Tropp and R. Webber, XTrace: making the most of every sample in stochastic trace
estimation, 2024, arXiv:2301.07825.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from landscape_core.curvature.operators import SymmetricOperator
from landscape_core.curvature.probes import probes_block
from landscape_core.results import Estimate

FIRST = 6  # vectors before the first error estimate


def xtrace(
    operator: SymmetricOperator, probes: int, rtol: float | None, rng: torch.Generator
) -> Estimate:
    """Add vectors, two products each, until `rtol` is reached or the products are spent."""
    most = min(probes // 2, operator.n)
    if operator.n == 1:
        one = torch.ones(1, dtype=operator.dtype, device=operator.device)
        return Estimate(float(operator @ one), 0.0, 1, 1, "rtol" if rtol else "")
    sketch = _Sketch(operator, rng)
    sketch.add(most if rtol is None else min(FIRST, most))
    stopped: Literal["", "rtol", "budget"] = ""
    while True:
        value, stderr = sketch.estimate()
        if not math.isfinite(value):
            raise FloatingPointError(
                "a product of the operator is not finite: theta or the data hold nan or inf"
            )
        if rtol is not None:
            stopped = "rtol" if stderr <= rtol * abs(value) else "budget"
        if stopped != "budget" or sketch.size >= most:
            return Estimate(value, stderr, sketch.size, 2 * sketch.size, stopped)
        sketch.add(min(sketch.size // 2, most - sketch.size))


class _Sketch:
    """Omega, A Omega = Q R and A Q, growing by columns; old products are never repeated."""

    def __init__(self, operator: SymmetricOperator, rng: torch.Generator) -> None:
        self.operator, self.rng = operator, rng
        empty = torch.empty(operator.n, 0, dtype=operator.dtype, device=operator.device)
        self.omega = self.basis = self.image = empty
        self.triangle = empty.new_empty(0, 0)

    @property
    def size(self) -> int:
        return self.omega.shape[1]

    def add(self, count: int) -> None:
        """Add `count` columns by two products each."""
        op = self.operator
        omega = probes_block(count, op.n, op.dtype, self.rng, "sphere")
        rest = op @ omega
        above = torch.zeros_like(self.basis.T @ rest)
        for _ in range(2):
            overlap = self.basis.T @ rest
            rest = rest - self.basis @ overlap
            above = above + overlap
        basis = torch.linalg.qr(rest)[0]
        # Where A has no more rank, the columns are rounding: only now orthogonal to the rest.
        basis = torch.linalg.qr(basis - self.basis @ (self.basis.T @ basis))[0]
        k = self.size
        triangle = rest.new_zeros(k + count, k + count)
        triangle[:k, :k], triangle[:k, k:] = self.triangle, above
        triangle[k:, k:] = (basis.T @ rest).triu()
        self.triangle = triangle
        self.omega = torch.cat([self.omega, omega], dim=1)
        self.basis = torch.cat([self.basis, basis], dim=1)
        self.image = torch.cat([self.image, op @ basis], dim=1)

    def estimate(self) -> tuple[float, float]:
        """Return the trace and its standard error.

        The trace is the mean over i of t_i, which takes vector i for the probe and all others
        for the sketch. Whatever the sketch, the mean of t_i over its probe is the trace; so the
        t_i are correlated only through what vector j does to t_i together with what vector i
        does to t_j, and with c that covariance the variance of the mean is (scatter of the
        t_i) / k + c. The error estimate of the paper leaves c out and is too small by a tenth
        to a half. Here c comes from the t_i without vector j in the sketch, for all pairs,
        which follow from the same k x k matrices.
        """
        k, n = self.size, self.operator.n
        image = self.triangle.double()  # Q'A omega
        if not bool(image.any()):  # A is zero
            return 0.0, 0.0
        inner = (self.basis.T @ self.image).double()
        inner = (inner + inner.T) / 2  # Q'AQ
        along = (self.basis.T @ self.omega).double()
        out = self._left_out(image)
        kept = along - out * (out * along).sum(0)
        quadratic = out.T @ inner @ out
        exact = inner.diagonal().sum() - quadratic.diagonal()
        rest = (along * image - 2 * kept * image + kept * (inner @ kept)).sum(0)
        length = n - kept.square().sum(0)
        samples = exact + rest * _ratio(n - k + 1, length)
        # Pairs (j, i): u completes s_i to a basis of what leaves with vectors i and j.
        overlap = out.T @ out
        size = (1 - overlap.square()).clamp_min(1e-12).sqrt()
        c = (out.T @ kept) / size
        along_image = (out.T @ image - overlap * (out * image).sum(0)) / size
        cross = out.T @ inner @ kept
        along_inner = (cross - overlap * cross.diagonal()) / size
        diagonal = quadratic.diagonal()
        u_squared = diagonal[:, None] - 2 * overlap * quadratic + overlap**2 * diagonal
        u_squared = u_squared / size**2
        rest = rest + 2 * c * (along_image - along_inner) + c**2 * u_squared
        pairs = exact - u_squared + rest * _ratio(n - k + 2, length + c**2)
        effect = (samples - pairs).fill_diagonal_(0)  # of vector j in the sketch, on t_i
        effect = (effect - effect.sum(0) / (k - 1)).fill_diagonal_(0)
        shared = (effect * effect.T).sum() / (k * (k - 1))
        return float(samples.mean()), float((samples.var() / k + shared.clamp_min(0)).sqrt())

    def _left_out(self, triangle: Tensor) -> Tensor:
        """Return unit vectors s_i: Q without s_i spans the sketch without its vector i.

        They are the rows of the inverse of R.
        """
        triangle = triangle.clone()
        diagonal = triangle.diagonal()
        small = torch.finfo(self.basis.dtype).eps * triangle.abs().max() / self.operator.n
        diagonal[diagonal.abs() < small] = small.clamp_min(1e-300)
        eye = torch.eye(len(triangle), dtype=torch.float64, device=triangle.device)
        inverse = torch.linalg.solve_triangular(triangle.T, eye, upper=False)
        return inverse / inverse.norm(dim=0)


def _ratio(dimension: int, length: Tensor) -> Tensor:
    """Length of a probe on the sphere of what is left, over what it has."""
    return dimension / length.clamp_min(1e-300)
