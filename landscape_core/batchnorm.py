"""Batch normalization: which layers there are, and which policies they allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormPolicy = Literal["eval", "batch", "refresh"]


def norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Return the BatchNorm layers of a model, with their names."""
    return [(k, m) for k, m in model.named_modules() if isinstance(m, _BatchNorm)]


def running_names(model: nn.Module) -> list[str]:
    """Names of the buffers that hold running means and variances."""
    owners = [name for name, layer in norms(model) if layer.running_mean is not None]
    kinds = ("running_mean", "running_var")
    return [f"{name}.{kind}" if name else kind for name in owners for kind in kinds]


def check_policy(model: nn.Module, policy: str, data: Any) -> None:
    """Refuse a policy that does not exist, or that the model or the data do not allow."""
    if policy not in get_args(BatchNormPolicy):
        options = ", ".join(map(repr, get_args(BatchNormPolicy)))
        raise ValueError(f"batchnorm must be one of {options}, got {policy!r}")
    for name, layer in norms(model):
        if policy != "batch" and layer.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} keeps no running statistics: batchnorm must be "
                f"'batch', got {policy!r}"
            )
    if not norms(model) or policy == "eval" or not isinstance(data, list):
        return
    if any(len(targets) == 1 for _, targets in data):
        raise ValueError(f"batchnorm={policy!r} needs at least two examples in every batch")


@contextmanager
def averaged(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """Make running statistics means over all uses of a layer, also over several in one pass.

    Yields a function that is to be told the number of examples before each pass.
    """
    layers = [layer for _, layer in norms(model)]
    momenta = [layer.momentum for layer in layers]
    seen, size, total = dict.fromkeys(layers, 0), 0, 0

    def begin(examples: int) -> None:
        nonlocal size, total
        size, total = examples, total + examples
        for layer in layers:  # where a model calls layer.forward, there is no hook
            layer.momentum = size / total

    def weigh(layer: Any, _: Any) -> None:
        if layer.training:
            seen[layer] += size
            layer.momentum = size / seen[layer]

    hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
    try:
        yield begin
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
