"""Curvature while a network trains."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from landscape_core.criteria import Criterion
from landscape_core.curvature.eigen import top_eigenpairs
from landscape_core.curvature.hessian import Hessian
from landscape_core.curvature.operators import SymmetricOperator
from landscape_core.experiments.history import TrainingState
from landscape_core.objective import Objective
from landscape_core.results import Eigenpairs


class CurvatureTracker:
    """A callback for :func:`train` that follows the largest Hessian eigenvalue.

    Each search starts from the eigenvector found last, which changes little in a few steps:
    a handful of products is then enough.

    Parameters
    ----------
    criterion : callable
        As for :class:`Objective`.
    batches : pair, sequence of pairs, or DataLoader
        The data that the curvature is of, as for :class:`Objective`; it need not be the data
        that is trained on.
    every_steps : int or None
        Measure after every so many optimizer steps; None measures after epochs.
    every_epochs : int
        Measure after every so many epochs, where `every_steps` is None.
    layers : bool
        Whether to follow each layer's diagonal block too.
    tol : float
        Largest relative residual.
    options : optional
        Handed to :class:`Objective`: `parameters`, `batchnorm`.

    Attributes
    ----------
    records : list of dict
        See :meth:`table`.

    References
    ----------
    J. Cohen et al., Gradient descent on neural networks typically occurs at the edge of
    stability, 2021, arXiv:2103.00065.

    Examples
    --------
    >>> import landscape_core as lc
    >>> import torch.nn.functional as F
    >>> data = lc.load("digits", subset=(200, 50))
    >>> model = lc.MLP(data.input_shape, data.classes, width=8)
    >>> tracker = CurvatureTracker(F.cross_entropy, data.train)
    >>> _ = lc.train(model, data, lc.TrainConfig(epochs=2), [tracker], progress=False)
    >>> tracker.table()["epoch"].tolist()
    [1, 2]
    """

    def __init__(
        self,
        criterion: Criterion,
        batches: Any,
        *,
        every_steps: int | None = None,
        every_epochs: int = 1,
        layers: bool = False,
        tol: float = 1e-2,
        **options: Any,
    ) -> None:
        for name, value in [("every_steps", every_steps), ("every_epochs", every_epochs)]:
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value}")
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}")
        self.criterion, self.batches, self.options = criterion, batches, options
        self.every_steps, self.every_epochs = every_steps, every_epochs
        self.layers, self.tol = layers, tol
        self.records: list[dict[str, Any]] = []
        self._last: dict[str, Tensor] = {}

    def __call__(self, state: TrainingState) -> None:
        """Measure after an epoch, where that is asked for."""
        if self.every_steps is None and state.epoch % self.every_epochs == 0:
            self._measure(state)

    def on_step(self, state: TrainingState) -> None:
        """Measure after a step, where that is asked for."""
        if self.every_steps is not None and state.step % self.every_steps == 0:
            self._measure(state)

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted training needs to go on: the records, the last eigenvectors."""
        return {"records": self.records, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.records, self._last = list(state["records"]), dict(state["last"])

    def table(self) -> pd.DataFrame:
        """One row per measurement.

        Columns: epoch, step, lambda_max, residual, converged, matvecs, and lambda_max of each
        layer, named by it, where layers are followed; nan where the loss was not finite.
        """
        return pd.DataFrame(self.records)

    def _measure(self, state: TrainingState) -> None:
        try:
            found = self._found(state)
        except FloatingPointError:  # a training that diverges says so itself
            found = {
                "lambda_max": math.nan, "residual": math.nan, "converged": False, "matvecs": 0,
            }  # fmt: skip
        self.records.append({"epoch": state.epoch, "step": state.step, **found})

    def _found(self, state: TrainingState) -> dict[str, Any]:
        objective = Objective(state.model, self.criterion, self.batches, **self.options)
        hessian = Hessian(objective)
        top = self._search(hessian, "")
        found = {
            "lambda_max": float(top.values[0]),
            "residual": float(top.residuals[0]),
            "converged": bool(top.converged[0]),
            "matvecs": top.matvecs,
        }
        for layer, names in hessian.layers.items() if self.layers else ():
            if layer in ("epoch", "step", *found):
                raise ValueError(f"a layer must not be named as a column, got {layer!r}")
            block = self._search(hessian.block(names), layer)
            found[layer] = float(block.values[0])
            found["converged"] = found["converged"] and bool(block.converged[0])
        return found

    def _search(self, operator: SymmetricOperator, layer: str) -> Eigenpairs:
        start = self._last.get(layer)
        top = top_eigenpairs(operator, 1, "LA", tol=self.tol, start=start)
        self._last[layer] = top.vectors[:, 0]
        return top


class WeightTracker:
    """A callback for :func:`train` that keeps theta after every epoch, on the CPU.

    Parameters
    ----------
    every_epochs : int
        Keep it after every so many epochs.

    Attributes
    ----------
    thetas : list of Tensor, shape (n,)
        All trainable parameters, flat, as in :class:`Objective`.

    Examples
    --------
    >>> import landscape_core as lc
    >>> data = lc.load("digits", subset=(200, 50))
    >>> model, tracker = lc.MLP(data.input_shape, data.classes, width=8), lc.WeightTracker()
    >>> _ = lc.train(model, data, lc.TrainConfig(epochs=3), [tracker], progress=False)
    >>> lc.frame_of_trajectory(tracker.thetas).coordinates.shape
    torch.Size([3, 2])
    """

    def __init__(self, every_epochs: int = 1) -> None:
        if not isinstance(every_epochs, Integral) or every_epochs < 1:
            raise ValueError(f"every_epochs must be a whole number >= 1, got {every_epochs}")
        self.every_epochs: int = int(every_epochs)
        self.thetas: list[Tensor] = []

    def __call__(self, state: TrainingState) -> None:
        """Keep the weights, where that is asked for."""
        if state.epoch % self.every_epochs == 0:
            weights = [
                p.detach().flatten() for p in state.model.parameters() if p.requires_grad
            ]
            self.thetas.append(torch.cat(weights).cpu())

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted training needs to go on."""
        return {"thetas": self.thetas}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.thetas = list(state["thetas"])
