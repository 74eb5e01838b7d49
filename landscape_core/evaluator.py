"""Losses at many parameter vectors in a row, almost without overhead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_core.batches import as_call, logits_of
from landscape_core.objective import Objective

Move = Callable[[Tensor], object]  # writes the next parameters into a vector


class Evaluator:
    """Loss and accuracy of an objective, one parameter vector after another.

    Works on a private copy of the model whose parameters are views of one vector: to move is to
    write into that vector, and a pass is a plain forward pass. What cannot be copied, and
    BatchNorm whose statistics are refreshed at every point, goes through the objective itself.

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
        model = _private_copy(objective, self.theta)
        self.forward = None if model is None else partial(_outputs, model)

    def __call__(self, move: Move) -> tuple[Tensor, Tensor | None]:
        """Move the parameters, and return mean loss and accuracy (None without labels)."""
        move(self.theta)
        return self.objective.loss_and_accuracy(self.theta, self.forward)


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
    pieces = objective.space.unflatten(theta)
    constants = objective.constants
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        parameter.data = pieces[name] if name in pieces else constants[name]
    for name, buffer in model.named_buffers():
        buffer.data = constants[name].clone()
    for module in model.modules():
        module.training = objective.batchnorm == "batch" and isinstance(module, _BatchNorm)
    return model
