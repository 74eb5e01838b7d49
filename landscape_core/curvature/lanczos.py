"""Lanczos: an orthonormal basis in which a symmetric operator is a small matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape_core.curvature.operators import SymmetricOperator

ROUNDINGS = 50  # of the arithmetic, in a residual
SLAB = 1 << 18  # entries of each vector that a rotation of the basis moves at a time


class KrylovBasis:
    """An orthonormal basis Q of growing dimension, and the projection of A on it.

    With m columns it holds the decomposition

        A Q = Q T + r e_m'        (Q'Q = I,  T = Q'AQ,  Q'r = 0)

    to rounding, because every new vector is orthogonalized against all earlier ones, again if
    the first pass removed much of it (Parlett 1998, "The Symmetric Eigenvalue Problem",
    section 6.9): no ghost copies of converged eigenvalues appear. T is kept whole, not as a
    tridiagonal, so that the same code goes on after a thick restart (Wu and Simon 2000,
    doi:10.1137/S0895479898334605).

    Parameters
    ----------
    operator : SymmetricOperator
    capacity : int
        The largest number of columns; memory is ``n * (capacity + 1)`` numbers.
    rng : torch.Generator
        Draws the first vector, and a new one should the basis span an invariant subspace.
    start : Tensor, shape (n,), or None
        The first vector, of any length; drawn if None.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        capacity: int,
        rng: torch.Generator,
        start: Tensor | None = None,
    ) -> None:
        self.operator = operator
        self.capacity = capacity
        self.size = 0
        self._restarted = 0  # columns kept by the last restart
        self._rng = rng
        self.warm = start is not None
        first = self._random() if start is None else start
        self._vectors = first.new_empty(capacity + 1, operator.n)  # rows: contiguous
        self._vectors[0] = first / first.norm()
        self._projected = first.new_zeros(capacity, capacity)
        self._couplings = first.new_zeros(capacity)
        self._unit = first.new_ones(())
        self._scale = first.new_zeros(())  # largest |A q| so far, in that unit

    @property
    def vectors(self) -> Tensor:
        """Q, shape (n, m)."""
        return self._vectors[: self.size].T

    @property
    def direction(self) -> Tensor:
        """The vector that the next product is needed of, shape (n,)."""
        return self._vectors[self.size]

    @property
    def projected(self) -> Tensor:
        """T = Q'AQ, shape (m, m), symmetric."""
        return self._unit * self._relative

    @property
    def _relative(self) -> Tensor:
        """T in units of `_unit`: A may be so small or large that its squares do not exist."""
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
        tolerance = 100 * self.operator.rounding**0.75
        return bool(upper.triu(2).abs().max() <= tolerance * self._scale)

    @property
    def coupling(self) -> Tensor:
        """The length of the remainder r, a scalar; zero when Q spans an invariant subspace."""
        return self._unit * self._couplings[self.size - 1]

    @property
    def remainder(self) -> Tensor:
        """The remainder r, shape (n,)."""
        return self.coupling * self._vectors[self.size]

    def ritz(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Eigenvalues of T, ascending, its eigenvectors s, |A Qs - Qs value|, and their floor.

        All in float64 on the CPU. The decomposition holds to rounding, and products to their
        error, so no residual may be claimed to be below the floor; those returned are not
        raised to it yet.
        """
        relative, unit = self._relative.double().cpu(), float(self._unit)
        if not bool(torch.isfinite(relative).all()):
            raise FloatingPointError(
                "a product of the operator is not finite: theta or the data hold nan or inf"
            )
        if not self.symmetric:
            raise ValueError(
                "the operator is not symmetric: the data or the model change between products, "
                "a layer's second derivative is wrong (torch's weight_norm has this fault), or "
                "finite differences step over kinks of the loss"
            )
        values, rotation = torch.linalg.eigh(relative)
        largest = max(float(values.abs().max()), self.operator.magnitude / unit)
        eps = torch.finfo(self._vectors.dtype).eps
        rounding = ROUNDINGS * eps
        if self.operator.rounding > eps:
            rounding = max(rounding, self.operator.rounding)
        coupling = float(self._couplings[self.size - 1])
        residuals = coupling * rotation[-1].abs()
        return values * unit, rotation, residuals * unit, rounding * largest * unit

    def grow(self) -> None:
        """Add one column, by one product. On a GPU nothing here waits for the device."""
        self.absorb(self.operator @ self.direction)

    def absorb(self, product: Tensor) -> None:
        """Add one column, given the product of A with :attr:`direction`."""
        m = self.size
        basis = self._vectors[: m + 1]
        if m == 0:
            largest = product.abs().max()
            self._unit = torch.where(largest > 0, largest, torch.ones_like(largest))
            self._scale = self.operator.magnitude / self._unit
        w = product / self._unit
        self._scale = torch.maximum(self._scale, w.norm())
        # The last two vectors hold all of A q that is not rounding, save after a restart.
        known = 0 if m == self._restarted else m - 1
        self._remove(w, known, m)
        before = w.norm()
        self._remove(w, 0, m)
        length = w.norm()
        on_gpu = w.device.type != "cpu"
        if on_gpu or bool(length < 0.7 * before):
            self._remove(w, 0, m)
            length = w.norm()
        # Below rounding of A the remainder is noise: the space is invariant, go on elsewhere.
        exhausted = length <= 10 * torch.finfo(w.dtype).eps * self._scale
        if m + 1 < self.operator.n:
            if on_gpu or bool(exhausted):
                tiny = torch.finfo(w.dtype).tiny
                w = torch.where(exhausted, self._random(), w / length.clamp_min(tiny))
                for _ in range(2):
                    w = w - basis.T @ (basis @ w)
                self._vectors[m + 1] = w / w.norm()
            else:
                torch.div(w, length, out=self._vectors[m + 1])
        self._couplings[m] = length
        self.size = m + 1

    def _remove(self, w: Tensor, first: int, last: int) -> None:
        """Take the parts of `w` along vectors first..last out, and book them in T."""
        some = self._vectors[first : last + 1]
        overlap = some @ w
        w.addmv_(some.T, overlap, alpha=-1)
        self._projected[first : last + 1, last] += overlap

    def restart(self, keep: Tensor) -> None:
        """Shrink to the subspace Q @ keep, for `keep` of eigenvectors of T, shape (m, p).

        The next vector stays, so the decomposition holds for the smaller basis too.
        """
        keep = keep.to(self._vectors)
        values = torch.linalg.vecdot(keep, self._relative @ keep, dim=0)
        following = self._vectors[self.size].clone()
        self._rotate(keep)
        p = keep.shape[1]
        self._vectors[p] = following
        self._projected.zero_()
        self._projected[:p, :p] = torch.diag(values)
        self.size = self._restarted = p

    def take(self, rotation: Tensor) -> Tensor:
        """Turn the basis into the vectors Q @ rotation, shape (n, k), and give up the rest."""
        rotation = rotation.to(self._vectors)
        self._rotate(rotation)
        self.size = 0
        taken = self._vectors[: rotation.shape[1]]
        # A copy lets go of the rest, where the rest is most of it.
        return taken.T if 2 * len(taken) > self.capacity else taken.clone().T

    def _rotate(self, rotation: Tensor) -> None:
        """Put Q @ rotation in the place of the first vectors, in slabs: no second basis."""
        m, p = rotation.shape
        for start in range(0, self.operator.n, SLAB):
            slab = self._vectors[:, start : start + SLAB]
            slab[:p] = rotation.T @ slab[:m]

    def _random(self) -> Tensor:
        op = self.operator
        return torch.randn(op.n, generator=self._rng, device=op.device, dtype=op.dtype)


def grow_together(bases: Sequence[KrylovBasis]) -> None:
    """Add one column to every basis by one product with a block, (n, len(bases))."""
    block = torch.stack([basis.direction for basis in bases], dim=1)
    products = bases[0].operator @ block
    for index, basis in enumerate(bases):
        basis.absorb(products[:, index])
