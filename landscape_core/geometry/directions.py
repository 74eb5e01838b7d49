"""Directions in parameter space along which to look."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from landscape_core.curvature.probes import Seed, generator, probe
from landscape_core.geometry.balls import filter_norms
from landscape_core.objective import Objective

Normalization = Literal["filter", "layer", "none"]


def random_directions(
    objective: Objective,
    count: int = 2,
    *,
    normalize: Normalization = "filter",
    theta: Tensor | None = None,
    seed: Seed = 0,
) -> Tensor:
    r"""Draw Gaussian directions, scaled to the weights they disturb.

    Under filter normalization each filter of the direction (a convolution's output channel, a
    linear layer's output unit) gets the norm of the same filter of theta,
    :math:`d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|}\|\theta_{ij}\|`, and biases and BatchNorm
    parameters (everything with one axis) get zero. Then a step of 1 means the same for two
    networks that differ only by a rescaling of their layers.

    Parameters
    ----------
    objective : Objective
    count : int
        How many directions, at least 1.
    normalize : {"filter", "layer", "none"}
        ``"layer"`` matches norms of whole weight tensors in place of filters, ``"none"``
        leaves every entry standard normal.
    theta : Tensor, shape (n,), or None
        The weights that set the scale; None is the objective's own theta.
    seed : int or torch.Generator

    Returns
    -------
    Tensor, shape (count, n)
        Unpacks as ``d1, d2 = random_directions(objective, 2)``.

    References
    ----------
    H. Li et al., Visualizing the loss landscape of neural nets, 2018, arXiv:1712.09913.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if normalize not in get_args(Normalization):
        options = ", ".join(map(repr, get_args(Normalization)))
        raise ValueError(f"normalize must be one of {options}, got {normalize!r}")
    theta = objective.theta if theta is None else objective.space.check(theta)
    rng = generator(seed, theta.device)
    drawn = [probe(objective.n, theta.dtype, rng, "gaussian") for _ in range(count)]
    if normalize != "none":
        drawn = [_match_norms(d, theta, objective, normalize) for d in drawn]
    return torch.stack(drawn)


def _match_norms(
    direction: Tensor, theta: Tensor, objective: Objective, normalize: Normalization
) -> Tensor:
    space, model = objective.space, objective.model
    weights = space.unflatten(theta)
    matched = {}
    for name, d in space.unflatten(direction).items():
        w = weights[name]
        if w.ndim < 2:
            matched[name] = torch.zeros_like(d)
        elif normalize == "filter":
            matched[name] = d * (filter_norms(model, name, w) / filter_norms(model, name, d))
        else:
            axes = tuple(range(w.ndim))
            w_norm = torch.linalg.vector_norm(w, dim=axes, keepdim=True)
            d_norm = torch.linalg.vector_norm(d, dim=axes, keepdim=True)
            matched[name] = d * (w_norm / d_norm)
    return space.flatten(matched)
