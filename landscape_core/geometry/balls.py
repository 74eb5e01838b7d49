"""What a radius means: in which norm, and relative to what.

Published sharpness measures use at least three conventions, which differ by factors of the
square root of n. Here every result carries its own: a :class:`Ball` says in words what its
radius is, and results of different balls do not compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from landscape_core.objective import Objective

Norm = Literal["l2", "linf", "sigma"]
Scaling = Literal["none", "element", "filter"]
UNITS = {
    "l2": "l2 norm over all weights",
    "linf": "largest change of a weight",
    "sigma": "standard deviation of each weight",
}
RELATIVE = {
    "none": "",
    "element": ", relative to the size of each weight",
    "filter": ", relative to the norm of each filter",
}


@dataclass(frozen=True)
class Ball:
    r"""The perturbations of theta that a sharpness measure looks at.

    A perturbation is :math:`T \epsilon`. `norm` bounds :math:`\epsilon`: its l2 norm over all
    of theta, its largest entry, or the standard deviation of each entry. `adaptive` is T: the
    identity, :math:`|\theta|` entry by entry, or the norm of the filter that an entry belongs
    to (an output unit of a linear layer, an output channel of a convolution; entries of
    parameters with one axis count each for itself). With T the measure does not change when
    layers are rescaled without changing the function (Kwon et al. 2021, arXiv:2102.11600).

    Attributes
    ----------
    radius : float
    norm : {"l2", "linf", "sigma"}
    adaptive : {"none", "element", "filter"}

    Examples
    --------
    >>> print(Ball(0.05))
    radius 0.05 (l2 norm over all weights)
    >>> print(Ball(0.1, "sigma", "element"))
    radius 0.1 (standard deviation of each weight, relative to the size of each weight)
    """

    radius: float
    norm: Norm = "l2"
    adaptive: Scaling = "none"
    unit: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        number = isinstance(self.radius, Real) and not isinstance(self.radius, bool)
        if not (number and math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"radius must be positive and finite, got {self.radius!r}")
        object.__setattr__(self, "radius", float(self.radius))  # NumPy has numbers of its own
        for name, value, options in (
            ("norm", self.norm, get_args(Norm)),
            ("adaptive", self.adaptive, get_args(Scaling)),
        ):
            if value not in options:
                known = ", ".join(map(repr, options))
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        object.__setattr__(self, "unit", UNITS[self.norm] + RELATIVE[self.adaptive])

    def __str__(self) -> str:
        return f"radius {self.radius:g} ({self.unit})"

    def scale(self, objective: Objective, theta: Tensor) -> Tensor:
        """Return the diagonal of T at theta, shape (n,)."""
        return adaptive_scale(objective, theta, self.adaptive)


def adaptive_scale(objective: Objective, theta: Tensor, adaptive: Scaling) -> Tensor:
    """Return what perturbations are relative to, entry by entry, shape (n,)."""
    if adaptive == "none":
        return torch.ones_like(theta)
    if adaptive == "element":
        return theta.abs()
    scales = {}
    for name, w in objective.space.unflatten(theta).items():
        scales[name] = w.abs() if w.ndim < 2 else filter_norms(objective.model, name, w)
    return objective.space.flatten(scales)


def filter_norms(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """Norm of the filter that each entry of a weight belongs to, in the shape of the weight.

    A filter makes one output: it is a slice of the first axis, of a transposed convolution one
    of the second axis within a group of channels.
    """
    owner, _, kind = name.rpartition(".")
    layer = model.get_submodule(owner)
    if isinstance(layer, _ConvTransposeNd) and kind == "weight":
        parts = weight.unflatten(0, (layer.groups, -1))
        axes = (1, *range(3, parts.ndim))
    else:
        parts, axes = weight, tuple(range(1, weight.ndim))
    norms = torch.linalg.vector_norm(parts, dim=axes, keepdim=True)
    return norms.expand_as(parts).reshape(weight.shape)
