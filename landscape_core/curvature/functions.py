"""Layers as autograd functions whose second derivatives cost little; see `rewrites`.

Each gives y, its backward pass a second function, and that one's backward pass the products.
They can be differentiated twice, not more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Mask = tuple[bool, bool]
Pair = tuple[Tensor | None, Tensor | None]


class Product(Protocol):
    """A product W * x, linear in both; the outputs' channels are on axis `channels`."""

    channels: int

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W * x + b."""

    def add(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return total + W * x, in the place of `total`."""

    def back(self, g: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> Pair:
        """Return the gradients of <g, W * x> in x (only W counts) and in W (only x)."""


class Linear:
    """The matrix product, over the last axis of x."""

    channels = -1

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def add(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return total + W x, in the place of `total`."""
        return _rows(total).addmm_(_rows(x), weight.T).view_as(total)

    def back(self, g: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> Pair:
        """Return the gradients of <g, W x> in x and in W."""
        return g @ weight if mask[0] else None, _rows(g).T @ _rows(x) if mask[1] else None


@dataclass
class Convolution:
    """A convolution of (N, C, ...) without padding modes."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    channels = 1

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W * x + b."""
        rest = self.stride, self.padding, self.dilation, False, self._nothing, self.groups
        return torch.convolution(x, weight, bias, *rest)

    def add(self, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return total + W * x, in the place of `total`."""
        return total.add_(self.multiply(x, weight, None))

    def back(self, g: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> Pair:
        """Return the gradients of <g, W * x> in x and in W."""
        rest = self.stride, self.padding, self.dilation, False, self._nothing, self.groups
        wanted = [*mask, False]
        return torch.ops.aten.convolution_backward(g, x, weight, None, *rest, wanted)[:2]

    @property
    def _nothing(self) -> list[int]:
        return [0] * len(self.stride)


def bilinear(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return W * x + b.

    PyTorch's second derivative of a convolution also passes a gradient on to the data, takes
    the gradient in W by a convolution with the batch in the place of channels, and computes
    all of it where only a part is asked for; that of a matrix product adds what it could have
    accumulated.
    """
    return _apply(_Bilinear, x, weight, bias, product)


def pointwise(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return f(x), for an f that works entry by entry."""
    return _apply(_Pointwise, x, f)


def standardize(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps), over `dims`."""
    return _apply(_Standardize, x, dims, eps)


class _Bilinear(Function):
    """W * x + b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, product: Product
    ) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(x, weight)
        return product.multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        *mask, along_bias, _ = ctx.needs_input_grad
        others = [i for i in range(g.ndim) if i != ctx.product.channels % g.ndim]
        bias = g.sum(others) if along_bias else None
        if _differentiated():
            return *_apply(_BilinearSlope, g, x, weight, mask, ctx.product), bias, None
        return *_back(ctx.product, g, x, weight, mask), bias, None


class _BilinearSlope(Function):
    """The gradients of <g, W * x> in x and in W."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mask: Mask, product: Product
    ) -> Pair:
        ctx.product = product
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight)
        return _back(product, g, x, weight, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, w: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        product: Product = ctx.product
        along_g = None if v is None else product.multiply(v, weight, None)
        if along_g is None:
            along_g = None if w is None else product.multiply(x, w, None)
        elif w is not None:
            along_g = product.add(along_g, x, w)
        mask = w is not None and _needed(ctx, 1), v is not None and _needed(ctx, 2)
        # Where one is missing, only its shape counts.
        pair = _back(product, g, x if v is None else v, weight if w is None else w, mask)
        return along_g, *pair, None, None


class _Pointwise(Function):
    """y = f(x) entry by entry, with f' and f'' kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = f(leaf)
            slope = torch.autograd.grad(y.sum(), leaf, create_graph=True)[0]
            bend = torch.autograd.grad(slope.sum(), leaf)[0]
        bend = torch.where(bend.isnan() & leaf.isfinite(), 0, bend)  # F.mish, far from 0
        ctx.save_for_backward(x, slope.detach(), bend)
        return y.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, slope, bend = ctx.saved_tensors
        if _differentiated():
            return _apply(_PointwiseSlope, g, x, slope, bend), None
        return g * slope, None


class _PointwiseSlope(Function):
    """g f'(x)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
        ctx.save_for_backward(slope, g * bend)
        return g * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        slope, bend = ctx.saved_tensors
        return v * slope, v * bend if _needed(ctx, 1) else None, None, None


class _Standardize(Function):
    """z = (x - mean) r over `dims`, r = (variance + eps) ** -1/2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
        z = x - x.mean(dims, keepdim=True)
        r = z.square().mean(dims, keepdim=True).add_(eps).rsqrt_()
        z.mul_(r)
        ctx.dims = dims
        ctx.save_for_backward(x, z, r)
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        x, z, r = ctx.saved_tensors
        if _differentiated():
            return _apply(_StandardizeSlope, g, x, z.detach(), r, ctx.dims), None, None
        return _project(g, z, ctx.dims)[0].mul_(r), None, None


class _StandardizeSlope(Function):
    """r P g, where P g = g - mean(g) - z mean(z g) is dz / r for dx = g."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, z: Tensor, r: Tensor, dims: tuple[int, ...]
    ) -> Tensor:
        projected, along = _project(g, z, dims)
        ctx.dims = dims
        ctx.save_for_backward(z, r, projected, along)
        return projected * r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        # In x the derivative of r <v, P g>, by dr = -r^2 mean(z dx) and dz = r P dx.
        z, r, projected, along = ctx.saved_tensors
        other, other_along = _project(v, z, ctx.dims)
        bend = None
        if _needed(ctx, 1):
            bend = z * (v * projected).mean(ctx.dims, keepdim=True)
            bend = bend.addcmul(other, along).addcmul(projected, other_along) * -r.square()
        return other * r, bend, None, None, None


def _back(product: Product, g: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> Pair:
    return product.back(g, x, weight, mask) if any(mask) else (None, None)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _project(g: Tensor, z: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    along = (g * z).mean(dims, keepdim=True)
    return (g - g.mean(dims, keepdim=True)).addcmul(z, along, value=-1), along


def _differentiated() -> bool:
    """Whether this backward pass will itself be differentiated."""
    return torch.is_grad_enabled()


def _needed(ctx: Any, index: int) -> bool:
    """Whether this backward pass goes on from a Function to its input number `index`.

    `ctx.needs_input_grad` says whether it could.
    """
    following = ctx.next_functions[index][0]
    if not ctx.needs_input_grad[index] or following is None:
        return False
    try:
        return torch._C._will_engine_execute_node(following)
    except RuntimeError:  # raised for a leaf whose gradient is asked for
        return True


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result
