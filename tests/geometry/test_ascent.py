"""The worst case in a ball, against quadratics and under rescaling."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import relative
from test_sharpness import regression
from torch import nn

import landscape_core as lc
from landscape_core.geometry.balls import Ball


def minimum(objective, hessian):
    """Theta at the minimum of a regression."""
    return objective.theta - torch.linalg.solve(hessian, objective.gradient())


def rescaled(model, factors=(4.0, 0.1)):
    """The same function of a ReLU network with other weights."""
    twin = lc.MLP((64,), 10, width=12).double()
    twin.load_state_dict(model.state_dict())
    linears = [m for m in twin.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for before, after, c in zip(linears[:-1], linears[1:], factors, strict=True):
            before.weight *= c
            before.bias *= c
            after.weight /= c
    return twin


@pytest.fixture(scope="module")
def twins():
    """Two objectives of one function, with different weights."""
    data = lc.load("digits", subset=(200, 10))
    x, y = data.train.inputs.double().flatten(1), data.train.targets
    model = lc.MLP((64,), 10, width=12, seed=1)
    lc.train(model, data, lc.TrainConfig(epochs=5), progress=False)
    model = model.double()
    objectives = [lc.Objective(m, F.cross_entropy, (x, y)) for m in (model, rescaled(model))]
    assert relative(objectives[1].loss(), objectives[0].loss()) < 1e-12
    return objectives


@pytest.mark.parametrize("radius", [0.01, 1.0])
def test_on_a_quadratic_it_is_half_the_top_eigenvalue_times_the_radius_squared(radius):
    objective, hessian = regression()
    at = minimum(objective, hessian)
    found = lc.worst_sharpness(objective, radius, theta=at, steps=60, restarts=2)
    expected = 0.5 * radius**2 * float(torch.linalg.eigvalsh(hessian)[-1])
    assert found.rise == pytest.approx(expected, rel=1e-4)
    assert found.delta.norm() == pytest.approx(radius, rel=1e-12)
    assert found.rise == pytest.approx(
        float(objective.loss(at + found.delta) - objective.loss(at)), rel=1e-6
    )
    assert found.gradients == 1 + 3 * 60


def test_one_step_is_the_step_of_sam():
    objective, _ = regression()
    g = objective.gradient()
    rise = objective.loss(objective.theta + 0.1 * g / g.norm()) - objective.loss()
    found = lc.worst_sharpness(objective, 0.1, steps=1, restarts=0)
    assert found.one_step == pytest.approx(float(rise), rel=1e-9)
    assert found.rise == found.one_step


def test_one_adaptive_step_is_the_step_of_asam():
    objective, _ = regression()
    t, g = objective.theta.abs(), objective.gradient()
    step = 0.1 * t**2 * g / (t * g).norm()
    rise = objective.loss(objective.theta + step) - objective.loss()
    found = lc.worst_sharpness(objective, 0.1, adaptive="element", steps=1, restarts=0)
    assert found.rise == pytest.approx(float(rise), rel=1e-9)


def test_the_largest_change_of_a_weight_is_bounded():
    objective, _ = regression()
    found = lc.worst_sharpness(objective, 0.1, norm="linf", steps=30, restarts=4)
    corners = torch.cartesian_prod(*[torch.tensor([-0.1, 0.1], dtype=torch.float64)] * 6)
    best = max(float(objective.loss(objective.theta + c) - objective.loss()) for c in corners)
    assert found.delta.abs().max() <= 0.1 + 1e-12
    assert found.rise == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("adaptive", ["element", "filter"])
@pytest.mark.parametrize(
    "measure",
    [
        lambda o, a: lc.worst_sharpness(o, 0.05, adaptive=a, steps=5, restarts=0).rise,
        lambda o, a: lc.m_sharpness(o, 0.05, 40, adaptive=a).value,
        lambda o, a: float(lc.relative_curvature(o, adaptive=a, tol=1e-8).values[0]),
        lambda o, a: lc.random_sharpness(o, 0.05, adaptive=a, directions=4).mean.value,
        lambda o, a: lc.noise_robustness(o, [0.1], adaptive=a, draws=4).loss[0].value,
    ],
)
def test_adaptive_measures_do_not_change_under_rescaling(twins, measure, adaptive):
    assert measure(twins[1], adaptive) == pytest.approx(measure(twins[0], adaptive), rel=1e-6)


@pytest.mark.parametrize(
    "measure",
    [
        lambda o: lc.worst_sharpness(o, 0.05, steps=5, restarts=0).rise,
        lambda o: lc.worst_sharpness(o, 0.01, norm="linf", steps=5, restarts=0).rise,
        lambda o: lc.m_sharpness(o, 0.05, 40).value,
        lambda o: lc.box_sharpness(o, 1e-3, steps=5, restarts=0),
        lambda o: lc.random_sharpness(o, 0.05, directions=4).mean.value,
        lambda o: float(lc.relative_curvature(o, adaptive="none").values[0]),
    ],
)
def test_raw_measures_do(twins, measure):
    assert measure(twins[1]) != pytest.approx(measure(twins[0]), rel=0.05)


def test_small_groups_are_sharper(twins):
    small, large = (lc.m_sharpness(twins[0], 0.05, m) for m in (10, 200))
    whole = lc.worst_sharpness(twins[0], 0.05, steps=1, restarts=0)
    assert large.value == pytest.approx(whole.rise, rel=1e-9)
    assert small.value > large.value + 3 * small.stderr
    assert small.samples == 20


def test_the_box_measure_is_in_per_cent_of_one_plus_the_loss():
    objective, _ = regression()
    value = lc.box_sharpness(objective, 0.01, steps=30)
    widths = 0.01 * (objective.theta.abs() + 1)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 6) * widths
    base = float(objective.loss())
    best = max(float(objective.loss(objective.theta + c)) for c in corners)
    assert value == pytest.approx(100 * (best - base) / (1 + base), rel=1e-9)


def test_a_point_without_slope_is_left_at_random():
    objective, hessian = regression()
    exact = minimum(objective, hessian)
    found = lc.worst_sharpness(objective, 0.1, theta=exact, steps=3)
    assert math.isfinite(found.rise)
    assert found.rise > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: lc.worst_sharpness(o, -1.0), "radius must be positive and finite, got -1.0"),
        (lambda o: lc.worst_sharpness(o, 0.1, norm="l1"), "norm must be one of 'l2', 'linf'"),
        (lambda o: lc.worst_sharpness(o, 0.1, norm="sigma"), "needs a bounded ball"),
        (lambda o: lc.worst_sharpness(o, 0.1, adaptive=True), "adaptive must be one of 'none'"),
        (lambda o: lc.worst_sharpness(o, 0.1, steps=0), "steps must be a whole number >= 1"),
        (lambda o: lc.m_sharpness(o, 0.1, 41), "m must be a whole number from 1 to 40"),
        (lambda o: lc.m_sharpness(o, 0.1, 4, groups=0), "groups must be a whole number >= 1"),
        (lambda o: lc.box_sharpness(o, 0.0), "radius must be positive and finite, got 0.0"),
        (lambda o: lc.random_sharpness(o, 0.1, norm="linf"), "'l2' or 'sigma', got 'linf'"),
        (lambda o: lc.noise_robustness(o, []), "at least one number"),
        (lambda o: lc.noise_robustness(o, [0.1], draws=1), "draws must be at least 2"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    objective, _ = regression()
    with pytest.raises(ValueError, match=message):
        call(objective)


def test_the_worst_rise_is_that_of_theta_itself_where_all_around_is_lower():
    x, y = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    model = nn.Linear(1, 1).double()
    nn.init.zeros_(model.bias)
    hill = lc.Objective(model, lambda out, target: -((out - target) ** 2).mean(), (x, y))
    found = lc.worst_sharpness(hill, 0.3, restarts=2)
    assert found.rise == 0.0
    assert not found.delta.any()
    assert lc.m_sharpness(hill, 0.3, m=2).value == 0.0


def normalized(policy="refresh"):
    """A network with BatchNorm, whose statistics change with theta."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    data = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 3
    return lc.Objective(model.double(), F.cross_entropy, data, batchnorm=policy)


def test_the_worst_rise_is_one_of_the_loss_whose_statistics_are_refreshed():
    objective = normalized()
    base = objective.loss()
    found = lc.worst_sharpness(objective, 0.5, steps=10)
    rise = objective.loss(objective.theta + found.delta) - base
    assert found.rise == pytest.approx(float(rise), rel=1e-9)
    assert found.starts.max() == found.rise >= found.one_step
    g = objective.gradient()
    first = objective.loss(objective.theta + 0.5 * g / g.norm()) - base
    assert found.one_step == pytest.approx(float(first), rel=1e-9)
    # What the search itself goes by is a loss at fixed statistics, which rises further.
    held = objective.statistics(objective.theta)
    batch = next(objective.batches())
    fixed = objective.batch_loss(objective.theta + found.delta, batch, held) - base
    assert abs(float(fixed - rise)) > 0.01


def test_the_box_measure_is_one_of_the_refreshed_loss_too():
    objective = normalized()
    value = lc.box_sharpness(objective, 0.1, steps=1, restarts=0)
    step = 0.1 * (objective.theta.abs() + 1) * objective.gradient().sign()
    base, top = (float(objective.loss(at)) for at in (objective.theta, objective.theta + step))
    assert value == pytest.approx(100 * (top - base) / (1 + base), rel=1e-9)


def test_groups_are_measured_at_the_statistics_of_theta():
    objective = normalized()
    g = objective.gradient()
    held, batch = objective.statistics(objective.theta), next(objective.batches())
    top = objective.batch_loss(objective.theta + 0.5 * g / g.norm(), batch, held)
    value = lc.m_sharpness(objective, 0.5, m=60).value
    assert value == pytest.approx(float(top - objective.loss()), rel=1e-9)


def test_numbers_may_be_those_of_numpy():
    objective, _ = regression()
    found = lc.worst_sharpness(
        objective, np.float32(0.25), steps=np.int64(3), restarts=np.int32(0)
    )
    assert found.rise == lc.worst_sharpness(objective, 0.25, steps=3, restarts=0).rise
    assert type(found.ball.radius) is float
    assert type(found.gradients) is int
    value = lc.m_sharpness(objective, 0.25, np.int64(5), groups=np.int64(2))
    assert value == lc.m_sharpness(objective, 0.25, 5, groups=2)
    with pytest.raises(ValueError, match=r"steps must be a whole number >= 1, got 2\.5"):
        lc.worst_sharpness(objective, steps=2.5)
    with pytest.raises(ValueError, match="radius must be positive and finite, got True"):
        lc.worst_sharpness(objective, True)


def test_groups_are_drawn_on_the_cpu_whatever_the_default_device():
    objective, _ = regression()
    objective.sample(torch.arange(2))
    here = lc.m_sharpness(objective, 0.1, 5)
    with torch.device("meta"):
        assert lc.m_sharpness(objective, 0.1, 5) == here


def upsampling(scale, groups):
    """A network with a transposed convolution, its channels rescaled by `scale` and back."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 4, 2, bias=False, groups=groups), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 3, bias=False),
    ).double()  # fmt: skip
    first, last = model[0].weight, model[3].weight
    with torch.no_grad():
        first.view(groups, 4 // groups, -1, 4).mul_(scale.view(groups, 1, -1, 1))
        last.view(3, 4, 9).div_(scale.view(1, 4, 1))
    data = torch.randn(20, 4, 2, 2, dtype=torch.float64), torch.arange(20) % 3
    return lc.Objective(model, F.cross_entropy, data)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_transposed_convolutions_are_their_output_channels(groups):
    scale = torch.tensor([10.0, 1, 0.1, 3], dtype=torch.float64)
    plain, twin = (upsampling(c, groups) for c in (torch.ones_like(scale), scale))
    assert relative(twin.loss(), plain.loss()) < 1e-12
    pieces = [
        o.space.unflatten(Ball(1.0, adaptive="filter").scale(o, o.theta))["0.weight"]
        for o in (plain, twin)
    ]
    ratio = (pieces[1] / pieces[0]).view(groups, 4 // groups, -1, 4)
    torch.testing.assert_close(ratio, scale.view(groups, 1, -1, 1).expand_as(ratio))
