"""Symmetric matrices known only by their products with vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from landscape_core.curvature.probes import Distribution, probes_block
from landscape_core.results import Eigenpairs

T = TypeVar("T")
SMALL = 50_000  # up to this n, probes are multiplied several at a time


class SymmetricOperator:
    """A symmetric n x n matrix A, given by what ``A @ v`` is.

    Subclasses set `n`, `dtype` and `device` and define :meth:`_multiply`.

    Attributes
    ----------
    matvecs : int
        Products with single vectors made so far.
    rounding : float
        Relative error to expect of a product, against the largest one; that of the dtype
        unless a subclass says more.
    magnitude : float
        A size that entries had on the way to a product, 0 if no more than its own: what is
        smaller by the rounding is noise.
    """

    n: int
    dtype: torch.dtype
    device: torch.device

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self.rounding = torch.finfo(dtype).eps
        self.magnitude = 0.0
        self.matvecs = 0

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """How many rows belong to each layer, in order; (n,) where there are none."""
        return (self.n,)

    def _multiply(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of `vectors`, shape (n, k) to (n, k)."""
        raise TypeError(f"{type(self).__name__} does not define its product")

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """``A @ v`` for v of shape (n,) or (n, k)."""
        if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2):
            raise TypeError("an operator multiplies tensors of shape (n,) or (n, k)")
        if vectors.shape[0] != self.n:
            raise ValueError(
                f"the operator has n = {self.n}, got vectors of shape {tuple(vectors.shape)}"
            )
        if vectors.dtype != self.dtype or vectors.device != self.device:
            raise ValueError(
                f"the operator is {self.dtype} on {self.device}, "
                f"got {vectors.dtype} on {vectors.device}"
            )
        columns = vectors.detach().unsqueeze(1) if vectors.ndim == 1 else vectors.detach()
        self.matvecs += columns.shape[1]
        return self._multiply(columns).reshape(vectors.shape)

    def dense(self, limit: int = 5000) -> Tensor:
        """The whole matrix, shape (n, n), for n up to `limit`.

        Computed by n products; symmetric to rounding, not symmetrized.
        """
        if self.n > limit:
            raise ValueError(f"a dense matrix of n = {self.n} is refused above limit = {limit}")
        eye = torch.eye(self.n, dtype=self.dtype, device=self.device)
        return torch.cat([self @ columns for columns in eye.split(128, dim=1)], dim=1)

    def map_batches(self, function: Callable[[SymmetricOperator], T]) -> list[tuple[int, T]]:
        """What `function` gives for the matrix of each batch, and the batch's examples.

        A is the mean of these matrices, weighted by the examples. One that belongs to no
        batches is the only one: ``[(1, function(A))]``. The operators that `function` gets are
        usable inside it alone: what they keep of a batch is freed before the next.

        >>> import torch.nn.functional as F
        >>> import landscape_core as lc
        >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
        >>> batches = [(x[:30], y[:30]), (x[30:], y[30:])]
        >>> H = lc.Hessian(lc.Objective(torch.nn.Linear(3, 1), F.mse_loss, batches))
        >>> largest = H.map_batches(lambda part: float(lc.top_eigenpairs(part, 1).values))
        >>> [size for size, _ in largest]
        [30, 20]
        """
        return [(1, function(self))]

    def trace_samples(
        self, count: int, rng: torch.Generator, distribution: Distribution = "rademacher"
    ) -> list[tuple[int, Tensor]]:
        """`count` independent samples of the trace of each batch's matrix, and its examples.

        Each has the trace as its mean: v'Av for new probes v, unless a subclass knows better.
        """

        def forms(part: SymmetricOperator) -> Tensor:
            together, samples = count if part.n <= SMALL else 1, []
            for _ in range(0, count, together):
                v = probes_block(together, part.n, part.dtype, rng, distribution)
                samples.append(torch.linalg.vecdot(v, part @ v, dim=0).double().cpu())
            return torch.cat(samples)

        return self.map_batches(forms)

    def deflate(self, pairs: Eigenpairs) -> Deflated:
        """P A P, where P projects the eigenvectors in `pairs` out; n stays.

        For exact eigenpairs this is A - sum of value * vector vector'; it is symmetric for
        inexact ones too.
        """
        return Deflated(self, pairs)

    def scaled(self, scale: Tensor) -> Scaled:
        """S A S with S = diag(scale), for `scale` of shape (n,).

        ``H.scaled(theta.abs())`` is the curvature under relative changes of the weights, which
        rescaling the layers of a ReLU network leaves as it is (Dinh et al. 2017,
        arXiv:1703.04933).
        """
        return Scaled(self, scale)

    def shifted(self, shift: float) -> Shifted:
        """A + shift * I."""
        return Shifted(self, shift)


def check_operator(operator: object) -> None:
    """Refuse what is not an operator, and say how to make one."""
    if not isinstance(operator, SymmetricOperator):
        kind = type(operator).__name__
        raise TypeError(f"an operator is needed, such as Hessian(objective), got {kind}")


class _Transformed(SymmetricOperator):
    """An operator made of another one; products are counted by both."""

    def __init__(self, base: SymmetricOperator) -> None:
        super().__init__(base.n, base.dtype, base.device)
        self.base = base
        self.rounding, self.magnitude = base.rounding, base.magnitude

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """``A @ v`` for v of shape (n,) or (n, k)."""
        product = super().__matmul__(vectors)
        self.rounding = self.base.rounding  # may have been measured by this product
        return product

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Those of the operator that it is made of."""
        return self.base.layer_sizes

    def map_batches(self, function: Callable[[SymmetricOperator], T]) -> list[tuple[int, T]]:
        """That of the operator it is made of, each batch transformed in the same way."""
        before = self.base.matvecs
        results = self.base.map_batches(lambda base: function(self._of(base)))
        self.matvecs += self.base.matvecs - before
        return results

    def _of(self, base: SymmetricOperator) -> SymmetricOperator:
        """Transform another operator in the same way."""
        transformed = copy.copy(self)
        transformed.base, transformed.matvecs = base, 0
        return transformed


class Deflated(_Transformed):
    """See :meth:`SymmetricOperator.deflate`."""

    def __init__(self, base: SymmetricOperator, pairs: Eigenpairs) -> None:
        super().__init__(base)
        if not isinstance(pairs, Eigenpairs):
            kind = type(pairs).__name__
            raise TypeError(f"deflate needs the Eigenpairs of this operator, got {kind}")
        if pairs.vectors.shape[0] != base.n:
            got = pairs.vectors.shape[0]
            raise ValueError(f"eigenvectors must have n = {base.n} entries, got {got}")
        self.pairs = pairs
        self.magnitude = max(base.magnitude, float(pairs.values.abs().max()))

    def project(self, vectors: Tensor) -> Tensor:
        """P v: `vectors` without their parts along the eigenvectors."""
        basis = self.pairs.vectors
        return vectors - basis @ (basis.T @ vectors)

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.project(self.base @ self.project(vectors))


class Scaled(_Transformed):
    """See :meth:`SymmetricOperator.scaled`."""

    def __init__(self, base: SymmetricOperator, scale: Tensor) -> None:
        super().__init__(base)
        if not isinstance(scale, Tensor) or scale.shape != (base.n,):
            got = tuple(scale.shape) if isinstance(scale, Tensor) else type(scale).__name__
            raise ValueError(f"scale must be a tensor of shape ({base.n},), got {got}")
        self.scale = scale.detach().to(base.device, base.dtype).unsqueeze(1)
        self.magnitude = base.magnitude * float(self.scale.abs().max()) ** 2

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.scale * (self.base @ (self.scale * vectors))


class Shifted(_Transformed):
    """See :meth:`SymmetricOperator.shifted`."""

    def __init__(self, base: SymmetricOperator, shift: float) -> None:
        super().__init__(base)
        self.shift = float(shift)
        self.magnitude = max(base.magnitude, abs(self.shift))

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.base @ vectors + self.shift * vectors


def _asymmetry(dtype: torch.dtype) -> float:
    """What rounding may leave between two halves of a matrix, relative to its largest entry."""
    return max(1e-8, 20 * torch.finfo(dtype).eps)


class Matrix(SymmetricOperator):
    """A dense symmetric matrix as an operator: for examples, tests and small problems.

    Parameters
    ----------
    matrix : Tensor, shape (n, n)

    Raises
    ------
    ValueError
        If the matrix is not square, real and symmetric.

    Examples
    --------
    >>> A = Matrix(torch.diag(torch.tensor([3.0, 1.0])))
    >>> A @ torch.tensor([1.0, 1.0])
    tensor([3., 1.])
    >>> A.shifted(2.0) @ torch.tensor([1.0, 1.0])
    tensor([5., 3.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        if not matrix.dtype.is_floating_point or not bool(torch.isfinite(matrix).all()):
            raise ValueError("matrix must be of finite real floating-point numbers")
        largest = float(matrix.abs().amax())
        if not torch.allclose(matrix, matrix.T, atol=_asymmetry(matrix.dtype) * largest):
            raise ValueError("matrix must be symmetric")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self.matrix = matrix

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.matrix @ vectors
