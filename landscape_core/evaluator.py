"""Losses at many parameter vectors in a row, almost without overhead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_core.batches import as_call, logits_of
from landscape_core.curvature.probes import generator, probe
from landscape_core.objective import Objective

Move = Callable[[Tensor], object]  # writes the next parameters into a vector


class Evaluator:
    """Loss and accuracy of an objective, one parameter vector after another.

    Works on a private copy of the model whose parameters are views of one vector: to move is to
    write into that vector, and a pass is a plain forward pass. A copy that shares anything with
    the model, or does not agree with the objective at two points close by (because a hook or a
    closure still holds the original), is not used: then every pass goes through the objective,
    and so it does where BatchNorm is refreshed at every point.

    Parameters
    ----------
    objective : Objective

    Examples
    --------
    >>> import torch
    >>> import torch.nn.functional as F
    >>> data = torch.randn(9, 3), torch.arange(9) % 2
    >>> objective = Objective(nn.Linear(3, 2), F.cross_entropy, data)
    >>> at = Evaluator(objective)
    >>> loss, accuracy = at(lambda theta: theta.copy_(2 * objective.theta))
    >>> bool(loss == objective.loss(2 * objective.theta))
    True
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.theta = objective.theta.clone()
        self.model = _private_copy(objective, self.theta)
        if self.model is not None and not self._agrees():
            self.model = None

    def __call__(self, move: Move) -> tuple[Tensor, Tensor | None]:
        """Move the parameters, and return mean loss and accuracy (None without labels)."""
        move(self.theta)
        if self.model is None:
            return self.objective.loss_and_accuracy(self.theta)
        constants = self.objective.constants
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():  # a pass may write into them
                buffer.copy_(constants[name])
        return self.objective.loss_and_accuracy(self.theta, partial(_outputs, self.model))

    def _agrees(self) -> bool:
        """Whether copy and objective give the same losses at two points close by."""
        start, rng = self.objective.theta, generator(0, self.theta.device)
        for _ in range(2):
            step = probe(len(start), start.dtype, rng) * (0.02 * start.abs() + 1e-3)
            try:
                here, _ = self(partial(_add, start, step))
            except Exception:
                return False
            there = self.objective.loss(start + step)
            if not torch.allclose(here, there, rtol=1e-4, atol=1e-7, equal_nan=True):
                return False
        return True


def _add(start: Tensor, step: Tensor, theta: Tensor) -> None:
    torch.add(start, step, out=theta)


def _outputs(model: nn.Module, inputs: Any) -> Any:
    arguments, keywords = as_call(inputs)
    return logits_of(model(*arguments, **keywords))


def _private_copy(objective: Objective, theta: Tensor) -> nn.Module | None:
    """A copy of the model with its parameters in `theta`; None where that is not possible."""
    if objective.batchnorm == "refresh":
        return None
    try:
        model = copy.deepcopy(objective.model)
    except Exception:
        return None
    if _parts(model) & _parts(objective.model):
        return None
    pieces, constants = objective.space.unflatten(theta), objective.constants
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        parameter.data = pieces[name] if name in pieces else constants[name]
    for name, buffer in model.named_buffers():
        buffer.data = constants[name].clone()
    for module in model.modules():
        module.training = objective.batchnorm == "batch" and isinstance(module, _BatchNorm)
    return model


def _parts(model: nn.Module) -> set[int]:
    """Identities of a model's modules, parameters and buffers."""
    parts: list[object] = [*model.modules(), *model.parameters(), *model.buffers()]
    return set(map(id, parts))
