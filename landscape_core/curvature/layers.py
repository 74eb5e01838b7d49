"""Curvature layer by layer: the diagonal blocks of an operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

import pandas as pd
import torch

from landscape_core.backends import without_autocast
from landscape_core.curvature.eigen import top_eigenpairs
from landscape_core.curvature.hessian import Hessian, ObjectiveOperator
from landscape_core.curvature.probes import Seed, generator
from landscape_core.curvature.sampling import sample_moments
from landscape_core.objective import Objective
from landscape_core.results import Eigenpairs, Estimate


@dataclass(frozen=True)
class LayerCurvature:
    """Curvature of one layer: of the diagonal block of its parameters.

    Attributes
    ----------
    layer : str
    n : int
        Number of its parameters.
    top : Eigenpairs
        The largest eigenpair of the block.
    trace, trace_of_square, effective_rank : Estimate
    """

    layer: str
    n: int
    top: Eigenpairs = field(repr=False)
    trace: Estimate
    trace_of_square: Estimate
    effective_rank: Estimate


@dataclass(frozen=True)
class LayerTable:
    """What :func:`layer_curvature` found.

    Attributes
    ----------
    layers : tuple of LayerCurvature
        In the order of the model.
    matvecs : int
        Products with blocks, each cheaper than one with the whole.
    """

    layers: tuple[LayerCurvature, ...]
    matvecs: int

    def table(self) -> pd.DataFrame:
        """One row per layer, every number with its error (residual or standard error)."""
        rows = [
            {
                "layer": each.layer,
                "parameters": each.n,
                "lambda_max": float(each.top.values[0]),
                "residual": float(each.top.residuals[0]),
                "converged": bool(each.top.converged[0]),
                "trace": each.trace.value,
                "trace_stderr": each.trace.stderr,
                "trace_of_square": each.trace_of_square.value,
                "trace_of_square_stderr": each.trace_of_square.stderr,
                "effective_rank": each.effective_rank.value,
                "effective_rank_stderr": each.effective_rank.stderr,
            }
            for each in self.layers
        ]
        return pd.DataFrame(rows).set_index("layer")

    def __str__(self) -> str:
        lines = []
        for each in self.layers:
            top = each.top.written[0]
            lines.append(f"{each.layer}: lambda_max {top}, trace {each.trace} (n = {each.n})")
        return "\n".join(lines)


@without_autocast
def layer_curvature(
    operator: ObjectiveOperator | Objective,
    *,
    tol: float = 1e-2,
    probes: int = 32,
    seed: Seed = 0,
) -> LayerTable:
    """Measure the largest eigenvalue and the traces of each layer's diagonal block.

    A layer is the module that owns parameters: its weight and bias together. The blocks share
    the graphs of the operator, and differentiate only their own part. Their traces add up to
    the trace of the whole; the largest of their eigenvalues is at most that of the whole.

    Parameters
    ----------
    operator : Hessian, GaussNewton, Fisher or Objective
        An objective stands for its Hessian at its own theta.
    tol : float
        Largest relative residual of an eigenpair.
    probes : int
        Products for the traces of each layer, besides those for its eigenpair.
    seed : int or torch.Generator

    Returns
    -------
    LayerTable

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> data = torch.randn(9, 3), torch.arange(9) % 2
    >>> objective = Objective(model, F.cross_entropy, data)
    >>> list(layer_curvature(objective).table().index)
    ['0', '2']
    """
    if isinstance(operator, Objective):
        operator = Hessian(operator)
    if not isinstance(operator, ObjectiveOperator):
        kind = type(operator).__name__
        raise TypeError(f"layer_curvature needs a Hessian or an Objective, got {kind}")
    if not isinstance(probes, Integral) or probes < 4:
        raise ValueError(f"probes must be at least 4, got {probes}")
    rng = generator(seed, operator.device)
    groups = operator.layers
    layers = [
        _layer(operator, layer, names, tol, probes, rng)
        for layer, names in groups.items()
        if operator.block(names).n
    ]
    return LayerTable(tuple(each for each, _ in layers), sum(spent for _, spent in layers))


def _layer(
    operator: ObjectiveOperator,
    layer: str,
    names: list[str],
    tol: float,
    probes: int,
    rng: torch.Generator,
) -> tuple[LayerCurvature, int]:
    block = operator.block(names)
    top = top_eigenpairs(block, 1, "LA", tol=tol, seed=rng)
    moments = sample_moments(block, probes, None, pairs=top, spent=top.matvecs, rng=rng)
    found = LayerCurvature(
        layer, block.n, top, moments.trace, moments.trace_of_square, moments.effective_rank
    )
    return found, block.matvecs
