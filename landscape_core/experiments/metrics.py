"""The geometry around one minimum, as the columns of a table."""

from __future__ import annotations

from typing import Any

from landscape_core.curvature.hessian import Hessian
from landscape_core.curvature.summary import curvature_summary
from landscape_core.geometry.ascent import box_sharpness, worst_sharpness
from landscape_core.geometry.sharpness import random_sharpness, relative_curvature
from landscape_core.objective import Objective


def landscape_metrics(
    objective: Objective,
    *,
    top: int = 3,
    products: int = 60,
    radius: float = 0.05,
    relative_radius: float = 0.1,
    directions: int = 8,
    ascent: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Measure loss, curvature and sharpness at one point, each as a column of a table.

    Every measure of sharpness comes raw, which a rescaling of layers changes, and relative to
    the weights, which it does not (Dinh et al. 2017, arXiv:1703.04933). A run of a
    :class:`Study` can return the result as it is.

    Parameters
    ----------
    objective : Objective
    top : int
        How many of the largest eigenvalues.
    products : int
        Largest number of products for the summary of the curvature, at least 22 for top = 3;
        the errors say how far it went.
    radius : float
        Of the raw balls, an l2 norm over all weights.
    relative_radius : float
        Of the relative ones: the l2 norm of relative changes for the worst case, their standard
        deviation for the random one.
    directions : int
        Of the random sharpness, each both ways.
    ascent : int
        Steps towards the worst case: a lower bound.
    seed : int

    Returns
    -------
    dict
        ``loss``, ``accuracy``, ``gradient_norm``, ``weight_norm``; ``lambda_max``,
        ``lambda_min`` and ``relative_lambda_max`` with their residuals; ``trace``,
        ``trace_of_square``, ``effective_rank``; ``worst_rise``, ``relative_worst_rise``,
        ``random_rise``, ``relative_random_rise``, ``box_sharpness`` (per cent); and the arrays
        ``eigenvalues``, ``residuals``, ``density_nodes``, ``density_weights``.

    Examples
    --------
    >>> import landscape_core as lc
    >>> import torch.nn.functional as F
    >>> data = lc.load("digits", subset=(200, 50))
    >>> model = lc.MLP(data.input_shape, data.classes, width=8)
    >>> metrics = landscape_metrics(lc.Objective(model, F.cross_entropy, data.train))
    >>> metrics["lambda_max"] > metrics["lambda_max_residual"]
    True
    """
    evaluation = objective.evaluate()
    metrics: dict[str, Any] = {"loss": evaluation.loss}
    if evaluation.accuracy is not None:
        metrics["accuracy"] = evaluation.accuracy
    metrics["gradient_norm"] = float(objective.gradient().norm())
    metrics["weight_norm"] = float(objective.theta.norm())
    return (
        metrics
        | _curvature(objective, top, products, seed)
        | _sharpness(objective, radius, relative_radius, directions, ascent, seed)
    )


def _curvature(objective: Objective, top: int, products: int, seed: int) -> dict[str, Any]:
    summary = curvature_summary(
        Hessian(objective), top, tol=1e-2, trace_rtol=0.02, square_rtol=0.1, steps=7, probes=2,
        max_matvecs=products, seed=seed,
    )  # fmt: skip
    relative = relative_curvature(objective, tol=1e-2, seed=seed)
    return {
        "lambda_max": summary.lambda_max,
        "lambda_max_residual": float(summary.top.residuals[0]),
        "lambda_min": summary.lambda_min,
        "lambda_min_residual": float(summary.bottom.residuals[0]),
        "relative_lambda_max": float(relative.values[0]),
        "relative_lambda_max_residual": float(relative.residuals[0]),
        "trace": summary.trace,
        "trace_of_square": summary.trace_of_square,
        "effective_rank": summary.effective_rank,
        "products": summary.matvecs,
        "eigenvalues": summary.top.values,
        "residuals": summary.top.residuals,
        "density_nodes": summary.density.nodes,
        "density_weights": summary.density.weights,
    }


def _sharpness(
    objective: Objective,
    radius: float,
    relative: float,
    directions: int,
    ascent: int,
    seed: int,
) -> dict[str, Any]:
    search: dict[str, Any] = {"steps": ascent, "restarts": 0, "seed": seed}
    draw: dict[str, Any] = {"directions": directions, "seed": seed}
    worst = worst_sharpness(objective, radius, **search)
    relative_worst = worst_sharpness(objective, relative, adaptive="element", **search)
    mean = random_sharpness(objective, radius, **draw)
    relative_mean = random_sharpness(
        objective, relative, norm="sigma", adaptive="element", **draw
    )
    return {
        "worst_rise": worst.rise,
        "relative_worst_rise": relative_worst.rise,
        "random_rise": mean.mean,
        "relative_random_rise": relative_mean.mean,
        "box_sharpness": box_sharpness(objective, **search),
    }
