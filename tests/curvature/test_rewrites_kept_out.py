"""Models that do more than pass through their layers: rewriting must not show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import relative
from torch import Tensor, nn

import landscape_core as lc
from landscape_core.curvature import hessian, rewrites


class Model(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def images(run: Callable[..., Tensor]) -> tuple[nn.Module, Tensor]:
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    return Model(run, conv=nn.Conv2d(2, 4, 3), norm=norm, head=nn.Linear(4, 3)), (7, 2, 5, 5)


def vectors(run: Callable[..., Tensor], *middle: nn.Module) -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 2))
    return Model(run, net=net, head=nn.Linear(4, 3)), (7, 4)


def pooled(model: Model, z: Tensor) -> Tensor:
    return model.head(model.norm(z).tanh().mean((2, 3)))


def bias_changed(model: Model, x: Tensor) -> Tensor:
    bias = model.conv.bias * 1
    z = F.conv2d(x, model.conv.weight, bias)
    bias.mul_(3)
    return pooled(model, z)


def data_written(model: Model, x: Tensor) -> Tensor:
    z = model.conv(x)
    z.data.mul_(2)
    return pooled(model, z)


def detached(model: Model, x: Tensor) -> Tensor:
    z = model.conv(x)
    z.detach_()
    return pooled(model, z)


def attributed(model: Model, x: Tensor) -> Tensor:
    f = model.conv(x)
    z = model.norm(f)
    weights = torch.autograd.grad(z.sum(), f, retain_graph=True)[0].detach()
    return model.head((z * weights).tanh().mean((2, 3)))


def energy(model: Model, x: Tensor) -> Tensor:
    """Head of the gradient of a scalar in the inputs."""
    z = x.clone().requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(model.net(z).square().sum(), z, create_graph=True)
    return model.head(g)


def energy_by_transforms(model: Model, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda row: model.net(row).square().sum())
    return model.head(torch.func.vmap(slope)(x))


def complex_linear(model: Model, x: Tensor) -> Tensor:
    a, b = model.net[0](x), model.net[1](x)
    z = torch.complex(a, a.sin()) @ torch.complex(b.T @ b, b.T @ b.cos())
    weight = torch.complex(model.net[0].weight.T, model.net[1].weight.T)
    return model.head(torch.view_as_real(F.linear(z, weight)).sum(-1))


def wide_bias(model: Model, x: Tensor) -> Tensor:
    return model.head(
        F.linear(x, model.head.weight.T @ model.head.weight, torch.ones(1, 4).double())
    )


def written_after(model: Model, x: Tensor) -> Tensor:
    z = model.net(x)
    return model.head(torch.cat([F.relu(z, inplace=True), z.sin()], dim=1))


def sparse(model: Model, x: Tensor) -> Tensor:
    ring = torch.eye(7, dtype=x.dtype).roll(1, 0).to_sparse()
    return model.head(torch.sparse.mm(ring, model.net(x).tanh().repeat(1, 2)))


MODELS = {
    "bias changed": lambda: images(bias_changed),
    "energy of SiLU": lambda: vectors(energy, nn.SiLU()),
    "energy of GELU": lambda: vectors(energy, nn.GELU()),
    "energy of LayerNorm": lambda: vectors(energy, nn.LayerNorm(6), nn.Tanh()),
    "transformed LayerNorm": lambda: vectors(energy_by_transforms, nn.LayerNorm(6), nn.Tanh()),
    "complex": lambda: (
        Model(complex_linear, net=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
              head=nn.Linear(4, 3)),
        (7, 4),
    ),
    "wide bias": lambda: (Model(wide_bias, head=nn.Linear(4, 3)), (7, 4)),
    "norm written to": lambda: (
        Model(written_after, net=nn.Sequential(
            nn.Linear(4, 2), nn.LayerNorm(2, elementwise_affine=False)), head=nn.Linear(4, 3)),
        (7, 4),
    ),
    "group norm": lambda: (
        Model(lambda m, x: m.net(x), net=nn.Sequential(
            nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 3))),
        (7, 4),
    ),
    "sparse": lambda: vectors(sparse),
}  # fmt: skip


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("run", [data_written, detached, attributed])
def test_what_autograd_does_not_see_is_left_to_it(run, budget):
    # The gradient of such a model is not that of its loss: the truth is PyTorch's own.
    torch.manual_seed(0)
    model, shape = images(run)
    x = torch.randn(*shape, dtype=torch.float64)
    objective = lc.Objective(model.double(), F.cross_entropy, (x, torch.arange(7) % 3))
    block = torch.randn(objective.n, 3, dtype=torch.float64)
    ours = lc.Hessian(objective, memory_budget=budget) @ block
    none = mock.patch.object(
        hessian, "CheapSecondDerivatives", return_value=contextlib.nullcontext()
    )
    with none:
        own = lc.Hessian(objective, memory_budget=budget) @ block
    torch.testing.assert_close(ours, own, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_differences(name, budget, monkeypatch):
    monkeypatch.setattr(rewrites, "LARGE", 1)
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    x = torch.randn(*shape, dtype=torch.float64)
    objective = lc.Objective(model.double(), F.cross_entropy, (x, torch.arange(7) % 3))
    ours = lc.Hessian(objective, memory_budget=budget)
    block = torch.randn(objective.n, 3, dtype=torch.float64)
    differences = lc.Hessian(objective, method="finite_difference") @ block
    for products in (ours @ block, torch.stack([ours @ v for v in block.T], dim=1)):
        assert relative(products, differences) < 2e-6


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked for by the compiler
@pytest.mark.parametrize("middle", [nn.LayerNorm(6), nn.GELU()])
def test_a_model_compiled_without_a_backend_of_its_own(middle):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 3)).double()
    data = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    compiled = lc.Objective(torch.compile(inner, backend="eager"), F.cross_entropy, data)
    plain = lc.Objective(inner, F.cross_entropy, data)
    v = torch.randn(plain.n, dtype=torch.float64)
    assert relative(lc.Hessian(compiled) @ v, lc.Hessian(plain) @ v) < 1e-10


def test_mish_far_from_zero_is_straight():
    model = nn.Sequential(nn.Linear(1, 3), nn.Mish(), nn.Linear(3, 2))
    objective = lc.Objective(
        model, F.cross_entropy, (torch.tensor([[1e4], [-1e4]]), torch.tensor([0, 1]))
    )
    assert bool((lc.Hessian(objective) @ torch.ones(objective.n)).isfinite().all())


@pytest.mark.parametrize(
    "option", [{"scale_grad_by_freq": True}, {"sparse": True}, {"max_norm": 1.0}]
)
def test_embeddings_with_another_gradient_are_refused(option):
    model = nn.Sequential(nn.Embedding(5, 4, **option), nn.Flatten(), nn.Linear(8, 3))
    data = torch.randint(0, 5, (7, 2)), torch.arange(7) % 3
    with pytest.raises(
        ValueError, match=f"must have a plain gradient, got {next(iter(option))}"
    ):
        lc.Objective(model, F.cross_entropy, data)


def test_a_histogram_of_one_value_has_it_inside():
    density = lc.spectral_density(lc.Matrix(torch.eye(5).double() * 1e20), steps=2, probes=2)
    counts, edges = density.histogram(10)
    assert counts.sum() == pytest.approx(5)
    assert edges[0] < 1e20 < edges[-1]


def test_a_small_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="matrix must be symmetric"):
        lc.Matrix(torch.tensor([[0.0, 1e-9], [0.0, 0.0]]))


def test_no_vectors_make_no_products():
    objective = lc.Objective(
        nn.Linear(4, 3), F.cross_entropy, (torch.randn(7, 4), torch.arange(7) % 3)
    )
    for method in ("autograd", "finite_difference"):
        products = lc.Hessian(objective, method=method) @ torch.zeros(objective.n, 0)
        assert products.shape == (objective.n, 0)
