"""Hessian products against analytic and dense truth."""

import pytest
import torch
import torch.nn.functional as F
from conftest import dense_hessian, ragged
from torch import nn

import landscape_core as lc


def test_hessian_is_the_dense_one_on_ragged_batches(case):
    objective = case.objective()
    dense = lc.Hessian(objective).dense()
    expected = dense_hessian(objective)
    assert float((dense - expected).norm() / expected.norm()) < 1e-8


def test_hessian_of_linear_regression_is_two_over_n_x_transpose_x():
    x = torch.randn(23, 4, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    batches = ragged(x, torch.randn(23, 1, dtype=torch.float64))
    H = lc.Hessian(lc.Objective(model, F.mse_loss, batches))
    torch.testing.assert_close(H.dense(), 2 / 23 * x.T @ x)


def test_hessian_of_logistic_regression_is_x_transpose_s_x_over_n():
    x = torch.randn(23, 4, dtype=torch.float64)
    y = (torch.arange(23) % 2).double().unsqueeze(1)
    model = nn.Linear(4, 1, bias=False).double()
    H = lc.Hessian(lc.Objective(model, F.binary_cross_entropy_with_logits, ragged(x, y)))
    p = torch.sigmoid(model(x)).detach()
    torch.testing.assert_close(H.dense(), x.T @ (p * (1 - p) * x) / 23)


def test_products_do_not_depend_on_how_the_data_are_batched(objective):
    inputs = torch.cat([x for x, _ in objective.batches()])
    targets = torch.cat([y for _, y in objective.batches()])
    once = lc.Objective(objective.model, F.cross_entropy, (inputs, targets))
    v = torch.randn(objective.n, dtype=torch.float64)
    product = lc.Hessian(objective) @ v
    torch.testing.assert_close(product, lc.Hessian(once) @ v, rtol=1e-12, atol=1e-14)


def test_a_block_of_vectors_gives_the_products_of_its_columns(objective):
    H = lc.Hessian(objective)
    block = torch.randn(objective.n, 3, dtype=torch.float64)
    columns = torch.stack([H @ v for v in block.T], dim=1)
    torch.testing.assert_close(H @ block, columns)
    assert H.matvecs == 6


def test_the_hessian_is_taken_at_the_theta_that_is_given(objective):
    elsewhere = objective.theta + 0.1
    v = torch.randn(objective.n, dtype=torch.float64)
    step = 1e-5 * v / v.norm()
    slope = objective.gradient(elsewhere + step) - objective.gradient(elsewhere - step)
    expected = slope / (2e-5) * v.norm()
    torch.testing.assert_close(
        lc.Hessian(objective, elsewhere) @ v, expected, rtol=1e-5, atol=1e-7
    )


def test_unused_parameters_have_zero_curvature():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    objective = lc.Objective(
        Unused(), F.cross_entropy, (torch.randn(9, 4), torch.arange(9) % 3)
    )
    dense = lc.Hessian(objective).dense()
    assert dense[:15, :15].norm() > 0
    assert dense[15:].norm() == dense[:, 15:].norm() == 0


def test_a_loss_without_second_derivative_is_refused_not_zero():
    model = nn.Linear(4, 1)
    objective = lc.Objective(
        model, lambda out, y: (out * y).mean(), (torch.randn(6, 4), torch.ones(6, 1))
    )
    with pytest.raises(ValueError, match="gradient does not depend on theta"):
        lc.Hessian(objective) @ torch.ones(5)


def test_vectors_that_do_not_fit_are_refused(objective):
    H = lc.Hessian(objective)
    with pytest.raises(ValueError, match=rf"n = {objective.n}, got vectors of shape \(3,\)"):
        H @ torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"torch.float64 on cpu, got torch.float32"):
        H @ torch.zeros(objective.n)
    with pytest.raises(ValueError, match="refused above limit = 3"):
        H.dense(limit=3)
    with pytest.raises(ValueError, match="must be square"):
        lc.Matrix(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="symmetric"):
        lc.Matrix(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))


def test_rescaling_two_relu_layers_scales_the_hessian_and_keeps_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    x, y = torch.randn(23, 4, dtype=torch.float64), torch.arange(23) % 3
    objective = lc.Objective(model.double(), F.cross_entropy, (x, y))
    scale = torch.cat([torch.full((24,), 4.0), torch.full((18,), 0.25)]).double()
    moved = objective.theta * scale
    torch.testing.assert_close(objective.loss(moved), objective.loss())
    here, there = lc.Hessian(objective).dense(), lc.Hessian(objective, moved).dense()
    torch.testing.assert_close(there, here / scale / scale[:, None])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_products_on_the_gpu_agree_with_the_cpu(objective):
    x, y = next(objective.batches())
    v = torch.randn(objective.n, dtype=torch.float64)
    on_cpu = lc.Hessian(lc.Objective(objective.model, F.cross_entropy, (x, y))) @ v
    moved = objective.model.cuda()
    on_gpu = lc.Hessian(lc.Objective(moved, F.cross_entropy, (x, y))) @ v.cuda()
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)
