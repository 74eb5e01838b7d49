"""Statements refuted by one example: both of its sides, computed.

The examples are those of the book's page on three statements, each as small as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_core.curvature.hessian import Hessian
from landscape_core.geometry.ascent import worst_sharpness
from landscape_core.objective import Objective

Sides = tuple[float, float, str]  # what is said to be the smaller one, the larger one, of what


def trace_and_noise() -> Sides:
    """The trace against a bound by the descent and the noise, for half a square.

    At its minimum nothing descends, and all examples have the same gradient.
    """
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(model, _half_square, (one, 0 * one))
    descent = float(objective.loss())  # the smallest loss is 0; no noise at any batch size
    trace = float(Hessian(objective).dense().trace())
    return trace, descent, "tr H of L = θ²/2, after a start at its minimum,"


def gap_and_flatness(
    examples: int = 300, kinds: int = 1000, scale: float = 10.0, failure: float = 0.05
) -> Sides:
    """The gap against a bound by the flatness, for a classifier that learns by heart.

    Inputs are unit vectors of so many kinds with a random label each. The classifier has the
    labels of all kinds that it has seen, and has guessed the others.
    """
    generator = torch.Generator().manual_seed(0)
    labels, guesses = torch.randint(2, (2, kinds), generator=generator)
    seen = torch.randint(kinds, (examples,), generator=generator)
    answers = guesses.index_copy(0, seen, labels[seen])
    model = nn.Linear(kinds, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(scale * F.one_hot(answers, 2).T)
    inputs = torch.eye(kinds, dtype=torch.float64)
    train = Objective(model, F.cross_entropy, (inputs[seen], labels[seen]))
    test = Objective(model, F.cross_entropy, (inputs, labels))
    gap = float(test.loss()) - float(train.loss())
    rise = worst_sharpness(train, 0.05, restarts=0).rise
    bound = 2 * rise**2 + math.log(2 * train.theta.numel() / failure) / examples
    return gap, math.sqrt(bound), f"the gap of a classifier of {examples} examples in nats"


def depth_and_conditioning(weight: float = 3.0) -> Sides:
    """A product over layers against the condition number that it is said not to exceed."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    sizes = torch.linalg.svdvals(
        Hessian(Objective(model, _half_square, (one, 0 * one))).dense()
    )
    condition = float(sizes.max() / sizes.min())
    return weight**2, condition, f"the product over layers for L = w²/2 at w = {weight:g}"


def _half_square(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.mse_loss(outputs, targets, reduction=reduction) / 2


REFUTING = (trace_and_noise, gap_and_flatness, depth_and_conditioning)
COUNTEREXAMPLES: dict[str, Callable[[], Sides]] = {each.__name__: each for each in REFUTING}


def refutation(name: str) -> str:
    """What one of the examples shows, as a sentence.

    >>> refutation("depth_and_conditioning")
    'the product over layers for L = w²/2 at w = 3 is 9, and said to be at most 1'
    """
    if name not in COUNTEREXAMPLES:
        known = ", ".join(COUNTEREXAMPLES)
        raise ValueError(f"a counterexample must be one of {known}, got {name!r}")
    smaller, larger, what = COUNTEREXAMPLES[name]()
    if smaller <= larger:
        raise ValueError(f"{name} refutes nothing: {smaller:g} is at most {larger:g}")
    return f"{what} is {smaller:.3g}, and said to be at most {larger:.3g}"
