"""Paths: exact ends, barriers that are zero where they must be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc


def test_segment_ends_bit_for_bit_at_its_ends():
    a, b = torch.randn(1000), torch.randn(1000) * 1e-3
    segment = lc.Segment(a, b)
    assert torch.equal(segment(0.0), a)
    assert torch.equal(segment(1.0), b)
    torch.testing.assert_close(segment(0.3), 0.7 * a + 0.3 * b)


def test_barrier_between_a_network_and_itself_is_exactly_zero(objective):
    profile = lc.path_profile(objective, lc.Segment(objective.theta, objective.theta), 7)
    assert lc.barrier(profile).value == 0
    assert np.all(profile.excess == 0)
    assert np.all(profile.excess_stderr == 0)


def test_profile_of_a_quadratic_along_a_line_is_the_parabola():
    # L(w) = (w - 1)^2 from w = 0 to w = 4: the excess over the chord is -16 t (1 - t).
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.ones(5, 1, dtype=torch.float64)
    objective = lc.Objective(model, F.mse_loss, (x, x))
    ends = torch.tensor([[0.0], [4.0]]).double()
    profile = lc.path_profile(objective, lc.Segment(*ends), points=5)
    np.testing.assert_allclose(profile.loss, (4 * profile.t - 1) ** 2)
    np.testing.assert_allclose(profile.excess, -16 * profile.t * (1 - profile.t), atol=1e-14)
    assert lc.barrier(profile).value == 0  # a convex valley has none
    assert profile.accuracy is None


def test_error_of_the_excess_is_that_of_paired_differences(objective):
    other = objective.theta + torch.randn(objective.n, dtype=torch.float64)
    profile = lc.path_profile(objective, lc.Segment(objective.theta, other), points=3)
    start, middle, end = (
        objective.example_values(theta)[0]
        for theta in (objective.theta, (objective.theta + other) / 2, other)
    )
    difference = middle - (start + end) / 2
    assert profile.excess[1] == pytest.approx(float(difference.mean()))
    assert profile.excess_stderr[1] == pytest.approx(float(difference.std()) / 23**0.5)
    assert profile.accuracy[0] == float(objective.accuracy())
    assert profile.examples == 23
    assert list(profile.table().columns)[:2] == ["loss", "loss_stderr"]


def test_two_seeds_are_separated_by_a_barrier():
    data = lc.load("digits", subset=(600, 300))
    thetas = []
    for seed in (0, 42):
        model = lc.MLP(data.input_shape, data.classes, width=16, seed=seed)
        lc.train(model, data, lc.TrainConfig(epochs=15, seed=seed), progress=False)
        objective = lc.Objective(model, F.cross_entropy, data.test)
        thetas.append(objective.theta)
    height = lc.barrier(lc.path_profile(objective, lc.Segment(*thetas), points=21))
    assert height.value > 5 * height.stderr > 0


def test_bad_arguments_are_refused(objective):
    with pytest.raises(ValueError, match=r"vectors of one length, got \(3,\) and \(4,\)"):
        lc.Segment(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="points must be a whole number of at least 2, got 1"):
        lc.path_profile(objective, lc.Segment(objective.theta, objective.theta), 1)


def test_a_barrier_on_a_path_through_nan_is_refused(objective):
    theta = objective.theta
    profile = lc.path_profile(
        objective, lambda t: theta * float("nan") if 0 < t < 1 else theta.clone(), 5
    )
    with pytest.raises(ValueError, match=r"finite along the path, got nan or inf at t = 0\.25"):
        lc.barrier(profile)


def test_accuracies_have_the_error_of_a_proportion():
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(10 * torch.eye(3))
        model.bias.zero_()
    x = torch.eye(3).repeat(4, 1)
    objective = lc.Objective(model, F.cross_entropy, (x, x.argmax(1)))
    profile = lc.path_profile(objective, lc.Segment(objective.theta, objective.theta), 3)
    expected = objective.evaluate().accuracy
    assert expected.stderr > 0
    assert profile.accuracy.tolist() == [expected.value] * 3 == [1.0] * 3
    assert profile.accuracy_stderr.tolist() == [expected.stderr] * 3


def test_a_barrier_of_two_ends_is_refused(objective):
    theta = objective.theta
    profile = lc.path_profile(objective, lc.Segment(theta, -theta), 2)
    with pytest.raises(ValueError, match=r"needs a point between them: .* 3 points .* got 2"):
        lc.barrier(profile)
    assert lc.barrier(profile, "mean").value == pytest.approx(abs(np.diff(profile.loss)[0]) / 2)
    lost = lc.path_profile(objective, lc.Segment(theta, theta * float("nan")), 2)
    with pytest.raises(ValueError, match="finite along the path, got nan or inf at t = 1"):
        lc.barrier(lost)


def test_points_may_be_a_number_of_numpy(objective):
    line = lc.Segment(objective.theta, -objective.theta)
    found = lc.path_profile(objective, line, np.int64(3))
    assert np.array_equal(found.loss, lc.path_profile(objective, line, 3).loss)
    assert lc.path_length(line, np.int64(3)) == lc.path_length(line, 3)
    curves = [lc.Bezier(line.theta_a, line.theta_b, bends) for bends in (2, np.int64(2))]
    assert torch.equal(*(curve.points for curve in curves))
