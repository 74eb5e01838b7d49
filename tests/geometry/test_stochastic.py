"""Noise of gradients against the covariance matrix that is small enough to write down."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import dense_hessian

import landscape_core as lc


@pytest.fixture(scope="module")
def measured():
    """An objective in float64, its dense Hessian and the covariance of its gradients."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 3, (60,), generator=rng)
    model = lc.MLP((4,), 3, width=6, activation="tanh").double()
    objective = lc.Objective(model, F.cross_entropy, [(x[:40], y[:40]), (x[40:], y[40:])])
    rows = torch.cat(list(objective.per_example_gradients()))
    centred = rows - rows.mean(0)
    return objective, dense_hessian(objective), centred.T @ centred / 60, rows.mean(0)


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_exact_noise_scale_is_the_trace_over_the_squared_gradient(measured, chunk):
    objective, _, sigma, gradient = measured
    found = lc.exact_noise_scale(objective, chunk_size=chunk)
    assert found.covariance_trace.value == pytest.approx(float(sigma.trace()), rel=1e-10)
    assert found.gradient_squared.value == pytest.approx(float(gradient @ gradient), rel=1e-10)
    assert found.scale.value == pytest.approx(float(sigma.trace() / (gradient @ gradient)))
    assert found.scale.stderr == 0


def test_batches_estimate_it_within_two_standard_errors(measured):
    exact = lc.exact_noise_scale(measured[0]).scale.value
    inside = 0
    for seed in range(40):
        found = lc.gradient_noise_scale(measured[0], 4, 32, draws=60, seed=seed).scale
        inside += abs(found.value - exact) < 2 * found.stderr
    assert inside >= 34


def test_the_curvature_of_the_noise_is_that_of_the_dense_matrices(measured):
    objective, hessian, sigma, _ = measured
    exact = float((hessian @ sigma).trace() / sigma.trace())
    operator = lc.Hessian(objective)
    inside = 0
    for seed in range(60):
        found = lc.noise_alignment(objective, operator, examples=64, seed=seed)
        low, high = found.curvature.interval()
        inside += low < exact < high
    assert inside >= 51
    many = lc.noise_alignment(objective, operator, examples=1000)
    assert many.curvature.relative_error < 0.15
    mean = lc.Estimate(float(hessian.trace()), 0.0, 2)
    over = many.over(mean, objective.n)
    assert over.value == pytest.approx(many.curvature.value * objective.n / mean.value)
    assert over.value > 1 + 3 * over.stderr


def test_batch_sharpness_of_all_examples_is_the_curvature_along_the_gradient(measured):
    objective, hessian, _, gradient = measured
    found = lc.batch_sharpness(objective, 60, draws=2)
    exact = float(gradient @ hessian @ gradient / (gradient @ gradient))
    assert found.value == pytest.approx(exact, rel=1e-9)
    assert found.stderr == pytest.approx(0, abs=1e-12)


def test_single_examples_are_sharper_than_all_together(measured):
    objective = measured[0]
    single, whole = (lc.batch_sharpness(objective, b, draws=100) for b in (1, 60))
    assert single.value > whole.value + 3 * single.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: lc.batch_sharpness(o, 61), "batch_size must lie from 1 to 60, got 61"),
        (lambda o: lc.batch_sharpness(o, 8, draws=1), "draws must be at least 2"),
        (lambda o: lc.noise_alignment(o, lc.Hessian(o), examples=3), "an even number >= 4"),
        (lambda o: lc.noise_alignment(o, lc.Matrix(torch.eye(3))), "the operator must have n"),
    ],
)
def test_bad_input_gets_one_sentence(measured, call, message):
    with pytest.raises(ValueError, match=message):
        call(measured[0])


def test_gradients_that_are_not_finite_are_refused(measured):
    x, y = next(measured[0].batches())
    data = [(x, y), (torch.where(torch.arange(40)[:, None] == 5, torch.nan, x), y)]
    objective = lc.Objective(measured[0].model, F.cross_entropy, data)
    for call in (
        lc.exact_noise_scale,
        lambda o: lc.batch_sharpness(o, 80, draws=2),
        lambda o: lc.noise_alignment(o, lc.Hessian(measured[0]), examples=1000),
    ):
        with pytest.raises(FloatingPointError, match="must be finite, got one that is not"):
            call(objective)


def test_a_trace_of_zero_has_no_ratio(measured):
    found = lc.noise_alignment(measured[0], lc.Hessian(measured[0]), examples=4)
    with pytest.raises(ValueError, match="mean curvature must not be 0, got a trace of 0"):
        found.over(lc.Estimate(0.0, 0.0, 2), measured[0].n)


def test_counts_may_be_numpy_integers(measured):
    objective, four = measured[0], np.int64(4)
    assert lc.batch_sharpness(objective, four, draws=four) == lc.batch_sharpness(
        objective, 4, draws=4
    )
    H = lc.Hessian(objective)
    few = lc.noise_alignment(objective, H, examples=four)
    assert few == lc.noise_alignment(objective, H, examples=4)


def test_nearly_equal_gradients_do_not_cancel():
    x = 1 + 1e-4 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(3, 1)
    y = torch.zeros(64, 1)
    single = lc.Objective(model, torch.nn.functional.mse_loss, (x, y))
    double = lc.Objective(
        copy.deepcopy(model).double(), torch.nn.functional.mse_loss,
        (x.double(), y.double()),
    )  # fmt: skip
    exact = lc.exact_noise_scale(double).covariance_trace.value
    assert lc.exact_noise_scale(single).covariance_trace.value == pytest.approx(exact, rel=1e-2)


def test_blocks_of_gradients_are_at_most_as_long_as_the_chunk():
    torch.manual_seed(0)
    data = torch.randn(23, 4), torch.arange(23) % 3
    objective = lc.Objective(torch.nn.Linear(4, 3), F.cross_entropy, data)
    blocks = list(objective.per_example_gradients(chunk_size=5))
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 3]
    (whole,) = objective.per_example_gradients()
    torch.testing.assert_close(torch.cat(blocks), whole)
