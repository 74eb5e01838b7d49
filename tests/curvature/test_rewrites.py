"""Rewritten layers against PyTorch's own: same values, gradients and products, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import functional

import landscape_core as lc
from landscape_core.curvature import hessian, rewrites

PYTORCHS_OWN = mock.patch.object(
    hessian, "CheapSecondDerivatives", return_value=contextlib.nullcontext()
)


Pair = tuple[Tensor, Tensor]


def small_objective(model: nn.Module, x: Tensor) -> lc.Objective:
    torch.manual_seed(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    targets = torch.arange(len(x)) % 2
    return lc.Objective(
        model.double(), F.cross_entropy, [(x[:4], targets[:4]), (x[4:], targets[4:])]
    )


def both(make: Callable[[], lc.SymmetricOperator]) -> Pair:
    """A block of products through rewritten layers, and through PyTorch's own."""
    operator = make()
    rng = torch.Generator().manual_seed(2)
    block = torch.randn(operator.n, 3, dtype=torch.float64, generator=rng)
    ours = operator @ block
    with PYTORCHS_OWN:
        return ours, make() @ block


@pytest.fixture(params=["together", "one by one"])
def every_weight_is_large(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small matrices are rewritten too, and vectors pass in both ways."""
    monkeypatch.setattr(rewrites, "LARGE", 1)
    together = request.param == "together"
    monkeypatch.setattr(hessian, "_together_pays", lambda *_: together)


class Calls(nn.Module):
    """A function between two linear layers."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.f, self.after = nn.Linear(5, 6), f, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.f(self.before(x)))


W6 = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "silu in place": lambda x: F.silu(x, inplace=True),
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "layer_norm affine": lambda x: F.layer_norm(x, (6,), W6, W6, 0.1),
    "layer_norm of two": lambda x: F.layer_norm(x.view(-1, 3, 2), (3, 2)).flatten(1),
    "vmapped gelu": lambda x: torch.func.vmap(F.gelu)(x),
}


@pytest.mark.usefixtures("every_weight_is_large")
@pytest.mark.parametrize("kind", [lc.Hessian, lc.GaussNewton])
@pytest.mark.parametrize("name", POINTWISE)
def test_functions(name: str, kind: type[hessian.ObjectiveOperator]) -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    objective = small_objective(Calls(POINTWISE[name]), x)
    ours, theirs = both(lambda: kind(objective))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Rounded(torch.autograd.Function):
    """Has a first derivative only."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.round()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g


def test_refusals_name_the_users_function() -> None:
    layers = [nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)]
    model = nn.Sequential(*layers[:1], Calls(Rounded.apply), *layers[1:])
    model[1].before, model[1].after = nn.Linear(3, 5), nn.Linear(5, 3)
    objective = lc.Objective(model, F.cross_entropy, (torch.randn(5, 3), torch.arange(5) % 2))
    with pytest.raises(ValueError, match="the backward pass of Rounded cannot"):
        lc.Hessian(objective) @ torch.ones(objective.n)


def test_it_is_the_hessian() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2))
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 2
    objective = lc.Objective(model.double(), F.cross_entropy, (x, y))
    dense = torch.autograd.functional.hessian(
        lambda theta: objective.batch_loss(theta, (x, y)), objective.theta
    )
    torch.testing.assert_close(lc.Hessian(objective).dense(), dense, rtol=1e-9, atol=1e-12)


class UsedTwice(nn.Module):
    """The convolution's output goes past the norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.norm(y).tanh() + y).mean((2, 3)))


class WrittenBetween(nn.Module):
    """The convolution's output is changed in place before the norm reads it."""

    def __init__(self, doubled: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.head, self.doubled = nn.Linear(4, 2), doubled

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y.mul_(2) if self.doubled else y
        return self.head(self.norm(y).tanh().mean((2, 3)))


class Named(nn.Module):
    """Arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.bias = nn.Parameter(torch.randn(4))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.conv2d(x, self.weight, bias=self.bias, stride=2, groups=2, padding=1)
        return self.head(self.norm(y).tanh().mean((2, 3)))


def stack(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return nn.Sequential(conv, norm, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


CONVOLVED: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "1d": lambda: (stack(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), (2, 6)),
    "2d": lambda: (stack(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4)), (2, 5, 5)),
    "3d": lambda: (stack(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 3, 3, 3)),
    "no bias": lambda: (stack(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)), (2, 4, 4)),
    "no affine": lambda: (
        stack(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 4, 4)
    ),
    "groups": lambda: (stack(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 4, 4)),
    "circular": lambda: (
        stack(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)),
        (2, 4, 4),
    ),
    "used twice": lambda: (UsedTwice(), (2, 4, 4)),
    "written between": lambda: (WrittenBetween(True), (2, 4, 4)),
    "not written between": lambda: (WrittenBetween(False), (2, 4, 4)),
    "by name": lambda: (Named(), (2, 5, 5)),
    "no convolution": lambda: (
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
        (5,),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("every_weight_is_large")
@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("kind", [lc.Hessian, lc.GaussNewton])
@pytest.mark.parametrize("name", CONVOLVED)
def test_convolutions(
    name: str, kind: type[hessian.ObjectiveOperator], budget: float | None
) -> None:
    torch.manual_seed(0)
    model, shape = CONVOLVED[name]()
    x = torch.randn(7, *shape, dtype=torch.float64)
    model.double()(x)  # lazy layers
    objective = small_objective(model, x)
    ours, theirs = both(lambda: kind(objective, memory_budget=budget))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("every_weight_is_large")
@pytest.mark.parametrize("kind", [lc.Hessian, lc.GaussNewton])
@pytest.mark.parametrize("pattern", ["0.*", "1.*", "3.weight", "3.bias", "6.*", ["0.*", "6.*"]])
def test_blocks(pattern: list[str] | str, kind: type[hessian.ObjectiveOperator]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.GELU(),
              nn.Flatten(), nn.Linear(3, 2)]  # fmt: skip
    x = torch.randn(7, 2, 4, 4, dtype=torch.float64)
    objective = small_objective(nn.Sequential(*layers), x)
    ours, theirs = both(lambda: kind(objective).block(pattern))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_folded_norm_keeps_no_activations() -> None:
    def held(rewritten: bool) -> int:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                  nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2)]  # fmt: skip
        objective = lc.Objective(
            nn.Sequential(*layers),
            F.cross_entropy,
            (torch.randn(20, 3, 12, 12), torch.arange(20) % 2),
        )
        kept = lc.Hessian(objective)
        with contextlib.nullcontext() if rewritten else PYTORCHS_OWN:
            kept @ torch.ones(kept.n)
        return kept._graphs.held

    assert held(True) < 0.8 * held(False)
