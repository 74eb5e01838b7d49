"""Small reference networks, initialized from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from landscape_core.experiments.seeding import seeded

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}


class MLP(nn.Sequential):
    """A multilayer perceptron on inputs of any shape.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of one example, e.g. (1, 28, 28).
    classes : int
        Number of outputs.
    width : int
        Units in each hidden layer.
    depth : int
        Number of hidden layers; 0 is a linear classifier.
    activation : {"relu", "gelu", "tanh", "silu"}
    batchnorm : bool
        Whether BatchNorm follows each hidden linear layer.
    seed : int
        Draws the initial weights; torch's global generator is left as it was.

    Examples
    --------
    >>> sum(p.numel() for p in MLP((1, 8, 8), 10, width=32).parameters())
    3466
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        width: int = 256,
        depth: int = 2,
        activation: str = "relu",
        batchnorm: bool = False,
        seed: int = 0,
    ) -> None:
        _check(classes=classes, width=width)
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        with seeded(seed):
            for _ in range(_at_least_zero(depth)):
                layers.append(nn.Linear(features, width))
                if batchnorm:
                    layers.append(nn.BatchNorm1d(width))
                layers.append(_activation(activation))
                features = width
            layers.append(nn.Linear(features, classes))
        super().__init__(*layers)


class SmallCNN(nn.Sequential):
    """A plain convolutional network: convolutions that halve the image, then one linear layer.

    Each 3x3 convolution is followed by an activation and 2x2 max pooling.

    Parameters
    ----------
    input_shape : (channels, height, width)
    classes : int
        Number of outputs.
    width : int
        Channels of the first convolution; each later one has twice as many.
    depth : int
        Number of convolutions, at least 1.
    activation : {"relu", "gelu", "tanh", "silu"}
    batchnorm : bool
        Whether BatchNorm follows each convolution.
    seed : int
        Draws the initial weights; torch's global generator is left as it was.

    Examples
    --------
    >>> import torch
    >>> SmallCNN((3, 9, 7), 5)(torch.zeros(4, 3, 9, 7)).shape
    torch.Size([4, 5])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        width: int = 16,
        depth: int = 2,
        activation: str = "relu",
        batchnorm: bool = False,
        seed: int = 0,
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(
                f"input_shape must be (channels, height, width), got {tuple(input_shape)}"
            )
        _check(classes=classes, width=width, depth=depth)
        layers: list[nn.Module] = []
        channels, height, side = input_shape
        with seeded(seed):
            for level in range(depth):
                filters = width * 2**level
                layers.append(nn.Conv2d(channels, filters, kernel_size=3, padding=1))
                if batchnorm:
                    layers.append(nn.BatchNorm2d(filters))
                # ceil_mode keeps at least one pixel, whatever the image's size
                layers += [_activation(activation), nn.MaxPool2d(2, ceil_mode=True)]
                channels, height, side = filters, -(-height // 2), -(-side // 2)
            layers += [nn.Flatten(), nn.Linear(channels * height * side, classes)]
        super().__init__(*layers)


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def _at_least_zero(depth: int) -> int:
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}")
    return depth


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
