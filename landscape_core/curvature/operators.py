"""Symmetric matrices known only by their products with vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape_core.objective import Objective


class SymmetricOperator:
    """A symmetric n x n matrix A, given by what ``A @ v`` is.

    Subclasses set `n`, `dtype` and `device` and define :meth:`_multiply`.

    Attributes
    ----------
    matvecs : int
        Products with single vectors made so far.
    """

    n: int
    dtype: torch.dtype
    device: torch.device

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self.matvecs = 0

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
        return self @ torch.eye(self.n, dtype=self.dtype, device=self.device)


def check_operator(operator: object) -> None:
    """Refuse what is not an operator, and say how to make one."""
    if not isinstance(operator, SymmetricOperator):
        kind = type(operator).__name__
        raise TypeError(f"an operator is needed, such as Hessian(objective), got {kind}")


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
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        if not matrix.dtype.is_floating_point or not bool(torch.isfinite(matrix).all()):
            raise ValueError("matrix must be of finite real floating-point numbers")
        if not torch.allclose(matrix, matrix.T):
            raise ValueError("matrix must be symmetric")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self.matrix = matrix

    def _multiply(self, vectors: Tensor) -> Tensor:
        return self.matrix @ vectors


class Hessian(SymmetricOperator):
    r"""The Hessian of an objective at theta, :math:`H = \nabla^2 L(\theta)`.

    A product is the derivative of the gradient along v,
    :math:`Hv = \nabla_\theta \langle \nabla L(\theta), v \rangle`, summed over all batches in
    proportion to their examples: the curvature of the whole data set at about the cost of
    three gradients, without ever forming H (Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147).

    Parameters
    ----------
    objective : Objective
    theta : Tensor, shape (n,), or None
        Where; None is the objective's own theta.

    Raises
    ------
    ValueError
        If theta does not belong to the objective, or the loss has no second derivative there.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
    >>> H = Hessian(Objective(torch.nn.Linear(3, 1, bias=False), F.mse_loss, (x, y)))
    >>> torch.allclose(H.dense(), 2 / 50 * x.T @ x, atol=1e-5)
    True
    """

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        if not isinstance(objective, Objective):
            kind = type(objective).__name__
            raise TypeError(f"Hessian needs an Objective(model, criterion, data), got {kind}")
        space = objective.space
        super().__init__(space.n, space.dtype, space.device)
        self.objective = objective
        self.theta = objective.theta if theta is None else space.check(theta)
        self._statistics = objective.statistics(self.theta)

    def _multiply(self, vectors: Tensor) -> Tensor:
        total, count = torch.zeros_like(vectors), 0
        last = vectors.shape[1] - 1
        for batch in self.objective.batches():
            leaf = self.theta.clone().requires_grad_()
            with torch.enable_grad():
                loss = self.objective.batch_loss(leaf, batch, self._statistics)
                gradient = torch.autograd.grad(loss, leaf, create_graph=True)[0]
            if not gradient.requires_grad:
                raise ValueError(
                    "the gradient does not depend on theta: the loss is linear in theta, or "
                    "its backward pass cannot be differentiated"
                )
            weight = len(batch[1])
            for column in range(last + 1):  # one graph serves all the columns
                product = torch.autograd.grad(
                    gradient, leaf, vectors[:, column], retain_graph=column < last
                )[0]
                total[:, column] += weight * product
            count += weight
        return total / count
