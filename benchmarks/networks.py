"""The five networks of the benchmark, and real images for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape_core as lc

Batches = list[tuple[Tensor, Tensor]]


class PlainCNN(nn.Module):
    """Three convolutions (64, 128, 256) with pooling, two linear layers; 1.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in [(3, 64), (64, 128), (128, 256)]:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        head = [nn.Flatten(), nn.Linear(4096, 344), nn.ReLU(), nn.Linear(344, 10)]
        self.layers = nn.Sequential(*layers, *head)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, 10)."""
        return self.layers(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = F.relu(self.norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A strided stem and five residual blocks (64, 128, 256), 2.7 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(32, 64, 2), (64, 128, 2), (128, 128, 1), (128, 256, 1), (256, 256, 1)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.blocks = nn.Sequential(*[ResidualBlock(*size) for size in sizes])
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """A two-layer Transformer encoder on 16 patches of 8 x 8, 0.4 M parameters."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Linear(192, width)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, 10)."""
        patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
        tokens = self.embed(patches.reshape(len(x), 16, 192)) + self.position
        return self.head(self.encoder(tokens).mean(1))


def _mlp(width: int) -> nn.Module:
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


NETWORKS = {
    "mlp-1024": lambda: _mlp(1024),
    "mlp-4096": lambda: _mlp(4096),
    "cnn": PlainCNN,
    "resnet": ResNet,
    "transformer": Transformer,
}


def images(name: str, count: int) -> tuple[Tensor, Tensor]:
    """`count` handwritten digits, enlarged to what the network takes."""
    data = lc.load("digits")
    inputs = torch.cat([data.train.inputs, data.test.inputs])[:count]
    targets = torch.cat([data.train.targets, data.test.targets])[:count]
    side = 28 if name.startswith("mlp") else 32
    large = F.interpolate(inputs, size=(side, side), mode="bilinear")
    return (large.flatten(1) if side == 28 else large.repeat(1, 3, 1, 1)), targets


def trained(
    name: str, count: int, batch: int = 300, epochs: int = 2, device: str = "cpu"
) -> tuple[nn.Module, Batches]:
    """Return the network after `epochs` of Adam, in eval mode, and its data, ragged."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(device)
    inputs, targets = (part.to(device) for part in images(name, count))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return model, list(zip(inputs.split(batch), targets.split(batch), strict=True))
