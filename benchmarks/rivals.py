"""The other packages behind one small interface: products, and the tasks built on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from networks import Batches
from torch import Tensor, nn


class Rival(Protocol):
    """One package on one network: a product with a flat vector."""

    name: str

    def product(self, v: Tensor) -> Tensor:
        """Return H v, shape (n,)."""


class Curvlinops(Rival):
    """curvlinops-for-pytorch, with SciPy's eigsh for eigenpairs."""

    name = "curvlinops"

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        from curvlinops import HessianLinearOperator

        self.operator = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), batches,
            check_deterministic=False, num_data=sum(len(y) for _, y in batches),
        )  # fmt: skip

    def product(self, v: Tensor) -> Tensor:
        """Return H v."""
        return self.operator @ v

    def eigenpairs(self, k: int, tol: float, steps: int) -> tuple[Tensor, Tensor]:
        """Return k values and vectors of largest magnitude by ARPACK; it ignores `steps`."""
        from scipy.sparse.linalg import eigsh

        values, vectors = eigsh(self.operator.to_scipy(), k=k, which="LM", tol=tol)
        return torch.from_numpy(values), torch.from_numpy(vectors)

    def trace(self, method: str, products: int) -> float:
        """Estimate the trace from so many products."""
        from curvlinops import hutchinson_trace, hutchpp_trace, xtrace

        call = {"hutchinson": hutchinson_trace, "hutch++": hutchpp_trace, "xtrace": xtrace}
        return float(call[method](self.operator, products))


class Eigenthings(Rival):
    """hessian-eigenthings 1.0, which weighs every batch alike, the ragged one too."""

    name = "hessian-eigenthings"

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        from hessian_eigenthings import HessianOperator, supervised_loss

        self.operator = HessianOperator(model, batches, supervised_loss(F.cross_entropy))

    def product(self, v: Tensor) -> Tensor:
        """Return H v, but for the weights of ragged batches."""
        return self.operator.matvec(v)

    def eigenpairs(self, k: int, tol: float, steps: int) -> tuple[Tensor, Tensor]:
        """Return k pairs after `steps` steps of Lanczos: it must be told how many."""
        from hessian_eigenthings import lanczos

        found = lanczos(
            self.operator, k=k, max_iter=steps, tol=tol, reorthogonalize=True, seed=0
        )
        return found.eigenvalues, found.eigenvectors.T


class PyHessian(Rival):
    """PyHessian 0.1, products only: its eigenpairs are power iterations without a residual."""

    name = "PyHessian"

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        from pyhessian import hessian

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            on_gpu = next(model.parameters()).is_cuda
            self.operator = hessian(model, F.cross_entropy, dataloader=batches, cuda=on_gpu)
        self.parameters = list(model.parameters())

    def product(self, v: Tensor) -> Tensor:
        """Return H v."""
        pieces = v.split([p.numel() for p in self.parameters])
        shaped = [x.view_as(p) for x, p in zip(pieces, self.parameters, strict=True)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, product = self.operator.dataloader_hv_product(shaped)
        return torch.cat([x.detach().reshape(-1) for x in product])


RIVALS: list[Callable[[nn.Module, Batches], Any]] = [Curvlinops, Eigenthings, PyHessian]
