"""What single precision and kinks do to products by differences, and what is said of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc


def trained(activation, dtype, steps, seed):
    """A small network after some steps of Adam, as an objective."""
    torch.manual_seed(seed)
    layers = [
        nn.Linear(10, 12),
        activation(),
        nn.Linear(12, 12),
        activation(),
        nn.Linear(12, 3),
    ]
    model = nn.Sequential(*layers).to(dtype)
    x, y = torch.randn(60, 10, dtype=dtype), torch.arange(60) % 3
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    return lc.Objective(model, F.cross_entropy, (x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_of_finite_differences_hold_their_error(dtype):
    for seed in range(3):
        objective = trained(nn.Tanh, dtype, 60, seed)
        exact = float(lc.top_eigenpairs(lc.Hessian(objective), tol=1e-6).values)
        near = lc.Hessian(objective, method="finite_difference")
        for operator in (near, near.shifted(0.0)):
            pair = lc.top_eigenpairs(operator, tol=1e-4)
            assert abs(float(pair.values) - exact) < float(pair.residuals) < 1e-2 * exact
            assert bool(pair.converged) == (dtype == torch.float64)


def test_finite_differences_over_kinks_say_how_far_off_they_are():
    # In float32 they are another matrix, and the residual is as large as the value.
    converged = []
    for seed in range(4):
        objective = trained(nn.ReLU, torch.float32, 60, seed)
        exact = float(lc.top_eigenpairs(lc.Hessian(objective)).values)
        pair = lc.top_eigenpairs(lc.Hessian(objective, method="finite_difference"))
        off = abs(float(pair.values) - exact)
        assert off < float(pair.residuals)
        converged.append(bool(pair.converged))
        assert converged[-1] == (off < 1e-3 * exact)
    assert converged.count(True) < 4


def test_finite_differences_stay_at_the_theta_that_was_given(objective):
    theta = objective.theta.clone()
    H = lc.Hessian(objective, theta, method="finite_difference")
    before = H @ torch.ones(H.n, dtype=torch.float64)
    theta.zero_()
    assert torch.equal(H @ torch.ones(H.n, dtype=torch.float64), before)


def test_a_hessian_in_float32_is_a_symmetric_matrix():
    for seed in range(3):
        dense = lc.Hessian(trained(nn.Tanh, torch.float32, 0, seed)).dense()
        assert not torch.equal(dense, dense.T)
        lc.Matrix(dense)
    with pytest.raises(ValueError, match="symmetric"):
        lc.Matrix(dense + 1e-5 * dense.abs().max() * torch.ones_like(dense).triu(1))


def test_power_iteration_claims_no_residual_below_the_error_of_its_products():
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    operator = lc.Hessian(
        lc.Objective(model, F.cross_entropy, (x, y)), method="finite_difference"
    )
    pair = lc.power_iteration(operator, tol=1e-6, max_matvecs=100)
    exact = lc.Objective(model.double(), F.cross_entropy, (x.double(), y))
    v = pair.vectors[:, 0].double()
    true = float((lc.Hessian(exact) @ v - pair.values.double() * v).norm())
    assert true <= float(pair.residuals[0])
    assert not bool(pair.converged[0])
