"""Lanczos: an orthonormal basis in which a symmetric operator is a small matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_core.curvature.operators import SymmetricOperator


class KrylovBasis:
    """An orthonormal basis Q of growing dimension, and the projection of A on it.

    With m columns it holds the decomposition

        A Q = Q T + r e_m'        (Q'Q = I,  T = Q'AQ,  Q'r = 0)

    to rounding, because every new vector is orthogonalized against all earlier ones, twice
    (Parlett 1998, "The Symmetric Eigenvalue Problem", section 6.9): no ghost copies of
    converged eigenvalues appear. T is kept whole, not as a tridiagonal, so that the same code
    goes on after a thick restart (Wu and Simon 2000, doi:10.1137/S0895479898334605).

    Parameters
    ----------
    operator : SymmetricOperator
    capacity : int
        The largest number of columns; memory is ``n * (capacity + 1)`` numbers.
    rng : torch.Generator
        Draws the first vector, and a new one should the basis span an invariant subspace.
    """

    def __init__(
        self, operator: SymmetricOperator, capacity: int, rng: torch.Generator
    ) -> None:
        self.operator = operator
        self.capacity = capacity
        self.size = 0
        self._restarted = False
        start = torch.zeros(operator.n, dtype=operator.dtype, device=operator.device)
        self._vectors = start.new_zeros(capacity + 1, operator.n)  # rows: contiguous
        self._projected = start.new_zeros(capacity, capacity)
        self._couplings = start.new_zeros(capacity)
        self._rng = rng
        start = self._random()
        self._vectors[0] = start / start.norm()

    @property
    def vectors(self) -> Tensor:
        """Q, shape (n, m)."""
        return self._vectors[: self.size].T

    @property
    def projected(self) -> Tensor:
        """T = Q'AQ, shape (m, m), symmetric."""
        upper = self._projected[: self.size, : self.size]  # A is symmetric: half is stored
        return upper.triu() + upper.triu(1).T

    @property
    def symmetric(self) -> bool:
        """Whether A was symmetric in all products so far, as far as they can tell.

        Until the first restart T is tridiagonal if A is symmetric, and entries further from
        the diagonal measure the asymmetry; afterwards nothing is claimed.
        """
        if self._restarted or self.size < 3:
            return True
        upper = self._projected[: self.size, : self.size]
        tolerance = 100 * torch.finfo(upper.dtype).eps ** 0.75
        return bool(upper.triu(2).abs().max() <= tolerance * upper.abs().max())

    @property
    def coupling(self) -> Tensor:
        """The length of the remainder r, a scalar; zero when Q spans an invariant subspace."""
        return self._couplings[self.size - 1]

    @property
    def remainder(self) -> Tensor:
        """The remainder r, shape (n,)."""
        return self.coupling * self._vectors[self.size]

    def grow(self) -> None:
        """Add one column, by one product. Nothing here waits for the device."""
        m = self.size
        basis = self._vectors[: m + 1]
        w = self.operator @ basis[m]
        scale = w.norm()
        for _ in range(2):
            overlap = basis @ w
            w = w - basis.T @ overlap
            self._projected[: m + 1, m] += overlap
        length = w.norm()
        # Below rounding the remainder is noise: the space is invariant, go on from elsewhere.
        exhausted = length <= 10 * torch.finfo(w.dtype).eps * scale
        if m + 1 < self.operator.n:
            w = torch.where(
                exhausted, self._random(), w / length.clamp_min(torch.finfo(w.dtype).tiny)
            )
            w = w - basis.T @ (basis @ w)
            self._vectors[m + 1] = w / w.norm()
        self._couplings[m] = torch.where(exhausted, torch.zeros_like(length), length)
        self.size = m + 1

    def restart(self, keep: Tensor) -> None:
        """Shrink to the subspace Q @ keep, for `keep` of eigenvectors of T, shape (m, p).

        The next vector stays, so the decomposition holds for the smaller basis too.
        """
        values = torch.linalg.vecdot(keep, self.projected @ keep, dim=0)
        self._restarted = True
        p = keep.shape[1]
        self._vectors[:p] = keep.T @ self._vectors[: self.size]
        self._vectors[p] = self._vectors[self.size].clone()
        self._projected.zero_()
        self._projected[:p, :p] = torch.diag(values)
        self.size = p

    def _random(self) -> Tensor:
        op = self.operator
        return torch.randn(op.n, generator=self._rng, device=op.device, dtype=op.dtype)
