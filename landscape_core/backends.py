"""Settings of PyTorch under which a forward pass can be differentiated twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

P = ParamSpec("P")
T = TypeVar("T")


def check_model(model: Any) -> None:
    """Refuse what is no module: a path, a state dict, a class."""
    if isinstance(model, type):
        got = f"the class {model.__name__}: make an instance of it"
    elif isinstance(model, str | Path):
        got = f"{str(model)!r}: build the network, then load its weights with load_state_dict"
    elif isinstance(model, Mapping):
        got = f"a {type(model).__name__}: build the network, then load_state_dict"
    else:
        got = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {got}")


def check_derivatives(model: nn.Module | None = None) -> None:
    """Refuse a mode in which autograd records nothing, and layers that falsify gradients."""
    if torch.is_inference_mode_enabled():
        raise ValueError("derivatives are needed: leave torch.inference_mode() for this call")
    for name, layer in model.named_modules() if model is not None else ():
        for option in ("scale_grad_by_freq", "sparse", "max_norm"):
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and getattr(layer, option):
                raise ValueError(
                    f"an embedding must have a plain gradient, got {option} in {name!r}: "
                    "set it to its default for the measurement"
                )


def needs_channels_first(model: nn.Module) -> bool:
    """Whether several threads of an x86 CPU would make gradients wrong with the channels last.

    For a strided 1x1 convolution of few channels oneDNN writes past its working memory (its
    issue 6035): gradients then differ by tens of per cents from run to run. Convolutions that
    are no layers, ``F.conv2d(x, w, stride=2)`` in a forward pass, are not seen.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and max(layer.kernel_size) == 1 < max(layer.stride)
        and layer.in_channels < 16
        and all(x.device.type == "cpu" for x in chain(layer.parameters(), layer.buffers()))
        for layer in model.modules()
    )


def channels_first(value: torch.Tensor) -> torch.Tensor:
    """Images with the channels first in memory; other tensors as they are."""
    if value.ndim != 4:
        return value
    _, channels, height, width = value.shape
    first = (channels * height * width, height * width, width, 1)
    if value.stride() == first:
        return value
    return value.clone(memory_format=torch.contiguous_format)


def graph_nodes(tensors: Iterable[torch.Tensor]) -> Iterator[Any]:
    """Every node of the autograd graphs of `tensors` once, those nearest to them first."""
    todo = deque(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)
    seen = set(todo)
    while todo:
        node = todo.popleft()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


_embedding = F.embedding


def _embedding_with_padding(
    input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None = None, *rest: Any,
    **options: Any,
) -> torch.Tensor:  # fmt: skip
    """What F.embedding returns, with a gradient for the row of the padding too."""
    return _embedding(input, weight, None, *rest, **options)


def _keep_everything(*_: Any, **__: Any) -> Iterator[None]:
    yield


@contextmanager
def twice_differentiable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a forward pass so that autograd can differentiate it twice.

    The fused kernels of attention and of recurrent layers have no second derivative; the math
    backend and PyTorch's own loops have. Activation checkpointing would run the forward pass
    again during the backward pass, with the model's own weights in the place of theta. And the
    row of an embedding that stands for padding has no gradient, though the loss depends on it.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(
            mock.patch(
                "torch.utils.checkpoint._checkpoint_without_reentrant_generator",
                _keep_everything,
            )
        )
        if any(
            isinstance(m, nn.Embedding) and m.padding_idx is not None for m in model.modules()
        ):
            stack.enter_context(mock.patch.object(F, "embedding", _embedding_with_padding))
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            flags = cudnn.flags(False, cudnn.benchmark, deterministic=cudnn.deterministic)
            stack.enter_context(flags)
        yield


def without_autocast(measure: Callable[P, T]) -> Callable[P, T]:
    """Make a measurement whose own arithmetic an autocast around its call does not round."""

    @wraps(measure)
    def exact(*args: P.args, **kwargs: P.kwargs) -> T:
        with ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(_no_autocast(device))
            return measure(*args, **kwargs)

    return exact


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply all bits of float32, and have cuDNN add them up in one order.

    An autocast around a measurement would measure another function: it is switched off. On a
    GPU, as it is set up, PyTorch rounds what a convolution multiplies to the ten bits of TF32:
    a product with the Hessian of a CNN of 1.8 million weights then errs by 3e-2, in all bits
    by 2e-6 (H200). And cuDNN may add with atomics, so that a product differs from call to call.
    Other atomics remain: in backward passes of adaptive pooling, interpolation and scattering.
    """
    with _no_autocast(device.type), _without_tf32(device):
        yield


def _no_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast switched off, if one is on.

    One within it, of a training in half precision, keeps no casts: they would outlive the steps
    of the optimizer, as only the outermost one gives them up.
    """
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False, cache_enabled=False)


@contextmanager
def _without_tf32(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before: list[tuple[Any, str, Any]]
    try:
        before = [(part, "allow_tf32", part.allow_tf32) for part in (cudnn, matmul)]
        exact: Any = False
    except RuntimeError:  # the user set them by the names that came with PyTorch 2.9
        newer: Any = cudnn
        parts = (matmul, newer.conv, newer.rnn)
        before = [(part, "fp32_precision", part.fp32_precision) for part in parts]
        exact = "ieee"
    deterministic = cudnn.deterministic
    try:
        for part, name, _ in before:
            setattr(part, name, exact)
        cudnn.deterministic = True
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)
        cudnn.deterministic = deterministic


@contextmanager
def modes(model: nn.Module, batch_statistics: bool, device: torch.device) -> Iterator[None]:
    """Put every layer into eval mode, or BatchNorm alone into training mode, and back.

    Forward passes are made in full precision meanwhile. Attention's inference path computes
    another function of padded inputs than the path that can be differentiated: it is switched
    off.
    """
    before = [(module, module.training) for module in model.modules()]
    # A weight that a hook makes anew in each pass would be left as this pass has made it.
    made = [
        (module.__dict__, name, value)
        for module, _ in before
        for name, value in module.__dict__.items()
        if isinstance(value, torch.Tensor)
        and any(f"{name}_{end}" in module._parameters for end in ("orig", "g"))
    ]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in before:
            module.training = batch_statistics and isinstance(module, _BatchNorm)
        with full_precision(device):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for module, training in before:
            module.training = training
        for attributes, name, value in made:
            attributes[name] = value
