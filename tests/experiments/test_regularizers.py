"""Regularizers of training, against their formulas."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape_core as lc
from landscape_core.curvature.probes import probe

SEED = 5


def problem(activation=nn.GELU, dtype=torch.float64, count=12):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 4)).to(dtype)
    batch = torch.randn(count, 3, dtype=dtype), torch.arange(count) % 4
    return model, batch


def step_of(regularizer, model, batch, criterion=F.cross_entropy):
    rng = torch.Generator().manual_seed(SEED)
    parameters = list(model.parameters())
    return regularizer.step(lambda x, y: criterion(model(x), y), parameters, batch, rng)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def penalty_by_hand(objective, theta, halves, kind, probes):
    """The mean over probes of (H_1 v)'(H_2 v), from dense Hessians, over B."""
    first, second = (lc.Hessian(o, theta).dense() for o in halves)
    rng = torch.Generator().manual_seed(SEED)
    drawn = [probe(objective.n, theta.dtype, rng, kind) for _ in range(probes)]
    return sum((first @ v) @ (second @ v) for v in drawn) / probes / objective.examples


@pytest.mark.parametrize("two_batches", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_the_flatness_penalty_is_its_formula_and_descends_its_own_gradient(
    two_batches, kind, activation
):
    model, batch = problem(activation)
    weight = 0.7
    found = step_of(lc.FlatnessPenalty(weight, 2, kind, two_batches), model, batch)
    objective = lc.Objective(model, F.cross_entropy, batch)
    cut = 6 if two_batches else 12
    parts = [slice(0, cut), slice(12 - cut, 12)]
    halves = [
        lc.Objective(model, F.cross_entropy, tuple(t[part] for t in batch)) for part in parts
    ]

    def whole(theta):
        penalty = penalty_by_hand(objective, theta, halves, kind, 2)
        return float(objective.loss(theta) + weight * penalty)

    theta = objective.theta
    assert float(found.loss) == pytest.approx(float(objective.loss()), rel=1e-12)
    expected = weight * penalty_by_hand(objective, theta, halves, kind, 2)
    assert float(found.penalty) == pytest.approx(float(expected), rel=1e-9)
    gradient = flat(found.gradients)
    for direction in torch.randn(3, objective.n, dtype=torch.float64):
        ahead, behind = (whole(theta + s * 1e-5 * direction) for s in (1, -1))
        assert float(gradient @ direction) == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)


def test_two_batches_estimate_the_trace_of_the_square_and_one_adds_the_variance():
    # For linear regression the Hessian of an example is 2 x x', whatever the weights.
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.zeros(40, 1, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    each = 2 * x[:, :, None] * x[:, None, :]
    hessian = each.mean(0)
    square, size = float(hessian.square().sum()), 4
    variance = float((each - hessian).square().sum((1, 2)).mean())
    expected = {True: square, False: square + variance / size}
    rng = torch.Generator().manual_seed(1)
    for two_batches, value in expected.items():
        penalty = lc.FlatnessPenalty(1.0, 3, two_batches=two_batches)
        samples = []
        for _ in range(3000):
            rows = torch.randint(40, (size,), generator=rng)
            found = penalty.step(
                lambda a, b: F.mse_loss(model(a), b), [model.weight], (x[rows], y[rows]), rng
            )
            samples.append(float(found.penalty) * size)
        mean, error = np.mean(samples), np.std(samples) / math.sqrt(len(samples))
        assert abs(mean - value) < 4 * error
        assert error < 0.1 * (expected[False] - square)  # the test tells the two apart


@pytest.mark.parametrize("two_batches", [False, True])
def test_the_gradient_penalty_adds_a_product_with_the_hessian(two_batches):
    model, batch = problem()
    found = step_of(lc.GradientPenalty(0.3, two_batches), model, batch)
    objective = lc.Objective(model, F.cross_entropy, batch)
    parts = [slice(0, 6), slice(6, 12)] if two_batches else [slice(0, 12)] * 2
    halves = [lc.Objective(model, F.cross_entropy, tuple(t[p] for t in batch)) for p in parts]
    (g1, g2), (h1, h2) = zip(*[(o.gradient(), lc.Hessian(o)) for o in halves], strict=True)
    assert float(found.penalty) == pytest.approx(0.3 * float(g1 @ g2), rel=1e-9)
    expected = objective.gradient() + 0.3 * (h1 @ g2 + h2 @ g1)
    torch.testing.assert_close(flat(found.gradients), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_takes_the_gradient_at_the_end_of_its_step_and_comes_back(adaptive):
    model, batch = problem()
    before = copy.deepcopy(model.state_dict())
    radius, offset = 0.2, 0.01
    found = step_of(lc.SAM(radius, adaptive, offset), model, batch)
    objective = lc.Objective(model, F.cross_entropy, batch)
    theta, slope = objective.theta, objective.gradient()
    scale = theta.abs() + offset if adaptive else torch.ones_like(theta)
    moved = theta + radius * scale.square() * slope / (scale * slope).norm()
    torch.testing.assert_close(flat(found.gradients), objective.gradient(moved))
    rise = float(objective.loss(moved) - objective.loss())
    assert float(found.penalty) == pytest.approx(rise, rel=1e-9)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_step_of_asam_does_not_see_a_rescaling_and_that_of_sam_does():
    model, batch = problem(nn.ReLU)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight *= 10
        scaled[0].bias *= 10
        scaled[2].weight /= 10
    rises = {
        adaptive: [
            float(step_of(lc.SAM(0.05, adaptive, 0.0), m, batch).penalty)
            for m in (model, scaled)
        ]
        for adaptive in (False, True)
    }
    assert rises[True][0] == pytest.approx(rises[True][1], rel=1e-9)
    assert abs(rises[False][0] / rises[False][1] - 1) > 0.1


def test_sam_stays_where_there_is_no_slope():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    batch = torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    found = step_of(lc.SAM(0.5), model, batch, F.mse_loss)
    assert flat(found.gradients).tolist() == [0, 0]
    assert float(found.penalty) == 0


def test_label_noise_replaces_the_fraction_that_it_says():
    model, (x, y) = problem(count=4000)
    seen = []

    def loss(inputs, targets):
        seen.append(targets)
        return F.cross_entropy(model(inputs), targets)

    rng = torch.Generator().manual_seed(0)
    for fraction in (0.0, 0.4, 1.0):
        lc.LabelNoise(fraction, 4).step(loss, list(model.parameters()), (x, y), rng)
        changed = float((seen[-1] != y).double().mean())
        error = math.sqrt(fraction * 0.75 * (1 - fraction * 0.75) / 4000)
        assert abs(changed - 0.75 * fraction) <= 4 * error


def trained(regularizer=None, epochs=3, batchnorm=False, seed=0, **options):
    data = lc.load("digits", subset=(300, 100))
    model = lc.MLP(data.input_shape, data.classes, width=16, batchnorm=batchnorm, seed=seed)
    config = lc.TrainConfig(epochs=epochs, seed=seed, **options)
    history = lc.train(model, data, config, regularizer=regularizer, progress=False)
    return lc.Objective(model, F.cross_entropy, data.train), history, model


@pytest.mark.parametrize(
    "nothing", [lc.FlatnessPenalty(0.0), lc.GradientPenalty(0.0), lc.LabelNoise(0.0, 10)]
)
def test_a_regularizer_of_weight_zero_trains_as_without_one(nothing):
    plain, history, _ = trained()
    same, other, _ = trained(nothing)
    torch.testing.assert_close(same.theta, plain.theta, rtol=1e-4, atol=1e-5)
    assert other.epochs[-1].train_accuracy == history.epochs[-1].train_accuracy
    assert other.epochs[-1].penalty == 0


def test_training_with_a_penalty_lowers_what_is_penalized_and_records_it():
    plain, _, _ = trained(epochs=10)
    flat_one, history, _ = trained(lc.FlatnessPenalty(3.0), epochs=10)
    before, after = (lc.trace_of_square(lc.Hessian(o), 64).value for o in (plain, flat_one))
    assert after < 0.5 * before
    assert all(epoch.penalty > 0 for epoch in history.epochs)
    again, _, _ = trained(lc.FlatnessPenalty(3.0), epochs=10)
    assert torch.equal(again.theta, flat_one.theta)


def test_sam_lowers_the_largest_eigenvalue():
    # Foret et al. 2021, in small: the same seeds with and without.
    ratios = []
    for seed in range(3):
        tops = [
            float(lc.top_eigenpairs(lc.Hessian(objective), 1, "LA").values[0])
            for objective, _, _ in (
                trained(None, 20, seed=seed),
                trained(lc.SAM(0.1), 20, seed=seed),
            )
        ]
        ratios.append(tops[1] / tops[0])
    assert max(ratios) < 0.9, ratios


@pytest.mark.parametrize(
    "regularizer", [lc.SAM(0.05), lc.FlatnessPenalty(0.0, 1), lc.GradientPenalty(0.0)]
)
def test_running_statistics_follow_the_first_pass_only(regularizer):
    # One step, from the same weights: the statistics are those of one pass.
    options = {"epochs": 1, "batchnorm": True, "batch_size": 300}
    _, _, plain = trained(**options)
    _, _, watched = trained(regularizer, **options)
    for (name, a), (_, b) in zip(plain.named_buffers(), watched.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lc.FlatnessPenalty(-1), "weight must be 0 or more and finite, got -1"),
        (lambda: lc.FlatnessPenalty(1, 0), "probes must be a whole number >= 1, got 0"),
        (lambda: lc.FlatnessPenalty(1, 3, "sphere"), "distribution must be 'gaussian' or"),
        (lambda: lc.GradientPenalty(math.nan), "weight must be 0 or more and finite, got nan"),
        (lambda: lc.SAM(0.0), "radius must be positive and finite, got 0"),
        (lambda: lc.SAM(0.1, True, -1.0), "offset must be 0 or more and finite, got -1"),
        (lambda: lc.LabelNoise(1.5, 10), "fraction must be from 0 to 1, got 1.5"),
        (lambda: lc.LabelNoise(0.5, 1), "classes must be a whole number >= 2, got 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_halves_need_two_examples():
    model, (x, y) = problem()
    with pytest.raises(ValueError, match="need at least 2 examples, got 1"):
        step_of(lc.GradientPenalty(1.0, two_batches=True), model, (x[:1], y[:1]))


@pytest.mark.parametrize(
    "regularizer", [lc.FlatnessPenalty(0.1, 1), lc.GradientPenalty(0.1), lc.SAM(0.05)]
)
def test_images_with_channels_last_are_regularized_too(regularizer):
    data = lc.load("digits", subset=(100, 50))
    ends = []
    for precision in ("auto", "float32"):
        model = lc.SmallCNN(data.input_shape, data.classes, width=2)
        config = lc.TrainConfig(epochs=1, precision=precision)
        lc.train(model, data, config, regularizer=regularizer, progress=False)
        ends.append(lc.Objective(model, F.cross_entropy, data.train).loss())
    torch.testing.assert_close(*ends, rtol=0.05, atol=0.05)
