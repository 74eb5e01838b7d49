"""Losses at many parameter vectors in a row, almost without overhead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape_core.batches import as_call, logits_of, map_tensors, tensors_of
from landscape_core.curvature.probes import generator, nearby
from landscape_core.objective import Objective

Move = Callable[[Tensor], object]  # writes the next parameters into a vector
Forward = Callable[[Any], Any]  # from the inputs of a batch to the model's outputs


class Evaluator:
    """Loss and accuracy of an objective, one parameter vector after another.

    Works on a private copy of the model whose parameters are views of one vector: to move is to
    write into that vector, and a pass is a plain forward pass. A copy that shares anything with
    the model, or whose outputs are not those of the objective at two points close by (because a
    hook or a closure still holds the original), is not used: then every pass goes through the
    objective. So it does on a GPU, where parameters cannot be views, and where BatchNorm is
    refreshed at every point.

    A call runs its forward passes, and nothing else, under an autocast that is on around it.

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
        forward, kind = self._forward(), self.theta.device.type
        if torch.is_autocast_enabled(kind):
            forward = partial(_rounded, forward, kind, torch.get_autocast_dtype(kind))
        return self.objective.loss_and_accuracy(self.theta, forward)

    def _forward(self) -> Forward:
        """Return the function from inputs to outputs at `self.theta`."""
        if self.model is None:
            return self.objective.forward_at(self.theta)
        constants = self.objective.constants
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():  # a pass may write into them
                buffer.copy_(constants[name])
        return partial(_outputs, self.model)

    def _agrees(self) -> bool:
        """Whether copy and objective have the same outputs at two points close by.

        To within a thousandth of how far the objective's move from one to the other: a part
        of the copy that stays where it is shows then, however small the loss is.
        """
        start, rng = self.objective.theta, generator(0, self.theta.device)
        points = [nearby(start, rng) for _ in range(2)]
        truth = [self.objective.forward_at(point) for point in points]
        apart: list[Tensor] = []
        moved: list[Tensor] = []

        def compared(here: int, inputs: Any) -> Any:
            outputs, expected, elsewhere = (
                forward(inputs) for forward in (copied, truth[here], truth[1 - here])
            )
            apart.append(_distances(outputs, expected))
            moved.append(_distances(elsewhere, expected))
            return outputs

        try:
            for here, point in enumerate(points):
                self.theta.copy_(point)
                copied = self._forward()
                self.objective.loss_and_accuracy(point, partial(compared, here))
            off, way = torch.stack(apart).amax(0), torch.stack(moved).amax(0)
        except Exception:
            return False
        finally:
            self.theta.copy_(start)
        return bool((off <= 1e-3 * way).all()) and bool((way > 0).any())


def _distances(some: Any, others: Any) -> Tensor:
    """Largest distance between two outputs, one for each tensor that they hold."""
    pairs = zip(tensors_of(some), tensors_of(others), strict=True)
    gaps = ((x.double() - y.double()).abs().where(x != y, 0) for x, y in pairs)
    return torch.stack([gap.max() for gap in gaps])


def _outputs(model: nn.Module, inputs: Any) -> Any:
    arguments, keywords = as_call(inputs)
    return logits_of(model(*arguments, **keywords))


def _rounded(forward: Forward, kind: str, dtype: torch.dtype, inputs: Any) -> Any:
    """Outputs of forward passes under autocast, in single precision."""
    with torch.autocast(kind, dtype):
        outputs = forward(inputs)
    return map_tensors(lambda x: x.float() if x.dtype == dtype else x, outputs)


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
    memory = theta.untyped_storage().data_ptr()
    if any(piece.untyped_storage().data_ptr() != memory for piece in pieces.values()):
        return None
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
