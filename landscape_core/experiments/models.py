"""Small reference networks, initialized from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

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
    """A plain convolutional network: convolutions that halve the image, then linear layers.

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
    hidden : int
        Units of a linear layer before the last one; 0 leaves it out.
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
        hidden: int = 0,
        activation: str = "relu",
        batchnorm: bool = False,
        seed: int = 0,
    ) -> None:
        channels, height, side = _image(input_shape)
        _check(classes=classes, width=width, depth=depth)
        layers: list[nn.Module] = []
        with seeded(seed):
            for level in range(depth):
                filters = width * 2**level
                layers.append(nn.Conv2d(channels, filters, kernel_size=3, padding=1))
                if batchnorm:
                    layers.append(nn.BatchNorm2d(filters))
                # ceil_mode keeps at least one pixel, whatever the image's size
                layers += [_activation(activation), nn.MaxPool2d(2, ceil_mode=True)]
                channels, height, side = filters, -(-height // 2), -(-side // 2)
            layers.append(nn.Flatten())
            features = channels * height * side
            if hidden:
                _check(hidden=hidden)
                layers += [nn.Linear(features, hidden), _activation(activation)]
                features = hidden
            layers.append(nn.Linear(features, classes))
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, with or without a way around them."""

    def __init__(
        self, channels: int, filters: int, stride: int, skips: bool, batchnorm: bool
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, filters, 3, stride, batchnorm),
            nn.ReLU(),
            *_convolution(filters, filters, 3, 1, batchnorm),
        )
        self.shortcut: nn.Module | None = None
        if skips:
            same = channels == filters and stride == 1
            way = [] if same else _convolution(channels, filters, 1, stride, batchnorm)
            self.shortcut = nn.Sequential(*way)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out: (B, channels, H, W) to (B, filters, H', W')."""
        y: Tensor = self.body(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        out: Tensor = self.activation(y)
        return out


class ResNet(nn.Sequential):
    """A residual network for small images, and its two controls.

    One 3x3 convolution, three stages of residual blocks with `width`, twice and four times as
    many channels, of which the second and third halve the image, a mean over the image, and a
    linear layer. A block whose shape changes has a 1x1 convolution as its way around.

    Parameters
    ----------
    input_shape : (channels, height, width)
    classes : int
        Number of outputs.
    width : int
        Channels of the first stage.
    blocks : int
        Blocks of each stage.
    skips : bool
        Whether blocks have a way around them; without, the network is a plain one.
    batchnorm : bool
        Whether BatchNorm follows each convolution; without, convolutions have biases.
    seed : int
        Draws the initial weights (He et al. 2015, arXiv:1502.01852, for convolutions);
        torch's global generator is left as it was.

    References
    ----------
    K. He et al., Deep residual learning for image recognition, 2016, arXiv:1512.03385.

    Examples
    --------
    >>> import torch
    >>> ResNet((3, 16, 16), 10, width=4)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        width: int = 16,
        blocks: int = 2,
        skips: bool = True,
        batchnorm: bool = True,
        seed: int = 0,
    ) -> None:
        channels = _image(input_shape)[0]
        _check(classes=classes, width=width, blocks=blocks)
        with seeded(seed):
            layers = [*_convolution(channels, width, 3, 1, batchnorm), nn.ReLU()]
            channels = width
            for stage in range(3):
                for block in range(blocks):
                    filters, stride = width * 2**stage, 2 if stage and not block else 1
                    layers.append(ResidualBlock(channels, filters, stride, skips, batchnorm))
                    channels = filters
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        super().__init__(*layers)


def _convolution(
    channels: int, filters: int, size: int, stride: int, batchnorm: bool
) -> list[nn.Module]:
    """A convolution that keeps the size of the image, or halves it, and what follows it."""
    layer = nn.Conv2d(channels, filters, size, stride, size // 2, bias=not batchnorm)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return [layer, nn.BatchNorm2d(filters)] if batchnorm else [layer]


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (channels, height, width), got {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


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
