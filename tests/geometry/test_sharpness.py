"""Perturbation flatness against the quadratic bowl."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc


def regression(features=6, examples=40, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=rng, dtype=torch.float64)
    x = x * torch.linspace(0.3, 3, features, dtype=torch.float64)
    y = torch.randn(examples, 1, generator=rng, dtype=torch.float64)
    model = nn.Linear(features, 1, bias=False).double()
    objective = lc.Objective(model, F.mse_loss, (x, y))
    return objective, 2 / examples * x.T @ x


def test_mean_rise_on_a_sphere_is_radius_squared_times_trace_over_two_n():
    objective, hessian = regression()
    profile = lc.flatness_profile(objective, [0.1, 1.0, 10.0], directions=4000)
    for radius, rise in zip(profile.radii, profile.rises, strict=True):
        expected = radius**2 * float(hessian.trace()) / (2 * 6)
        assert abs(rise.value - expected) < 4 * rise.stderr
        assert rise.stderr < 0.02 * expected


def test_both_signs_of_a_direction_cancel_the_slope_exactly():
    # Far from the minimum the slope dominates each sample, and leaves the mean untouched.
    objective, hessian = regression()
    far = objective.theta + 100
    profile = lc.flatness_profile(objective, [1e-3], directions=500, theta=far)
    expected = 1e-6 * float(hessian.trace()) / 12
    assert np.abs(profile.samples).max() > 100 * expected
    assert abs(profile.rises[0].value - expected) < 5 * profile.rises[0].stderr + 1e-9


def test_rises_at_several_radii_share_their_directions():
    objective, _ = regression()
    profile = lc.flatness_profile(objective, [1.0, 2.0], directions=5)
    even = profile.samples.mean(axis=2)
    np.testing.assert_allclose(even[1], 4 * even[0], rtol=1e-9)
    assert list(profile.table().index) == [1.0, 2.0]
    assert profile.table()["largest"].iloc[0] == profile.samples[0].max()


@pytest.mark.parametrize(
    ("radii", "options", "message"),
    [
        ([0.1, -0.1], {}, "radius must be positive and finite, got -0.1"),
        ([0.0], {}, "radius must be positive and finite, got 0.0"),
        ([float("inf")], {}, "radius must be positive and finite, got inf"),
        ([], {}, "at least one number"),
        ([1.0], {"directions": 1}, "directions must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_refused(radii, options, message):
    with pytest.raises(ValueError, match=message):
        lc.flatness_profile(regression()[0], radii, **options)
