"""Hutchinson's estimator: exact where it must be, calibrated where it is random."""

import pytest
import torch
from test_eigen import matrix

import landscape_core as lc


def test_rademacher_probes_are_exact_on_a_diagonal_matrix():
    A = lc.Matrix(torch.diag(torch.tensor([3.0, -1.0, 4.0, 0.5], dtype=torch.float64)))
    estimate = lc.trace(A, probes=5)
    assert estimate.value == pytest.approx(6.5, rel=1e-14)
    assert estimate.stderr == pytest.approx(0, abs=1e-12)
    assert estimate.samples == estimate.matvecs == A.matvecs == 5


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_variance_is_the_one_of_the_formula(distribution):
    A = matrix(torch.linspace(-1, 3, 30))
    squares = A.matrix.square()
    exact = {
        "gaussian": 2 * squares.sum(),
        "rademacher": 2 * (squares.sum() - squares.diag().sum()),
    }
    estimate = lc.trace(A, probes=4000, distribution=distribution)
    measured = estimate.stderr**2 * 4000
    assert measured == pytest.approx(float(exact[distribution]), rel=0.1)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_intervals_cover_the_truth_as_often_as_they_say(distribution):
    A = matrix([10.0, -4.0, *torch.linspace(0, 1, 38).tolist()])
    truth, hits = float(A.matrix.trace()), 0
    for seed in range(500):
        low, high = lc.trace(A, probes=20, distribution=distribution, seed=seed).interval()
        hits += low <= truth <= high
    assert 0.92 <= hits / 500 <= 0.98


def test_bad_arguments_are_refused():
    A = matrix([1.0, 2.0])
    with pytest.raises(ValueError, match="probes must be at least 2, got 1"):
        lc.trace(A, probes=1)
    with pytest.raises(ValueError, match="'rademacher', .* got 'uniform'"):
        lc.trace(A, distribution="uniform")
