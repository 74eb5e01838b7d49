"""Networks and data on which every operator is compared with dense truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape_core as lc

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


class TwoInputs(nn.Module):
    """Takes two positional or two keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(a) + self.right(b)))


class Tied(nn.Module):
    """One weight matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    """A Transformer encoder layer and a head on the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            4, 2, dim_feedforward=6, dropout=0.1, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    """An LSTM and a head on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


def labels(count: int = 23) -> Tensor:
    return torch.arange(count) % 3


@dataclass
class Case:
    """A model, inputs for 23 examples, and a criterion."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    criterion: Callable[..., Tensor] = F.cross_entropy
    targets: Callable[[], Tensor] = labels

    def objective(self, **options: Any) -> lc.Objective:
        torch.manual_seed(0)
        model = self.model().double()
        inputs, targets = self.inputs(), self.targets()
        return lc.Objective(model, self.criterion, ragged(inputs, targets), **options)


def ragged(inputs: Any, targets: Tensor, sizes: tuple[int, ...] = (7, 7, 7, 2)) -> list[Any]:
    """The examples in batches of unequal size."""
    ys = targets.split(sizes)
    if isinstance(inputs, dict):
        parts = {key: value.split(sizes) for key, value in inputs.items()}
        return [({k: v[i] for k, v in parts.items()}, y) for i, y in enumerate(ys)]
    if isinstance(inputs, tuple):
        columns = [x.split(sizes) for x in inputs]
        return [(tuple(c[i] for c in columns), y) for i, y in enumerate(ys)]
    return list(zip(inputs.split(sizes), ys, strict=True))


def random(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(23, *shape, dtype=torch.float64)


def trained_norm() -> nn.Module:
    """BatchNorm with running statistics that are neither 0 nor 1."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model(torch.randn(50, 4) * 2 + 1)
    return model


CASES = [
    Case("linear regression", lambda: nn.Linear(4, 2), random(4), F.mse_loss, random(2)),
    Case("softmax regression", lambda: nn.Linear(4, 3), random(4)),
    Case("tanh MLP", lambda: lc.MLP((4,), 3, width=5, activation="tanh"), random(4)),
    Case("ReLU MLP", lambda: lc.MLP((4,), 3, width=6), random(4)),
    Case("CNN", lambda: lc.SmallCNN((1, 4, 4), 3, width=2, activation="gelu"), random(1, 4, 4)),
    Case("BatchNorm", trained_norm, random(4)),
    Case("LayerNorm", lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), random(4)),
    Case("attention", Attention, random(5, 4)),
    Case("LSTM", Recurrent, random(5, 4)),
    Case("tied weights", Tied, random(4)),
    Case("frozen layer", frozen, random(4)),
    Case("tuple inputs", TwoInputs, lambda: (random(3)(), random(2)())),
    Case("dict inputs", TwoInputs, lambda: {"a": random(3)(), "b": random(2)()}),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def objective() -> lc.Objective:
    """A small smooth network on four ragged batches, in double precision."""
    return CASES[2].objective()


def whole_outputs(objective: lc.Objective) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The outputs for all the data at once, written without the package, and the targets."""
    batches = list(objective.batches())
    targets = torch.cat([y for _, y in batches])
    first = batches[0][0]
    if isinstance(first, dict):
        arguments, keywords = (), {k: torch.cat([x[k] for x, _ in batches]) for k in first}
    elif isinstance(first, tuple):
        arguments = tuple(
            torch.cat(column) for column in zip(*[x for x, _ in batches], strict=True)
        )
        keywords = {}
    else:
        arguments, keywords = (torch.cat([x for x, _ in batches]),), {}
    model = objective.model.eval()

    def outputs(theta: Tensor) -> Tensor:
        state, start = {}, 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                count = parameter.numel()
                state[name] = theta[start : start + count].view(parameter.shape)
                start += count
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(model, state, arguments, keywords)

    return outputs, targets


def whole_loss(objective: lc.Objective) -> Callable[[Tensor], Tensor]:
    """The loss of all the data at once: the reference."""
    outputs, targets = whole_outputs(objective)
    return lambda theta: objective.criterion(outputs(theta), targets)


def dense_hessian(objective: lc.Objective) -> Tensor:
    """Row by row, without vmap: torch.func.hessian is wrong for LayerNorm's weights.

    On (N, T, C) inputs torch 2.13's jacrev(jacrev) gives an asymmetric matrix there, 7 % off
    finite differences of the gradient; rows one at a time agree with them to 1e-10.
    """
    return torch.autograd.functional.hessian(whole_loss(objective), objective.theta)


def dense_gauss_newton(objective: lc.Objective) -> Tensor:
    """J'MJ with J the Jacobian of all outputs and M the Hessian of the criterion in them."""
    outputs, targets = whole_outputs(objective)
    here = outputs(objective.theta).detach()
    jacobian = torch.autograd.functional.jacobian(outputs, objective.theta)
    jacobian = jacobian.reshape(-1, objective.n)
    middle = torch.autograd.functional.hessian(
        lambda z: objective.criterion(z.view_as(here), targets), here.flatten()
    )
    return jacobian.T @ middle @ jacobian


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over the length of what is expected."""
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def two_threads():
    """Where some kernels of the CPU race."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


class Once(torch.autograd.Function):
    """The square, with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]
