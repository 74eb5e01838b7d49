"""Curves with bends: exact ends, and fits that go around a barrier."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc

KINDS = [lc.Bezier, lc.Polygon]


@pytest.mark.parametrize("bends", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_exact_bit_for_bit(kind, bends):
    a, b = torch.randn(100), torch.randn(100) * 1e-3
    curve = kind(a, b, bends)
    assert torch.equal(curve(0.0), a)
    assert torch.equal(curve(1.0), b)


@pytest.mark.parametrize("bends", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_unbent_curves_are_the_segment(kind, bends):
    a, b = torch.randn(2, 100, dtype=torch.float64)
    curve, line = kind(a, b, bends), lc.Segment(a, b)
    for t in np.linspace(0, 1, 17):
        torch.testing.assert_close(curve(t), line(t), rtol=0, atol=1e-14)
        assert sum(curve.weights(t)) == pytest.approx(1)
    assert lc.path_length(curve) == pytest.approx(float((b - a).norm()))


def test_a_quadratic_bezier_is_the_polynomial():
    a, b, c = torch.randn(3, 10, dtype=torch.float64)
    curve = lc.Bezier(a, b, [c])
    torch.testing.assert_close(curve(0.3), 0.49 * a + 0.42 * c + 0.09 * b)


def test_a_polygon_passes_through_its_corners():
    a, b, c, d = torch.randn(4, 10, dtype=torch.float64)
    curve = lc.Polygon(a, b, [c, d])
    torch.testing.assert_close(curve(1 / 3), c)
    torch.testing.assert_close(curve(2 / 3), d)
    length = sum(float(x.norm()) for x in (c - a, d - c, b - d))
    assert lc.path_length(curve, 301) == pytest.approx(length, rel=1e-4)


def test_the_length_of_a_parabola():
    # (t, t (1 - t)): the integral of sqrt(1 + (1 - 2 t)^2) from 0 to 1.
    a, b, c = torch.tensor([[0.0, 0], [1, 0], [0.5, 0.5]], dtype=torch.float64)
    exact = (math.sqrt(2) + math.asinh(1)) / 2
    assert lc.path_length(lc.Bezier(a, b, [c]), 1001) == pytest.approx(exact, rel=1e-6)


@pytest.fixture(scope="module")
def two_seeds():
    """Objectives of two networks on the same images."""
    data = lc.load("digits", subset=(600, 300))
    objectives = []
    for seed in (0, 42):
        model = lc.MLP(data.input_shape, data.classes, width=32, seed=seed)
        lc.train(model, data, lc.TrainConfig(epochs=15, seed=seed), progress=False)
        objectives.append(lc.Objective(model, F.cross_entropy, data.train))
    return objectives


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_curve_goes_around_the_barrier_of_the_line(two_seeds, kind):
    a, b = (each.theta for each in two_seeds)
    objective = two_seeds[0]
    line = lc.barrier(lc.path_profile(objective, lc.Segment(a, b), 21))
    start = kind(a, b)
    before = start.points.clone()
    curve = lc.fit_path(objective, start, epochs=40, lr=0.05, validation=objective)
    around = lc.barrier(lc.path_profile(objective, curve, 21))
    assert around.value < 0.15 * line.value
    assert torch.equal(start.points, before)
    assert torch.equal(curve(0.0), a)
    assert torch.equal(curve(1.0), b)
    assert curve.history[-1].loss < curve.history[0].loss
    assert len(curve.history) == 40
    assert curve.history[-1].validation < line.value
    assert lc.path_length(curve) > float((a - b).norm())


def test_the_same_seed_fits_the_same_curve(two_seeds):
    a, b = (each.theta for each in two_seeds)
    curves = [lc.fit_path(two_seeds[0], lc.Bezier(a, b), epochs=2, seed=3) for _ in range(2)]
    assert torch.equal(*(curve.points for curve in curves))


def test_barriers_above_the_mean_of_the_ends(two_seeds):
    a, b = (each.theta for each in two_seeds)
    profile = lc.path_profile(two_seeds[0], lc.Segment(a, b), 11)
    ends = (profile.loss[0] + profile.loss[-1]) / 2
    assert lc.barrier(profile, "mean").value == pytest.approx(profile.loss.max() - ends)
    wrong = 1 - profile.accuracy
    height = lc.barrier(profile, "mean", of="error").value
    assert height == pytest.approx(wrong.max() - (wrong[0] + wrong[-1]) / 2)


def test_a_fit_that_diverges_says_so(two_seeds):
    a, b = (each.theta for each in two_seeds)
    with pytest.raises(FloatingPointError, match="the loss must stay finite, got"):
        lc.fit_path(two_seeds[0], lc.Bezier(a, b), epochs=3, lr=1e12)


X = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: lc.Bezier(X, X, 0), ValueError, "bends must be at least 1, got 0"),
        (lambda: lc.Bezier(X, X, []), ValueError, "at least one vector"),
        (lambda: lc.Bezier(X, torch.zeros(4)), ValueError, "vectors of one length"),
        (lambda: lc.Polygon(X, X, [torch.zeros(4)]), ValueError, "vectors of one length"),
        (lambda: lc.path_length(lc.Segment(X, X), 1), ValueError, "points must be a whole"),
    ],
)
def test_bad_curves_get_one_sentence(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_bad_fits_get_one_sentence():
    model = nn.Linear(3, 1, bias=False)
    objective = lc.Objective(model, F.mse_loss, (torch.randn(5, 3), torch.randn(5, 1)))
    with pytest.raises(TypeError, match="path must have bends to fit"):
        lc.fit_path(objective, lc.Segment(X, X))
    with pytest.raises(ValueError, match="the start of path must be a tensor of shape"):
        lc.fit_path(objective, lc.Bezier(torch.zeros(4), torch.zeros(4)))
    with pytest.raises(ValueError, match="epochs must be a whole number >= 1, got 0"):
        lc.fit_path(objective, lc.Bezier(X, X), epochs=0)
    with pytest.raises(ValueError, match="lr must be positive"):
        lc.fit_path(objective, lc.Bezier(X, X), lr=-1)
    profile = lc.path_profile(objective, lc.Segment(X, X + 1), 3)
    with pytest.raises(ValueError, match="the error rate needs class labels"):
        lc.barrier(profile, "mean", of="error")
    with pytest.raises(ValueError, match="above must be 'line' or 'mean'"):
        lc.barrier(profile, "top")


def test_a_matrix_of_barriers_holds_those_of_its_pairs(two_seeds):
    a, b = two_seeds
    found = lc.barrier_matrix([a, b, a], points=7)
    height = lc.barrier(lc.path_profile(a, lc.Segment(a.theta, b.theta), 7))
    assert found.heights[0, 1] == height.value
    assert found.errors[0, 1] == height.stderr
    assert found.heights[0, 2] == 0
    assert np.array_equal(found.heights, found.heights.T)
    assert list(found.pairs) == [found.heights[0, 1], 0, found.heights[1, 2]]
    assert list(found.table(["a", "b", "c"]).columns) == ["a", "b", "c"]
    matched = lc.barrier_matrix([a, b], points=7, match="weights")
    assert matched.heights[0, 1] < found.heights[0, 1]
    with pytest.raises(ValueError, match="at least two objectives are needed, got 1"):
        lc.barrier_matrix([a])


def normalized(count, policy="refresh"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    data = torch.randn(count, 4), torch.arange(count) % 3
    return lc.Objective(model, F.cross_entropy, data, batchnorm=policy)


def test_an_example_that_is_left_over_joins_the_batch_before_it():
    objective, sizes = normalized(17), []
    honest = objective.criterion

    def watching(outputs, targets):
        sizes.append(len(targets))
        return honest(outputs, targets)

    start = lc.Bezier(objective.theta, objective.theta + 0.1)
    objective.criterion = watching
    fitted = lc.fit_path(objective, start, epochs=1, lr=0.01, batch_size=8)
    assert sizes[-2:] == [8, 9]
    assert fitted.points.isfinite().all()
    with pytest.raises(ValueError, match="batch_size must be at least 2 for statistics of"):
        lc.fit_path(objective, start, epochs=1, batch_size=1)
    running = normalized(17, "eval")
    running.criterion, running_sizes = watching, len(sizes)
    lc.fit_path(running, start, epochs=1, lr=0.01, batch_size=8)
    assert sizes[running_sizes:][-3:] == [8, 8, 1]  # no statistics of batches


def test_fits_take_numbers_of_numpy_and_draw_on_the_cpu():
    objective = normalized(17)
    objective.sample(torch.arange(2))
    start = lc.Bezier(objective.theta, objective.theta + 0.1)
    here = lc.fit_path(objective, start, epochs=2, lr=0.01, batch_size=8)
    numpy = lc.fit_path(objective, start, epochs=np.int64(2), lr=0.01, batch_size=np.int64(8))
    assert torch.equal(numpy.points, here.points)
    with torch.device("meta"):
        there = lc.fit_path(objective, start, epochs=2, lr=0.01, batch_size=8)
    assert torch.equal(there.points, here.points)
