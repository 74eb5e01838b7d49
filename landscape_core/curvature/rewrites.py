"""Layers rewritten so that the second derivatives of a loss cost less, and are the same.

Autograd differentiates the backward pass of GELU or of a layer norm in a dozen small steps,
and that of a convolution with more work than is asked for; `functions` has them in few. A
BatchNorm with fixed statistics is linear: it moves into the weights of the convolution before
it, and with it all of its passes over the activations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from landscape_core.curvature.functions import (
    Convolution,
    Linear,
    bilinear,
    pointwise,
    standardize,
)

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
POINTWISE = (F.gelu, F.silu, F.mish)
LARGE = 2**14  # entries of a weight matrix from which less work outweighs calls from Python

Sizes = int | Sequence[int]


class CheapSecondDerivatives(TorchFunctionMode):
    """Inside it, a forward pass builds graphs that are cheap to differentiate twice, not more.

    Parameters
    ----------
    kept : bool
        Whether the graph is used more than once. Only then does BatchNorm move: the
        convolution before it is computed twice.
    together : bool
        Whether several vectors go through the graph at once. Autograd cannot batch the
        functions of convolutions and matrix products: they then stay PyTorch's.
    """

    def __init__(self, kept: bool, together: bool) -> None:
        super().__init__()
        self.kept, self.together = kept, together
        self._convolved: dict[int, _Convolved] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or what stands for it."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        # Within these transforms a Function would need rules of its own.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return (
                exact_layer_norm(*args, **kwargs)
                if func is F.layer_norm
                else func(*args, **kwargs)
            )
        if func in POINTWISE and len(args) == 1 and not kwargs.get("inplace"):
            return pointwise(lambda x: func(x, **kwargs), args[0])
        if func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if self.together:
            return func(*args, **kwargs)
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in CONVOLUTIONS:
            return self._convolve(func, *args, **kwargs)
        if func is F.batch_norm and self.kept:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolve(
        self,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.ndim != weight.ndim or weight.is_complex():
            return func(input, weight, bias, stride, padding, dilation, groups)
        axes = weight.ndim - 2
        product = Convolution(
            _each(stride, axes), _each(padding, axes), _each(dilation, axes), groups
        )
        output = bilinear(product, input, weight, bias)
        self._convolved[id(output)] = _Convolved(product, input, weight, bias, output)
        return output

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        before = self._convolved.get(id(input))
        if (
            training
            or running_mean is None
            or running_var is None
            or before is None
            or not before.made(input)
        ):
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else weight * scale
        shift = -running_mean * scale
        return before.scaled(scale, shift if bias is None else bias + shift)


@dataclass
class _Convolved:
    """A convolution as it was called, and what it returned, while that is alive."""

    product: Convolution
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Any
    state: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.state = self._state(self.output)
        self.output = weakref.ref(self.output)

    def made(self, x: Tensor) -> bool:
        """Whether `x` is its output, and nothing was written to since."""
        return self.output() is x and self._state(x) == self.state

    def _state(self, x: Tensor) -> tuple[Any, ...]:
        parts = (self.input, self.weight, self.bias)
        versions = [part._version for part in (x, *parts) if part is not None]
        # What is written through .data has no version; its sum tells.
        return versions, x.grad_fn, float(x.detach().sum())

    def scaled(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the same convolution with its channels scaled and shifted."""
        weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))
        bias = shift if self.bias is None else self.bias * scale + shift
        return bilinear(self.product, self.input, weight, bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    plain = weight.ndim == 2 and input.ndim > 1 and not weight.is_complex()
    if bias is not None:
        plain = plain and bias.shape == weight.shape[:1]
    if plain and weight.requires_grad and weight.numel() >= LARGE:
        return bilinear(Linear(), input, weight, bias)
    return F.linear(input, weight, bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    y = standardize(input, tuple(range(-len(normalized_shape), 0)), eps)
    if weight is None and bias is None:
        return y.clone()  # which may be written to
    return _affine(y, weight, bias)


class ExactLayerNorm(TorchFunctionMode):
    """Inside it, layer norm is made of steps that can be differentiated any number of times.

    PyTorch's own takes mean and variance as constants in its third derivative, which a model
    reaches that differentiates in its forward pass.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or what stands for it."""
        call = exact_layer_norm if func is F.layer_norm else func
        return call(*args, **(kwargs or {}))


def exact_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return what F.layer_norm returns, by elementary steps."""
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    y = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    return _affine(y, weight, bias)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _each(value: Sizes, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
